"""What older versions wrote is read, gone on with and predicted with; what newer ones wrote is
refused. Each folder of old_runs is a run of one version, stopped half way."""

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import main
from tests.faults.broken_data import picture
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


FORMS = {'nfd': [unicodedata.normalize('NFD', name) for name in ('café', '강아지', 'x')],
         'numbers': ['0', '1', '2', '10'], 'splits': ['Train/a', 'Train/b', 'Test/a', 'Test/b']}


@pytest.mark.parametrize('names', FORMS.values(), ids=FORMS)
def test_a_run_keeps_the_names_and_the_order_of_its_classes(tmp_path, capfd, names):
    """Before there were rules, classes were called as they are written and sorted as text."""
    for place, name in enumerate(names):
        (tmp_path / 'data' / name).mkdir(parents=True)
        for k in range(8):
            (tmp_path / f'data/{name}/{k}.png').write_bytes(picture(8 * place + k))
    kept = [flag for flag in SETTINGS[1:] if not any(word in flag for word in (
        'split', 'long_tail', 'resample', 'duration'))]
    command = [f'--config=configs/sketch_vit.py:folder={tmp_path}/data', *kept,
               f'--workdir={tmp_path}/run', '--config.duration.steps=8']
    assert main.main([*command[:-1], '--config.data.rules=1', '--config.duration.steps=4']) == 0
    path = tmp_path / 'run/config.json'
    before = json.loads(path.read_text())
    older = json.loads(path.read_text())
    del older['sha256'], older['data']['rules']
    path.write_text(json.dumps(older))
    assert main.main(command) == 0
    said = capfd.readouterr().err
    assert 'resume: from step 4 of 8' in said and 'config.data.rules = 1' in said
    after = json.loads(path.read_text())
    assert after['classes']['class'] == before['classes']['class'] == sorted(names)
    assert after['data_digest'] == before['data_digest']
    with np.load(tmp_path / 'run/predictions/test.npz', allow_pickle=False) as file:
        assert file['classes'].tolist() == sorted(names)
    assert main.main(['predict', f'--workdir={tmp_path}/run']) == 0
    if len({unicodedata.normalize('NFC', name) for name in names} - set(names)):
        # Other data of today are called in NFC, and are the same classes.
        assert main.main(['predict', f'--workdir={tmp_path}/run', '--config.predict.source=data',
                          '--config.data.rules=2']) == 0
        with np.load(tmp_path / 'run/predictions/data.npz', allow_pickle=False) as file:
            assert file['classes'].tolist() == [unicodedata.normalize('NFC', name)
                                                for name in sorted(names)]
            assert np.bincount(file['labels']).tolist() == [8, 8, 8]
    assert main.main([*command, '--config.data.rules=2']) == 2
    assert 'config.data.rules = 1' in capfd.readouterr().err.splitlines()[-1]
