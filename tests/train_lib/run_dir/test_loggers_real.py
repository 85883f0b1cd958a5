"""Runs with the real packages wandb, offline, and MLflow, in a database and in its file store:
what lies there is what metrics.jsonl says, and the training is bit for bit that without loggers.
"""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import main
from tests.faults.running import QUICK, SMALL, Start, finish
from train_lib.run_dir import checkpoints
from train_lib.run_dir.metrics_log import METRICS
from train_lib.runtime.trees import by_path

FLAGS = [*SMALL, *QUICK, '--config.log.every.steps=2', '--config.eval.every.steps=4',
         '--config.checkpoint.every.steps=4', '--config.report.heat_maps=false']
pytestmark = pytest.mark.slow  # each package takes seconds to load
PACKAGES = {'wandb': 'wandb', 'database': 'mlflow', 'file store': 'mlflow'}


@pytest.fixture(params=PACKAGES)
def where(request, tmp_path, monkeypatch):
    """(the logger, its flag)"""
    kind = request.param
    pytest.importorskip(PACKAGES[kind], reason=f'needs {PACKAGES[kind]}: pip install -r '
                                               f'requirements-loggers.txt')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('MLFLOW_DISABLE_TELEMETRY', 'true')
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    flags = {'wandb': '--config.log.wandb=sketches', 'database':
             f'--config.log.mlflow={tmp_path}/db', 'file store':
             f'--config.log.mlflow=file:{tmp_path}/files'}
    return kind, flags[kind]


def records(path: Path) -> Iterator[bytes]:
    """Those of a file of wandb, which has the format of LevelDB's logs after a header of 7 bytes:
    blocks of 32 KiB of (crc, length, kind) and data, where kind 1 is whole, 2 first, 4 last."""
    data, at, found = path.read_bytes(), 7, b''
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack('<IHB', data[at:at + 7])
        found += data[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield found
            found = b''


def of_wandb(run: Path) -> tuple[dict, dict, set[str]]:
    """({step: values}, result, ids) of all files in the workdir; a step must be there once."""
    from wandb.proto.wandb_internal_pb2 import Record
    history, result, ids = {}, {}, set()
    for path in sorted(run.glob('wandb/offline-run-*/*.wandb')):
        for data in records(path):
            record = Record.FromString(data)
            kind = record.WhichOneof('record_type')
            if kind == 'run':
                ids.add(record.run.run_id)
            elif kind == 'history':
                row = {item.key or '.'.join(item.nested_key): json.loads(item.value_json)
                       for item in record.history.item}
                step = row['_step']
                assert step not in history
                history[step] = {key: value for key, value in row.items() if key[0] != '_'}
            elif kind == 'summary':
                result |= {item.key or '/'.join(item.nested_key): json.loads(item.value_json)
                           for item in record.summary.update}
    return history, {key: value for key, value in result.items() if 'result' in key}, ids


def of_mlflow(uri: str) -> tuple[dict, dict, set[str]]:
    """The same of the only experiment of MLflow."""
    from mlflow import MlflowClient
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name('atelier')
    runs = client.search_runs([experiment.experiment_id])
    history: dict = {}
    result = {}
    for run in runs:
        for name in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, name):
                row = result if name.startswith('result/') else history.setdefault(point.step, {})
                assert name not in row or name.startswith('result/')
                row[name] = point.value
    return history, result, {run.info.run_id for run in runs}


def shown(where, run: Path) -> tuple[dict, dict, set[str]]:
    kind, flag = where
    if kind == 'wandb':
        return of_wandb(run)
    uri = flag.partition('mlflow=')[2]
    return of_mlflow(f'sqlite:///{uri}/mlflow.db' if kind == 'database' else uri)


def as_in_the_file(run: Path) -> dict:
    found: dict = {}
    for line in (run / METRICS).read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row['step'], {}).update(
            {f'{row["split"]}/{key}': value for key, value in row.items()
             if isinstance(value, (int, float)) and key != 'step'})
    return found


def same_rows(history: dict, run: Path) -> None:
    wanted = as_in_the_file(run)
    assert sorted(history) == sorted(wanted)
    for step, values in wanted.items():
        rest = set(history[step]) - set(values)
        assert rest <= {'train/images_per_second'}
        for name, value in values.items():
            assert history[step][name] == pytest.approx(value, rel=1e-6), (step, name)


def same_training(run: Path, other: Path) -> None:
    assert (run / METRICS).read_bytes() == (other / METRICS).read_bytes()
    step = checkpoints.committed_steps(other / 'checkpoints')[-1]
    ours, theirs = (by_path(checkpoints.read_weights(one / f'checkpoints/{step}'))
                    for one in (run, other))
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_a_run_is_shown_and_goes_on(where, tmp_path, capfd):
    """Begun, taken back to an earlier checkpoint as by a kill, made longer, and started again when
    it is finished; beside a run without a logger."""
    os.environ.pop('WANDB_RUN_GROUP', None)
    for run, more in (('with', [where[1]]), ('without', [])):
        workdir = f'--workdir={tmp_path / run}'
        assert main.main([*FLAGS, *more, '--config.duration.steps=8', workdir]) == 0
        shutil.rmtree(tmp_path / run / 'checkpoints/8')
        for _ in range(2):
            assert main.main([*FLAGS, *more, '--config.duration.steps=14', workdir]) == 0
    said = capfd.readouterr().err.splitlines()
    assert not [line for line in said if len(line) > 80 and str(tmp_path) not in line]
    assert 'the training goes on' not in '\n'.join(said)
    same_training(tmp_path / 'with', tmp_path / 'without')
    history, result, ids = shown(where, tmp_path / 'with')
    same_rows(history, tmp_path / 'with')
    assert len(ids) == 1
    found = json.loads((tmp_path / 'with/result.json').read_text())
    assert {value for key, value in result.items() if key.endswith('test/accuracy')} == {
        found['test']['accuracy']}
    assert sorted(path.name for path in Path().glob('mlruns')) == []


def test_folds_are_runs_of_one_group(where, tmp_path):
    run = tmp_path / 'folds'
    assert main.main([*FLAGS, where[1], '--config.duration.steps=4', '--config.split.kind=kfold',
                      '--config.split.folds=2', '--config.split.fold=all', f'--workdir={run}']) == 0
    if where[0] != 'wandb':
        from mlflow import MlflowClient
        uri = where[1].partition('mlflow=')[2]
        client = MlflowClient(f'sqlite:///{uri}/mlflow.db' if where[0] == 'database' else uri)
        experiment = client.get_experiment_by_name('atelier').experiment_id
        runs = client.search_runs([experiment])
        assert sorted(each.info.run_name for each in runs) == [
            'folds', 'folds/fold_0', 'folds/fold_1']
        assert {each.data.tags.get('group', 'folds') for each in runs} == {'folds'}
        assert all(each.data.params['duration.steps'] == '4' for each in runs)
        assert {each.info.status for each in runs} == {'FINISHED'}
        return
    from wandb.proto.wandb_internal_pb2 import Record
    found = {}
    for path in run.rglob('*.wandb'):
        for record in map(Record.FromString, records(path)):
            if record.WhichOneof('record_type') == 'run':
                found[record.run.display_name] = record.run.run_group
    assert found == {'folds': '', 'folds/fold_0': 'folds', 'folds/fold_1': 'folds'}


def test_three_processes_make_one_database(tmp_path):
    """As the workers of a study do: MLflow by itself lets one of them make the tables, and the
    others fail."""
    pytest.importorskip('mlflow', reason='needs mlflow: pip install -r requirements-loggers.txt')
    program = (
        'import sys; from pathlib import Path; from train_lib.run_dir import logged_run, '
        'mlflow_logger; where = sys.argv[1]; cls = mlflow_logger.MlflowLogger; '
        'logger = cls(where, cls.check(where), "", logged_run.LoggedRun(Path(), "x", "", {})); '
        'logger.write(1, {"train/loss": 0.5}); logger.close("done")')
    started = [subprocess.Popen([sys.executable, '-c', program, str(tmp_path / 'db')],
                                stderr=subprocess.PIPE, text=True,
                                env=os.environ | {'MLFLOW_DISABLE_TELEMETRY': 'true'})
               for _ in range(3)]
    for each in started:
        _, said = each.communicate(timeout=300)
        assert each.returncode == 0, said


@pytest.mark.faults
def test_a_killed_run_shows_every_step_once(where, tmp_path):
    run = tmp_path / 'run'
    flags = [*FLAGS, where[1], '--config.duration.steps=400', '--config.log.every.steps=5',
             '--config.eval.every.steps=50', '--config.checkpoint.every.steps=20']
    for step in (100, 220):
        start = Start(run, *flags)
        assert start.wait_until((run / f'checkpoints/{step}').exists)
        os.killpg(start.process.pid, signal.SIGKILL)
        start.end()
    finish(run, *flags)
    history, _, ids = shown(where, run)
    same_rows(history, run)
    assert len(ids) == 1


@pytest.mark.parametrize('kind', ['wandb', 'mlflow'])
def test_a_server_that_is_away_is_said_and_stops_nothing(tmp_path, monkeypatch, kind):
    """Nobody listens on that port. wandb tries for 45 seconds, of which the run waits for few."""
    pytest.importorskip(kind, reason=f'needs {kind}: pip install -r requirements-loggers.txt')
    environment = dict(WANDB_MODE='online', WANDB_BASE_URL='http://127.0.0.1:9',
                       WANDB_API_KEY='a' * 40, MLFLOW_DISABLE_TELEMETRY='true',
                       MLFLOW_HTTP_REQUEST_MAX_RETRIES='1', MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR='1')
    flag = dict(wandb='--config.log.wandb=x', mlflow='--config.log.mlflow=http://127.0.0.1:9')
    log = finish(tmp_path / 'run', *FLAGS, '--config.duration.steps=8', flag[kind],
                 environment=environment).log
    assert log.count('the training goes on') == 1
    assert (tmp_path / 'run/report.html').exists()
