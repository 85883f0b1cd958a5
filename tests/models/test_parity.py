"""Our models against timm's, by the logits that timm computed.

`pytest tests/models/test_parity.py -m "slow or not slow" --update-docs` writes docs/parity.md.
"""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
import timm_reference

from models import list_models
from models.pretrained import resample_positions
from models.registry import MODELS
from models.timm_settings import in_timm

DOCS = Path(__file__).parents[2] / 'docs' / 'parity.md'
BOUND = 2e-5  # in standard deviations of timm's logits
# One of each family, quick to compile; the others are marked slow.
QUICK = ('resnet18', 'resnet50', 'densenet121', 'efficientnet_b0', 'tf_efficientnet_lite0',
         'mobilenetv2_100', 'mobilenetv3_large_100',
         'vit_tiny_patch16_224', 'vit_tiny_patch16_224-img_size160',
         'vit_small_patch14_reg4_dinov2-depth2-img_size98', 'vit_xsmall_patch16_clip_224',
         'vit_base_patch32_siglip_256-depth1-num_classes7',
         'convnext_atto', 'convnextv2_tiny-depths1,1,2,1',
         'eva02_tiny_patch14_224', 'eva02_large_patch14_448-depth2', 'eva_giant_patch14_224-depth1',
         'vit_tiny_patch16_dinov3_qkvb-depth2-num_classes1000', 'beitv2_base_patch16_224-depth2')
NAMES = timm_reference.references()
ROWS: dict[str, str] = {}


@pytest.mark.parametrize('name', [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
def test_logits_are_those_of_timm(name):
    found, parameters = timm_reference.difference(name)
    meta, _ = timm_reference.reference(name)
    expected = sum(np.prod(shape, dtype=int) for key, shape in meta['state_dict'].items()
                   if not key.endswith(('running_mean', 'running_var', 'num_batches_tracked')))
    assert parameters == expected
    assert found <= BOUND
    settings = ', '.join(f'{key} {value}' for key, value in meta['kwargs'].items())
    ROWS[name] = (f'| {meta["model"]} | {settings} | {meta["input"][2]} | {parameters:,} '
                  f'| {found:.1e} |')


def test_the_table_in_the_docs_is_complete_and_within_the_bound(request):
    """Runs last: writes the table with --update-docs, and always checks that it is complete."""
    if request.config.getoption('--update-docs'):
        assert set(ROWS) == set(NAMES), 'run with -m "slow or not slow"'
        device = jax.devices()[0].device_kind
        DOCS.write_text(
            '# Parity with timm\n\nLargest difference of the logits to those of timm 1.0.31 '
            '(torch 2.13, CPU), in standard\ndeviations of the latter; float32, highest matmul '
            f'precision, on one {device} device with JAX {jax.__version__}.\n'
            f'The bound is {BOUND:g}. Weights are random by a recipe (tests/models/'
            'timm_reference.py), large\nmodels are cut to a few blocks. Written by '
            'tests/models/test_parity.py.\n\n| model | settings | input | parameters | '
            'difference |\n|---|---|---:|---:|---:|\n' + '\n'.join(ROWS[name] for name in NAMES)
            + '\n')
    rows = re.findall(r'^\| (\w+) \|.*\| (\S+) \|$', DOCS.read_text(), re.M)
    assert len(rows) - 1 == len(NAMES)  # the first is the heading
    assert all(float(value) <= BOUND for _, value in rows[1:])


def test_every_option_that_a_name_of_timm_uses_has_a_reference():
    """Sizes may differ from those of the references. Everything else is another code path."""
    def options(name: str, given: dict) -> set[tuple]:
        family, defaults = MODELS[name]
        return {(family.__name__, key, value) for key, value in {**defaults, **given}.items()
                if isinstance(value, (str, bool)) or value is None} | {(family.__name__,)}

    metas = [timm_reference.reference(name)[0] for name in NAMES]
    covered = set().union(*(options(meta['model'], meta['kwargs']) for meta in metas))
    for name in filter(in_timm, list_models()):
        assert options(name, {}) <= covered, name


def test_position_embeddings_are_resampled_as_in_timm():
    stored = np.load(timm_reference.FOLDER / 'pos_embed_resize.npz', allow_pickle=False)
    for key in stored.files:
        if key != 'source':
            side = int((stored[key].shape[1] - 1) ** 0.5)
            ours = resample_positions(stored['source'], 1, (side, side))
            assert np.abs(ours - stored[key]).max() <= 1e-5
