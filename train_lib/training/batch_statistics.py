"""The statistics of BatchNorm of given weights, estimated anew on training pictures.

Averages of weights (a soup, config.ema) compute other activations than any of those that were
averaged, so their running statistics are not the average of the others'. Izmailov et al. (arXiv
1803.05407) therefore pass over the training data once more.

Here the pictures are shown as in an evaluation, without augmentation, and dropout is off, because
that is what the statistics are used for. Over several batches the mean is that of the batches, and
the variance is their mean variance plus the variance of their means, as of all pictures together.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from input_pipeline import loader
from input_pipeline.manifest import Manifest
from train_lib.run_dir.run_config import config_of_run
from train_lib.runtime.sharding import gather, make_layout, make_mesh, on_mesh, place, shard_batch
from train_lib.runtime.trees import by_path
from train_lib.training.inference_rows import rows_of_runs
from train_lib.training.init import best_checkpoint, weights_for_inference
from train_lib.training.network import make_network
from train_lib.training.predict_spec import predict_spec
from train_lib.training.preprocess_spec import DTYPES, loader_spec, preprocess_spec
from train_lib.training.run_spec import Inputs
from train_lib.training.state import Weights
from train_lib.training.step import make_normalise, split_model

log = logging.getLogger(__name__)


def make_statistics_step(graphdef: nnx.GraphDef, normalise: Callable) -> Callable:
    """The function (weights, uint8 images [B, H, W, C]) -> a tree like `weights.batch_stats`: mean
    and variance (divided by n - 1) of this batch in each BatchNorm. One that does not train keeps
    its own."""
    def statistics_step(weights: Weights, images: jax.Array) -> dict:
        model = nnx.merge(graphdef, weights.params, weights.frozen, weights.batch_stats)
        model = nnx.view(model, deterministic=True, raise_if_not_found=False)
        for _, module in nnx.iter_modules(model):
            if isinstance(module, nnx.BatchNorm):
                module.momentum = 0.0  # the running statistics become those of the batch
        model(normalise(images))
        return split_model(model)[2]

    return statistics_step


def make_estimate(step: Callable, mesh: jax.sharding.Mesh, rows: Manifest, inputs: Inputs, *,
                  pictures: int, batch_size: int) -> Callable[[Weights], Any] | None:
    """The function weights -> batch_stats, estimated on the same pictures each time.

    Args:
        step: of `make_statistics_step`.
        mesh: of the devices.
        rows: training pictures, of which the first `pictures` of a fixed random order are used.
        inputs: how they are prepared and loaded.
        pictures: at most so many; rounded down to whole batches, and at least one batch.
        batch_size: pictures per batch, if there are so many.

    Returns:
        None if there are fewer pictures than devices.
    """
    batch_size = min(batch_size, len(rows)) // mesh.size * mesh.size
    if not batch_size:
        return None
    count = max(min(pictures, len(rows)) // batch_size, 1) * batch_size
    chosen = rows.select(np.random.default_rng(0).permutation(len(rows))[:count])
    batches = loader.eval_dataset(
        chosen, inputs.preprocess, batch_size=batch_size,
        shard=loader.Shard(jax.process_index(), jax.process_count()), loading=inputs.loading)
    compiled = jax.jit(on_mesh(step, mesh))

    def estimate(weights: Weights) -> Any:
        found, iterator = [], batches()
        try:
            for batch in iterator:
                # A picture that broke since is black, and would count.
                if gather(shard_batch({'mask': batch['mask']}, mesh)['mask']).all():
                    images = shard_batch({'image': batch['image']}, mesh)['image']
                    found.append(jax.tree.map(gather, compiled(weights, images)))
        finally:
            iterator.close()
        return _together(found, weights.batch_stats) if found else weights.batch_stats

    return estimate


def _together(found: list[Any], like: Any) -> Any:
    """The statistics of all batches, laid out like those given."""
    values = [by_path(one) for one in found]
    mean: dict[str, Any] = {
        name: np.mean([one[name] for one in values], axis=0, dtype=np.float64)
        for name in values[0]}
    for name in mean:
        if name.endswith('/var'):
            means = [one[f'{name.removesuffix("var")}mean'] for one in values]
            mean[name] = mean[name] + np.var(means, axis=0, dtype=np.float64)
    return jax.tree.map(lambda value, leaf: place(value.astype(leaf.dtype), leaf.sharding),
                        _like(mean, like), like)


def _like(flat: dict[str, np.ndarray], tree: Any) -> Any:
    names = by_path(tree)
    return jax.tree.unflatten(jax.tree.structure(tree), [flat[name] for name in names])


def statistics_of_run(workdir: Path, pictures: int) -> dict[str, np.ndarray]:
    """The statistics of a run's best weights by path, estimated on so many training pictures; {}
    if they cannot be estimated.

    Raises:
        ConfigError: its data have changed, or it has no checkpoint.
    """
    config = config_of_run(workdir)
    with config.ignore_type():
        config.predict.source = 'train'
    mesh, spec = make_mesh(config.mesh), preprocess_spec(config, workdir)
    rows = rows_of_runs(predict_spec(config), config, config, spec, workdir)(workdir).manifest
    layout = make_layout(config.sharding, mesh)
    network = make_network(config, rows.classes, layout, pretrained=False, abstract=True)
    like = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        network.weights, layout.of_state(network.weights))
    checkpoint = best_checkpoint(workdir)
    assert checkpoint is not None, 'the caller has written it'
    step = make_statistics_step(network.graphdef,
                                make_normalise(spec.mean, spec.std, DTYPES[config.precision]))
    estimate = make_estimate(step, mesh, rows, Inputs(spec, loader_spec(config)),
                             pictures=pictures, batch_size=config.batch_size)
    if estimate is None:
        return {}
    found = estimate(weights_for_inference(checkpoint, like))
    return {name: gather(value) for name, value in by_path(found).items()}
