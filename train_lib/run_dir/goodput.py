"""Where the wall time of a run went, over all of its starts, by kind.

    start       from the start of the process to the first step, but for what has its own kind
    restart     the same of a later start
    compile, data, step, eval, checkpoint, report
    lost        what a start did after the checkpoint that the next start, or a roll-back, went
                back to
    other       the rest, such as log lines

`data` is the time that the device waits for pictures: a wait that its work hides is a `step`.
A process that is killed cannot say how long it lived, so clock.json says it once a second. It
depends on the clock, of course, and nothing but the clock depends on it.
"""

import contextlib
import json
import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

FILE = 'clock.json'
BEAT = 1.0  # seconds


def process_start() -> float:
    """The time.perf_counter() at which this process was started; now where no /proc tells."""
    now = time.perf_counter()
    try:
        ticks = Path('/proc/self/stat').read_text().rpartition(')')[2].split()[19]
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf('SC_CLK_TCK')
    except (OSError, AttributeError, ValueError, IndexError):
        return now
    return now - max(age, 0.0)


class Clock:
    """Kinds don't nest: an inner one stops the outer one's clock, so that they add up."""

    def __init__(self, began: float | None = None, kind: str = 'other'):
        """`began`: time.perf_counter() from which on time counts (None: now), as `kind`."""
        self._seconds: dict[str, float] = defaultdict(float)
        self._kind = kind
        self._began = self._since = time.perf_counter() if began is None else began
        self._earlier = 0.0  # seconds of all earlier starts
        self._ended: dict[str, float] | None = None  # their kinds, if the last one lost nothing

    def _switch(self, kind: str) -> str:
        now = time.perf_counter()
        self._seconds[self._kind] += now - self._since
        before, self._kind, self._since = self._kind, kind, now
        return before

    @contextlib.contextmanager
    def __call__(self, kind: str):
        """Counts the block under one kind."""
        before = self._switch(kind)
        try:
            yield
        finally:
            self._switch(before)

    def rename(self, kind: str) -> None:
        """The block so far was of another kind."""
        self._kind = kind

    def seconds(self) -> dict[str, float]:
        """Seconds of every kind so far, and their total, those of earlier starts included."""
        self._switch(self._kind)
        return with_total(self._seconds)

    def resume(self, known: Mapping[str, float]) -> None:
        """What earlier starts did: the seconds that the checkpoint holds which this one goes on
        from ({} without one), and what was lost after it. The start is over."""
        if self._ended is None:
            earlier = _lost_after(known, self._earlier)
        else:
            earlier = self._ended
        if earlier:
            self.rename('restart')
        self._switch('other')
        for kind, value in earlier.items():
            self._seconds[kind] += value
        self._earlier = sum(earlier.values())

    def go_back(self, known: Mapping[str, float]) -> None:
        """What was done after a checkpoint was lost; `known` are the seconds that it holds."""
        self._switch(self._kind)
        self._seconds = defaultdict(float, _lost_after(known, sum(self._seconds.values())))

    @contextlib.contextmanager
    def kept(self, folder: Path | None, saved: type[BaseException] | tuple = ()):
        """In the block, clock.json says how long the run has lasted; after it, on what.

        Args:
            folder: the workdir; None writes nothing.
            saved: exceptions that say that all work is saved, so that none will be lost.
        """
        if folder is None:
            yield
            return
        path = folder / FILE
        self._earlier, self._ended = _read(path)
        over = threading.Event()
        beats = threading.Thread(target=self._beat, args=(path, over), name='clock', daemon=True)
        beats.start()
        kinds = None
        try:
            yield
            kinds = self.seconds()
        except saved:
            kinds = self.seconds()
            raise
        finally:
            over.set()
            beats.join()
            _write(path, self._total(), kinds)

    def _total(self) -> float:
        return self._earlier + time.perf_counter() - self._began

    def _beat(self, path: Path, over: threading.Event) -> None:
        _write(path, self._total())
        while not over.wait(BEAT):
            _write(path, self._total())


def with_total(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by kind, to milliseconds, and their total."""
    kinds = {kind: round(value, 3) for kind, value in sorted(seconds.items()) if kind != 'total'}
    return {**kinds, 'total': round(sum(kinds.values()), 3)}


def together(runs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The seconds by kind of several runs, added up."""
    found = defaultdict(float)
    for seconds in runs:
        for kind, value in seconds.items():
            found[kind] += value
    return with_total(found)


def goodput(seconds: Mapping[str, float]) -> float:
    """The share of the time that was spent on training steps which count."""
    return round(seconds.get('step', 0.0) / max(seconds['total'], 1e-9), 4)


def _lost_after(known: Mapping[str, float], total: float) -> dict[str, float]:
    kinds = {kind: value for kind, value in known.items() if kind != 'total'}
    lost = total - sum(kinds.values())
    return kinds | dict(lost=kinds.get('lost', 0.0) + lost) if lost > 0 else kinds


def _read(path: Path) -> tuple[float, dict[str, float] | None]:
    """(seconds of all starts so far, their kinds if nothing was lost at the end)"""
    try:
        found = json.loads(path.read_text())
        kinds = found['kinds']
        if kinds is not None:
            kinds = {str(kind): float(value) for kind, value in kinds.items() if kind != 'total'}
        known = (float(found['total']), *(kinds or {}).values())
        if all(math.isfinite(value) and value >= 0 for value in known):
            return known[0], kinds
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return 0.0, None


def _write(path: Path, total: float, kinds: Mapping[str, float] | None = None) -> None:
    # Not made durable, and a disk that is full or gone is not its matter: it is only a clock.
    temporary = path.with_name(f'{path.name}.tmp')
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(dict(total=round(total, 3), kinds=kinds)))
        os.replace(temporary, path)
