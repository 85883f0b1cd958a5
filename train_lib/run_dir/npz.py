"""Reads .npz files that may be damaged, or made to do damage."""

import zipfile
from pathlib import Path

import numpy as np

# Bytes unpacked, and their ratio to the packed bytes. Zeros shrink a thousandfold; an honest array
# of one long name among short ones shrinks a few hundredfold at most.
_LARGE, _RATIO = 1 << 28, 700


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
