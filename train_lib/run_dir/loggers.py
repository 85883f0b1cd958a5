"""Loggers outside the workdir follow metrics.jsonl, each in a thread of its own.

The training neither waits for a logger nor changes by it. A logger gets one set of values per step,
as soon as a later row shows that nothing else comes for that step. loggers/<name>.json of the
workdir notes the run at the other place. A start hands over the rows of metrics.jsonl that the
place lacks, whatever the reason: the run was killed, the server was away, or the logger was
switched on later. No step is shown twice; where a roll-back replaces steps, the points stay as
they were shown first.

A logger that fails says so once, and is tried again every minute and at the end.
"""

import json
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.atomic_files import write_json
from train_lib.run_dir.dotted_keys import by_dotted_key
from train_lib.run_dir.json_files import json_digest, read_json
from train_lib.run_dir.logged_run import LoggedRun, Logger, describe_run
from train_lib.run_dir.mlflow_logger import MlflowLogger
from train_lib.run_dir.wandb_logger import WandbLogger
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.signals import Interrupted, Stopped

# The knob config.log.<name> -> its logger.
LOGGERS: dict[str, type[Logger]] = {'wandb': WandbLogger, 'mlflow': MlflowLogger}
FOLDER = 'loggers'
RETRY_SECONDS = 60.0
# Seconds that loggers are given at the end. Whoever stops a run may kill it soon.
GRACE = {'done': 60.0, 'stopped': 10.0, 'failed': 10.0}
_COLUMNS = 80
_SWITCHES = ('true', 'false', 'yes', 'no', 'on', 'off', 'none', '0', '1')
log = logging.getLogger(__name__)


def wanted_loggers(section: ConfigDict) -> dict[str, str]:
    """{name: value of its knob} of the loggers that config.log asks for."""
    return {name: section[name] for name in LOGGERS if section[name]}


def check_loggers(section: ConfigDict) -> None:
    """Refuses loggers that cannot be used.

    Raises:
        ConfigError: a package is missing, or what a logger needs.
    """
    for name, where in wanted_loggers(section).items():
        if where.lower() in _SWITCHES:
            raise ConfigError(f'config.log.{name} = {where!r} is not a valid value: give '
                              f'{LOGGERS[name].WHERE}, or leave it empty for none.')
        LOGGERS[name].check(where)


class Loggers:
    """The loggers of a run; in a `with` block, at whose end they are given some time.

    Args:
        wanted: {name: value of its knob}; {} logs nothing.
        workdir: of the run, whose config.json is written.

    Raises:
        ConfigError: as `check_loggers`.
    """

    def __init__(self, wanted: Mapping[str, str], workdir: Path):
        about = describe_run(workdir) if wanted else None
        self._followers = [_Follower(name, where, about) for name, where in wanted.items()
                           if about is not None]

    def __enter__(self) -> 'Loggers':
        for follower in self._followers:
            follower.start()
        return self

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hands over values of a step, whose number never falls except after `rewind`."""
        for follower in self._followers:
            follower.tasks.put(('write', step, values))

    def replay(self, path: Path) -> None:
        """Hands over every row of a metrics.jsonl."""
        if self._followers:
            with open(path, encoding='utf-8') as file:
                for row in map(json.loads, file):
                    self.write(row['step'], numbers(row))

    def rewind(self, step: int) -> None:
        """What comes after this step will be written again."""
        for follower in self._followers:
            follower.tasks.put(('rewind', step))

    def result(self, content: Mapping[str, Any]) -> None:
        """Hands over the numbers of result.json, but for times."""
        values = {f'result/{key}': value for key, value in by_dotted_key(content, '/').items()
                  if isinstance(value, (int, float)) and not isinstance(value, bool)
                  and not re.match('goodput|seconds/|input/', key)}
        for follower in self._followers:
            follower.tasks.put(('result', int(content.get('steps', 0)), values))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        status = 'done'
        if kind is not None:
            stopped = not issubclass(kind, Exception) or issubclass(kind, (Stopped, Interrupted))
            status = 'stopped' if stopped else 'failed'
        until = time.monotonic() + GRACE[status]
        for follower in self._followers:
            follower.tasks.put(('close', status))
        for follower in self._followers:
            follower.join(max(until - time.monotonic(), 0.0))
            if follower.is_alive():
                log.warning('%-8s does not answer; the next start hands over the rest',
                            follower.knob)


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """{'train/loss': 0.5} of a row of metrics.jsonl: its numbers but for the step."""
    return {f'{row["split"]}/{key}': value for key, value in row.items()
            if isinstance(value, (int, float)) and key != 'step'}


class _Follower(threading.Thread):
    """Hands rows to one logger, and remembers which."""

    def __init__(self, knob: str, where: str, about: LoggedRun):
        super().__init__(name=f'logger-{knob}', daemon=True)
        self.knob = knob
        self.tasks: queue.SimpleQueue[tuple] = queue.SimpleQueue()
        self._where, self._about = where, about
        self._place = LOGGERS[knob].check(where)
        self._path = about.workdir / FOLDER / f'{knob}.json'
        self._note: dict[str, Any] = {}  # what is in that file
        self._logger: Logger | None = None
        self._rows: list[tuple[int, dict[str, float]]] = []  # of the whole run, by step
        self._next = 0  # the first that is not shown
        self._scores: tuple[int, dict[str, float]] | None = None
        self._said: set[str] = set()
        self._not_before = 0.0

    def run(self) -> None:
        """Works until it is told to close."""
        self._note = self._read_note()
        while True:
            kind, *values = self.tasks.get()
            if kind == 'write':
                self._take(*values)
            elif kind == 'rewind':
                self._rewind(*values)
            elif kind == 'result':
                # Those of a run that was finished before, and started again, are there already.
                known = self._note.get('result') == json_digest(values[1])
                self._scores = None if known else (values[0], values[1])
            else:
                self._end(*values)
                return

    def _read_note(self) -> dict[str, Any]:
        note: dict[str, Any] = {}
        if self._path.exists():
            try:
                note = read_json(self._path)
            except (OSError, ValueError):
                self._say('note', f'{FOLDER}/{self._path.name} is damaged; it begins a new run')
        if note.get('place') != self._place or not {'run', 'step'} <= set(note):
            note = dict(place=self._place, run='', step=-1)
        return note

    def _take(self, step: int, values: Mapping[str, float]) -> None:
        if self._rows and self._rows[-1][0] == step:
            self._rows[-1][1].update(values)
        elif not self._rows or step > self._rows[-1][0]:
            self._rows.append((step, dict(values)))
        if self._is_new() and time.monotonic() >= self._not_before:
            self._attempt(partial(self._show_all_but, 1))

    def _is_new(self) -> bool:
        """Whether there is a row that no start has shown."""
        return bool(self._rows) and self._rows[-1][0] > self._note['step']

    def _rewind(self, step: int) -> None:
        while len(self._rows) > self._next and self._rows[-1][0] > step:
            self._rows.pop()
        if self._note['step'] > step:
            self._say('rewind', f'steps {step + 1} to {self._note["step"]} stay as first shown')

    def _end(self, status: str) -> None:
        # A run that was stopped may have more to say of its last step when it goes on.
        keep = 0 if status == 'done' else 1
        if self._is_new() or self._scores:
            self._attempt(partial(self._show_all_but, keep))
            self._attempt(self._show_scores)
        logger = self._logger
        if logger is not None:
            self._attempt(self._write_note)
            self._attempt(partial(logger.close, status))

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (Exception, SystemExit) as error:
            self._logger, self._not_before = None, time.monotonic() + RETRY_SECONDS
            self._say('failed', f'failed, the training goes on: {type(error).__name__}: {error}')

    def _opened(self) -> Logger:
        if self._logger is None:
            self._logger = LOGGERS[self.knob](self._where, self._place, self._note['run'],
                                              self._about)
            # The place knows best: what was handed over may have been lost in a kill.
            self._write_note(run=self._logger.run, step=self._logger.shown)
            self._next = 0
        return self._logger

    def _show_all_but(self, keep: int) -> None:
        logger = self._opened()
        while self._next < len(self._rows) - keep:
            step, values = self._rows[self._next]
            if step > self._note['step']:
                logger.write(step, values)
                self._note['step'] = step  # on the disk at the end: it would take most of the time
            self._next += 1

    def _show_scores(self) -> None:
        if self._scores:
            self._opened().result(*self._scores)
            self._write_note(result=json_digest(self._scores[1]))

    def _write_note(self, **changes: Any) -> None:
        self._note |= changes
        self._path.parent.mkdir(exist_ok=True)
        write_json(self._path, self._note)

    def _say(self, kind: str, text: str) -> None:
        """One line of each kind at most, which fits a terminal."""
        if kind not in self._said:
            self._said.add(kind)
            line = f'{self.knob:8} {" ".join(text.split())}'
            log.warning('%s', line if len(line) <= _COLUMNS else f'{line[:_COLUMNS - 1]}…')
