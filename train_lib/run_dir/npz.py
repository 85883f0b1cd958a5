"""Reads .npz files that may be damaged, or made to do damage; writes large ones quickly."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

# Bytes unpacked, and their ratio to the packed bytes. Zeros shrink a thousandfold; an honest array
# of one long name among short ones shrinks a few hundredfold at most.
_LARGE, _RATIO = 1 << 28, 700
# An array of more bytes than that is packed only if three samples of it shrink to this share.
_SLOW, _SAMPLE, _WORTH = 1 << 24, 1 << 18, 0.8


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Every array of an .npz file. Nothing is unpickled.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is damaged, or would unpack to far more bytes than it has.
    """
    # Opened here, because NumPy leaves a damaged file open.
    with open(path, 'rb') as opened:
        try:
            arrays = np.load(opened, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError('it is not an .npz file')
            with arrays:
                assert arrays.zip is not None  # only a closed file has none
                _refuse_bombs(arrays.zip.infolist())
                return {name: arrays[name] for name in arrays.files}
        except Exception as error:  # NumPy and zipfile raise nearly every type for damaged files
            raise ValueError(' '.join(str(error).split()) or type(error).__name__) from error


def _refuse_bombs(members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        if member.file_size > max(_LARGE, _RATIO * member.compress_size):
            raise ValueError(f'{member.filename} would unpack {member.compress_size:,} bytes to '
                             f'{member.file_size:,}')


def write_npz(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """`np.savez_compressed`, but large arrays that hardly shrink are stored as they are: logits of
    10,000 classes lose a twelfth of their size, and packing them takes longer than computing
    them."""
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays.items():
            values = np.asanyarray(values)
            member = zipfile.ZipInfo(f'{name}.npy')
            member.compress_type = zipfile.ZIP_DEFLATED if _shrinks(values) else zipfile.ZIP_STORED
            with archive.open(member, 'w', force_zip64=True) as opened:
                np.lib.format.write_array(opened, values, allow_pickle=False)


def _shrinks(values: np.ndarray) -> bool:
    if values.nbytes <= _SLOW:
        return True
    flat = values.reshape(-1)
    length = _SAMPLE // values.itemsize
    samples = b''.join(flat[start:start + length].tobytes()
                       for start in np.linspace(0, len(flat) - length, 3).astype(int))
    return len(zlib.compress(samples, 1)) <= _WORTH * len(samples)
