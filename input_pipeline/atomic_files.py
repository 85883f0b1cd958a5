"""Files that appear whole or not at all.

Each is written under a temporary name beside its own and then renamed, which replaces the old
file in one step. A process that is killed on the way leaves the old file as it was, and a
leftover `NAME.tmp` that the next write replaces. An exception removes the leftover too.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from typing import IO


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, *, shared: bool = False,
                durable: bool = False) -> Iterator[str]:
    """Yields the temporary name to write to; at the end the file takes its own name.

    For writers that want a name. `atomic_open` serves those that take an open file.

    Args:
        path: the file, in a folder that exists.
        shared: other processes, perhaps of other machines, may write the same file at the same
            time. The temporary name then contains this machine and process; the last wins.
        durable: the content is on the disk before the file takes its name, so that a loss of
            power cannot leave an empty file. It costs milliseconds.

    Raises:
        OSError: the file cannot be written; the old one is as it was.
    """
    path = os.fspath(path)
    temporary = f'{path}.{socket.gethostname()}.{os.getpid()}.tmp' if shared else f'{path}.tmp'
    try:
        yield temporary
        if durable:
            with open(temporary, 'rb') as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


@contextlib.contextmanager
def atomic_open(path: str | os.PathLike, mode: str = 'w', *, shared: bool = False,
                durable: bool = False, errors: str | None = None) -> Iterator[IO]:
    """Yields an open file, which takes its name at the end of the block.

    Args:
        path, shared, durable: as in `atomic_path`.
        mode: 'w' for text, which is written as UTF-8 with line ends as they are, or 'wb'.
        errors: what becomes of characters that UTF-8 cannot write, as in `open`.

    Raises:
        OSError: the file cannot be written; the old one is as it was.
    """
    text = {} if 'b' in mode else dict(encoding='utf-8', newline='', errors=errors)
    with atomic_path(path, shared=shared, durable=durable) as temporary, \
            open(temporary, mode, **text) as file:
        yield file


def write_text(path: str | os.PathLike, text: str, *, shared: bool = False,
               durable: bool = True) -> None:
    """Writes a text file in UTF-8, whole or not at all. Arguments as in `atomic_path`."""
    with atomic_open(path, shared=shared, durable=durable) as file:
        file.write(text)


def write_json(path: str | os.PathLike, content: Mapping) -> None:
    """Writes a JSON file, indented and with a newline at the end, durable, whole or not at all."""
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:  # a path that is not valid UTF-8
        text = json.dumps(content, indent=2)
    write_text(path, text + '\n')
