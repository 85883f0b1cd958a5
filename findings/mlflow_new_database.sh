#!/usr/bin/env bash
# MLflow makes a new SQLite database so that only one undisturbed process at a time may do it.
#
# One would guess: MlflowClient('sqlite:///runs.db') makes its tables where the file is new, and
# several processes may begin with it at the same time, as the workers of a study do; and what a
# process leaves that was killed meanwhile is completed, or made anew, by the next one.
#
# What happens: of four processes that open a new database at the same time, only some succeed, and
# the others fail with "table ... already exists", "duplicate column name" or the like. A process
# that is killed while it makes the tables may leave a database that no later one can open.
#
# Why it matters: the first runs of a parallel study are not recorded, and after an early kill none
# is, until somebody deletes the file. A way out: make the database under another name, with a lock
# around it, and rename it when it is whole.
#
# Needs Python 3.11 or later, network, and 1 GB on disk for the time of the run.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    mlflow==3.17.2 SQLAlchemy==2.1.9 alembic==1.20.1

cd "$folder"
MLFLOW_DISABLE_TELEMETRY=true "$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import pathlib
import subprocess
import sys
import time

for name in ('mlflow', 'SQLAlchemy', 'alembic'):
    print(name, importlib.metadata.version(name))
# Each waits for the file `go`, so that loading the package does not set them apart.
OPEN = '''
import pathlib, sys, time
import mlflow
print('ready', flush=True)
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.001)
mlflow.MlflowClient(sys.argv[1]).create_experiment(sys.argv[3])
'''


def started(database, count):
    """Processes that are ready to open a database, and the file that lets them go."""
    go = pathlib.Path(f'{database}.go')
    found = [subprocess.Popen([sys.executable, '-c', OPEN, f'sqlite:///{database}', str(go), f'e{k}'],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
             for k in range(count)]
    for one in found:
        one.stdout.readline()
    return found, go


def failed(processes):
    """The last line of each that failed."""
    said = [(one.communicate()[1], one.returncode) for one in processes]
    return [next((line for line in text.splitlines() if 'Error' in line), text[-200:])
            for text, code in said if code]


processes, go = started('together.db', 4)
go.touch()
together = failed(processes)
print(f'{len(together)} of 4 processes that open a new database together fail:')
print(*(f'    {line[:110]}' for line in together), sep='\n')

broken = 0
for attempt in range(12):
    (process,), go = started(f'killed{attempt}.db', 1)
    go.touch()
    while not pathlib.Path(f'killed{attempt}.db').exists():
        time.sleep(0.001)
    time.sleep(0.05 * (attempt + 1))
    process.kill()
    process.wait()
    (later,), _ = started(f'killed{attempt}.db', 1)
    broken += bool(failed([later]))
print(f'{broken} of 12 databases whose maker was killed can never be opened')
alone, go = started('alone.db', 1)
go.touch()
whole = failed(alone)
print(f'alone and undisturbed: {whole or "well"}')
as_seen = together and broken and not whole
print('as seen before' if as_seen else 'CHANGED: read the comment of this finding again')
sys.exit(not as_seen)
PYTHON
