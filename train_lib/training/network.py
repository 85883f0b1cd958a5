"""The model of a run: created on its mesh, filled with pretrained weights, split into arrays."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

import models
from models.attention import target_refusal
from models.convolutions import Conv
from models.heads import Classifier
from models.layers import Linear
from models.scan_layers import SAVED
from models.target import aim, target_of
from models.transformer import Transformer
from train_lib.optim import param_groups
from train_lib.optim.late_start import Start
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharded_init import create
from train_lib.runtime.sharding import Layout
from train_lib.training.init_pretrained import load_pretrained
from train_lib.training.preprocess_spec import DTYPES, input_size
from train_lib.training.state import Weights


@dataclasses.dataclass(frozen=True)
class ParameterCounts:
    """The parameters of a model, without its arrays.

    Attributes:
        description: how many there are and train, as the log says it.
        trained, frozen: how many numbers train, and how many do not.
        rates: factors of the learning rate, a tree like the params that train.
        decay: factors of the weight decay, likewise.
        starts: when those that begin to train later do so, by name.
    """

    description: str
    trained: int
    frozen: int
    rates: dict
    decay: dict
    starts: Mapping[str, Start]


@dataclasses.dataclass(frozen=True)
class Network:
    """A model taken apart.

    Attributes:
        graphdef: the model's definition, in training mode.
        weights: its arrays, or their shapes where it is abstract.
        parameters: what is known of them.
        scanned: whether its blocks are stacked and run in a scan.
        pretrained: the published weights in it, see `load_pretrained`.
    """

    graphdef: nnx.GraphDef
    weights: Weights
    parameters: ParameterCounts
    scanned: bool
    pretrained: Mapping[str, Any]


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def model_settings_of(config: ConfigDict) -> dict:
    """Keyword arguments of `models.create_model` besides the classes: those of config.model, its
    image size and precision if the model takes them."""
    settings = {key: value for key, value in config.model.to_dict().items() if key != 'name'}
    known = models.model_settings(config.model.name)
    if 'img_size' in known:
        settings.setdefault('img_size', input_size(config))
    if 'dtype' in known:
        settings.setdefault('dtype', DTYPES[config.precision])
    return settings


def make_model(config: ConfigDict, classes: Mapping[str, tuple], device: jax.Device
               ) -> Classifier:
    """The model of config.model for these classes, {head: class names}, on such a device."""
    sizes = {head: len(names) for head, names in classes.items()}
    num_classes = sizes if len(sizes) > 1 else next(iter(sizes.values()))
    model = models.create_model(config.model.name, num_classes=num_classes,
                                rngs=nnx.Rngs(config.seed), **model_settings_of(config))
    aim_at(device, model, config)
    return model


def aim_at(device: jax.Device, model: nnx.Module, config: ConfigDict) -> None:
    """Tells a model of config.model for which device it will be traced; the device may be one of a
    topology that is not here.

    Raises:
        ConfigError: config.model.attn_impl asks for attention that the GPU lacks.
    """
    target = target_of(device)
    refusal = target_refusal(target)
    if target.platform == 'cuda' and refusal and config.model.get('attn_impl') == 'cudnn':
        raise ConfigError(f"config.model.attn_impl = 'cudnn': {refusal} ({device.device_kind}); "
                          f"leave it out.")
    aim(model, target)


def _choose_sums(model: nnx.Module, config: ConfigDict, devices: int) -> None:
    """How devices add the gradients of kernels and biases, by config.mesh.gradients; one device
    adds nothing, and would only pay for convolutions of float32 copies."""
    wanted = config.mesh.gradients
    if wanted not in ('float32', 'compute'):
        raise ConfigError(f'config.mesh.gradients = {wanted!r}: choose one of float32, compute.')
    if wanted == 'compute' or config.precision == 'float32' or devices == 1:
        return
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Linear | Conv):
            module.float32_sums = True


def _choose_saved(model: nnx.Module, config: ConfigDict) -> None:
    """What stacked blocks keep for the gradient, by config.saved_activations."""
    wanted = config.saved_activations
    if wanted not in SAVED:
        raise ConfigError(f'config.saved_activations = {wanted!r}: choose one of '
                          f'{", ".join(SAVED)}.')
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Transformer):
            module.saved = wanted


def make_network(config: ConfigDict, classes: Mapping[str, tuple], layout: Layout, *,
                 pretrained: bool, abstract: bool) -> Network:
    """Creates the model and decides which parameters train, by config.finetune.

    Args:
        config: of the run.
        classes: {head: class names}.
        layout: where the arrays lie.
        pretrained: load the weights that config.init.pretrained names.
        abstract: create no array, only shapes.

    Raises:
        ConfigError, ModelError: a user's mistake.
    """
    rules: dict = {}

    def build():
        model = make_model(config, classes, layout.mesh.devices.flat[0])
        rules.update(param_groups.prepare(model, config.finetune.to_dict(), config.seed))
        _choose_sums(model, config, layout.mesh.size)
        _choose_saved(model, config)
        return model

    model = nnx.eval_shape(build) if abstract else create(build, layout)
    loaded = load_pretrained(config, model) if pretrained and not abstract else {}
    description = param_groups.describe(model, rules)
    graphdef, params, frozen, batch_stats = param_groups.split(model, rules)
    rates, decay = param_groups.factors(params, rules)
    parameters = ParameterCounts(description, _count(params), _count(frozen), rates, decay,
                                 param_groups.starts_of(params, rules))
    return Network(graphdef, Weights(params, frozen, batch_stats), parameters,
                   getattr(model, 'scan', False), loaded)
