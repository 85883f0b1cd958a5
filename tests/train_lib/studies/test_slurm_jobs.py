"""A study whose workers are jobs, in a queue that is not Slurm: tests/slurm has the real one."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import main
from train_lib.commands.command_line import parse
from train_lib.commands.study import study_of, worker_command
from train_lib.runtime.errors import ConfigError
from train_lib.studies import ledger, slurm_jobs
from train_lib.studies.settings import SlurmSettings, read_settings
from train_lib.studies.slurm_jobs import supervise_jobs
from train_lib.studies.study_file import claim
from train_lib.studies.supervisor import supervise

with contextlib.suppress(ImportError):
    import submitit  # noqa: F401 - not within a test, whose captured output it would close

TINY = ['study', '--config=configs/studies/digits.py:size=tiny', '--config.study.seeds=(0,)',
        '--config.report.heat_maps=False']


class Local:
    """A queue whose jobs are processes of this machine."""

    def __init__(self, folder: Path, command):
        self.folder, self._command = folder, command
        self.processes: dict[str, subprocess.Popen] = {}
        self.cancelled: list[str] = []
        folder.mkdir(parents=True)

    def submit(self) -> str:
        number = str(len(self.processes) + 1)
        with open(self.folder / f'{number}_0_log.err', 'w') as file:
            self.processes[number] = subprocess.Popen(
                self._command, stdout=file, stderr=file, start_new_session=True, env=os.environ | {
                    slurm_jobs.JOB: str(self.folder), 'SLURM_JOB_ID': number,
                    'JAX_PLATFORMS': 'cpu', 'PATH': '/nowhere'})
        return number

    def jobs(self):
        return {number: 'RUNNING' for number, process in self.processes.items()
                if process.poll() is None}

    def cancel(self, jobs) -> None:
        self.cancelled += jobs
        for number in jobs:
            self.processes[number].terminate()


def started(tmp_path, *more: str):
    """(study, workdir, queue) of a command."""
    command = parse([*TINY, '--launcher=slurm', *more, f'--workdir={tmp_path}/study'])
    study = study_of(command)
    claim(study, command.workdir)
    queue = Local(command.workdir / 'logs/slurm', [
        *worker_command(command, command.workdir), '--workers=1', '--launcher=local'])
    return study, command.workdir, queue


@pytest.mark.slow
def test_jobs_finish_a_study_though_one_is_killed(tmp_path):
    """The command submits another one; every cell runs to its end once."""
    study, workdir, queue = started(tmp_path, '--workers=1')

    def kill():
        while not list(workdir.glob('*/*/metrics.jsonl')):
            time.sleep(0.02)
        os.killpg(queue.processes['1'].pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    assert supervise_jobs(study, workdir, queue, lambda: False, poll=0.2) == 0
    assert [process.wait() for process in queue.processes.values()] == [-signal.SIGKILL, 0]
    assert len(list(workdir.glob('*/*/cell.json'))) == 3
    assert len(list(workdir.glob('*/*/result.json'))) == 3
    assert (workdir / 'logs/slurm/2.end').read_text() == '0'


def test_a_job_leaves_when_no_cell_is_free(tmp_path):
    """It does not wait for those that others run; a command does."""
    study, workdir, _ = started(tmp_path)
    for cell in study.cells():
        assert ledger.take(workdir / cell.folder, 'code')
    assert supervise(study, workdir, ['false'], lambda: False, leave=True) == 0
    asked = []
    assert supervise(study, workdir, ['false'], lambda: asked.append(1) or len(asked) > 2) == 0
    assert len(asked) == 3


class Listed:
    """A queue whose jobs end as they are told to."""

    def __init__(self, folder: Path, ends):
        self.folder, self._ends, self.count = folder, ends, 0
        folder.mkdir(parents=True)

    def submit(self) -> str:
        self.count += 1
        number = str(self.count)
        end = self._ends(number)
        if end is not None:
            (self.folder / f'{number}.end').write_text(str(end))
        (self.folder / f'{number}_0_log.err').write_text(f'x\nmain.py: Of job {number}.\ny\n')
        return number

    def jobs(self):
        return {}

    def cancel(self, jobs) -> None:
        pass


@pytest.fixture
def small(tmp_path):
    study, workdir, _ = started(tmp_path)
    return study, workdir


def test_a_mistake_that_a_job_finds_ends_the_command(small, tmp_path, capsys):
    queue = Listed(tmp_path / 'queue', lambda number: 2)
    assert supervise_jobs(*small, queue, lambda: False, poll=0.01) == 2
    assert capsys.readouterr().err.endswith('main.py: Of job 1.\n') and queue.count == 1


def test_jobs_that_are_killed_again_and_again_end_the_command(small, tmp_path):
    queue = Listed(tmp_path / 'queue', lambda number: None)
    with pytest.raises(RuntimeError, match='see the logs in'):
        supervise_jobs(*small, queue, lambda: False, poll=0.01)
    assert queue.count == 3


def test_slurm_that_does_not_answer_is_asked_again(small, tmp_path):
    """No job is submitted meanwhile, and none counts as dead."""
    queue, asked = Listed(tmp_path / 'queue', lambda number: 0), []
    queue.jobs = lambda: asked.append(1)
    assert supervise_jobs(*small, queue, lambda: len(asked) > 5, poll=0.01) == 0
    assert queue.count == 0


def test_a_job_that_is_refused_later_is_tried_again(small, tmp_path, caplog, monkeypatch):
    """At a limit of jobs, or while Slurm restarts: those that run go on."""
    queue, tries = Listed(tmp_path / 'queue', lambda number: 0), []
    submit = queue.submit
    monkeypatch.setattr(slurm_jobs, 'AGAIN', 0.0)

    def refuse_some():
        tries.append(1)
        if 1 < len(tries) < 5:
            raise ConfigError('sbatch refuses the job (a limit).')
        return submit()

    queue.submit = refuse_some
    assert supervise_jobs(*small, queue, lambda: len(tries) > 5, poll=0.01) == 0
    assert queue.count == len(tries) - 3
    assert caplog.text.count('(a limit). It is tried again.') == 1
    queue.submit = lambda: (_ for _ in ()).throw(ConfigError('refused'))
    with pytest.raises(ConfigError, match='refused'):
        supervise_jobs(*small, queue, lambda: False, poll=0.01)


def test_jobs_of_an_earlier_start_count_and_are_cancelled_with_it(small, tmp_path, caplog):
    queue, cancelled = Listed(tmp_path / 'queue', lambda number: 0), []
    found, queue.cancel = {'77': 'RUNNING'}, lambda jobs: (cancelled.extend(jobs), found.clear())
    queue.jobs = lambda: dict(found)
    asked = []
    caplog.set_level('INFO')
    assert supervise_jobs(*small, queue, lambda: asked.append(1) or len(asked) > 3,
                          poll=0.01) == 0
    assert queue.count == 0 and cancelled == ['77']
    assert '1 job of this study in the queue already' in caplog.text


@pytest.mark.parametrize(('flags', 'words'), [
    (('--launcher=slrum',), "did you mean 'slurm'?"),
    (('--config.study.slurm.minutes=1',), 'config.study.slurm.minutes = 1: give 3 or more'),
    (('--config.study.slurm.gpus=-1',), 'config.study.slurm.gpus = -1: give 0 or more'),
    (('--config.study.slurm.extra=("--qos=high",)',), "without dashes before it"),
    (('--config.study.slurm.extra=("time=3",)',), 'config.study.slurm.minutes')])
def test_wrong_settings_are_refused(tmp_path, capsys, flags, words):
    assert main.main([*TINY, *flags, f'--workdir={tmp_path}/study']) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / 'study').exists()


def test_what_is_missing_is_said(tmp_path, monkeypatch, capsys):
    command = [*TINY, '--launcher=slurm', f'--workdir={tmp_path}/study']
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert main.main(command) == 2
    assert 'pip install -r requirements-slurm.txt' in capsys.readouterr().err
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
    monkeypatch.setenv('PATH', str(tmp_path))
    assert main.main(command) == 2
    assert 'needs sbatch, which is not installed here' in capsys.readouterr().err
    assert not (tmp_path / 'study').exists()


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f'#!{sys.executable}\n{text}')
    path.chmod(0o755)


def test_a_folder_that_slurm_would_read_otherwise_is_refused(tmp_path, monkeypatch, capsys):
    pytest.importorskip('submitit', reason='submitit is not installed')
    for name in ('sbatch', 'srun', 'squeue', 'scancel'):
        program(tmp_path, name, '')
    monkeypatch.setenv('PATH', str(tmp_path))
    assert main.main([*TINY, '--launcher=slurm', f'--workdir={tmp_path}/of %j']) == 2
    assert 'give a path without one' in capsys.readouterr().err
    assert not (tmp_path / 'of %j').exists()


def test_jobs_are_looked_for_by_the_number_of_the_user(tmp_path, monkeypatch):
    """$LOGNAME may be another's, as after su."""
    pytest.importorskip('submitit', reason='submitit is not installed')
    program(tmp_path, 'squeue', f'import sys\nprint("7 RUNNING" if "--user={os.getuid()}" in '
                                f'sys.argv else "")')
    program(tmp_path, 'srun', '')
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('LOGNAME', 'somebody')
    queue = slurm_jobs.SlurmQueue(SlurmSettings(), tmp_path / 'study', ['python', 'main.py'])
    assert queue.jobs() == {'7': 'RUNNING'}


@pytest.mark.parametrize(('state', 'expected'), [('RUNNING', True), ('COMPLETING', False)])
def test_a_job_that_was_told_to_stop_is_queued_again_unless_it_was_cancelled(
        tmp_path, monkeypatch, state, expected):
    program(tmp_path, 'squeue', f'print({state!r})')
    program(tmp_path, 'scontrol', f'import sys\nopen({str(tmp_path / "said")!r}, "w").write('
                                  f'" ".join(sys.argv[1:]))')
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('SLURM_JOB_ID', '5')
    slurm_jobs.requeue()
    assert (tmp_path / 'said').exists() is expected
    if expected:
        assert (tmp_path / 'said').read_text() == 'requeue 5'


def test_what_a_job_asks_for(tmp_path, monkeypatch, capsys):
    """By the script that submitit writes for a sbatch that only notes it."""
    pytest.importorskip('submitit', reason='submitit is not installed')
    program(tmp_path, 'sbatch', f'import shutil, sys\nshutil.copy(sys.argv[1], '
                                f'{str(tmp_path / "script")!r})\nprint("Submitted batch job 7")')
    program(tmp_path, 'srun', '')
    monkeypatch.setenv('PATH', str(tmp_path))
    settings = parse([*TINY, '--config.study.slurm.partition=fast',
                      '--config.study.slurm.minutes=90', '--config.study.slurm.gpus=2',
                      '--config.study.slurm.cpus=3', '--config.study.slurm.memory_gb=40',
                      '--config.study.slurm.account=us',
                      '--config.study.slurm.extra=("qos=high", "exclusive")']).config.study
    queue = slurm_jobs.SlurmQueue(read_settings(settings).slurm, tmp_path / 'study',
                                  ['python', 'main.py'])
    assert queue.submit() == '7'
    lines = (tmp_path / 'script').read_text().splitlines()
    for words in ('partition=fast', 'time=90', 'gpus-per-node=2', 'cpus-per-task=3', 'mem=40G',
                  'account=us', 'qos=high', 'exclusive', 'signal=TERM@120', 'requeue', 'nodes=1',
                  f'job-name={slurm_jobs.job_name(tmp_path / "study")}'):
        assert f'#SBATCH --{words}' in lines, lines
    assert any(line.startswith('srun ') and '--cpus-per-task=3' in line for line in lines)
    assert queue.folder.stat().st_mode & 0o777 == 0o700
    program(tmp_path, 'sbatch', 'import sys\nsys.exit("sbatch: error: invalid partition")')
    with pytest.raises(ConfigError, match=r'invalid partition.*correct config'):
        queue.submit()
    assert capsys.readouterr().err == ''
