"""A folder that must stay as it was written: digests.json has size and SHA-256 of every file.

digests.json has a digest of itself too: no byte of the folder changes unnoticed, and a file of a
later format can be told from a damaged one. For that its layout must stay: the keys `format`,
`files` and perhaps further ones, then the `sha256` of all of them, as json.dumps writes them with
indent=1.

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
FROZEN = 'frozen'  # the folder beside the checkpoints with the weights that do not train


def identity(checkpoint: Path) -> str:
    """SHA-256 in hex of a committed checkpoint and of the frozen weights beside it."""
    hasher = hashlib.sha256()
    for path in (checkpoint / NAME, checkpoint.parent / FROZEN / NAME):
        if path.exists():
            hasher.update(path.read_bytes())
    return hasher.hexdigest()


def write_digests(folder: Path) -> None:
    """Makes every file of a finished folder durable, and writes its digests.json."""
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
    """What is wrong with a folder that has a digests.json, in words; '' if nothing has changed.

    Raises:
        CheckpointError: its format is newer than this code reads.
        OSError: this user may not read it.
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
            return f'{name} was added after the save'
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
    if error.errno == errno.EIO:  # the disk cannot read a block
        return f'{name} cannot be read ({error.strerror})'
    raise error
