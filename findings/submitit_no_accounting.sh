#!/usr/bin/env bash
# submitit takes a Slurm job for running for ever where Slurm keeps no accounts.
#
# One would guess: once a job is no longer in the queue, job.done() is true, or job.state says that
# the job failed or is not known to Slurm.
#
# What happens: submitit asks sacct alone. Without a database of accounts, as in a fresh Slurm
# ("Slurm accounting storage is disabled", exit code 1), the state is UNKNOWN, which counts as
# running. A job that ends well writes a file that submitit finds; one that was killed writes none,
# so done() stays False and result() does not come back. squeue, which knows, is never asked.
#
# Why it matters: a program that waits for its jobs waits for one that is gone, after a node was lost
# or the job's memory was full. A way out: ask squeue for the numbers of the jobs.
#
# No Slurm is needed: four commands stand for one whose queue is empty and that has no accounts;
# sacct answers as Slurm 22.05 does. Needs Python 3.11 or later, and 30 MB on disk.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    submitit==1.5.4 cloudpickle==3.1.3 typing_extensions==4.16.0

mkdir "$folder/bin"
command_of_slurm() {  # its name, what it does
    printf '#!/bin/sh\necho "%s" >> "%s/asked"\n%s\n' "$1" "$folder" "$2" > "$folder/bin/$1"
    chmod +x "$folder/bin/$1"
}
command_of_slurm sbatch 'echo Submitted batch job 7'
command_of_slurm srun ''
command_of_slurm squeue 'echo JOBID PARTITION NAME USER ST TIME NODES NODELIST'
command_of_slurm sacct 'echo Slurm accounting storage is disabled >&2; exit 1'

PATH="$folder/bin:$PATH" "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import importlib.metadata
import logging
import sys
import time
from pathlib import Path

import submitit

folder = Path(sys.argv[1])
logging.getLogger('submitit').setLevel(logging.ERROR)
print('submitit', importlib.metadata.version('submitit'))
job = submitit.SlurmExecutor(folder=folder / 'jobs').submit(abs, -1)
states, done = set(), set()
for _ in range(4):
    states.add(job.state)
    done.add(job.done(force_check=True))
    time.sleep(1)
asked = set((folder / 'asked').read_text().split())
print(f'state {states}, done {done}, asked {sorted(asked)}')
as_seen = states == {'UNKNOWN'} and done == {False} and 'sacct' in asked and 'squeue' not in asked
print('as seen before' if as_seen else 'CHANGED: read the comment of this finding again')
sys.exit(not as_seen)
PYTHON
