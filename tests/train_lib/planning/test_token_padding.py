"""What a TPU keeps for the tokens of a model, as the verb plan says it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import common
from models import ModelError
from train_lib.planning.absent_devices import missing
from train_lib.planning.targets import read_target
from train_lib.planning.token_padding import (
    TokenPadding,
    kept_on_tpu,
    token_padding,
)

ROOT = Path(__file__).parents[3]
TPU = read_target('v5e:1x1')


def config_of(name, size, **settings):
    config = common.get_config()
    config.model = dict(name=name, **settings)
    config.image.size = size
    return config


def of(name, size, target=TPU, **settings) -> TokenPadding | None:
    return token_padding(config_of(name, size, **settings), target)


@pytest.mark.parametrize('tokens, kept', [(1, 128), (128, 128), (129, 256), (196, 256), (197, 256),
                                          (256, 256), (257, 384), (1025, 1152)])
def test_tokens_are_kept_in_rows_of_128(tokens, kept):
    assert kept_on_tpu(tokens) == kept


@pytest.mark.parametrize('name, size, settings, lines', [
    ('eva_giant_patch14_224', 224, {}, [
        'tokens   257, kept as 384 on a TPU (x1.49)', '         fuller: 226 of 256 at 210 px']),
    ('eva02_tiny_patch14_224', 448, {}, ['tokens   1,025, kept as 1,152 on a TPU (x1.12)']),
    ('vit_base_patch16_224', 224, {}, [
        'tokens   197, kept as 256 on a TPU (x1.30)', '         fuller: 226 of 256 at 240 px']),
    ('vit_large_patch14_224', 224, {}, [
        'tokens   257, kept as 384 on a TPU (x1.49)',
        '         fuller: 256 of 256 without a class token; 226 of 256 at 210 px']),
    ('vit_large_patch14_224', 224, dict(class_token=False, global_pool='avg'), [
        'tokens   256, kept as 256 on a TPU']),
    ('vit_tiny_patch16_224', (224, 336), {}, ['tokens   295, kept as 384 on a TPU (x1.30)']),
    ('vit_tiny_patch16_224', 240, dict(scan=True, remat=True, drop_path=0.1), [
        'tokens   226, kept as 256 on a TPU (x1.13)']),
    ('vit_large_patch14_224', 224, dict(reg_tokens=4), [  # registers stay without a class token
        'tokens   261, kept as 384 on a TPU (x1.47)', '         fuller: 230 of 256 at 210 px']),
    ('vit_tiny_patch16_224', 64, dict(pos_embed='sincos2d', in_channels=1), [
        'tokens   17, kept as 128 on a TPU (x7.53)']),
])
def test_tokens_of_a_model(name, size, settings, lines):
    assert str(of(name, size, **settings)).splitlines() == lines
    assert all(len(line) <= 80 for line in lines)


def test_tokens_that_a_model_pads_itself_are_kept_too():
    small = dict(patch_size=8, embed_dim=32, num_heads=2)
    assert of('vit_tiny_patch16_224', 80, **small).kept == 128  # 101 tokens
    assert of('vit_tiny_patch16_224', 80, token_multiple=100, **small).kept == 256


def test_other_targets_and_models_without_tokens_have_none():
    assert of('vit_tiny_patch16_224', 64, read_target('h100:1x1x1')) is None
    assert of('vit_tiny_patch16_224', 64, read_target('')) is None
    assert of('resnet18', 64) is None


def test_a_size_that_no_patch_divides_is_refused():
    with pytest.raises(ModelError, match='patch_size=16'):
        of('vit_tiny_patch16_224', 100)


def test_the_words_of_the_plan():
    padding = token_padding(config_of('eva_giant_patch14_224', 224), TPU)
    assert str(padding).startswith('tokens   257, kept as 384 on a TPU (x1.49)\n')


@pytest.mark.slow
@pytest.mark.skipif(missing(TPU) != '', reason='libtpu is not installed')
def test_plan_json_holds_both(tmp_path):
    done = subprocess.run(
        [sys.executable, 'main.py', 'plan', f'--config={ROOT}/configs/sketch_vit.py',
         f'--workdir={tmp_path}', '--config.data.source=digits', '--config.plan.target=v5e:1x1',
         '--config.image.size=16', '--config.batch_size=16',
         '--config.model=dict(name="vit_tiny_patch16_224",patch_size=8,embed_dim=32,depth=1,'
         'num_heads=2)'],
        cwd=ROOT, env=os.environ | dict(JAX_PLATFORMS='cpu', XDG_CACHE_HOME=str(tmp_path)),
        capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'tokens   5, kept as 128 on a TPU' in done.stdout
    found = json.loads((tmp_path / 'plan.json').read_text())
    assert (found['tokens'], found['tokens_kept']) == (5, 128)
