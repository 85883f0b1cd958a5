"""A folder that must stay as it was written: digests.json has size and SHA-256 of every file.

The record has a digest of itself, so no byte of the folder changes unnoticed, and a whole record
of a later format is told from a damaged one. For that its layout stays: the keys `format`, `files`
and others that may come, `sha256` of those last, as json.dumps writes them with indent=1.

    format 1    without `sha256`
    format 2    a checkpoint also holds the metrics.jsonl that belongs to it
"""

import errno
import hashlib
import json
import os
from pathlib import Path

from train_lib.runtime.errors import CheckpointError

FORMAT = 2
NAME = 'digests.json'


def write_digests(folder: Path) -> None:
    """Makes every file of a finished folder durable, and records it."""
    files = {}
    for name, path in _files(folder).items():
        with open(path, 'rb') as file:
            files[name] = [path.stat().st_size, hashlib.file_digest(file, 'sha256').hexdigest()]
            os.fsync(file.fileno())
    with open(folder / NAME, 'w', encoding='utf-8') as file:
        file.write(_text({'format': FORMAT, 'files': files}))
        file.flush()
        os.fsync(file.fileno())


def damage(folder: Path) -> str:
    """What is wrong with a folder that `write_digests` recorded, or '' if it is as it was.

    Raises:
        CheckpointError: it was written by a newer format than this code reads.
        OSError: it may not be read.
    """
    try:
        text = (folder / NAME).read_text(encoding='utf-8')
        record = json.loads(text)
        version, expected = record['format'], record['files']
        record.pop('sha256', None)
        if version < 1 or text != _text(record):
            return f'{NAME} has changed'
    except (ValueError, KeyError, TypeError):
        return f'{NAME} cannot be read'
    except OSError as error:
        return _reason(NAME, error)
    if version > FORMAT:
        raise CheckpointError(f'{folder} has checkpoint format {version}, and this version of the '
                              f'code reads up to {FORMAT}: use the newer code.')
    found = _files(folder)
    for name in sorted(set(expected) | set(found)):
        if name not in found:
            return f'{name} is missing'
        if name not in expected:
            return f'{name} was not there when it was saved'
        size, digest = expected[name]
        try:
            with open(found[name], 'rb') as file:
                bytes_now = os.fstat(file.fileno()).st_size
                if bytes_now != size:
                    return f'{name} has {bytes_now} bytes instead of {size}'
                if hashlib.file_digest(file, 'sha256').hexdigest() != digest:
                    return f'{name} has changed'
        except OSError as error:
            return _reason(name, error)
    return ''


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob('*'))
            if path.is_file() and path != folder / NAME}


def _text(record: dict) -> str:
    if record['format'] > 1:
        record = record | {'sha256': hashlib.sha256(json.dumps(record).encode()).hexdigest()}
    return json.dumps(record, indent=1)


def _reason(name: str, error: OSError) -> str:
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return f'{name} is missing'
    if error.errno == errno.EIO:  # how a disk says that it cannot read its own
        return f'{name} cannot be read ({error.strerror})'
    raise error
