"""One run on two nodes: it is the run of one process, and whatever ends it, it goes on exactly."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.faults.running import assert_same_predictions, result, without_times
from tests.slurm.cluster import ROOT, Cluster, wait_for
from tests.train_lib.training.test_distributed import SETTINGS, assert_same_run, weights

pytestmark = pytest.mark.slurm
SCRIPT = ROOT / 'scripts/slurm_train.sh'
STEPS = 200
LENGTH = ('--config.mesh.fsdp=2', f'--config.duration.steps={STEPS}')


def job_of_two(cluster: Cluster, workdir: Path) -> subprocess.Popen:
    return cluster.srun('main.py', *SETTINGS, *LENGTH, f'--workdir={workdir}',
                        log=workdir.with_suffix('.log'))


def submit(cluster: Cluster, workdir: Path) -> str:
    return cluster.sbatch('--ntasks-per-node=1', '--cpus-per-task=2', '--gpus-per-node=0',
                          f'--output={workdir}.log', f'--chdir={ROOT}', str(SCRIPT), *SETTINGS,
                          *LENGTH, f'--workdir={workdir}', cwd=workdir.parent)


def wait_for_step(workdir: Path, step: int) -> None:
    wait_for(lambda: (workdir / f'checkpoints/{step}').exists(), 400,
             lambda: workdir.with_suffix('.log').read_text())


def assert_same_bits(left: Path, right: Path) -> None:
    assert (left / 'metrics.jsonl').read_bytes() == (right / 'metrics.jsonl').read_bytes()
    for a, b in zip(weights(left, STEPS), weights(right, STEPS)):
        np.testing.assert_array_equal(a, b)
    assert_same_predictions(left, right)
    assert without_times(result(left)) == without_times(result(right))


@pytest.fixture(scope='module')
def undisturbed(cluster, tmp_path_factory) -> Path:
    """A run of two processes that srun started."""
    workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
    assert job_of_two(cluster, workdir).wait(600) == 0, workdir.with_suffix('.log').read_text()
    return workdir


def test_two_tasks_are_one_run(undisturbed):
    log = undisturbed.with_suffix('.log').read_text()
    assert '0: pod      2 processes, 2 devices, on n1, n2' in log
    assert not re.search('^1: .*(step|workdir|accuracy)', log, re.M)
    alone = undisturbed.with_name('alone')
    subprocess.run([sys.executable, 'main.py', *SETTINGS, f'--config.duration.steps={STEPS}',
                    f'--workdir={alone}'], cwd=ROOT, check=True, capture_output=True,
                   env=os.environ | {'JAX_PLATFORMS': 'cpu'})
    assert_same_run(undisturbed, alone, STEPS)
    assert result(undisturbed)['test']['n'] == result(alone)['test']['n'] == 270


def test_sigterm_to_the_step_saves_and_the_command_goes_on(cluster, undisturbed, tmp_path):
    workdir = tmp_path / 'run'
    start = job_of_two(cluster, workdir)
    wait_for_step(workdir, 40)
    cluster.call('scancel', '--signal=TERM', *cluster.call('squeue', '-h', '-o', '%i').split())
    assert start.wait(300) == 75
    log = workdir.with_suffix('.log').read_text()
    for words in ('n1: task 0: Exited with exit code 75', 'n2: task 1: Exited with exit code 75'):
        assert words in log
    assert not (workdir / 'result.json').exists() and not (workdir / 'lock').exists()
    assert job_of_two(cluster, workdir).wait(600) == 0, workdir.with_suffix('.log').read_text()
    assert 'resume: from step' in workdir.with_suffix('.log').read_text()
    assert_same_bits(workdir, undisturbed)


def test_a_preempted_job_goes_on_by_itself(cluster, undisturbed, tmp_path):
    workdir = tmp_path / 'run'
    job = submit(cluster, workdir)
    wait_for_step(workdir, 40)
    urgent = cluster.sbatch('--partition=urgent', '-N2', '--ntasks-per-node=4', '--wrap=sleep 1',
                            cwd=tmp_path)
    cluster.wait_until(urgent, 'COMPLETED')
    cluster.begin_now(job)
    cluster.wait_until(job, 'COMPLETED', seconds=600)
    log = workdir.with_suffix('.log').read_text()
    assert 'exit code 75, requeued' in log and 'resume: from step' in log
    assert cluster.state(job)['Restarts'] == '1'
    assert_same_bits(workdir, undisturbed)


@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_task_ends_the_other_and_the_job_goes_on(cluster, undisturbed, tmp_path, victim):
    workdir = tmp_path / 'run'
    job = submit(cluster, workdir)
    wait_for_step(workdir, 40)
    ours = cluster.processes('main.py', f'SLURM_PROCID={victim}', f'--workdir={workdir}')
    ours = [pid for pid, command in ours.items() if command.startswith(sys.executable)]
    assert len(ours) == 1
    os.kill(ours[0], signal.SIGKILL)
    # config.distributed.timeout is 30 s; the rest is for a busy machine.
    wait_for(lambda: cluster.state(job)['JobState'] != 'RUNNING', 60)
    cluster.begin_now(job)
    log = workdir.with_suffix('.log').read_text()
    lost, other = f'n{victim + 1}', f'n{2 - victim}'
    assert f'{lost}: task {victim}: Killed' in log
    assert re.search(f'on {other} lost another one, process {victim} on {lost}|another task died',
                     log), log
    assert 'exit code 137, requeued' in log
    cluster.wait_until(job, 'COMPLETED', seconds=600)
    assert 'resume: from step' in workdir.with_suffix('.log').read_text()
    assert_same_bits(workdir, undisturbed)


TOGETHER = '''
import json, os, sys
sys.path.insert(0, os.getcwd())
from configs import common
from train_lib.runtime import distributed
import jax

distributed.start(common.get_config().distributed)
step = os.environ['SLURM_STEP_ID']
print(json.dumps([step, distributed.on_first(lambda: step), jax.process_count()]), flush=True)
distributed.barrier('end')
'''


def test_two_steps_of_one_job_do_not_meet(cluster, tmp_path):
    (tmp_path / 'program.py').write_text(TOGETHER)
    step = f'srun --exact -N2 -n2 $PYTHON {tmp_path}/program.py'
    (tmp_path / 'job.sh').write_text(f'#!/bin/bash\n{step} &\n{step} &\nwait -n && wait -n\n')
    job = cluster.sbatch('-N2', '--ntasks-per-node=2', f'--output={tmp_path}/log',
                         str(tmp_path / 'job.sh'))
    cluster.wait_until(job, 'COMPLETED', 'FAILED')
    log = (tmp_path / 'log').read_text()
    found = sorted(json.loads(line) for line in log.splitlines() if line.startswith('["'))
    assert found == [['0', '0', 2], ['0', '0', 2], ['1', '1', 2], ['1', '1', 2]], log
    assert cluster.state(job)['JobState'] == 'COMPLETED', log


def test_a_step_of_one_task_in_a_larger_job_is_one_process(cluster, tmp_path):
    """The variables of a job that Slurm gives to all its steps are not those of the step."""
    program = ('import json, os; from train_lib.runtime import distributed; '
               'print(json.dumps([distributed.in_cluster(), os.environ["SLURM_NTASKS"]]))')
    script = tmp_path / 'job.sh'
    script.write_text(f"#!/bin/bash\ncd {ROOT}\nPROGRAM='{program}'\n"
                      '$PYTHON -c "$PROGRAM"\nsrun -N1 -n1 $PYTHON -c "$PROGRAM"\n'
                      'srun -N2 -n2 $PYTHON -c "$PROGRAM"\n')
    job = cluster.sbatch('-N2', '-n2', f'--output={tmp_path}/log', str(script), cwd=tmp_path)
    cluster.wait_until(job, 'COMPLETED')
    found = [json.loads(line) for line in (tmp_path / 'log').read_text().splitlines()
             if line.startswith('[')]
    assert [one for one, _ in found] == [False, False, True, True], found
