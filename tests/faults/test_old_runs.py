"""What older versions wrote is read, gone on with and predicted with; what newer ones wrote is
refused. Each folder of old_runs is a run of one version, stopped half way."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import main
from tests.faults.old_runs.make import SETTINGS
from train_lib.run_dir import digests, workdirs

RUNS = sorted((Path(__file__).parent / 'old_runs').glob('format_*'),
              key=lambda path: int(path.name.rpartition('_')[2]))


@pytest.fixture(params=RUNS, ids=lambda path: path.name)
def run(request, tmp_path) -> Path:
    return shutil.copytree(request.param, tmp_path / 'run')


def logits(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as file:
        return file['logits'][np.argsort(file['ids'])]


def test_it_goes_on_and_predicts_as_it_would_have_then(run, capfd):
    before = (run / 'metrics.jsonl').read_bytes()
    assert main.main([*SETTINGS, f'--workdir={run}']) == 0
    assert 'resume: from step 4 of 8' in capfd.readouterr().err
    assert (run / 'metrics.jsonl').read_bytes().startswith(before[:before.rindex(b'{"step": 6')])
    # Another XLA adds in another order.
    wanted = logits(run / 'finished.npz')
    np.testing.assert_allclose(logits(run / 'predictions/test.npz'), wanted, atol=1e-3)
    shutil.rmtree(run / 'predictions')
    assert main.main(['predict', f'--workdir={run}', '--config.predict.dtype=float32']) == 0
    np.testing.assert_allclose(logits(run / 'predictions/test.npz'), wanted, atol=1e-3)


def test_there_is_one_of_today():
    formats = {json.loads((run / 'checkpoints/4/digests.json').read_text())['format']
               for run in RUNS}
    assert formats == set(range(1, digests.FORMAT + 1)), 'run old_runs/make.py for the new format'
    newest = json.loads((RUNS[-1] / 'config.json').read_text())
    assert newest['format'] == workdirs.FORMAT


@pytest.mark.parametrize('verb', ['train', 'predict'])
def test_a_newer_run_is_refused_in_one_sentence(tmp_path, monkeypatch, capfd, verb):
    run = shutil.copytree(RUNS[-1], tmp_path / 'run')
    command = [verb, *SETTINGS, f'--workdir={run}']
    with monkeypatch.context() as later:
        later.setattr(digests, 'FORMAT', 99)
        digests.write_digests(run / 'checkpoints/4')
    assert main.main(command) == 1
    assert 'has checkpoint format 99' in capfd.readouterr().err.splitlines()[-1]
    assert (run / 'checkpoints/4').exists()  # it is not damaged
    config = json.loads((run / 'config.json').read_text())
    (run / 'config.json').write_text(json.dumps(config | dict(format=99)))
    assert main.main(command) == (1 if verb == 'train' else 2)
    assert 'format 99' in capfd.readouterr().err.splitlines()[-1]
