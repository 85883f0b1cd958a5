"""metrics.jsonl and TensorBoard.

metrics.jsonl holds nothing that depends on the clock, so that a run that was killed and
resumed writes the same bytes as one that was not. Speed goes to TensorBoard and the screen.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from train_lib.runtime.errors import CheckpointError

METRICS = 'metrics.jsonl'
log = logging.getLogger(__name__)


def read_json(path: Path) -> dict:
    """The JSON object in a file.

    Raises:
        OSError or ValueError: there is no such file, or it holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except RecursionError:
        raise ValueError('it is nested too deeply') from None
    if not isinstance(content, dict):
        raise ValueError('it holds no JSON object')
    return content


def _rounded(value):
    return float(f'{value:.7g}') if isinstance(value, float) else value


class Records:
    """Appends rows to metrics.jsonl, and the same to TensorBoard.

    `size` bytes belong to the checkpoint that the run continues from; what was written after
    it by a process that died is cut off, and will be written again. `kept` is the checkpoint's
    own copy of those bytes (older ones have none), which a damaged file is put back from.
    """

    def __init__(self, workdir: Path, *, size: int, step: int, tensorboard: bool,
                 kept: Path | None = None):
        self._path = Path(workdir) / METRICS
        if kept is not None and kept.exists():
            _put_back(self._path, kept, step)
        with open(self._path, 'ab') as file:
            if file.tell() < size:
                raise CheckpointError(f'{self._path} has {file.tell()} bytes, and the checkpoint '
                                      f'of step {step} was written at {size}: put the file back, '
                                      f'or start anew.')
            file.truncate(size)
        self._file = open(self._path, 'a', encoding='utf-8')  # noqa: SIM115 - lives as long as self
        self._board_folder = str(Path(workdir) / 'tensorboard') if tensorboard else ''
        self._board = None
        self._purge_step = step + 1 if step else None

    def _open_board(self) -> None:
        """At the first row: tensorboardX loads torch where there is one, which takes a second,
        and by then the device has work."""
        if self._board_folder and self._board is None:
            self._board = _Board(self._board_folder, self._purge_step)

    def write(self, row: dict, **clocked: float) -> None:
        """One row, with step, epoch, split and figures; `clocked` goes to TensorBoard only."""
        self._file.write(json.dumps({key: _rounded(value) for key, value in row.items()}) + '\n')
        self._open_board()
        if self._board:
            self._board.write(row['step'], {
                f'{row["split"]}/{key}': value for key, value in (row | clocked).items()
                if isinstance(value, (int, float)) and key != 'step'})

    def rewind(self, size: int, step: int) -> None:
        """Cuts off what was written after the first `size` bytes, which belong to `step`."""
        self._file.flush()
        self._file.truncate(size)
        if self._board:
            self._board.close()
        self._board, self._purge_step = None, step + 1

    def flush(self) -> int:
        """Makes all rows durable and returns the size of the file in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def content(self) -> bytes:
        """The file as it was flushed."""
        return self._path.read_bytes()

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        if self._board:
            self._board.close()


class _Board:
    """One event file of TensorBoard. tensorboardX's SummaryWriter writes in a thread, which dies
    of a full disk and then lets the training wait for ever; here the error is raised."""

    def __init__(self, folder: str, purge_step: int | None):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        os.makedirs(folder, exist_ok=True)
        self._event, self._scalar = Event, scalar
        # Its name has seconds, and a run may go back twice in one.
        self._writer = EventsWriter(os.path.join(folder, 'events'), f'.{time.time_ns()}')
        self._flushed = 0.0
        if purge_step is not None:  # what older files have from this step on does not count
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


class NoRecords:
    """What stands for `Records` in the processes that write nothing."""

    def __init__(self, *_, **__):
        pass

    def write(self, row: dict, **clocked: float) -> None:
        """Nothing."""

    def rewind(self, size: int, step: int) -> None:
        """Nothing."""

    def flush(self) -> int:
        """0."""
        return 0

    def content(self) -> bytes:
        """Nothing."""
        return b''

    def close(self) -> None:
        """Nothing."""


def _put_back(path: Path, kept: Path, step: int) -> None:
    rows = kept.read_bytes()
    found = path.read_bytes() if path.exists() else b''
    if found[:len(rows)] != rows:
        log.warning('%s is %s: the rows up to step %d are put back from the checkpoint.', path,
                    'damaged' if path.exists() else 'gone', step)
        write_text(path, rows.decode('utf-8'))


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file whole or not at all."""
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:  # a path that is no UTF-8
        text = json.dumps(content, indent=2)
    write_text(path, text + '\n')


def seal(content: Mapping) -> str:
    """A digest of a JSON object, for its own key 'sha256', which is left out."""
    rest = {key: value for key, value in content.items() if key != 'sha256'}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    temporary = path.with_name(path.name + '.tmp')
    with open(temporary, 'w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
