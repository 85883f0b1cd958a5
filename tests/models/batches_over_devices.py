"""BatchNorm on eight simulated devices and on one, and the exchange of an EVA giant; prints one
JSON object.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.models.batches_over_devices
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import models
from models.layers import batch_norm
from train_lib.planning.collectives import read_collectives
from train_lib.runtime.sharding import batch_sharding, make_layout, make_mesh, on_mesh
from train_lib.runtime.trees import path_name

LAYERS, CHANNELS = 3, 6


class Net(nnx.Module):
    def __init__(self, rngs):
        self.norms = nnx.List(batch_norm(CHANNELS, rngs=rngs) for _ in range(LAYERS))

    def __call__(self, x):
        for norm in self.norms:
            x = norm(jnp.tanh(x) + 0.1 * x).astype(x.dtype)
        return x


def run(mesh, images, dtype):
    """(number of collectives, loss, statistics and gradients)"""
    graphdef, params, statistics = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.arange(leaf.size), params)

    def step(params, images):
        def loss(params, images):
            model = nnx.merge(graphdef, params, statistics, copy=True)
            y = model(images.astype(dtype)).astype(jnp.float32)
            wanted = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
            return jnp.sum(y * wanted), nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[2])

        (value, after), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, images)
        return value, after, nnx.to_pure_dict(gradients[0]), gradients[1]

    images = jax.device_put(images, batch_sharding(mesh))
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(on_mesh(step, mesh)).lower(params, images).compile()
    count = len(read_collectives(compiled.as_text()))
    return count, jax.tree.map(np.asarray, compiled(params, images))


def kinds_of_eva():
    """Kinds of collectives of the gradient of a small EVA giant with split weights."""
    mesh = make_mesh(dict(data=1, fsdp=8))
    layout = make_layout(dict(rules='auto', min_size=0), mesh)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: models.create_model(
        'eva_giant_patch14_224', 8, rngs=nnx.Rngs(0), img_size=28, embed_dim=32, depth=2,
        num_heads=2, mlp_ratio=2.0, scan=True)))
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=layout.of(path_name(path), leaf.shape)),
        nnx.to_pure_dict(params))
    images = jax.ShapeDtypeStruct((8, 28, 28, 3), jnp.float32, sharding=batch_sharding(mesh))
    gradient = jax.grad(lambda params, images: jnp.sum(nnx.merge(graphdef, params)(images) ** 2))
    compiled = jax.jit(on_mesh(gradient, mesh), out_shardings=jax.tree.map(
        lambda leaf: leaf.sharding, params)).lower(params, images).compile()
    return sorted({each.kind for each in read_collectives(compiled.as_text())})


def main():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(16, 5, 4, CHANNELS)).astype(np.float32)
    images[..., 1] += 300  # E[x^2] - E[x]^2 would be wrong by a tenth here
    images[..., 2] += 3 * np.arange(16)[:, None, None]  # the parts of the devices differ
    meshes = {name: make_mesh(sizes) for name, sizes in (
        ('one', dict(data=1, fsdp=1)), ('data', dict(data=8, fsdp=1)),
        ('both', dict(data=2, fsdp=4)))}
    found = {'errors': {}, 'layers': LAYERS}
    for dtype in ('float32', 'bfloat16'):
        _, one = run(meshes['one'], images, dtype)
        for name in ('data', 'both'):
            found['collectives'], several = run(meshes[name], images, dtype)
            leaves = zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True)
            found['errors'][f'{name} {dtype}'] = max(
                float(np.abs(a - b).max() / np.abs(a).max()) for a, b in leaves)
    found['eva'] = kinds_of_eva()
    print(json.dumps(found))


if __name__ == '__main__':
    main()
