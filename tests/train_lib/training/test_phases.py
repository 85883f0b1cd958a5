"""Runs whose backbone begins to train later: what moves when, and that resuming is exact."""

import logging
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import common
from train_lib.planning.step_plan import abstract_job
from train_lib.run_dir import checkpoints
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharding import make_mesh
from train_lib.runtime.trees import by_path
from train_lib.training import run
from train_lib.training.data import load_data, split_data
from train_lib.training.setup import lower_step

LAST, STEP = 8, 4  # steps of the run, and where its backbone begins to train


def run_config(**changes):
    config = common.get_config()
    config.data.doodles.update(classes=3, per_class=10, writers=8)
    config.image.size = 32
    config.model = dict(name='resnet18', layers=(1, 1), channels=(8, 16))
    config.duration = dict(steps=LAST)
    config.batch_size = 6
    config.checkpoint.every = dict(steps=2)
    config.checkpoint.keep = 10
    config.eval.every = dict(steps=2)
    config.log.every = dict(steps=1)
    config.log.tensorboard = False
    config.report.heat_maps = False
    config.finetune.unfreeze = dict(steps=STEP)
    config.finetune.layer_decay = 0.7
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


def stored(workdir, step):
    """Everything in a checkpoint, by path."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        found = reader.restore((workdir / f'checkpoints/{step}/state').absolute())
    return {name: np.asarray(value) for name, value in by_path(found).items()}


CASES = {
    'all': {},
    'average': {'ema.decay': 0.9, 'ema.statistics': 12, 'accumulate': 2, 'guard.skip': 2},
    'adapters': {'finetune.lora.rank': 2, 'finetune.lora.dropout': 0.1, 'optimizer.name': 'muon'},
    'stages': {'finetune.table': (
        ('head/.*', {}), ('layer2/.*', dict(start=dict(steps=2), lr=0.5)),
        ('(conv1|bn1)/.*', dict(train=False)), ('.*', dict(start=dict(percent=75)))),
        'finetune.unfreeze': dict(epochs=0)},
}


@pytest.fixture(scope='module', params=[
    pytest.param(case, marks=() if case == 'average' else pytest.mark.slow) for case in CASES])
def done(request, tmp_path_factory):
    """(case, config, manifest, workdir, log) of a run."""
    config = run_config(**CASES[request.param])
    workdir = tmp_path_factory.mktemp('run') / 'run'
    manifest, lines = load_data(config), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger('train_lib')
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        run.train_one(config, manifest, workdir)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return request.param, config, manifest, workdir, lines


def moved(workdir, before, after):
    """Names of the arrays of the weights that differ between two steps."""
    old, new = stored(workdir, before), stored(workdir, after)
    return {name for name in old if name.startswith(('params/', 'rest/'))
            and not np.array_equal(old[name], new[name])}


def test_what_waits_does_not_move_and_its_moments_are_zero(done):
    case, _, _, workdir, lines = done
    if case != 'stages':
        before = moved(workdir, 2, STEP)
        assert before and all(name.startswith('params/head/') for name in before)
    late = [value for name, value in stored(workdir, 2).items() if '/after_' in name
            and not name.endswith('ns_coeffs')]  # constants of Muon
    assert late and not any(value.any() for value in late)
    after = moved(workdir, 6, LAST)
    if case == 'adapters':
        assert {name.rpartition('/')[2] for name in after} == {'lora_a', 'lora_b', 'kernel', 'bias'}
        assert {name for name in after if not name.endswith(('lora_a', 'lora_b'))} == {
            'params/head/kernel', 'params/head/bias'}
    else:
        assert {'params/layer1/0/conv1/kernel', 'rest/layer1/0/bn1/mean'} <= after
    said = [line for line in lines if 'begin to train' in line]
    assert len(said) == (2 if case == 'stages' else 1)
    assert all(len(line) <= 80 for line in said)


def test_a_run_stopped_on_either_side_goes_on_bit_for_bit(done, tmp_path):
    case, config, manifest, workdir, _ = done
    end, metrics = stored(workdir, LAST), (workdir / 'metrics.jsonl').read_text()
    for step in {'average': (2,), 'all': (2, STEP, 6)}.get(case, (STEP,)):
        copy = tmp_path / str(step)
        shutil.copytree(workdir, copy)
        for later in checkpoints.committed_steps(copy / 'checkpoints'):
            if later > step:
                shutil.rmtree(copy / f'checkpoints/{later}')
        for name in ('result.json', 'predictions'):
            path = copy / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        run.train_one(config, manifest, copy)
        again = stored(copy, LAST)
        assert again.keys() == end.keys()
        assert not [name for name in end if not np.array_equal(end[name], again[name])]
        assert (copy / 'metrics.jsonl').read_text() == metrics


def test_parameters_txt_says_when(done):
    case, _, _, workdir, _ = done
    text = (workdir / 'parameters.txt').read_text()
    assert ('after 2 steps' in text and 'after 75% of the run' in text if case == 'stages' else
            f'after {STEP} steps' in text)


def flops(config):
    data = split_data(config, load_data(config))
    job = abstract_job(config, data, make_mesh(config.mesh, jax.devices()[:1]))
    steps = [step for _, step, _ in job.run.programs.earlier]
    return [lower_step(job.run, job.state, data.parts, step).cost_analysis()['flops']
            for step in (*steps, None)]


def test_the_backward_pass_of_what_waits_is_not_computed():
    frozen = run_config(**{'finetune.unfreeze': dict(epochs=0), 'finetune.table': (
        ('head/.*', {}), ('.*', dict(train=False)))})
    early, late = flops(run_config())
    assert early == pytest.approx(flops(frozen)[0], rel=0.05)
    assert early < 0.5 * late


def test_nothing_at_the_start_is_refused_and_what_comes_too_late_is_said(tmp_path, caplog):
    row = ('.*', dict(start=dict(steps=2)))
    with pytest.raises(ConfigError, match='nothing trains before step 2'):
        flops(run_config(**{'finetune.table': (row,), 'finetune.unfreeze': dict(epochs=0)}))
    caplog.set_level(logging.WARNING)
    flops(run_config(**{'finetune.unfreeze': dict(steps=LAST)}))
    assert f'what begins after {LAST} steps never trains' in caplog.text
