"""Writes references from an installed timm: python tests/models/reference/make.py [NAME ...]

A NAME is a model of timm with settings after a colon (Python's values, or else text) and the side
of the input after @: vit_large_patch16_224:depth=2,global_pool=avg@224, or
"convnext_tiny:depths=(1, 1, 2, 1),num_classes=0@96". Without names it writes those of EXTRAS. It
needs torch and timm. The weights follow the recipe of timm_reference.by_recipe and are not stored.
"""

import ast
import json
import re
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
    # Options of the ViT: CLIP, SigLIP, DINOv2, TIPSv2, DeiT-III and timm's own.
    'vit_xsmall_patch16_clip_224', 'vit_base_patch32_clip_quickgelu_224:depth=2',
    'vit_base_patch16_plus_clip_240:depth=1', 'vit_huge_patch14_clip_224:depth=1',
    'vit_giant_patch14_clip_224:depth=1', 'vit_gigantic_patch14_clip_quickgelu_224:depth=1',
    'vit_base_patch16_siglip_224:depth=2', 'vit_base_patch32_siglip_256:depth=1,num_classes=7',
    'vit_so400m_patch14_siglip_378:depth=1', 'vit_giantopt_patch16_siglip_256:depth=1',
    'vit_base_patch32_siglip_gap_256:depth=2', 'vit_so400m_patch14_siglip_gap_224:depth=2',
    'vit_small_patch14_dinov2:depth=2', 'vit_small_patch14_reg4_dinov2:depth=2,img_size=98@98',
    'vit_giant_patch14_reg4_dinov2:depth=1,img_size=224@224',
    'vit_so400m_patch14_reg1_tipsv2:depth=1,img_size=224@224',
    'deit_tiny_patch16_224', 'deit3_small_patch16_224', 'deit3_huge_patch14_224:depth=1',
    'vit_base_patch16_224_miil:depth=2,num_classes=10',
    'flexivit_small:depth=3', 'eva_large_patch14_196:depth=2',
    'vit_medium_patch16_gap_240:num_classes=10', 'vit_so150m_patch16_reg4_gap_256:depth=2',
    'vit_so150m2_patch16_reg1_gap_256:depth=2', 'vit_wee_patch16_reg1_gap_256',
    'vit_betwixt_patch16_reg4_gap_256:depth=2',
    'vit_intern300m_patch14_448:depth=1,img_size=224@224',
    'vit_tiny_patch16_224:depth=2,img_size=64,global_pool=avgmax,reg_tokens=2@64',
    'vit_tiny_patch16_224:depth=2,img_size=64,fc_norm=True,pre_norm=True,num_classes=0@64',
    # DINOv3, BEiT.
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
    # Commas within (2, 2) or 'a, b' do not part settings.
    call = ast.parse(f'settings({settings})', mode='eval').body
    kwargs = {word.arg: word.value.id if isinstance(word.value, ast.Name) else
              ast.literal_eval(word.value) for word in call.keywords}
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
    suffix = ''.join(f'-{key}{re.sub("[^a-zA-Z0-9_.,]", "", str(value)).strip(",")}'
                     for key, value in kwargs.items())
    target = FOLDER / f'{name}{suffix}.npz'
    np.savez_compressed(target, logits=logits, meta=np.array(json.dumps(meta)))
    print(target.name, target.stat().st_size, 'bytes')


if __name__ == '__main__':
    for argument in sys.argv[1:] or EXTRAS:
        make(argument)
