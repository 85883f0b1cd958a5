"""Runs with sharpness-aware gradients and averages: resumed, on several devices, made longer."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.train_lib.training.test_flat_minima import FREE
from tests.train_lib.training.test_phases import run_config, stored
from train_lib.run_dir import checkpoints
from train_lib.runtime.errors import ConfigError
from train_lib.training import run
from train_lib.training.data import load_data, split_data
from train_lib.training.new_length import find_new_length

CASES = {
    'swa': {'swa.start': dict(steps=3), 'swa.every': dict(steps=2), 'swa.schedule': 'cyclic',
            'swa.statistics': 12, 'sharpness.kind': 'asam', 'sharpness.rho': 0.5,
            'sharpness.every': 2, 'guard.skip': 2, 'accumulate': 2},
    'lookahead': {'lookahead.every': 3, 'sharpness.kind': 'sam'},
    'schedule_free': FREE | {'finetune.unfreeze': dict(epochs=0)},
}


@pytest.mark.parametrize('case', [
    pytest.param(case, marks=() if case == 'lookahead' else pytest.mark.slow) for case in CASES])
def test_a_run_stopped_anywhere_goes_on_bit_for_bit(case, tmp_path):
    config = run_config(**CASES[case])
    manifest, workdir = load_data(config), tmp_path / 'run'
    run.train_one(config, manifest, workdir)
    end, metrics = stored(workdir, 8), (workdir / 'metrics.jsonl').read_text()
    assert any(name.startswith('ema/params/') for name in end)
    found = checkpoints.read_weights(workdir / 'checkpoints/8')
    np.testing.assert_array_equal(found['params']['head']['kernel'], end['ema/params/head/kernel'])
    for step in (2,) if case == 'swa' else (4,):  # 2: before the mean begins
        copy = tmp_path / str(step)
        shutil.copytree(workdir, copy)
        for later in checkpoints.committed_steps(copy / 'checkpoints'):
            if later > step:
                shutil.rmtree(copy / f'checkpoints/{later}')
        (copy / 'result.json').unlink()
        shutil.rmtree(copy / 'predictions')
        run.train_one(config, manifest, copy)
        again = stored(copy, 8)
        assert again.keys() == end.keys()
        assert not [name for name in end if not np.array_equal(end[name], again[name])]
        assert (copy / 'metrics.jsonl').read_text() == metrics


ON_MESHES = '''
import json
import jax
import numpy as np
from tests.train_lib.training.eight_devices import VIT, Started, settings
found = {}
for mesh in ('one', 'both'):
    config = settings(VIT, **{'ema/decay': 0.0, 'sharpness/kind': 'sam', 'sharpness/rho': 0.3,
                              'swa/start': dict(steps=1),
                              'swa/every': dict(steps=1), 'accumulate': 2})
    run = Started(config, mesh)
    losses = run.train(4)
    leaves = jax.tree.leaves(run.state.ema.params)
    found[mesh] = dict(losses=losses, total=float(run.state.ema.total),
                       norm=float(np.sqrt(sum(float((leaf ** 2).sum()) for leaf in leaves))),
                       split=sum(not leaf.sharding.is_fully_replicated for leaf in leaves))
print(json.dumps(found))
'''


@pytest.mark.slow
def test_split_weights_give_the_same_mean():
    environment = os.environ | {'JAX_PLATFORMS': 'cpu',
                                'XLA_FLAGS': '--xla_force_host_platform_device_count=8'}
    done = subprocess.run([sys.executable, '-c', ON_MESHES], cwd=Path(__file__).parents[3],
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, both = json.loads(done.stdout.splitlines()[-1]).values()
    np.testing.assert_allclose(both['losses'], one['losses'], rtol=1e-4)
    np.testing.assert_allclose(both['norm'], one['norm'], rtol=1e-5)
    assert both['total'] == one['total'] == 4 and both['split'] > one['split'] == 0


@pytest.mark.slow
def test_a_longer_run_that_takes_the_mean_back_is_refused(tmp_path):
    config = run_config(**{'swa.start': dict(percent=50), 'finetune.unfreeze': dict(epochs=0)})
    manifest = load_data(config)
    run.train_one(config, manifest, tmp_path / 'run')
    with config.ignore_type():
        config.duration = dict(steps=40)
    with pytest.raises(ConfigError, match='swa would go back at step 8'):
        find_new_length(config, split_data(config, manifest, tmp_path / 'run'), tmp_path / 'run', 8)
