"""The table of costs is complete and current, and its units are as documented."""

import pytest

from models import list_models
from models.costs import costs, image_size, measure


def test_the_table_has_exactly_the_models():
    assert list(costs()) == list_models()


@pytest.mark.parametrize('name', ['cnn_basic', 'small_cnn', 'resnet20', 'vit_tiny_patch16_224'])
def test_the_table_is_current(name):
    assert measure(name) == costs()[name]


@pytest.mark.parametrize('name, parameters, multiply_adds', [  # as published, in 1e9
    ('resnet50', 25_557_032, 4.1), ('densenet121', 7_978_856, 2.9),
    ('efficientnet_b0', 5_288_548, 0.39), ('vit_base_patch16_224', 86_567_656, 17.6),
    ('eva02_large_patch14_448', 305_080_232, 362),
])
def test_a_multiply_add_counts_as_two_operations(name, parameters, multiply_adds):
    cost = costs()[name]
    assert cost.parameters == parameters
    assert cost.gflops == pytest.approx(2 * multiply_adds, rel=0.06)


@pytest.mark.parametrize('name, side', [
    ('eva02_large_patch14_448', 448), ('vit_small_patch32_384', 384), ('resnet18', 224),
    ('inception_resnet_v2', 299), ('tf_efficientnet_b4', 380), ('resnet32_cifar', 32),
    ('resnet_inception', 64), ('cnn_final', 64),
])
def test_the_image_size_is_the_one_that_a_model_is_made_for(name, side):
    assert image_size(name) == costs()[name].image_size == side
