"""A frozen backbone is computed forwards only: no gradient runs through it, and no activations are
kept for one.

Compiled for a CPU from shapes, as a plan does it.
"""

import functools

import jax
import pytest

from configs import sketch_eva
from train_lib.planning.step_plan import abstract_job, count_flops
from train_lib.runtime.sharding import AXES, make_mesh
from train_lib.training.data import load_manifest, split_data
from train_lib.training.setup import lower_step


def settled(train: str, head: str = 'linear', depth: int = 2):
    config = sketch_eva.get_config(f'head={head},train={train},size=tiny')
    config.split.fold = 0
    config.model.update(depth=depth, scan=True)
    return config, split_data(config, load_manifest(config))


@functools.cache
def flops(train: str, head: str = 'linear', depth: int = 2) -> float:
    return count_flops(*settled(train, head, depth))


def temporaries(train: str, depth: int) -> int:
    """Bytes of a step besides its arrays: activations and gradients."""
    config, data = settled(train, depth=depth)
    mesh = make_mesh(dict.fromkeys(AXES, 1), jax.devices('cpu')[:1])
    job = abstract_job(config, data, mesh)
    program = lower_step(job.run, job.state, data.parts).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize('head', ['linear', 'mlp'])
def test_a_frozen_backbone_costs_its_forward_pass(head):
    assert flops('head', head) / flops('all') == pytest.approx(1 / 3, abs=0.05)


def test_adapters_cost_a_backward_pass_without_the_gradients_of_frozen_weights():
    assert flops('lora') / flops('all') == pytest.approx(2 / 3, abs=0.12)


def test_a_frozen_backbone_keeps_no_activations():
    deep, shallow, trained = temporaries('head', 8), temporaries('head', 2), temporaries('all', 8)
    assert deep - shallow < (trained - shallow) / 10
