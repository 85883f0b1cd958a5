"""Features of pictures by the backbone of config.model, with the weights that config.init names."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import models
from input_pipeline.manifest import Manifest
from train_lib.probing.feature_cache import cached_features
from train_lib.run_dir import workdirs
from train_lib.runtime.sharding import make_mesh, replicate
from train_lib.training import init
from train_lib.training.preprocess_spec import DTYPES, Prepared, image_spec, prepared_for
from train_lib.training.step import make_normalise, split_model


@dataclasses.dataclass(frozen=True)
class Backbone:
    """embed: (weights, uint8 images [B, H, W, 3]) -> features [B, D], jitted; key: what features
    depend on besides weights and pixels."""

    embed: Callable
    weights: tuple
    prepared: Prepared
    mesh: jax.sharding.Mesh
    key: dict


def make_backbone(config: ConfigDict) -> Backbone:
    """Loads the model of config.model without its head."""
    prepared = prepared_for(config)
    settings = {key: value for key, value in config.model.to_dict().items()
                if key != 'name' and not key.startswith('head')}
    known = models.model_settings(config.model.name)
    if 'img_size' in known:
        settings.setdefault('img_size', config.image.size)
    if 'dtype' in known:
        settings.setdefault('dtype', DTYPES[config.precision])
    model = models.create_model(config.model.name, num_classes=0, rngs=nnx.Rngs(config.seed),
                                **settings)
    init.load_backbone(config, model)
    graphdef, *trees = split_model(model)
    mesh = make_mesh(config.mesh)
    normalise = make_normalise(prepared.mean, prepared.std, DTYPES[config.precision])

    @jax.jit
    def embed(weights, images):
        return models.eval_view(nnx.merge(graphdef, *weights))(normalise(images))

    return Backbone(embed, replicate(tuple(trees), mesh), prepared, mesh, dict(
        model=config.model.name, settings=repr(sorted(settings.items())),
        prepared=dataclasses.asdict(prepared), precision=config.precision))


def plain_features(config: ConfigDict, manifest: Manifest) -> np.ndarray:
    """Features of the plain pictures, float32 [N, D], from the cache as far as they are there."""
    backbone = make_backbone(config)
    batch = -(-config.eval.batch_size // backbone.mesh.size) * backbone.mesh.size
    found = cached_features(
        manifest, image_spec(config, backbone.prepared), (), (), backbone.embed, backbone.weights,
        key=backbone.key, seed=config.seed, batch_size=batch,
        folder=Path(config.probe.cache or Path(workdirs.cache_folder()) / 'features'),
        dtype=config.probe.dtype, mesh=backbone.mesh, threads=config.loader.threads,
        cache_mb=config.image.cache_mb)
    return np.asarray(found.plain, np.float32)
