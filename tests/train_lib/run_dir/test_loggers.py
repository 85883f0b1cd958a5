"""Loggers follow metrics.jsonl: each step once, whatever happens, and never in the way.

The real packages are tested in test_loggers_real.py.
"""

import json
import sys
import threading
import time
from importlib.machinery import PathFinder
from pathlib import Path
from typing import ClassVar

import pytest
from ml_collections import ConfigDict

import main
from tests.faults.running import QUICK, SMALL
from train_lib.run_dir import loggers
from train_lib.run_dir.logged_run import describe_run
from train_lib.run_dir.metrics_log import METRICS, MetricsLog
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.signals import Stopped

SHORT = [*SMALL, *QUICK, '--config.duration.steps=4', '--config.log.every.steps=2',
         '--config.report.heat_maps=false']


class Recorder:
    """A logger that keeps what it is told in lists of the class, which tests clear."""

    calls: ClassVar[list] = []
    fails_at: ClassVar[set] = set()

    def __init__(self, where, place, run, about):
        self.run = run or f'run of {about.name}'
        self.shown = max(steps(self), default=-1) if run else -1
        self.calls.append(('open', place, run))

    @staticmethod
    def check(where):
        return f'at {where}'

    def write(self, step, values):
        if step in self.fails_at:
            self.fails_at.remove(step)
            raise OSError('the network is down, ' + 'and the reason is long; ' * 9)
        self.calls.append((step, values))

    def result(self, step, values):
        self.calls.append(('result', step, values))

    def close(self, status):
        self.calls.append(status)


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    Recorder.calls.clear()
    Recorder.fails_at.clear()
    monkeypatch.setitem(loggers.LOGGERS, 'wandb', Recorder)
    (tmp_path / 'config.json').write_text('{"seed": 3, "format": 2}')
    return Recorder


def train(step, **more):
    return dict(step=step, split='train', loss=0.5) | more


def val(step):
    return dict(step=step, split='val', loss=0.25, accuracy=None)


def start(workdir: Path, *rows, size=0, error=None, result=None, back=None) -> int:
    """One start of a run, from the first `size` bytes of its metrics: writes rows, goes back to
    `back` = (bytes, step, further rows), and ends. Returns the size of the file then."""
    try:
        with loggers.Loggers(dict(wandb='here'), workdir) as sinks:
            log = MetricsLog(workdir, size=size, step=0, tensorboard=False, loggers=sinks)
            for row in rows:
                log.write(row, images_per_second=7.0)
            if back:
                log.flush()
                log.rewind(*back[:2])
                for row in back[2]:
                    log.write(row)
            log.close()
            if error:
                raise error
            sinks.result(result or dict(status='done', steps=4, val=dict(accuracy=0.5)))
    except (RuntimeError, Stopped):
        assert error
    return (workdir / METRICS).stat().st_size


def steps(recorder) -> list[int]:
    return [call[0] for call in recorder.calls if isinstance(call[0], int)]


def test_a_step_is_shown_once_with_all_its_rows(recorded, tmp_path):
    start(tmp_path, train(2), train(4), val(4))
    fast = {'train/images_per_second': 7.0}
    assert recorded.calls == [
        ('open', 'at here', ''), (2, {'train/loss': 0.5} | fast),
        (4, {'train/loss': 0.5, 'val/loss': 0.25, 'val/images_per_second': 7.0} | fast),
        ('result', 4, {'result/steps': 4, 'result/val/accuracy': 0.5}), 'done']
    assert json.loads((tmp_path / 'loggers/wandb.json').read_text())['step'] == 4


def test_after_a_kill_the_rows_that_are_written_again_are_not_shown_again(recorded, tmp_path):
    size = start(tmp_path, train(2), error=RuntimeError('a kill'))
    start(tmp_path, train(4), train(6), error=RuntimeError('a kill'), size=size)
    assert steps(recorded) == [2, 4]
    start(tmp_path, train(4), train(6), train(8), size=size)  # from the checkpoint of step 2
    assert steps(recorded) == [2, 4, 6, 8]
    assert ('open', 'at here', f'run of {tmp_path.name}') in recorded.calls


def test_rows_that_no_start_has_shown_are_made_up_for(recorded, tmp_path):
    """Rows before the checkpoint that a killed process had not handed over, or of a time before
    the logger was switched on."""
    (tmp_path / METRICS).write_text(''.join(f'{json.dumps(train(step))}\n' for step in (2, 4)))
    start(tmp_path, train(6), size=(tmp_path / METRICS).stat().st_size)
    assert steps(recorded) == [2, 4, 6]


def test_a_run_that_stops_within_a_step_shows_it_whole_later(recorded, tmp_path):
    size = start(tmp_path, train(2), train(4), error=Stopped())
    assert recorded.calls[-1] == 'stopped' and steps(recorded) == [2]
    start(tmp_path, val(4), size=size)
    assert [call for call in recorded.calls if call[0] == 4] == [
        (4, {'train/loss': 0.5, 'val/loss': 0.25, 'val/images_per_second': 7.0})]


@pytest.mark.parametrize('noted', [-1, 2, 6])
def test_what_the_place_has_counts(recorded, tmp_path, noted):
    """A process was killed between showing a step and noting it, or what it had handed over was
    lost with it."""
    size = start(tmp_path, train(2), train(4))
    path = tmp_path / 'loggers/wandb.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(step=noted)))
    start(tmp_path, train(6), train(8), size=size)
    assert steps(recorded) == [2, 4, 6, 8]


def test_a_roll_back_shows_no_step_twice(recorded, tmp_path, caplog):
    size = len(json.dumps(train(2))) + 1
    start(tmp_path, train(2), train(4), train(6), train(8),
          back=(size, 2, [train(4), train(6), train(8), train(10)]))
    assert steps(recorded) == [2, 4, 6, 8, 10]
    assert caplog.messages == ['wandb    steps 3 to 6 stay as first shown']


def test_a_finished_run_that_is_started_again_says_nothing_new(recorded, tmp_path):
    size = start(tmp_path, train(2))
    calls = len(recorded.calls)
    start(tmp_path, size=size)
    assert len(recorded.calls) == calls
    start(tmp_path, size=size, result=dict(steps=4, val=dict(accuracy=0.75), seconds=dict(a=1)))
    assert recorded.calls[calls + 1] == (
        'result', 4, {'result/steps': 4, 'result/val/accuracy': 0.75})


@pytest.mark.parametrize('seconds', [0.0, 60.0])
def test_a_failure_is_said_once_and_made_up_for(recorded, tmp_path, caplog, monkeypatch, seconds):
    monkeypatch.setattr(loggers, 'RETRY_SECONDS', seconds)
    recorded.fails_at |= {2, 6} if not seconds else {2}
    start(tmp_path, *map(train, range(2, 12, 2)))
    assert steps(recorded) == [2, 4, 6, 8, 10]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith('wandb    failed, the training goes on: OSError: the net')
    assert len(caplog.messages[0]) == 80


def test_a_logger_that_hangs_holds_nobody_up(recorded, tmp_path, caplog, monkeypatch):
    stuck = threading.Event()
    monkeypatch.setattr(Recorder, '__init__', lambda *_: stuck.wait() and None)
    monkeypatch.setattr(loggers, 'GRACE', dict(done=0.2, stopped=0.1, failed=0.1))
    begun = time.monotonic()
    start(tmp_path, train(2), train(4))
    assert time.monotonic() - begun < 10
    assert caplog.messages == ['wandb    does not answer; the next start hands over the rest']
    assert len((tmp_path / METRICS).read_text().splitlines()) == 2
    stuck.set()
    for thread in threading.enumerate():
        if thread.name == 'logger-wandb':
            thread.join()


def test_a_damaged_note_begins_a_new_run(recorded, tmp_path, caplog):
    size = start(tmp_path, train(2))
    (tmp_path / 'loggers/wandb.json').write_text('{')
    start(tmp_path, train(4), size=size)
    assert steps(recorded) == [2, 2, 4]
    assert 'damaged' in caplog.text


def test_another_place_gets_everything(recorded, tmp_path, monkeypatch):
    size = start(tmp_path, train(2))
    monkeypatch.setattr(Recorder, 'check', staticmethod(lambda where: 'elsewhere'))
    start(tmp_path, train(4), size=size)
    assert steps(recorded) == [2, 2, 4]
    assert ('open', 'elsewhere', '') in recorded.calls


@pytest.mark.parametrize(('made', 'run', 'name', 'group'), [
    ((), 'runs/one', 'one', ''),
    (('runs/one/config.json',), 'runs/one/fold_2', 'one/fold_2', 'one'),
    (('runs/s/study.json',), 'runs/s/arm/0/fold_1', 's/arm/0/fold_1', 's'),
    (('runs/s/study.json', 'runs/s/arm/0/config.json'), 'runs/s/arm/0/fold_1', 's/arm/0/fold_1',
     's')])
def test_parts_of_a_whole_are_one_group(tmp_path, made, run, name, group):
    for path in (*made, f'{run}/config.json'):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text('{"seed": 3, "format": 2, "data_digest": "x"}')
    about = describe_run(tmp_path / run)
    assert (about.name, about.group, about.settings) == (name, group, {'seed': 3})


@pytest.mark.parametrize('name', ['wandb', 'mlflow'])
def test_a_missing_package_is_refused_before_anything_starts(tmp_path, monkeypatch, capfd, name):
    """Also beside a folder of that name, which Python takes for a package."""
    (tmp_path / 'here' / name).mkdir(parents=True)
    monkeypatch.setattr('train_lib.run_dir.logged_run.find_spec', lambda package: (
        PathFinder.find_spec(package, [str(tmp_path / 'here')])))
    assert main.main([*SHORT, f'--config.log.{name}=x', f'--workdir={tmp_path / "run"}']) == 2
    assert capfd.readouterr().err == (
        f'main.py: config.log.{name} needs the package {name}: pip install {name}, or leave '
        f'config.log.{name} empty.\n')
    assert not (tmp_path / 'run').exists()


FAKE = '''
import types
calls = []
Error = type('Error', (Exception,), {})
mode, logged_in = 'online', True

def Settings(**given):
    calls.append(('Settings', given))

def setup(settings):
    return types.SimpleNamespace(settings=types.SimpleNamespace(mode=mode))

def login(prompt, verify):
    assert not prompt and not verify
    return logged_in

def init(**given):
    note = lambda name: lambda *args, **kwargs: calls.append((name, args, kwargs))
    calls.append(('init', given))
    return types.SimpleNamespace(
        id=given['id'], starting_step=0, config=types.SimpleNamespace(update=note('config')),
        log=note('log'), summary=types.SimpleNamespace(update=note('summary')),
        finish=note('finish'))
'''


@pytest.fixture
def fake_wandb(tmp_path, monkeypatch):
    (tmp_path / 'fake').mkdir()
    (tmp_path / 'fake/wandb.py').write_text(FAKE)
    monkeypatch.delitem(sys.modules, 'wandb', raising=False)
    monkeypatch.syspath_prepend(tmp_path / 'fake')
    import wandb
    yield wandb
    del sys.modules['wandb']


@pytest.mark.parametrize(('facts', 'words'), [
    (dict(logged_in=False), 'not logged in to Weights & Biases: run `wandb login`, or set WANDB_'),
    (dict(mode='disabled'), 'and WANDB_MODE is disabled: take one of them out')])
def test_wandb_that_cannot_work_is_refused(fake_wandb, tmp_path, capfd, facts, words):
    vars(fake_wandb).update(facts)
    assert main.main([*SHORT, '--config.log.wandb=x', f'--workdir={tmp_path / "run"}']) == 2
    assert words in capfd.readouterr().err
    assert not (tmp_path / 'run').exists()


def test_a_run_with_wandb_calls_it_in_order(fake_wandb, tmp_path):
    run = tmp_path / 'run'
    assert main.main([*SHORT, '--config.log.wandb=sketches', f'--workdir={run}']) == 0
    calls = [call for call in fake_wandb.calls if call[0] != 'Settings']
    assert [call[0] for call in calls] == ['init', 'config', 'log', 'log', 'summary', 'finish']
    assert {key: calls[0][1][key] for key in ('project', 'name', 'group', 'dir', 'resume')} == dict(
        project='sketches', name='run', group=None, dir=str(run), resume='allow')
    assert calls[0][1]['config']['duration']['steps'] == 4
    rows = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    assert [call[2]['step'] for call in calls[2:4]] == [2, 4]
    for call in calls[2:4]:
        for row in rows:
            if row['step'] == call[2]['step']:
                assert call[1][0][f'{row["split"]}/loss'] == pytest.approx(row['loss'], rel=1e-6)
    assert calls[4][1][0]['result/test/accuracy'] == json.loads(
        (run / 'result.json').read_text())['test']['accuracy']
    assert calls[5][2] == dict(exit_code=0)


@pytest.mark.parametrize(('name', 'word'), [('wandb', 'True'), ('mlflow', 'False'),
                                            ('mlflow', 'off')])
def test_a_switch_is_neither_a_project_nor_a_folder(name, word):
    section = ConfigDict(dict(wandb='', mlflow='') | {name: word})
    said = f"config.log.{name} = '{word}' is not a valid value: give"
    with pytest.raises(ConfigError, match=said):
        loggers.check_loggers(section)
