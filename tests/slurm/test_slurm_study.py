"""One study on two nodes that share its folder: as an array of jobs, and with --launcher=slurm."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import ROOT, XLA, Cluster, wait_for
from tests.train_lib.studies.test_study_kills import assert_same_study, over

pytestmark = pytest.mark.slurm
SCRIPT = ROOT / 'scripts/slurm_train.sh'
STUDY = ('study', '--config=configs/studies/digits.py', '--config.duration.epochs=10',
         '--config.study.seeds=(0,)', '--config.report.heat_maps=False')
JOBS = ('--launcher=slurm', '--workers=2', '--config.study.slurm.gpus=0',
        '--config.study.slurm.cpus=2', '--config.study.slurm.minutes=30')


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory) -> Path:
    """The same study in one process, without Slurm."""
    workdir = tmp_path_factory.mktemp('undisturbed') / 'study'
    subprocess.run([sys.executable, 'main.py', *STUDY, f'--workdir={workdir}'], cwd=ROOT,
                   check=True, capture_output=True,
                   env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': XLA})
    return workdir


def attempts(workdir: Path) -> list[int]:
    return sorted(json.loads(path.read_text())['attempts']
                  for path in workdir.glob('*/*/cell.json'))


def kill_all(processes: dict[int, str]) -> None:
    """Kills a study and its worker, and not the srun that started it."""
    found = [pid for pid, command in processes.items() if command.startswith(sys.executable)]
    assert len(found) == 2
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def wait_for_cells(workdir: Path, workers: int) -> None:
    """Until so many workers are in cells, one of which trains already."""
    def reached() -> bool:
        held = [path.parent for path in workdir.glob('*/*/lease.*')]
        return len(held) == workers and any((one / 'metrics.jsonl').exists() for one in held)

    wait_for(reached, 300)


def test_an_array_of_jobs_shares_a_study_though_one_is_killed(cluster, undisturbed, tmp_path):
    """The cell of the killed one goes on elsewhere; no cell runs to its end twice."""
    workdir = tmp_path / 'study'
    cluster.sbatch('--array=0-1', '--nodes=1', '--ntasks-per-node=1', '--cpus-per-task=3',
                   '--gpus-per-node=0', f'--output={tmp_path}/%a.log', f'--chdir={ROOT}',
                   str(SCRIPT), *STUDY, f'--workdir={workdir}', cwd=tmp_path)
    wait_for_cells(workdir, 2)
    known = over(workdir)
    kill_all(cluster.processes('SLURM_ARRAY_TASK_ID=1', f'--workdir={workdir}'))
    numbers = {name.partition('_')[2]: name for name in
               cluster.call('squeue', '-h', '-r', '-o', '%i').split()}
    # The killed one is queued again, and here it begins too late: the other finishes the study. For
    # another node it counts as dead after 120 s without a sign of life.
    cluster.wait_until(numbers['1'], 'PENDING')
    cluster.call('scontrol', 'update', f'JobId={numbers["1"]}', 'StartTime=now+1hour')
    cluster.wait_until(numbers['0'], 'COMPLETED', seconds=900)
    assert len(over(workdir)) == 3
    cluster.begin_now(numbers['1'])
    cluster.wait_until(numbers['1'], 'COMPLETED')
    assert 'exit code 137, requeued' in (tmp_path / '1.log').read_text()
    now = over(workdir)
    assert {key: now[key] for key in known} == known, 'a finished cell ran again'
    assert_same_study(undisturbed, workdir, 3)
    assert attempts(workdir) == [1, 1, 2]


class Command:
    """`study --launcher=slurm`, started where jobs are submitted."""

    def __init__(self, cluster: Cluster, workdir: Path, *more: str):
        self.cluster, self.workdir = cluster, workdir
        self._log = workdir.with_suffix('.log')
        with open(self._log, 'a') as file:
            self.process = subprocess.Popen(
                [sys.executable, 'main.py', *STUDY, *JOBS, *more, f'--workdir={workdir}'],
                cwd=ROOT, stdout=file, stderr=file, env=cluster.environment)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def queue(self) -> list[str]:
        return self.cluster.call('squeue', '-h', '-o', '%A').split()


@pytest.fixture
def submitit():
    return pytest.importorskip('submitit', reason='submitit is not installed')


def test_the_launcher_submits_jobs_and_replaces_a_killed_one(cluster, submitit, undisturbed,
                                                             tmp_path):
    command = Command(cluster, tmp_path / 'study')
    wait_for_cells(command.workdir, 2)
    assert len(command.queue()) == 2
    victim = re.findall(r'job (\d+) is submitted', command.log)[0]
    kill_all(cluster.processes(f'SLURM_JOB_ID={victim}', f'--workdir={command.workdir}'))
    assert command.process.wait(900) == 0, command.log
    assert f'Job {victim} was killed' in command.log
    for words in ('cell     3/3', 'report   '):
        assert words in command.log
    assert_same_study(undisturbed, command.workdir, 3)
    assert attempts(command.workdir) == [1, 1, 2]
    assert command.queue() == []


def test_a_job_that_is_told_to_stop_is_queued_again(cluster, submitit, undisturbed, tmp_path):
    """As at the end of its time; the command that submitted it counts it and submits no other."""
    command = Command(cluster, tmp_path / 'study', '--workers=1')
    wait_for_cells(command.workdir, 1)
    [job] = command.queue()
    cluster.call('scancel', '--signal=TERM', job)
    cluster.begin_now(job)
    assert command.process.wait(600) == 0, command.log
    assert command.log.count('is submitted') == 1
    assert_same_study(undisturbed, command.workdir, 3)


def test_a_stopped_launcher_cancels_its_jobs_and_a_killed_one_leaves_them(
        cluster, submitit, undisturbed, tmp_path):
    command = Command(cluster, tmp_path / 'study', '--workers=1')
    wait_for_cells(command.workdir, 1)
    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(200) == 75, command.log
    assert '1 job is cancelled; those that run save first' in command.log
    assert command.queue() == []

    first = Command(cluster, tmp_path / 'study', '--workers=1')
    wait_for(lambda: first.queue(), 120)
    first.process.kill()
    first.process.wait()
    assert len(first.queue()) == 1
    second = Command(cluster, tmp_path / 'study', '--workers=1')
    assert second.process.wait(600) == 0, second.log
    assert '1 job of this study in the queue already' in second.log
    assert_same_study(undisturbed, second.workdir, 3)


def test_what_slurm_refuses_is_one_sentence(cluster, submitit, tmp_path):
    command = Command(cluster, tmp_path / 'study', '--config.study.slurm.partition=nowhere')
    assert command.process.wait(200) == 2
    assert re.search('^main.py: sbatch refuses the job .*partition.*correct config.study.slurm.$',
                     command.log, re.M), command.log
    assert 'Traceback' not in command.log
    assert not command.workdir.exists()
