"""scripts/slurm_train.sh without a Slurm: by programs that stand for its commands."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / 'scripts/slurm_train.sh'


def run(folder: Path, *arguments: str, job: str = '7') -> subprocess.CompletedProcess:
    """The script in `folder`, in a job whose processes end with exit code 1."""
    for name, text in (('srun', 'exit 1'), ('squeue', 'echo RUNNING'), ('scontrol', 'echo "$@"')):
        (folder / name).write_text(f'#!/bin/bash\n{text}\n')
        (folder / name).chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith('SLURM')}
    environment |= {'PATH': f'{folder}:{os.environ["PATH"]}', 'SLURM_JOB_ID': job}
    return subprocess.run(['bash', str(SCRIPT), *arguments], cwd=folder, env=environment,
                          capture_output=True, text=True)


@pytest.mark.parametrize(('job', 'arguments'), [
    ('', ['--workdir=run']), ('7', []), ('7', ['study', '--workers=1'])])
def test_it_needs_a_job_and_a_workdir(tmp_path, job, arguments):
    """Without a job, srun would start a small one of its own; without a workdir, each start would
    begin anew."""
    done = run(tmp_path, *arguments, job=job)
    assert done.returncode == 2
    assert done.stderr.startswith('slurm_train.sh: submit it by sbatch, and give --workdir=DIR')


@pytest.mark.parametrize('arguments', [
    ['--workdir=my run'], ['--workdir', 'my run'], ['-workdir=my run', 'x y'],
    ['--workdir=other', '--workdir=my run']])
def test_a_failure_is_repeated_as_long_as_the_workdir_gets_on(tmp_path, arguments):
    """However the workdir is written."""
    for step in (1, 2):
        (tmp_path / f'my run/checkpoints/{step}').mkdir(parents=True)
        done = run(tmp_path, *arguments)
        assert done.stdout == 'requeue 7\n' and 'exit code 1, requeued' in done.stderr
    done = run(tmp_path, *arguments)
    assert done.returncode == 1 and 'without a new checkpoint: not requeued' in done.stderr
