"""Real runs in processes of their own: started, listened to, signalled, and compared."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from train_lib.run_dir import checkpoints
from train_lib.runtime.trees import by_path

ROOT = Path(__file__).parents[2]
SMALL = ['--config=configs/sketch_vit.py:data=digits', '--config.image.size=16',
         '--config.model=dict(name="small_cnn", width=8, stages=2, drop_path=0.2, drop_rate=0.2)',
         '--config.batch_size=60', '--config.log.tensorboard=false']
# One program to compile, whatever the length of the run.
QUICK = ['--config.schedule.name=constant', '--config.schedule.warmup.percent=0',
         '--config.curriculum=()', '--config.optimizer.name=sgd']


class Start:
    """One start of main.py: what it said, and how long it lived."""

    def __init__(self, workdir: Path, *flags: str, verb: str = 'train', environment=None):
        # Of a key that is given twice the last one counts.
        flags = {re.match(r'[^=:]*', flag)[0]: flag for flag in flags}.values()
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, 'main.py', verb, *flags, f'--workdir={workdir}'], cwd=ROOT,
            env=os.environ | {'JAX_PLATFORMS': 'cpu'} | (environment or {}),
            stderr=subprocess.PIPE, text=True, start_new_session=True)
        self.lines: list[str] = []
        self.seconds = 0.0
        self._heard = threading.Condition()
        self._over = False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        for line in self.process.stderr:
            with self._heard:
                self.lines.append(line.rstrip())
                self._heard.notify_all()
        self.process.wait()
        self.seconds = time.monotonic() - self.begun
        with self._heard:
            self._over = True
            self._heard.notify_all()

    def wait_for(self, pattern: str, seconds: float = 600, after: int = -1) -> int | None:
        """The number of the first line that the pattern is found in, `after` that one; None if
        the process ended without it."""
        seen, end = after + 1, time.monotonic() + seconds
        with self._heard:
            while True:
                for number, line in enumerate(self.lines[seen:], seen):
                    if re.search(pattern, line):
                        return number
                seen = max(seen, len(self.lines))
                if self._over:
                    return None
                assert self._heard.wait(end - time.monotonic()), f'no {pattern!r}:\n{self.log}'

    def wait_until(self, condition, seconds: float = 600) -> bool:
        """Whether the condition came true before the process ended."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            if condition():
                return True
            assert time.monotonic() < end, self.log
            time.sleep(0.001)
        return False

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 900) -> int:
        """Waits for the end, and returns the exit code."""
        self._listener.join(seconds)
        if self._listener.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f'it hangs:\n{self.log}')
        return self.process.returncode

    def kill(self) -> int:
        self.process.kill()
        return self.end()

    @property
    def sentence(self) -> str:
        """With which it ended. Python's tracker of shared memory may add that it tidied up."""
        return [line for line in self.lines if line.startswith('main.py: ')][-1]

    @property
    def log(self) -> str:
        return '\n'.join(self.lines)


def finish(workdir: Path, *flags: str, **settings) -> Start:
    """A start that comes to its end."""
    start = Start(workdir, *flags, **settings)
    assert start.end() == 0, start.log
    return start


def result(workdir: Path) -> dict:
    return json.loads((workdir / 'result.json').read_text())


def last_checkpoint(workdir: Path) -> Path:
    folder = workdir / 'checkpoints'
    return folder / str(checkpoints.committed_steps(folder)[-1])


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint: weights, statistics, optimizer, average, sums."""
    folder = last_checkpoint(workdir)
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore(folder / 'state')
    return by_path(jax.tree.map(np.asarray, tree)) | {'name': np.array(int(folder.name))}


def assert_same_predictions(left: Path, right: Path) -> None:
    files = sorted(path.name for path in (left / 'predictions').iterdir())
    assert files == sorted(path.name for path in (right / 'predictions').iterdir())
    for name in files:
        if name.endswith('.csv'):
            assert (left / 'predictions' / name).read_bytes() == (
                right / 'predictions' / name).read_bytes()
        if not name.endswith('.npz'):
            continue  # made_by.json: which checkpoint they are of
        with np.load(left / 'predictions' / name) as x, np.load(right / 'predictions' / name) as y:
            assert x.files == y.files
            for key in x.files:
                np.testing.assert_array_equal(x[key], y[key], err_msg=f'{name} {key}')


def without_times(found):
    """A result.json without what depends on the clock, as the digest of a checkpoint does too:
    seconds are in its files."""
    if isinstance(found, dict):
        return {key: without_times(value) for key, value in found.items()
                if key not in ('seconds', 'goodput', 'checkpoint')}
    return [without_times(value) for value in found] if isinstance(found, list) else found


def assert_same_run(left: Path, right: Path) -> None:
    """Bit for bit: records, state, what the host knows, predictions, scores."""
    assert (left / 'metrics.jsonl').read_bytes() == (right / 'metrics.jsonl').read_bytes()
    a, b = arrays(left), arrays(right)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    hosts = [without_times(checkpoints.read_host(last_checkpoint(one))) for one in (left, right)]
    assert hosts[0] == hosts[1]
    assert_same_predictions(left, right)
    assert without_times(result(left)) == without_times(result(right))


def leftovers(workdir: Path) -> list[str]:
    """Files below a workdir that only a run at work may have."""
    return sorted(str(path.relative_to(workdir)) for path in workdir.rglob('*')
                  if path.name.startswith('writing-') or path.name == 'lock'
                  or path.suffix == '.tmp')


def family(start: Start) -> dict[int, str]:
    """{process: its command} of what lives in the session of a start, itself included."""
    found = {}
    for path in Path('/proc').glob('[0-9]*'):
        try:
            stat = (path / 'stat').read_text().rpartition(')')[2].split()
            if int(stat[3]) == start.process.pid and stat[0] not in 'ZX':
                found[int(path.name)] = (path / 'cmdline').read_text().replace('\0', ' ')
        except (OSError, IndexError):
            continue  # it has just ended
    return found


def workers(start: Start) -> list[int]:
    """The data workers of a start."""
    return [process for process, command in family(start).items() if 'spawn_main' in command]


def assert_all_gone(start: Start, seconds: float = 30) -> None:
    """Of what a start began no process is left, or is soon."""
    end = time.monotonic() + seconds
    while left := family(start):
        assert time.monotonic() < end, left
        time.sleep(0.05)
