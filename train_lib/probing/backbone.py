"""The backbone of config.model, with the weights that config.init names."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
from flax import nnx
from ml_collections import ConfigDict

import models
from input_pipeline.pictures import PreprocessSpec
from train_lib.runtime.sharding import make_mesh, replicate
from train_lib.training import init
from train_lib.training.network import aim_at, model_settings_of
from train_lib.training.preprocess_spec import DTYPES, input_record, preprocess_spec
from train_lib.training.step import make_normalise, split_model


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A model without its head.

    Attributes:
        embed: (weights, uint8 images [B, H, W, 3]) -> features [B, D], jitted.
        weights: the first argument of `embed`, on all devices.
        preprocess: how images are prepared for it.
        mesh: of the devices that share a batch.
        graphdef: of the model, which `nnx.merge(graphdef, *weights)` makes again.
        key: what the features depend on besides weights and pixels: model, its settings,
            preparation and precision; JSON values.
        pretrained: the published weights that it goes back to, see `starting_weights`.
    """

    embed: Callable[[tuple, jax.Array], jax.Array]
    weights: tuple
    preprocess: PreprocessSpec
    mesh: jax.sharding.Mesh
    graphdef: nnx.GraphDef
    key: dict
    pretrained: list[dict]


def make_backbone(config: ConfigDict, run: Path | None = None) -> Backbone:
    """Loads the model of config.model without its head.

    Args:
        config: of the run.
        run: its workdir; None without one.

    Raises:
        ConfigError, ModelError: a wrong value in config.model, config.image or config.init.
    """
    preprocess = preprocess_spec(config, run)
    mesh = make_mesh(config.mesh)
    settings = {key: value for key, value in model_settings_of(config).items()
                if not key.startswith('head')}
    model = models.create_model(config.model.name, num_classes=0, rngs=nnx.Rngs(config.seed),
                                **settings)
    aim_at(mesh.devices.flat[0], model, config)
    pretrained = init.load_backbone(config, model)
    graphdef, *trees = split_model(model)
    normalise = make_normalise(preprocess.mean, preprocess.std, DTYPES[config.precision])

    @jax.jit
    def embed(weights, images):
        return models.eval_view(nnx.merge(graphdef, *weights))(normalise(images))

    key = dict(model=config.model.name, settings=repr(sorted(settings.items())),
               prepared=input_record(preprocess), precision=config.precision)
    return Backbone(embed, replicate(tuple(trees), mesh), preprocess, mesh, graphdef, key,
                    pretrained)
