"""One search on two nodes that share its folder, as an array of jobs."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.slurm.cluster import ROOT, XLA, wait_for
from tests.train_lib.studies.test_search_runs import FILE, tables

pytestmark = pytest.mark.slurm
SCRIPT = ROOT / 'scripts/slurm_train.sh'


def test_two_jobs_of_which_one_is_killed_end_as_one_process(cluster, tmp_path):
    """The trial of the killed job goes on from its checkpoint or its rung; the bytes of all tables
    are those of a search in one process, without Slurm."""
    path, workdir = tmp_path / 'mine.py', tmp_path / 'search'
    path.write_text(FILE)
    study = ('study', f'--config={path}')
    subprocess.run([sys.executable, 'main.py', *study, f'--workdir={tmp_path}/alone'], cwd=ROOT,
                   check=True, capture_output=True,
                   env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': XLA})
    cluster.sbatch('--array=0-1', '--nodes=1', '--ntasks-per-node=1', '--cpus-per-task=3',
                   '--gpus-per-node=0', f'--output={tmp_path}/%a.log', f'--chdir={ROOT}',
                   str(SCRIPT), *study, f'--workdir={workdir}', cwd=tmp_path)

    def held() -> bool:
        found = [lease.parent for lease in workdir.glob('*/*/lease.*')]
        return len(found) == 2 and any((cell / 'metrics.jsonl').exists() for cell in found)

    wait_for(held, 300)
    for pid, command in cluster.processes('SLURM_ARRAY_TASK_ID=1',
                                          f'--workdir={workdir}').items():
        if command.startswith(sys.executable):
            os.kill(pid, signal.SIGKILL)
    numbers = {name.partition('_')[2]: name for name in
               cluster.call('squeue', '-h', '-r', '-o', '%i').split()}
    cluster.wait_until(numbers['1'], 'PENDING')
    cluster.begin_now(numbers['1'])
    for number in numbers.values():
        cluster.wait_until(number, 'COMPLETED', seconds=900)
    assert tables(workdir) == tables(tmp_path / 'alone')
    attempts = [json.loads(one.read_text()).get('attempts') for one in
                workdir.glob('*/*/cell.json')]
    assert max(attempts) >= 2, attempts
