"""Long runs, and many in one process, take no more memory, files or threads than short ones."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import main
from tests.faults.running import QUICK, ROOT, Start, result

TINY = ['--config=configs/sketch_vit.py:data=digits', '--config.image.size=16',
        '--config.model=dict(name="small_cnn", width=4, stages=2)', '--config.batch_size=128',
        '--config.split.val=0.05', '--config.split.test=0.84', '--config.log.every.steps=1',
        *QUICK]  # 200 pictures train
EPOCHS, RUNS = 2000, 30
MIB = 1 << 20


def usage(process: int | str = 'self') -> tuple[float, int, int]:
    """(resident MiB, open files, threads) of a process."""
    base = Path(f'/proc/{process}')
    pages = int((base / 'statm').read_text().split()[1])
    return (pages * os.sysconf('SC_PAGE_SIZE') / MIB, len(list((base / 'fd').iterdir())),
            len(list((base / 'task').iterdir())))


def growth(samples: np.ndarray, warm: float) -> np.ndarray:
    """What a line through the samples [N, 3], the first share `warm` left out, rises by."""
    rest = samples[int(warm * len(samples)):]
    x = np.linspace(0, 1, len(rest))
    return np.polyfit(x, rest, 1)[0]


def show(what: str, samples: np.ndarray, rise: np.ndarray) -> None:
    for i, name in enumerate(('MiB', 'files', 'threads')):
        column = samples[:, i]
        print(f'{what}: {name} {column[len(column) // 4]:.0f} at a quarter, {column[-1]:.0f} at '
              f'the end, at most {column.max():.0f}; the line after the warm-up rises by '
              f'{rise[i]:+.2f}')


@pytest.mark.faults
def test_two_thousand_epochs(tmp_path):
    workdir = tmp_path / 'run'
    start = Start(workdir, *TINY, f'--config.duration.epochs={EPOCHS}')
    samples = []
    assert start.wait_for('^step ') is not None
    while start.process.poll() is None:
        try:
            samples.append(usage(start.process.pid))
        except (OSError, IndexError):
            break
        if re.search(rf'^epoch +{EPOCHS}\.', start.lines[-1]):  # what follows loads matplotlib
            break
        time.sleep(0.5)
    assert start.end() == 0, start.log[-2000:]
    lines = start.log.count('\nstep ')
    samples = np.array(samples[:-1], float)
    rise = growth(samples, 0.25)
    show(f'{EPOCHS} epochs, {lines} log lines, {start.seconds:.0f} s', samples, rise)
    # TensorStore loses some 0.3 KiB an array and save: every text of a spec that Orbax asks it for.
    assert rise[0] < 0.75 * EPOCHS * 16 / 1024 + 0.04 * samples[-1, 0]
    assert abs(rise[1]) < 4 and abs(rise[2]) < 4
    seconds = result(workdir)['seconds']
    size = (workdir / 'report.html').stat().st_size / MIB
    print(f'report {seconds["report"]:.1f} s, {size:.2f} MiB; metrics.jsonl '
          f'{(workdir / "metrics.jsonl").stat().st_size / MIB:.2f} MiB; {seconds}')
    assert seconds['report'] < 20 and size < 5


PROGRAM = '''
import gc, sys
import main
from tests.faults.test_soak import TINY, usage

for i in range(int(sys.argv[2])):
    assert main.main([*TINY, '--config.duration.epochs=3', f'--config.seed={i}',
                      f'--workdir={sys.argv[1]}/{i}']) == 0
    gc.collect()
    print(*usage(), flush=True)
'''


@pytest.mark.faults
def test_thirty_runs_in_one_process(tmp_path):
    done = subprocess.run([sys.executable, '-c', PROGRAM, str(tmp_path), str(RUNS)], cwd=ROOT,
                          capture_output=True, text=True,
                          env=os.environ | {'JAX_PLATFORMS': 'cpu'})
    assert done.returncode == 0, done.stderr[-2000:]
    samples = np.array([line.split() for line in done.stdout.splitlines()], float)
    rise = growth(samples, 0.3)
    print(*samples.tolist(), sep='\n')
    show(f'{RUNS} runs', samples, rise)
    assert rise[0] < 0.04 * samples[-1, 0]
    assert abs(rise[1]) < 4 and abs(rise[2]) < 4


def test_a_second_run_in_a_process_leaves_no_more_than_the_first(tmp_path):
    found = []
    for i in range(2):
        assert main.main([*TINY, '--config.duration.epochs=2', f'--workdir={tmp_path / str(i)}',
                          '--config.loader.threads=1']) == 0
        found.append((usage()[1], {thread.name for thread in threading.enumerate()}))
    assert found[1][0] <= found[0][0] + 1
    assert found[1][1] <= found[0][1]
