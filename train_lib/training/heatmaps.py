"""Heat maps: where in a picture a model finds evidence for a class.

CAM (Zhou et al., arXiv 1512.04150) where the mean of the last maps goes to a linear head, as the
logit is then a sum over positions; Grad-CAM (Selvaraju et al., arXiv 1610.02391) elsewhere. For
transformers also attention rollout (Abnar and Zuidema, arXiv 2005.00928), which knows no class.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import models
from input_pipeline import loader
from input_pipeline.atomic_files import atomic_open
from input_pipeline.manifest import Manifest
from input_pipeline.pictures import PreprocessSpec, as_rgb
from models.heads import Classifier, LinearHead
from models.transformer import Transformer
from train_lib.metrics.scores import confident_errors
from train_lib.metrics.set_scores import confident_set_errors
from train_lib.runtime.sharding import gather, on_mesh, shard_batch
from train_lib.training.state import Weights
from train_lib.training.step import as_heads

_BATCH = 8
_SIDE = 192  # pixels of a stored picture at most


def method_of(model: Classifier, head: str = '') -> str:
    """'CAM' or 'Grad-CAM': how the class map of a head is made. `head` is '' for a lone one."""
    layer = model.heads[head] if head else model.head
    by_mean = type(model).pool is Classifier.pool
    return 'CAM' if by_mean and type(layer) is LinearHead else 'Grad-CAM'


def class_map(model: Classifier, images: jax.Array, classes: jax.Array, head: str = ''
              ) -> jax.Array:
    """Evidence for a class, by `method_of`; float32 [B, h, w].

    Args:
        model: for inference, see `models.eval_view`.
        images: normalised, [B, H, W, C].
        classes: int [B], the class in question.
        head: name of the head, '' for a lone one.
    """
    make = cam if method_of(model, head) == 'CAM' else grad_cam
    return make(model, images, classes, head)


def cam(model: Classifier, images: jax.Array, classes: jax.Array, head: str = '') -> jax.Array:
    """Class activation maps of a mean and a linear head, signed, float32 [B, h, w]: their sum over
    the positions and the bias is the logit. Arguments: see `class_map`."""
    layer: Any = model.heads[head] if head else model.head
    maps = model.forward_features(images).astype(jnp.float32)
    kernel = layer.kernel[...][:, classes]
    return jnp.einsum('bhwd,db->bhw', maps, kernel) / math.prod(maps.shape[1:3])


def grad_cam(model: Classifier, images: jax.Array, classes: jax.Array, head: str = ''
             ) -> jax.Array:
    """The maps under the head, weighted by the mean gradient of the class's logit, where positive;
    float32 [B, h, w]. Arguments: see `class_map`.

    Of a transformer the tokens before its last block: after it the class token alone, or the mean
    alone, reaches the head, and no patch is told from another.
    """
    if isinstance(model, Transformer):
        *early, last = model.each_block()
        inputs = model.block_inputs()
        features = model.embed(images)
        for block in early:
            features = block(features, None, *inputs)
        rest = lambda x: model.forward_head(model.finish(last(x, None, *inputs)))
    else:
        features, rest = model.forward_features(images), model.forward_head

    def score(x):
        logits = as_heads(rest(x), [head])[head]
        return jnp.take_along_axis(logits, classes[:, None], 1).sum()

    gradient = model.maps(jax.grad(score)(features)).astype(jnp.float32)
    maps = model.maps(features).astype(jnp.float32)
    return jax.nn.relu(jnp.einsum('bhwd,bd->bhw', maps, gradient.mean((1, 2))))


def rollout(model: Transformer, images: jax.Array) -> jax.Array:
    """How much of each token's input (columns) has reached each token (rows) by the last block if
    attention alone carried it: float32 [B, N, N], rows sum to one.

    The product over blocks of the mean of the heads' attention and the identity, half each.
    """
    steps = ((weights.mean(1) + jnp.eye(weights.shape[-1])) / 2
             for weights in model.attention(images))
    return functools.reduce(lambda total, step: step @ total, steps)


def rollout_map(model: Transformer, images: jax.Array) -> jax.Array:
    """What reaches the token (or the mean of the patches, weighted where attention pools them) that
    is classified, float32 [B, h, w]."""
    patches = math.prod(model.grid)
    found = rollout(model, images)
    if getattr(model, 'global_pool', 'avg') == 'token':
        pooled = found[:, 0]
    elif hasattr(model, 'attn_pool'):
        weights = model.attn_pool.weights(model.forward_features(images)[:, -patches:])
        pooled = jnp.einsum('bq,bqk->bk', weights, found[:, -patches:])
    else:
        pooled = found[:, -patches:].mean(1)
    return pooled[:, -patches:].reshape(len(images), *model.grid)


def make_heat_step(graphdef: nnx.GraphDef, normalise: Callable, heads: tuple[str, ...], mesh
                   ) -> Callable:
    """The jitted function (weights, uint8 images, {head: class [B]}) -> maps [B, h, w] by name:
    '<method>/<head>', and 'rollout' of a transformer. See `TrainState.weights`."""

    def heat_step(weights: Weights, images: jax.Array, classes: dict) -> dict[str, jax.Array]:
        model = models.eval_view(nnx.merge(graphdef, weights.params, weights.frozen,
                                           weights.batch_stats))
        images = normalise(images)
        found = {}
        for head in heads:
            name = head if hasattr(model, 'heads') else ''
            found[f'{method_of(model, name)}/{head}'] = class_map(model, images, classes[head],
                                                                  name)
        if isinstance(model, Transformer):
            found['rollout'] = rollout_map(model, images)
        return found

    return jax.jit(on_mesh(heat_step, mesh))


def explain_errors(heat_step: Callable, weights: Weights, part: Manifest,
                   logits: Mapping[str, np.ndarray], spec: PreprocessSpec,
                   loading: loader.LoaderSpec, mesh: jax.sharding.Mesh, *, most: int
                   ) -> dict[str, np.ndarray]:
    """Heat maps of the most confident errors of a split; {} if there are none. All processes ask.

    Args:
        heat_step: of `make_heat_step`.
        weights: of `TrainState.weights`.
        part: the rows of the split.
        logits: of these rows, by head; the class that they predict is explained, of a multi-label
            head the one that is most confidently wrong.
        spec: of the run.
        loading: threads and unreadable are used; the pictures are not cached again.
        mesh: of the devices.
        most: errors per head.

    Returns:
        ids [n], pictures uint8 [n, h, w, 3] as the model sees them (at most 192 pixels a side),
        class/<head> the names of the explained classes, and the maps of `heat_step` as float16,
        scaled to a largest value of 1.
    """
    wrong = [confident_set_errors(logits[head], part.truth(head))[0][:most]
             if head in part.label_sets else
             confident_errors(logits[head], part.labels(head))[:most] for head in part.heads]
    rows = np.unique(np.concatenate(wrong))
    if not len(rows):
        return {}
    chosen = dataclasses.replace(part.select(rows), label_sets={})
    for head in part.heads:
        explained = logits[head][rows].argmax(1)
        if head in part.label_sets:  # of an error, the class that is most confidently wrong
            found_rows, worst = confident_set_errors(logits[head][rows], part.truth(head)[rows])
            explained[found_rows] = worst
        chosen = chosen.with_column(f'label/{head}', explained)
    size = -(-min(_BATCH, len(rows)) // mesh.size) * mesh.size
    batches = loader.eval_dataset(
        chosen, spec, batch_size=size,
        shard=loader.Shard(jax.process_index(), jax.process_count()),
        loading=loader.LoaderSpec(threads=loading.threads, unreadable=loading.unreadable))()
    by_batch: dict[str, list[np.ndarray]] = {}
    try:
        for batch in batches:
            batch = shard_batch(batch, mesh)
            maps = heat_step(weights, batch['image'],
                             {head: batch[f'label/{head}'] for head in part.heads})
            mask = gather(batch['mask'])
            for name, values in (maps | dict(row=batch['row'], pictures=batch['image'])).items():
                by_batch.setdefault(name, []).append(gather(values)[mask])
    finally:
        batches.close()
    found = {name: np.concatenate(values) for name, values in by_batch.items()}
    row = found.pop('row')
    if not len(row):  # none of them could be read
        return {}
    shown = {'ids': chosen.table['id'].to_numpy(np.str_)[row],
             'pictures': np.stack([_shown(picture) for picture in found.pop('pictures')])}
    for head in part.heads:
        names = np.array(part.classes[head], np.str_)
        shown[f'class/{head}'] = names[chosen.labels(head)[row]]
    return shown | {name: _scaled(values) for name, values in found.items()}


def _shown(picture: np.ndarray) -> np.ndarray:
    """A picture as RGB, of at most _SIDE pixels a side."""
    picture = as_rgb(picture)
    height, width = picture.shape[:2]
    longest = max(height, width)
    if longest <= _SIDE:
        return picture
    size = max(1, round(width * _SIDE / longest)), max(1, round(height * _SIDE / longest))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _scaled(maps: np.ndarray) -> np.ndarray:
    largest = np.abs(maps).max(axis=(1, 2), keepdims=True)
    return (maps / np.maximum(largest, 1e-30)).astype(np.float16)


def save_heat_maps(path: Path, heat_maps: Mapping[str, np.ndarray]) -> None:
    """Writes what `explain_errors` found, whole or not at all."""
    with atomic_open(path, 'wb') as file:
        arrays: dict[str, Any] = dict(heat_maps)
        np.savez_compressed(file, **arrays)
