"""The metrics log of a run: metrics.jsonl, TensorBoard, and the loggers that follow.

metrics.jsonl holds nothing that depends on the clock, so that a run that was killed and
resumed writes the same bytes as one that was not. Speed goes to TensorBoard, the loggers and the
screen.
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline.atomic_files import write_text
from train_lib.run_dir.loggers import Loggers, numbers
from train_lib.runtime.errors import CheckpointError

METRICS = 'metrics.jsonl'
log = logging.getLogger(__name__)


def _rounded(value: Any) -> Any:
    return float(f'{value:.7g}') if isinstance(value, float) else value


class MetricsLog:
    """Appends rows to metrics.jsonl, and the same to TensorBoard.

    Args:
        workdir: of the run.
        size: bytes that belong to the checkpoint which the run continues from. What a process that
            died wrote after it is cut off, and will be written again.
        step: of that checkpoint, 0 without one.
        tensorboard: whether to write for TensorBoard too.
        kept: the checkpoint's own copy of those bytes, from which a damaged file is restored;
            older checkpoints have none.
        loggers: which get the rows too, also those that are there already.

    Raises:
        CheckpointError: the file is shorter than `size`.
    """

    def __init__(self, workdir: Path, *, size: int, step: int, tensorboard: bool,
                 kept: Path | None = None, loggers: Loggers | None = None):
        self._path = Path(workdir) / METRICS
        if kept is not None and kept.exists():
            _restore(self._path, kept, step)
        with open(self._path, 'ab') as file:
            if file.tell() < size:
                raise CheckpointError(f'{self._path} has {file.tell()} bytes, and the checkpoint '
                                      f'of step {step} was written at {size}: restore the '
                                      f'file, or start in a new workdir.')
            file.truncate(size)
        self._file = open(self._path, 'a', encoding='utf-8')  # noqa: SIM115 - lives as long as self
        self._board_folder = str(Path(workdir) / 'tensorboard') if tensorboard else ''
        self._board: _Board | None = None
        self._purge_step = step + 1 if step else None
        self._loggers = loggers
        if loggers:
            loggers.replay(self._path)

    def _open_board(self) -> None:
        """At the first row: tensorboardX loads torch if it is installed, which takes a second, and
        by then the device has work."""
        if self._board_folder and self._board is None:
            self._board = _Board(self._board_folder, self._purge_step)

    def write(self, row: Mapping[str, Any], **clocked: float) -> None:
        """Writes one row.

        Args:
            row: step, epoch, split and metrics; floats are rounded to seven digits.
            clocked: what depends on the clock, by name; it stays out of the file.
        """
        self._file.write(json.dumps({key: _rounded(value) for key, value in row.items()}) + '\n')
        self._open_board()
        values = numbers({**row, **clocked})
        if self._board:
            self._board.write(row['step'], values)
        if self._loggers:
            self._loggers.write(row['step'], values)

    def rewind(self, size: int, step: int) -> None:
        """Cuts off what was written after the first `size` bytes, which belong to `step`."""
        self._file.flush()
        self._file.truncate(size)
        if self._board:
            self._board.close()
        self._board, self._purge_step = None, step + 1
        if self._loggers:
            self._loggers.rewind(step)

    def flush(self) -> int:
        """Makes all rows durable and returns the size of the file in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def content(self) -> bytes:
        """The file as it was flushed."""
        return self._path.read_bytes()

    def close(self) -> None:
        """Flushes and closes the file and TensorBoard's."""
        self._file.close()
        if self._board:
            self._board.close()


class _Board:
    """One event file of TensorBoard. tensorboardX's SummaryWriter writes in a thread: on a full
    disk the thread dies, and the training waits for it forever. Here the error is raised."""

    def __init__(self, folder: str, purge_step: int | None):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        os.makedirs(folder, exist_ok=True)
        self._event, self._scalar = Event, scalar
        # The writer adds the time in seconds to the name, and a run may go back twice within one.
        self._writer = EventsWriter(os.path.join(folder, 'events'), f'.{time.time_ns()}')
        self._flushed = 0.0
        if purge_step is not None:  # hides what older files have from this step on
            self._writer.write_event(Event(
                wall_time=time.time(), step=purge_step,
                session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.write_event(self._event(wall_time=time.time(), step=step,
                                                 summary=self._scalar(name, value)))
        if time.monotonic() - self._flushed > 10:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


class NullMetricsLog(MetricsLog):
    """Writes nothing: for the processes of a run that are not the first."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def write(self, row: Mapping[str, Any], **clocked: float) -> None:
        """Does nothing."""

    def rewind(self, size: int, step: int) -> None:
        """Does nothing."""

    def flush(self) -> int:
        """Returns 0."""
        return 0

    def content(self) -> bytes:
        """Returns nothing."""
        return b''

    def close(self) -> None:
        """Does nothing."""


def _restore(path: Path, kept: Path, step: int) -> None:
    rows = kept.read_bytes()
    found = path.read_bytes() if path.exists() else b''
    if found[:len(rows)] != rows:
        log.warning('%s is %s: the rows up to step %d are restored from the checkpoint.', path,
                    'damaged' if path.exists() else 'missing', step)
        write_text(path, rows.decode('utf-8'))
