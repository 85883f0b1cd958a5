"""Equal blocks one after another, or stacked under one scan.

Under a scan one module holds the parameters of all blocks, with a leading axis [depth], and XLA
compiles the block once: the compile time no longer grows with depth. The results are the same.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from models.layers import run_block

# What a block may keep for its gradient: 'all', or 'products', the results of these operations, and
# what follows from them is computed again. What is left are elementwise operations and sums, which
# read less than they would have written, and two kinds of small products, see `_is_kept`.
SAVED = ('products', 'all')
_PRODUCTS = (
    'dot_general', 'conv_general_dilated', 'dot_product_attention_fwd_wrapper',  # cuDNN's
    'custom_vjp_call',  # the products of float32_sums and matrix_product
    'lt')  # masks of dropout, one byte each, whose random numbers are expensive

# A product that sums over so few numbers is computed again: the second one of a low-rank adapter is
# as large as the output of its layer, and would be kept beside it.
_SHORT = 32


def _is_kept(primitive, *arrays, **settings) -> bool:
    """Of an operation within a block, a policy of `jax.checkpoint`."""
    if primitive.name == 'custom_vjp_call' and len(arrays) == 1:
        return False  # `stored.gradient` computes nothing
    if primitive.name == 'custom_vjp_call' and [array.ndim for array in arrays] == [2, 2]:
        return arrays[1].shape[0] > _SHORT  # `matrix_product`
    if primitive.name != 'dot_general':
        return primitive.name in _PRODUCTS
    left, right = (array.shape for array in arrays)
    (summed, _), (batch, _) = settings['dimension_numbers']
    sizes = [math.prod(left[axis] for axis in axes) for axes in (summed, batch)]
    if batch:  # attention: its weights are larger than queries and keys, and are computed again
        result = math.prod(left) * math.prod(right) // (sizes[0] ** 2 * sizes[1])
        return result <= max(math.prod(left), math.prod(right))
    return sizes[0] > _SHORT


def stack_blocks(blocks: nnx.List) -> nnx.Module:
    """One block whose variables are those of all blocks, stacked on a new first axis.

    The blocks may differ only in their values and in their rates of drop path, which `run_blocks`
    passes in.
    """
    parts = [nnx.split(block) for block in blocks]
    return nnx.merge(parts[-1][0], jax.tree.map(lambda *leaves: jnp.stack(leaves),
                                                *(state for _, state in parts)))


def unstack_blocks(blocks: nnx.Module, depth: int) -> list[Any]:
    """The inverse of `stack_blocks`."""
    graphdef, state = nnx.split(blocks)
    return [nnx.merge(graphdef, jax.tree.map(lambda leaf, i=i: leaf[i], state))
            for i in range(depth)]


def stack_params(params: dict) -> dict:
    """A pure dict of parameters: `blocks/<i>/...` becomes the stacked `blocks/...`."""
    blocks = [params['blocks'][i] for i in sorted(params['blocks'])]
    return params | dict(blocks=jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks))


def unstack_params(params: dict) -> dict:
    """The inverse of `stack_params`."""
    depth = len(jax.tree.leaves(params['blocks'])[0])
    return params | dict(blocks={i: jax.tree.map(lambda leaf, i=i: leaf[i], params['blocks'])
                                 for i in range(depth)})


def split_batch(x: jax.Array) -> jax.Array:
    """Shards x along its first axis over all devices of the current mesh, if there is one.

    In a loop over layers with sharded weights, XLA would otherwise gather the activations of the
    whole batch instead of the weights.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or x.shape[0] % mesh.size:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


def keep_whole(x: jax.Array) -> jax.Array:
    """Puts all of a small array on every device of the current mesh, if there is one.

    Where parts of arrays that are split are put side by side or cut, XLA otherwise moves the pieces
    from device to device, one exchange for each.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty or mesh.size == 1 else jax.lax.with_sharding_constraint(
        x, PartitionSpec())


def run_blocks(blocks: Any, x: jax.Array, rngs: nnx.Rngs | None, *extras,
               rates: tuple[float, ...], scan: bool, remat: bool, saved: str = 'all') -> jax.Array:
    """Passes x through all blocks: [B, N, D] -> same.

    Args:
        blocks: a list of blocks; with `scan`, the result of `stack_blocks`.
        x: tokens [B, N, D].
        rngs: for dropout, or None.
        extras: further arguments of every block.
        rates: rate of drop path of each block.
        scan: whether the blocks are stacked.
        remat: recompute the activations of each block in the gradient, for less memory.
        saved: without `remat` and under a scan, which of them are kept, see SAVED. A scan writes
            out whatever is kept, while XLA recomputes cheap parts of blocks that are not stacked.
    """
    if not scan:
        for block in blocks:
            x = run_block(block, x, rngs, *extras, remat=remat)
        return x

    graphdef, state = nnx.split(blocks)
    keys = None if rngs is None else jax.random.split(rngs.dropout(), len(rates))

    def body(x, layer):
        state, rate, key = layer
        block = nnx.merge(graphdef, state)
        x = split_batch(x)
        block_rngs = None if key is None else nnx.Rngs(dropout=key)
        return block(x, block_rngs, *extras, drop_path=rate if any(rates) else None), None

    # prevent_cse is for code outside a scan, where XLA would undo the recomputation.
    if remat:
        body = jax.checkpoint(body, prevent_cse=False)
    elif saved == 'products':
        body = jax.checkpoint(body, prevent_cse=False, policy=_is_kept)
    return jax.lax.scan(body, x, (state, jnp.array(rates, jnp.float32), keys))[0]
