"""Names of models. Each stands for a family and the settings that differ from its defaults.

A new family is one file, with a `Classifier` and a dict `VARIANTS`, and one line in `FAMILIES`.
"""

import fnmatch
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from flax import nnx

from models import (
    beit,
    cnn,
    densenet,
    dinov3,
    efficientnet,
    eva,
    inception_resnet_v2,
    mobilenet,
    plain_cnn,
    resnet,
    resnet_inception,
    vit,
)
from models.errors import unknown
from models.heads import Classifier

FAMILIES: tuple[tuple[Any, dict[str, dict]], ...] = (
    (vit.VisionTransformer, vit.VARIANTS),
    (eva.Eva, eva.VARIANTS),
    (dinov3.Dinov3, dinov3.VARIANTS),
    (beit.Beit, beit.VARIANTS),
    (efficientnet.EfficientNet, efficientnet.VARIANTS),
    (efficientnet.EfficientNet, mobilenet.V2_VARIANTS),
    (mobilenet.MobileNetV3, mobilenet.V3_VARIANTS),
    (cnn.SmallCNN, cnn.VARIANTS),
    (resnet.ResNet, resnet.VARIANTS),
    (densenet.DenseNet, densenet.VARIANTS),
    (inception_resnet_v2.InceptionResnetV2, inception_resnet_v2.VARIANTS),
    (resnet_inception.ResnetInception, resnet_inception.VARIANTS),
    (plain_cnn.PlainCNN, plain_cnn.VARIANTS),
)
MODELS = {name: (family, defaults)
          for family, variants in FAMILIES for name, defaults in variants.items()}

_Module = TypeVar('_Module', bound=nnx.Module)


def list_models(pattern: str = '*') -> list[str]:
    """Names that `create_model` takes and that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(MODELS, pattern))


def model_settings(name: str) -> dict[str, Any]:
    """Settings that `create_model(name, ...)` takes, with their defaults.

    Raises:
        ModelError: there is no such model; the message suggests the closest names.
    """
    if name not in MODELS:
        raise unknown('Model', name, MODELS)
    family, defaults = MODELS[name]
    return {**_settings(family.__init__), **defaults, **_settings(Classifier.add_heads)}


def create_model(name: str, num_classes: int | Mapping[str, int] = 1000, *, rngs: nnx.Rngs,
                 **kwargs) -> Classifier:
    """Creates a model in training mode, with random parameters.

    `model(x, rngs=nnx.Rngs(dropout=key))` maps normalised images, floating point [B, H, W, C],
    to float32 logits [B, num_classes]; `eval_view(model)(x)` does so for inference. All state is
    `nnx.Param` and `nnx.BatchStat`; parameters are float32 whatever the compute `dtype`.

    Args:
        name: one of `list_models()`; timm's names where timm has the model.
        num_classes: number of classes; or {head: number of classes} for several heads, whose
            logits come as a dict; or 0 for pooled features [B, D].
        rngs: `nnx.Rngs(seed)`, for the initial parameters.
        **kwargs: settings of the family (`depth`, `img_size`, `drop_path`, ...) and of the heads
            (see `Classifier.add_heads`); `model_settings(name)` lists them.

    Raises:
        ModelError: a name or a setting is unknown (the message suggests the closest), or a value
            is out of range.
    """
    settings = model_settings(name)
    for key in kwargs:
        if key not in settings:
            raise unknown(f'For {name}, the setting', key, settings)
    family, defaults = MODELS[name]
    of_heads = {key: kwargs.pop(key) for key in _settings(Classifier.add_heads) if key in kwargs}
    model = family(**{**defaults, **kwargs}, rngs=rngs)
    model.add_heads(num_classes, **of_heads, rngs=rngs)
    return model


def eval_view(model: _Module) -> _Module:
    """The model for inference: without dropout, and with the running statistics of BatchNorm.

    The view shares its variables with the model, which stays in training mode.
    """
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)


def _settings(function) -> dict[str, object]:
    """Keyword arguments of a function that have defaults."""
    return {parameter.name: parameter.default
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is not parameter.empty}
