"""Writes references from an installed timm: python tests/models/reference/make.py [NAME ...]

A NAME is a model of timm with settings after a colon and the side of the input after @:
vit_large_patch16_224:depth=2@224. Without names it writes those of EXTRAS. It needs torch and
timm. The weights follow the recipe of timm_reference.by_recipe and are not stored.
"""

import json
import sys
from pathlib import Path

import numpy as np
import timm
import torch

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER.parents[2])]

from timm_reference import by_recipe  # noqa: E402

EXTRAS = (
    'resnet34@96', 'resnet101@96', 'densenet169@96', 'densenet201@96', 'efficientnet_b1@96',
    'efficientnet_b2@96', 'efficientnet_b3@96', 'efficientnet_b4@96', 'tf_efficientnet_b0@96',
    'tf_efficientnet_b1@97', 'tf_efficientnet_b2@96', 'tf_efficientnet_b3@97',
    'vit_small_patch16_224@224', 'vit_base_patch16_224@224', 'vit_large_patch16_224:depth=3@224',
    'vit_large_patch14_224:depth=3@224', 'eva02_small_patch14_224@224',
    'eva02_base_patch14_448:depth=3@448', 'eva02_large_patch14_448:depth=6@448',
    'eva_giant_patch14_336:depth=2@336',
    'vit_tiny_patch16_dinov3_qkvb:depth=2,num_classes=1000@256',
    'vit_small_patch16_dinov3:depth=2,img_size=224@224',
    'vit_small_plus_patch16_dinov3_qkvb:depth=2@256',
    'vit_large_patch16_dinov3:depth=2,global_pool=token@256',
    'vit_huge_plus_patch16_dinov3:depth=1@256', 'vit_7b_patch16_dinov3:depth=1,img_size=64@64',
    'beitv2_base_patch16_224:depth=2@224', 'beit_base_patch16_384:depth=2@384',
    'beit_large_patch16_512:depth=1@512',
)


def make(text: str, seed: int = 0) -> None:
    """Writes <model>[-<settings>].npz: the logits, and the meta data as JSON text."""
    text, _, side = text.partition('@')
    name, _, settings = text.partition(':')
    kwargs = {key: int(value) if value.isdigit() else value for key, value in
              (item.split('=') for item in settings.split(',') if item)}
    model = timm.create_model(name, **kwargs).eval()
    state = model.state_dict()
    shapes = {key: list(value.shape) for key, value in state.items()}
    model.load_state_dict({key: torch.tensor(by_recipe(key, shape, seed), dtype=state[key].dtype)
                           for key, shape in shapes.items()})
    shape = [2, 3, int(side or model.default_cfg['input_size'][1])] + [0]
    shape[3] = shape[2]
    images = np.random.default_rng(seed + 1).standard_normal(shape).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(images)).numpy()
    meta = dict(model=name, kwargs=kwargs, seed=seed, input=shape, timm=timm.__version__,
                torch=torch.__version__, state_dict=shapes)
    target = FOLDER / f'{name}{"-" if settings else ""}{settings.replace("=", "")}.npz'
    np.savez_compressed(target, logits=logits, meta=np.array(json.dumps(meta)))
    print(target.name, target.stat().st_size, 'bytes')


if __name__ == '__main__':
    for argument in sys.argv[1:] or EXTRAS:
        make(argument)
