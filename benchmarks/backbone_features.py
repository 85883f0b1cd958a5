"""Features of a backbone for pictures that a benchmark holds in memory; used by --features=FILE of
the benchmarks of curation. FILE holds weights of timm's --model (.safetensors)."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--features, --model, --size, --mean and --std."""
    parser.add_argument('--features', default='', help='weights of a backbone (.safetensors)')
    parser.add_argument('--model', default='tf_efficientnet_lite0')
    parser.add_argument('--size', type=int, default=128, help='pixels that the backbone sees')
    parser.add_argument('--mean', type=float, default=0.5)
    parser.add_argument('--std', type=float, default=0.5)


def embedder(args: argparse.Namespace) -> Callable[[Iterable[np.ndarray]], np.ndarray] | None:
    """A function from RGB pictures, uint8 [H, W, 3] each, to features float32 [N, D]; None without
    --features."""
    if not args.features:
        return None
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    from configs import common
    from input_pipeline.given_batches import given_batches
    from input_pipeline.given_pictures import each_given
    from train_lib.predictions.views import make_views
    from train_lib.probing.backbone import make_backbone
    from train_lib.training.evaluate import logits_of

    config = common.get_config()
    config.model = dict(name=args.model)
    config.init.pretrained, config.image.size = args.features, args.size
    with config.ignore_type():
        config.image.update(mean=args.mean, std=args.std)
    backbone = make_backbone(config)
    views = list(make_views(('identity',)).values())

    def embed(pictures: Iterable[np.ndarray]) -> np.ndarray:
        batches = given_batches(each_given(pictures), backbone.preprocess, views, batch_size=64)
        step = lambda weights, images: {'features': backbone.embed(weights, images)}
        return np.concatenate([found['features'] for _, found in logits_of(
            step, backbone.weights, batches, backbone.mesh)]).astype(np.float32)

    return embed
