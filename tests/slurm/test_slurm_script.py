"""scripts/slurm_train.sh with a stand-in for main.py: when its job starts again, and when not."""

import json
from pathlib import Path

import pytest

from tests.slurm.cluster import ROOT, wait_for

pytestmark = pytest.mark.slurm
SCRIPT = ROOT / 'scripts/slurm_train.sh'
SMALL = ('--ntasks-per-node=1', '--cpus-per-task=2', '--gpus-per-node=0')
# Notes each start, obeys SIGTERM, and ends as its arguments say for each start.
PROGRAM = '''
import json, os, pathlib, signal, sys, time
workdir = pathlib.Path(sys.argv[1].partition('=')[2])
ends = json.loads(sys.argv[2])
number = int(os.environ.get('SLURM_RESTART_COUNT') or 0)
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), os._exit(75)))
note = dict(start=number, process=os.environ['SLURM_PROCID'], node=os.environ['SLURMD_NODENAME'],
            cpus=os.environ.get('SLURM_CPUS_PER_TASK'))
with open(workdir / 'notes.txt', 'a') as file:
    file.write(json.dumps(note) + chr(10))
code, progress = ends[min(number, len(ends) - 1)]
if progress:
    (workdir / f'checkpoints/{number}').mkdir(parents=True, exist_ok=True)
time.sleep(600 if code is None else 0.5)
sys.exit(code)
'''


class Job:
    """The script in a folder with the stand-in, whose starts end as `ends` says: pairs of an exit
    code (None: it waits for a signal) and whether there is a new checkpoint."""

    def __init__(self, cluster, folder: Path, ends: list, *options: str):
        self.cluster, self.folder = cluster, folder
        (folder / 'main.py').write_text(PROGRAM)
        (folder / 'run').mkdir()
        self.number = cluster.sbatch(*SMALL, *options, str(SCRIPT), f'--workdir={folder}/run',
                                     json.dumps(ends), cwd=folder)

    @property
    def log(self) -> str:
        return (self.folder / f'slurm-{self.number}.log').read_text()

    @property
    def notes(self) -> list[dict]:
        path = self.folder / 'run/notes.txt'
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_start(self, number: int) -> None:
        wait_for(lambda: sum(note['start'] == number for note in self.notes) == 2, 60)

    def ends(self, state: str, code: int) -> None:
        self.cluster.wait_until(self.number, state)
        assert self.cluster.state(self.number)['ExitCode'].split(':')[0] == str(code), self.log


def test_the_end_of_the_time_and_a_preemption(cluster, tmp_path):
    """Both start the job again under its number; then it ends."""
    job = Job(cluster, tmp_path, [(None, True), (None, True), (0, True)], '--time=2',
              '--signal=TERM@110')
    job.wait_for_start(0)
    cluster.begin_now(job.number)  # once Slurm has told it that its time is over
    assert 'exit code 75, requeued' in job.log
    job.wait_for_start(1)
    urgent = cluster.sbatch('--partition=urgent', '-N2', '--ntasks-per-node=4', '--wrap=sleep 2',
                            cwd=tmp_path)
    cluster.wait_until(urgent, 'COMPLETED')
    cluster.begin_now(job.number)
    job.ends('COMPLETED', 0)
    assert job.log.count('exit code 75, requeued') == 2
    assert {(note['process'], note['node']) for note in job.notes} == {('0', 'n1'), ('1', 'n2')}
    assert {note['cpus'] for note in job.notes} == {'2'} and len(job.notes) == 6


def test_what_is_cancelled_stays_so(cluster, tmp_path):
    job = Job(cluster, tmp_path, [(None, True)])
    job.wait_for_start(0)
    cluster.call('scancel', job.number)
    job.ends('CANCELLED', 75)
    assert 'requeued' not in job.log and cluster.state(job.number)['Restarts'] == '0'


def test_a_mistake_is_not_repeated(cluster, tmp_path):
    job = Job(cluster, tmp_path, [(2, True)])
    job.ends('FAILED', 2)
    assert 'requeued' not in job.log


def test_a_failure_is_repeated_only_as_long_as_it_gets_on(cluster, tmp_path):
    job = Job(cluster, tmp_path, [(1, False), (1, True), (1, False)])
    for _ in range(2):
        cluster.begin_now(job.number)
    job.ends('FAILED', 1)
    assert job.log.count('exit code 1, requeued') == 2
    assert 'exit code 1 without a new checkpoint: not requeued' in job.log
    assert not list(tmp_path.glob('*.reached'))
