"""Small models of every family, as trained models, and what an exported program holds."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
from flax import nnx
from jax.interpreters import mlir
from jaxlib.mlir import ir

import models
from input_pipeline.pictures import PreprocessSpec
from models.efficientnet import Blocks
from train_lib.serving.trained_models import TrainedModel
from train_lib.training.preprocess_spec import DTYPES
from train_lib.training.step import as_heads, make_normalise

_TOKENS = dict(patch_size=16, embed_dim=16, depth=2, num_heads=2)
_STAGES = ((Blocks('separable', 1, 3, 1, 1, 16, se=True),), (Blocks('fused', 1, 3, 2, 2, 16),),
           (Blocks('inverted', 2, 5, 2, 2.5, 24, se=True, act='relu'),),
           (Blocks('conv', 2, 3, 1, 1, 32),))
_EFFICIENT = dict(stages=_STAGES, stem_size=16, num_features=40)
# name: (name of the model, its settings, image size)
SMALL: dict[str, tuple[str, dict, int]] = {
    'small_cnn': ('small_cnn', dict(width=4, stages=1), 16),
    'vit': ('vit_tiny_patch16_224', _TOKENS, 32),
    'efficientnet': ('efficientnet_b0', _EFFICIENT, 32),
    'vit, scan, sine positions, mean': ('vit_tiny_patch16_224', dict(
        **_TOKENS, scan=True, class_token=False, global_pool='avg', pos_embed='sincos2d'), 32),
    'vit, deep branches': ('vit_tiny_patch16_224', dict(**_TOKENS, head='deep'), 32),
    'small_cnn, shallow branches': ('small_cnn', dict(width=8, stages=2, head='shallow'), 16),
    'small_cnn, own pooling': ('small_cnn', dict(
        width=8, stages=2, head='mlp', head_pool='separate'), 16),
    'eva02, packed': ('eva02_tiny_patch14_224', _TOKENS, 32),
    'eva02, apart': ('eva02_base_patch14_224', _TOKENS, 32),
    'dinov3': ('vit_tiny_patch16_dinov3_qkvb', dict(**_TOKENS, init_values=0.5), 32),
    'beit': ('beit_base_patch16_224', dict(**_TOKENS, init_values=0.5), 32),
    'tf_efficientnetv2': ('tf_efficientnetv2_s', _EFFICIENT, 33),
    'mobilenetv2': ('mobilenetv2_100', _EFFICIENT, 32),
    'mobilenetv3': ('mobilenetv3_large_100', _EFFICIENT, 32),
    'resnet': ('resnet18', dict(layers=(1, 2), channels=(64, 8)), 32),
    'resnet, bottlenecks': ('resnet50', dict(layers=(1, 2), channels=(4, 8)), 32),
    'convnext': ('convnext_tiny', dict(depths=(1, 1, 1, 1), dims=(8, 8, 12, 16)), 32),
    'densenet': ('densenet121', dict(growth_rate=4, block_config=(2, 1), bn_size=2), 32),
    'inception_resnet_v2': ('inception_resnet_v2', dict(depth=1), 75),
    'resnet_inception': ('resnet_inception', dict(depth=1, width=8), 32),
    'plain_cnn': ('cnn_final', dict(widths=(8, 16), dense=16), 32),
}
CLASSES = {'class': ('a', 'b', 'c', 'd', 'e')}


def small(name: str, precision: str = 'float32', classes=CLASSES, **settings) -> TrainedModel:
    """A model of `SMALL` with random weights."""
    model, own, size = SMALL[name]
    known, own = models.model_settings(model), own | settings
    if 'img_size' in known:
        own.setdefault('img_size', size)
    if 'dtype' in known:
        own.setdefault('dtype', DTYPES[precision])
    sizes = {head: len(names) for head, names in classes.items()}
    built = models.create_model(model, sizes if len(sizes) > 1 else next(iter(sizes.values())),
                                rngs=nnx.Rngs(0), **own)
    return TrainedModel(Path('nowhere'), SimpleNamespace(precision=precision), classes,
                        PreprocessSpec(size=size), models.eval_view(built),
                        {head: np.zeros(size, np.float32) for head, size in sizes.items()}, 1, '')


def pictures(trained: TrainedModel, count: int = 4) -> np.ndarray:
    """uint8 [count, H, W, C]"""
    shape = (count, *trained.preprocess.frame, trained.preprocess.channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def evaluated(trained: TrainedModel, images: np.ndarray) -> dict[str, np.ndarray]:
    """The logits of each head, as a run evaluates them: see `step.make_eval_step`."""
    spec = trained.preprocess
    normalise = make_normalise(spec.mean, spec.std, DTYPES[trained.config.precision])
    graphdef, state = nnx.split(trained.model)

    @jax.jit
    def evaluate(state, images):
        logits = as_heads(nnx.merge(graphdef, state)(normalise(images)), tuple(trained.classes))
        return {head: values.astype(np.float32) for head, values in logits.items()}

    return jax.device_get(evaluate(state, images))


def convolutions(text: str, platform: int) -> int:
    """How many convolutions a program computes on the platform of this number.

    The text is that of `Exported.mlir_module`. Where several platforms differ it holds a
    `stablehlo.case` by the number of the platform, of which one branch is followed here.
    """
    with mlir.make_ir_context():
        module = ir.Module.parse(text)
        functions = {ir.StringAttr(op.attributes['sym_name']).value: op for op in module.body
                     if 'sym_name' in op.attributes}

        def number(value) -> int:
            """Of a platform or a branch."""
            if isinstance(value.owner, ir.Block):
                return platform
            op = value.owner
            if op.name in ('stablehlo.convert', 'stablehlo.optimization_barrier'):
                return number(op.operands[0])
            if op.name == 'stablehlo.case':
                returned = list(op.regions[number(op.operands[0])].blocks[0])[-1]
                return number(returned.operands[0])
            assert op.name == 'stablehlo.constant'
            return int(np.array(ir.DenseElementsAttr(op.attributes['value'])))

        def count(block) -> int:
            found = 0
            for op in block:
                op = op.operation
                if op.name == 'stablehlo.convolution':
                    found += 1
                elif op.name in ('func.call', 'call'):
                    name = ir.FlatSymbolRefAttr(op.attributes['callee']).value
                    found += count(functions[name].regions[0].blocks[0])
                elif op.name == 'stablehlo.case':
                    found += count(op.regions[number(op.operands[0])].blocks[0])
                else:
                    found += sum(count(inner) for region in op.regions for inner in region.blocks)
            return found

        return count(functions['main'].regions[0].blocks[0])
