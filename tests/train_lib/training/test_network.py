"""How a model is built for its device."""

import types

import jax
import pytest

from configs import common
from train_lib.runtime.errors import ConfigError
from train_lib.training.network import model_settings_of


def settings(name, device, **model):
    config = common.get_config()
    config.model = dict(name=name, **model)
    return model_settings_of(config, device)


@pytest.mark.parametrize('capability, old', [('7.5', True), ('8.0', False), ('12.0', False),
                                             ('gfx942', False)])
def test_gpus_before_ampere_get_the_attention_of_xla(capability, old):
    """cuDNN has no flash attention for them, which JAX finds out when the program is compiled."""
    device = types.SimpleNamespace(compute_capability=capability, device_kind='a GPU')
    for model in ({}, {'attn_impl': 'auto'}):
        found = settings('vit_tiny_patch16_224', device, **model)
        assert found.get('attn_impl', 'auto') == ('xla' if old else 'auto')
    assert 'attn_impl' not in settings('resnet18', device)
    if old:
        with pytest.raises(ConfigError, match=r"attn_impl = 'cudnn'.*a GPU has 7\.5"):
            settings('vit_tiny_patch16_224', device, attn_impl='cudnn')
    else:
        assert settings('vit_tiny_patch16_224', device, attn_impl='cudnn')['attn_impl'] == 'cudnn'


def test_a_cpu_changes_no_setting():
    assert 'attn_impl' not in settings('vit_tiny_patch16_224', jax.devices('cpu')[0])
