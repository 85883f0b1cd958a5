"""A trained model as one program of StableHLO for several platforms and any batch size.

The weights are an argument of the program and not constants in it: a flatbuffer ends at 2 GB, and
XLA would compute with constants while it compiles, which takes long and may round otherwise.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from models.attention import IMPLEMENTATIONS
from train_lib.serving.trained_models import TrainedModel
from train_lib.training.preprocess_spec import DTYPES
from train_lib.training.step import as_heads, make_normalise

PLATFORMS = ('cpu', 'cuda', 'tpu')


@dataclasses.dataclass(frozen=True)
class Program:
    """A model without its project.

    Attributes:
        exported: ({name: array}, uint8 images [b, H, W, C]) -> float32 logits [b, classes], or
            {head: logits} of several heads. Normalisation and offsets are inside.
        weights: {name: array}, in float32 or as integers.
    """

    exported: export.Exported
    weights: dict[str, np.ndarray]


def make_program(trained: TrainedModel, platforms: Sequence[str] = PLATFORMS) -> Program:
    """Traces a model for these platforms, none of which needs to be here."""
    graphdef, state = nnx.split(_for_any_platform(trained.model))
    leaves, tree = jax.tree.flatten_with_path(state)
    dtypes = {_name(path): leaf.dtype for path, leaf in leaves}
    weights = {_name(path): _storable(np.asarray(jax.device_get(leaf))) for path, leaf in leaves}
    spec, heads = trained.preprocess, tuple(trained.classes)
    normalise = make_normalise(spec.mean, spec.std, DTYPES[trained.config.precision])

    def program(weights: dict[str, jax.Array], images: jax.Array):
        values = [weights[name].astype(dtype) for name, dtype in dtypes.items()]
        model = nnx.merge(graphdef, jax.tree.unflatten(tree, values))
        logits = {head: values.astype(jnp.float32) for head, values in
                  as_heads(model(normalise(images)), heads).items()}
        for head, offset in trained.offsets.items():
            if np.any(offset):
                logits[head] = logits[head] + offset
        return logits if len(heads) > 1 else logits[heads[0]]

    batch, = export.symbolic_shape('b')
    images = jax.ShapeDtypeStruct((batch, *spec.frame, spec.channels), np.uint8)
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype)
              for name, value in weights.items()}
    with _without_paths():
        exported = export.export(jax.jit(program), platforms=tuple(platforms))(shapes, images)
    return Program(exported, weights)


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """JAX writes for each operation where in which file it was called; of the user's machine."""
    key = 'jax_traceback_in_locations_limit'
    before = getattr(jax.config, key)
    jax.config.update(key, 0)
    try:
        yield
    finally:
        jax.config.update(key, before)


def _for_any_platform(model: nnx.Module) -> nnx.Module:
    """A copy whose attention is XLA's: cuDNN's is a call into one version of a library of NVIDIA,
    which jax.export does not promise to keep."""
    model = nnx.merge(*nnx.split(model))
    for _, module in nnx.iter_modules(model):
        if getattr(module, 'impl', None) in IMPLEMENTATIONS:
            module.impl = 'xla'  # type: ignore[attr-defined]
    return model


def _name(path: tuple) -> str:
    """'stages/0/conv1/kernel', without the word that nnx puts behind each variable."""
    return jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value')


def _storable(value: np.ndarray) -> np.ndarray:
    """NumPy's files know no bfloat16; float32 holds it exactly."""
    return value.astype(np.float32) if value.dtype == jnp.bfloat16 else value
