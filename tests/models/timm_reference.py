"""Logits that timm computed with weights from a recipe, and the same weights for our models.

`reference/<model>.json` (or `meta` in the npz) lists the state_dict (key: shape), the input and the
seed; `reference/<model>.npz` holds timm's logits. The weights are not stored: each follows from
its key, its shape and the seed, so a reference takes kilobytes. `reference/make.py` writes more.
"""

import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models import create_model, eval_view
from models.pretrained import load_timm

FOLDER = Path(__file__).parent / 'reference'
infer = jax.jit(lambda model, x: eval_view(model)(x))


def by_recipe(key: str, shape: list[int], seed: int) -> np.ndarray:
    """The weight of a key, float32 (int64 for num_batches_tracked)."""
    if key.endswith('num_batches_tracked'):
        return np.zeros(shape, np.int64)
    rng = np.random.default_rng(zlib.crc32(key.encode()) + seed)
    normal = rng.standard_normal(shape).astype(np.float32)
    if key.endswith('running_var'):
        return 1 + 0.1 * np.abs(normal)
    if key.endswith('running_mean'):
        return 0.1 * normal
    if key.endswith('.weight'):
        if len(shape) > 1:
            return (normal / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        return 1 + 0.1 * normal
    if 'gamma_' in key:  # layer scale: blocks would be nothing beside the rest at .02
        return 0.5 + 0.1 * normal
    if key.endswith('relative_position_bias_table'):
        return normal
    return (0.1 if key.endswith(('.bias', 'q_bias', 'v_bias')) else 0.02) * normal


def reference(name: str) -> tuple[dict, np.ndarray]:
    """(meta data: model, kwargs, seed, input, state_dict; timm's logits [B, C])"""
    stored = np.load(FOLDER / f'{name}.npz', allow_pickle=False)
    text = str(stored['meta']) if 'meta' in stored else (FOLDER / f'{name}.json').read_text()
    return json.loads(text), stored['logits']


def references() -> list[str]:
    """The names of all references, sorted."""
    return sorted(path.stem for path in FOLDER.glob('*.npz')
                  if 'logits' in np.load(path, allow_pickle=False).files
                  and not path.stem.startswith('train_'))


def weights(meta: dict) -> dict[str, np.ndarray]:
    """The state_dict of a reference."""
    return {key: by_recipe(key, shape, meta['seed']) for key, shape in meta['state_dict'].items()}


def reference_images(meta: dict) -> np.ndarray:
    """The input of a reference, float32 [B, H, W, C]."""
    rng = np.random.default_rng(meta['seed'] + 1)
    return rng.standard_normal(meta['input']).astype(np.float32).transpose(0, 2, 3, 1)


def build(meta: dict, **kwargs):
    """Our model with the weights of a reference, without computing random ones first."""
    # timm's EVA-02 models for 224 px and those of DINOv3 have no classifier.
    num_classes = 0 if meta['model'].startswith(('eva02', 'vit')) and \
        'head.weight' not in meta['state_dict'] else 1000
    settings = {key: value for key, value in meta['kwargs'].items() if key != 'num_classes'}
    model = nnx.eval_shape(lambda: create_model(
        meta['model'], num_classes, rngs=nnx.Rngs(0), **settings, **kwargs))
    load_timm(model, weights(meta))
    return model


def difference(name: str) -> tuple[float, int]:
    """(largest difference of the logits in standard deviations of timm's; parameters)"""
    meta, logits = reference(name)
    model = build(meta)
    with jax.default_matmul_precision('highest'):
        ours = infer(model, jnp.asarray(reference_images(meta)))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return float(np.abs(ours - logits).max() / logits.std()), parameters
