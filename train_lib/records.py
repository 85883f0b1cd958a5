"""metrics.jsonl and TensorBoard.

metrics.jsonl holds nothing that depends on the clock, so that a run that was killed and
resumed writes the same bytes as one that was not. Speed goes to TensorBoard and the screen.
"""

import json
import os
from pathlib import Path

from train_lib.errors import CheckpointError


def _rounded(value):
    return float(f'{value:.7g}') if isinstance(value, float) else value


class Records:
    """Appends rows to metrics.jsonl, and the same to TensorBoard.

    `size` bytes belong to the checkpoint that the run continues from; what was written after
    it by a process that died is cut off, and will be written again.
    """

    def __init__(self, workdir: Path, *, size: int, step: int, tensorboard: bool):
        self._path = Path(workdir) / 'metrics.jsonl'
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
            from tensorboardX import SummaryWriter
            self._board = SummaryWriter(self._board_folder, purge_step=self._purge_step)

    def write(self, row: dict, **clocked: float) -> None:
        """One row, with step, epoch, split and figures; `clocked` goes to TensorBoard only."""
        self._file.write(json.dumps({key: _rounded(value) for key, value in row.items()}) + '\n')
        self._open_board()
        if self._board:
            for key, value in (row | clocked).items():
                if isinstance(value, (int, float)) and key != 'step':
                    self._board.add_scalar(f'{row["split"]}/{key}', value, row['step'])

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

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        if self._board:
            self._board.close()


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

    def close(self) -> None:
        """Nothing."""


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + '\n')


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    temporary = path.with_name(path.name + '.tmp')
    with open(temporary, 'w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
