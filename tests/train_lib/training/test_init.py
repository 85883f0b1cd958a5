"""How a run begins: the four rules, in their order, and that a run goes on in another workdir."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save_file

import main
from train_lib.run_dir import checkpoints
from train_lib.runtime.trees import by_path
from train_lib.training import init

TINY = ['--config=configs/sketch_vit.py:data=digits', '--config.image.size=16',
        '--config.model=dict(name="small_cnn", width=8, stages=2, drop_rate=0.2)',
        '--config.log.every.steps=2', '--config.eval.every.steps=3',
        '--config.checkpoint.every.steps=2', '--config.checkpoint.keep=9',
        '--config.batch_size=32', '--config.log.tensorboard=false', '--config.duration.steps=8',
        '--config.optimizer.name=sgd', '--config.mixing=[dict(kind="mixup", p=0.5)]']


def run(capfd, workdir, *more) -> str:
    """Trains; returns the log."""
    capfd.readouterr()
    assert main.main([*TINY, f'--workdir={workdir}', *more]) == 0
    return capfd.readouterr().err


def refused(capfd, workdir, *more) -> str:
    """The sentence that a start ends with."""
    assert main.main([*TINY, f'--workdir={workdir}', *more]) == 2
    return capfd.readouterr().err.splitlines()[-1]


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Path:
    """A run of eight steps."""
    workdir = tmp_path_factory.mktemp('whole') / 'run'
    assert main.main([*TINY, f'--workdir={workdir}', '--config.profile.steps=2',
                      '--config.profile.start.steps=4']) == 0
    return workdir


@pytest.fixture
def half(whole, tmp_path) -> Path:
    """The same as it was after four steps, killed between the fifth and the sixth."""
    workdir = tmp_path / 'half'
    shutil.copytree(whole, workdir)
    for step in checkpoints.committed_steps(workdir / 'checkpoints'):
        if step > 4:
            shutil.rmtree(workdir / f'checkpoints/{step}')
    (workdir / 'checkpoints/writing-6').mkdir()
    return workdir


def digest(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob('*')) if path.is_file()}


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore(workdir / f'checkpoints/{step}/state')
    return by_path(jax.tree.map(np.asarray, tree))


@pytest.mark.slow
def test_a_run_goes_on_whose_workdir_is_a_relative_path(half, whole, capfd, monkeypatch):
    monkeypatch.chdir(half.parent)
    assert 'resume: from step 4 of 8' in run(capfd, half.name)
    assert (half / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()
    assert 'resume_from: goes on' in run(capfd, 'new', f'--config.init.resume_from={half.name}')


def test_a_run_goes_on_in_another_workdir(whole, half, tmp_path, capfd):
    before, new = digest(half), tmp_path / 'new'
    log = run(capfd, new, f'--config.init.resume_from={half}')
    assert 'start    resume_from: goes on' in log and 'resume: from step 4 of 8' in log
    assert digest(half) == before
    assert (new / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()
    ours, theirs = arrays(new, 8), arrays(whole, 8)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    results = [json.loads((folder / 'result.json').read_text()) for folder in (new, whole)]
    assert results[0]['test'] == results[1]['test']
    assert results[0]['best_step'] == results[1]['best_step']

    shutil.rmtree(half)  # from now on the run is on its own
    log = run(capfd, new, f'--config.init.resume_from={half}')
    assert 'resume_from' not in log and 'already finished' in log


def test_a_checkpoint_of_its_own_comes_first(half, tmp_path, capfd):
    shutil.copytree(half, tmp_path / 'own')
    shutil.rmtree(tmp_path / 'own/checkpoints/4')
    log = run(capfd, tmp_path / 'own', f'--config.init.resume_from={half}')
    assert 'goes on with' not in log and 'resume: from step 3 of 8' in log


def test_pretrained_weights_in_the_workdir_are_no_run_that_goes_on(whole, tmp_path, capfd):
    workdir = tmp_path / 'run'
    (workdir / 'checkpoints').mkdir(parents=True)
    best = json.loads((whole / 'result.json').read_text())['best_step']
    stored = checkpoints.read_weights(whole / f'checkpoints/{best}')
    weights = {f'{name}.weight': np.zeros(3, np.float32) for name in ('a', 'b')}
    for folder in (workdir, workdir / 'checkpoints'):
        save_file(weights, folder / 'model.safetensors')
    log = run(capfd, workdir)
    assert 'start    scratch' in log and 'resume' not in log
    assert (workdir / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()

    message = refused(capfd, tmp_path / 'asked',
                      f'--config.init.pretrained={workdir / "model.safetensors"}')
    assert 'a.weight' in message or 'missing' in message  # it was read as weights

    log = run(capfd, tmp_path / 'from', f'--config.init.from={whole}', '--config.schedule.lr=0')
    assert 'init: weights of' in log
    taken = checkpoints.read_weights(tmp_path / 'from/checkpoints/8')['params']
    jax.tree.map(np.testing.assert_array_equal, taken, stored['params'])


def test_only_the_same_run_can_go_on(half, tmp_path, capfd):
    source, new = f'--config.init.resume_from={half}', tmp_path / 'new'
    message = refused(capfd, new, source, '--config.schedule.lr=0.5')
    assert 'config.schedule.lr' in message and 'init.from' in message
    saved = json.loads((half / 'config.json').read_text())
    del saved['sha256']
    (half / 'config.json').write_text(json.dumps(saved | {'data_digest': 'other'}))
    assert 'data have changed' in refused(capfd, tmp_path / 'newer', source)
    shutil.rmtree(half / 'checkpoints')
    (half / 'config.json').write_text(json.dumps(saved))
    assert 'no good checkpoint' in refused(capfd, tmp_path / 'newest', source)
    assert 'holds no run' in refused(capfd, tmp_path / 'last',
                                     f'--config.init.resume_from={tmp_path / "nowhere"}')


@pytest.mark.parametrize('one, other', [
    ('resume_from', 'from'), ('resume_from', 'pretrained'), ('from', 'pretrained')])
def test_two_sources_exclude_each_other(one, other, half, tmp_path, capfd):
    message = refused(capfd, tmp_path / 'run', f'--config.init.{one}={half}',
                      f'--config.init.{other}=b')
    assert f'config.init.{one}' in message and f'config.init.{other}' in message
    assert not (tmp_path / 'run').exists()


def test_the_same_command_with_resume_from_is_no_contradiction(half, tmp_path, capfd):
    saved = json.loads((half / 'config.json').read_text())
    saved['init']['from'] = 'elsewhere'
    del saved['sha256']
    (half / 'config.json').write_text(json.dumps(saved))
    log = run(capfd, tmp_path / 'on', f'--config.init.resume_from={half}',
              '--config.init.from=elsewhere')
    assert 'resume: from step 4' in log


def test_folds_do_not_go_on_from_nowhere(tmp_path, capfd):
    folds = ['--config.split.kind=kfold', '--config.split.fold=all']
    nowhere = f'--config.init.resume_from={tmp_path / "nowhere"}'
    assert 'holds no run' in refused(capfd, tmp_path / 'folds', *folds, nowhere)
    assert not (tmp_path / 'folds').exists()


def test_the_result_knows_the_best_step(whole, half):
    # A run stopped in its last evaluation saved its last step before it was scored.
    result = json.loads((whole / 'result.json').read_text())
    (half / 'result.json').write_text(json.dumps(result | dict(best_step=2, steps=4)))
    assert init.best_checkpoint(half).name == '2'
    (half / 'result.json').unlink()
    assert init.best_checkpoint(half).name != '2'


@pytest.mark.parametrize('settings, words', [
    (['init.head=rest'], 'choose one of auto'),
    (['init.head=resize', 'init.from=a'], 'config.init.pretrained')])
def test_a_head_that_means_nothing_is_refused(settings, words, tmp_path, capfd):
    assert words in refused(capfd, tmp_path / 'run', *(f'--config.{one}' for one in settings))


def test_a_run_describes_itself(whole):
    lines = (whole / 'parameters.txt').read_text().splitlines()
    assert lines[0].endswith('statistics') and 'trained' in lines[0]
    assert any(line.startswith('head/kernel') for line in lines)


def test_the_asked_steps_are_traced(whole):
    assert len(list((whole / 'profile').rglob('perfetto_trace.json.gz'))) == 1
