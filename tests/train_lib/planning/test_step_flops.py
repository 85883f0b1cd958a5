"""FLOPs of a training step against those that models are known to take per picture."""

import pytest
from ml_collections import ConfigDict

from configs import common
from models.costs import costs
from train_lib.planning.step_plan import count_flops
from train_lib.training.data import load_manifest, split_data

BATCH = 4


def settings(model: str, changes: dict) -> ConfigDict:
    config = common.get_config()
    config.data.source = 'digits'
    config.image.size = 224
    config.batch_size = BATCH
    config.model = dict(name=model)
    config.optimizer.name = 'sgd'
    for path, value in changes.items():
        *parents, last = path.split('/')
        node = config
        for name in parents:
            node = node[name]
        with config.ignore_type():
            node[last] = value
    return config


def passes(model: str, changes: dict) -> float:
    """FLOPs of a step in units of the forward pass of its pictures."""
    config = settings(model, changes)
    data = split_data(config, load_manifest(config))
    return count_flops(config, data) / (BATCH * costs()[model].gflops * 1e9)


VIT = 'vit_tiny_patch16_224'
HEAD_ALONE = (('head/.*', dict(train=True)), ('.*', dict(train=False)))


# Forward, and the gradients of the activations and of the weights; the update of the weights is
# little beside them. With remat a part is computed twice. LoRA needs no gradient of the large
# weights, but has adapters. The head alone takes hardly more than forward.
@pytest.mark.parametrize('model,changes,low,high', [
    (VIT, {'finetune/table': HEAD_ALONE}, 0.97, 1.1),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in [
        (VIT, {'model': dict(name=VIT, scan=True), 'accumulate': 2}, 2.85, 3.2),
        (VIT, {}, 2.85, 3.2),
        (VIT, {'model': dict(name=VIT, scan=True, remat=True)}, 3.6, 4.2),
        ('resnet18', {}, 2.7, 3.2),
        (VIT, {'finetune/lora/rank': 4}, 1.9, 2.4)])])
def test_flops_of_a_step(model, changes, low, high):
    assert low < passes(model, changes) < high
