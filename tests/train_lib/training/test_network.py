"""How a model is built for its device."""

import types

import jax
import pytest
from flax import nnx

from configs import common
from models.attention import Attention
from models.eva import EvaAttention
from models.target import Target
from train_lib.runtime.errors import ConfigError
from train_lib.training.network import make_model, model_settings_of

CLASSES = {'class': ('a', 'b')}


def built(name, device, **model):
    config = common.get_config()
    config.image.size, config.model = 112, dict(name=name, **model)
    return nnx.eval_shape(lambda: make_model(config, CLASSES, device))


@pytest.mark.parametrize(('name', 'settings'), [
    ('vit_tiny_patch16_224', {}), ('vit_tiny_patch16_224', dict(scan=True)),
    ('eva02_tiny_patch14_224', {}), ('eva02_tiny_patch14_224', dict(scan=True)),
    ('vit_tiny_patch16_dinov3_qkvb', {}), ('beit_base_patch16_224', dict(scan=True))])
def test_all_attention_knows_the_device(name, settings):
    device = types.SimpleNamespace(platform='gpu', compute_capability='9.0', device_kind='a GPU')
    model = built(name, device, depth=2, **settings)
    found = [module.target for _, module in nnx.iter_modules(model)
             if isinstance(module, Attention | EvaAttention)]
    assert found == [Target('cuda', '9.0')] * (1 if settings else 2)
    here = jax.devices('cpu')[0]
    assert {module.target for _, module in nnx.iter_modules(built(name, here, depth=2, **settings))
            if isinstance(module, Attention | EvaAttention)} == {Target('cpu')}


@pytest.mark.parametrize('capability', ['7.5', '8.0', '12.0', 'gfx942'])
def test_cudnn_by_name_is_refused_on_gpus_before_ampere(capability):
    """JAX finds out when the program is compiled."""
    device = types.SimpleNamespace(platform='gpu', compute_capability=capability,
                                   device_kind='Tesla T4')
    if capability == '7.5':
        with pytest.raises(ConfigError, match=r"'cudnn'.*8\.0 or more.*7\.5 \(Tesla T4\)"):
            built('vit_tiny_patch16_224', device, depth=1, attn_impl='cudnn')
    else:
        built('vit_tiny_patch16_224', device, depth=1, attn_impl='cudnn')
    built('vit_tiny_patch16_224', device, depth=1)
    built('resnet18', device)


def test_the_device_changes_no_setting():
    config = common.get_config()
    config.model = dict(name='vit_tiny_patch16_224')
    assert 'attn_impl' not in model_settings_of(config)
