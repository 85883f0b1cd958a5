"""What a start makes, and takes away again if it is refused."""

import contextlib
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

# What a run writes before its first checkpoint.
_OF_A_START = ('ancestors.json', 'checkpoints', 'clock.json', 'config.json', 'curriculum.png',
               'metrics.jsonl', 'parameters.txt', 'predictions', 'split.csv', 'tensorboard')


def make(folder: Path) -> list[Path]:
    """Makes a folder and those above it.

    Returns:
        Those that were not there before, the innermost first; for `remove_empty`.

    Raises:
        OSError: it cannot be made.
    """
    folder = folder.absolute()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def remove_empty(made: Sequence[Path]) -> None:
    """Removes the folders that `make` made, up to the first one that holds something."""
    with contextlib.suppress(OSError):
        for path in made:
            path.rmdir()


def names_in(workdir: Path) -> set[str]:
    """The files and folders of a workdir, for `withdraw`; none if there is no such folder."""
    try:
        return {path.name for path in workdir.iterdir()}
    except OSError:
        return set()


def withdraw(workdir: Path, before: Collection[str]) -> None:
    """Removes what a run wrote into its workdir that a user's mistake ended before its first
    checkpoint, so that the corrected command may use the workdir.

    Args:
        workdir: of the run, whose lock is held; it is removed too if it is a fold's and empty.
        before: the names that it had before the run began; they stay.
    """
    for name in set(_OF_A_START) - set(before):
        path = workdir / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if not before:
        remove_empty([workdir])
