"""Where the wall time of a run went, over all of its starts, by kind.

    start       from the start of the process to the first step, except what has its own kind
    restart     the same for a later start
    compile, data, step, eval, checkpoint, report
    lost        what a start did after the checkpoint to which the next start, or a roll-back, went
                back
    other       everything else, such as log lines

`data` is the time that the device waits for images: a wait while the device works is a `step`.
A process that is killed cannot report how long it ran, so clock.json is updated once per second.
No other result depends on it.
"""

import contextlib
import json
import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from input_pipeline.atomic_files import write_text

FILE = 'clock.json'
BEAT = 1.0  # seconds


def process_start() -> float:
    """The time.perf_counter() at which this process was started; now if there is no /proc."""
    now = time.perf_counter()
    try:
        ticks = Path('/proc/self/stat').read_text().rpartition(')')[2].split()[19]
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf('SC_CLK_TCK')
    except (OSError, AttributeError, ValueError, IndexError):
        return now
    return now - max(age, 0.0)


class Clock:
    """Counts seconds by kind. An inner block pauses the kind of the outer one, so that the kinds
    add up to the total."""

    def __init__(self, began: float | None = None, kind: str = 'other'):
        """Starts counting.

        Args:
            began: time.perf_counter() from which on time counts; None for now.
            kind: of the time outside all blocks.
        """
        self._seconds: dict[str, float] = defaultdict(float)
        self._kind = kind
        self._began = self._since = time.perf_counter() if began is None else began
        self._earlier = 0.0  # seconds of all earlier starts
        # The kinds of earlier starts, if the last of them lost nothing at its end.
        self._ended: dict[str, float] | None = None

    def _switch(self, kind: str) -> str:
        now = time.perf_counter()
        self._seconds[self._kind] += now - self._since
        before, self._kind, self._since = self._kind, kind, now
        return before

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """The time of the block is of this kind."""
        before = self._switch(kind)
        try:
            yield
        finally:
            self._switch(before)

    def rename(self, kind: str) -> None:
        """Changes the kind of the current block, from its start on."""
        self._kind = kind

    def seconds(self) -> dict[str, float]:
        """Seconds of every kind so far and their total, with those of earlier starts."""
        self._switch(self._kind)
        return with_total(self._seconds)

    def resume(self, known: Mapping[str, float]) -> None:
        """Ends the start of this process, and adds the time of earlier ones.

        Args:
            known: seconds by kind in the checkpoint that this start resumes from; {} without one.
                What was done after it counts as lost.
        """
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
        """After a roll-back: what was done since that checkpoint counts as lost. `known`: the
        seconds by kind in it."""
        self._switch(self._kind)
        self._seconds = defaultdict(float, _lost_after(known, sum(self._seconds.values())))

    @contextlib.contextmanager
    def kept(self, folder: Path | None,
             saved: type[BaseException] | tuple[type[BaseException], ...] = ()) -> Iterator[None]:
        """Keeps clock.json up to date in the block, and writes the kinds at its end.

        Args:
            folder: the workdir; None writes nothing.
            saved: exceptions after which all work is saved, so that nothing will be lost.
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
    found: dict[str, float] = defaultdict(float)
    for seconds in runs:
        for kind, value in seconds.items():
            found[kind] += value
    return with_total(found)


def goodput(seconds: Mapping[str, float]) -> float:
    """The share of the total time that went into training steps which were not lost."""
    return round(seconds.get('step', 0.0) / max(seconds['total'], 1e-9), 4)


def _lost_after(known: Mapping[str, float], total: float) -> dict[str, float]:
    kinds = {kind: value for kind, value in known.items() if kind != 'total'}
    lost = total - sum(kinds.values())
    return kinds | dict(lost=kinds.get('lost', 0.0) + lost) if lost > 0 else kinds


def _read(path: Path) -> tuple[float, dict[str, float] | None]:
    """(seconds of all starts so far, their kinds or None if something was lost at the end)."""
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
    # Not made durable, and a full or missing disk is ignored: others will report it.
    with contextlib.suppress(OSError):
        write_text(path, json.dumps(dict(total=round(total, 3), kinds=kinds)), durable=False)
