"""Files of torch.save, read without torch: tensors and nothing else.

    zip     since torch 1.6: an archive of stored members, <name>/data.pkl and <name>/data/<key>
    stream  before: pickles of a magic number, the version, the machine, the object and the keys of
            the storages, then each storage, its number of elements first

The pickle is read by `torch_pickle`. Arrays are read one at a time.
"""

import dataclasses
import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from models.torch_pickle import MOST_BYTES, NotWeightsError, Storage, Tensor, read_plain

_MAGIC, _VERSION = 0x1950a86a20f9469cfc6c, 1001
_SIGNATURE = b'PK\x03\x04'
_LOCAL = struct.Struct('<4s22xHH')  # header of a member: its name and extra field follow
_PIECE = 1 << 20
WRAPPERS = ('state_dict', 'model', 'model_ema')


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a storage lies in the file, in bytes, and its CRC-32; None where there is none."""

    start: int
    size: int
    crc: int | None = None


def open_torch(path: Path) -> tuple[dict[str, Tensor], Callable[[str], np.ndarray]]:
    """Opens a state_dict, also inside one of `WRAPPERS`.

    Returns:
        (tensors by key, a function from key to a contiguous array of the stored dtype, which raises
        NotWeightsError or OSError if the file has changed since)

    Raises:
        NotWeightsError: it is damaged, or holds more than plain weights. OSError: it cannot be
            read.
    """
    with open(path, 'rb') as file:
        try:
            zipped = file.read(len(_SIGNATURE)) == _SIGNATURE
            value, places = (_of_zip if zipped else _of_stream)(file)
        except (zipfile.BadZipFile, NotImplementedError, struct.error, EOFError, OverflowError,
                ValueError) as error:
            if isinstance(error, NotWeightsError):
                raise
            raise NotWeightsError(f'it is damaged ({ascii(str(error))[1:-1][:80]})') from None
    tensors = _state_dict(value)
    for tensor in tensors.values():
        _check_place(tensor.storage, places)
    intact: set[str] = set()

    def read(key: str) -> np.ndarray:
        tensor = tensors[key]
        place = places[tensor.storage.key]
        with open(path, 'rb') as file:
            if tensor.storage.key not in intact:
                _check_crc(file, place)
                intact.add(tensor.storage.key)
            file.seek(place.start + tensor.offset * tensor.storage.dtype.itemsize)
            return _array(tensor, file)

    return tensors, read


def _state_dict(value: Any) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(value, dict) and isinstance(value.get(wrapper), dict):
            value = value[wrapper]
    if not isinstance(value, dict) or not all(
            isinstance(key, str) and isinstance(one, Tensor) for key, one in value.items()):
        raise NotWeightsError('it holds no state_dict')
    return dict(value)


def _check_place(storage: Storage, places: dict[str, Place]) -> None:
    place = places.get(storage.key)
    if place is None or place.size != storage.elements * storage.dtype.itemsize:
        raise NotWeightsError(f'its storage {storage.key[:40]!a} is missing or has another '
                              f'size')


def _array(tensor: Tensor, file: BinaryIO) -> np.ndarray:
    dtype, span = tensor.storage.dtype, tensor.span
    data = file.read(span * dtype.itemsize)
    if len(data) != span * dtype.itemsize:
        raise NotWeightsError('it has become shorter')
    if not span:
        return np.zeros(tensor.shape, dtype)
    if dtype == np.bool_:  # any other byte than 0 and 1 would be a broken value to NumPy
        flat = np.frombuffer(data, np.uint8) != 0
    else:
        flat = np.frombuffer(data, dtype)
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
    return np.array(view, order='C')


def _check_crc(file: BinaryIO, place: Place) -> None:
    if place.crc is None:
        return
    file.seek(place.start)
    left, crc = place.size, 0
    while left and (piece := file.read(min(left, _PIECE))):
        crc, left = zlib.crc32(piece, crc), left - len(piece)
    if left or crc != place.crc:
        raise NotWeightsError('a part of it is damaged: its CRC-32 is another one')


def _of_zip(file: BinaryIO) -> tuple[Any, dict[str, Place]]:
    """(the object, {key of a storage: where it lies})"""
    length = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    by_name: dict[str, Place] = {}
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 \
                or member.compress_size != member.file_size:
            raise NotWeightsError('its members are compressed or encrypted, which torch never does')
        if member.orig_filename in by_name:
            raise NotWeightsError(f'it has two members {member.orig_filename[:60]!a}')
        by_name[member.orig_filename] = _place_of(file, member, length)
    ends = 0
    for place in sorted(by_name.values(), key=lambda one: (one.start, one.size)):
        if place.start < ends:
            raise NotWeightsError('its members overlap')
        ends = place.start + place.size
    pickles = [name for name in by_name if name.count('/') == 1 and name.endswith('/data.pkl')]
    if len(pickles) != 1:
        raise NotWeightsError('it is a zip archive without one data.pkl, so not one of torch.save')
    folder = pickles[0].removesuffix('data.pkl')
    order = by_name.get(f'{folder}byteorder')
    if order is not None and _member(file, order) != b'little':
        raise NotWeightsError('its numbers are not stored in the byte order little')
    value = read_plain(io.BytesIO(_member(file, by_name[pickles[0]])))[0]
    start = f'{folder}data/'
    return value, {name.removeprefix(start): place for name, place in by_name.items()
                   if name.startswith(start)}


def _place_of(file: BinaryIO, member: zipfile.ZipInfo, length: int) -> Place:
    file.seek(member.header_offset)
    signature, name, extra = _LOCAL.unpack(file.read(_LOCAL.size))
    start = member.header_offset + _LOCAL.size + name + extra
    if signature != _SIGNATURE or start + member.file_size > length:
        raise NotWeightsError('it is damaged (a member reaches beyond its end)')
    return Place(start, member.file_size, member.CRC or None)  # torch can leave them out: 0


def _member(file: BinaryIO, place: Place) -> bytes:
    if place.size > MOST_BYTES:
        raise NotWeightsError('its pickle is longer than that of any state_dict')
    _check_crc(file, place)
    file.seek(place.start)
    return file.read(place.size)


def _of_stream(file: BinaryIO) -> tuple[Any, dict[str, Place]]:
    """As `_of_zip`, of the format before torch 1.6."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:  # reads no more than it has
        first = read_plain(data)[0]
        if type(first) is not int or first != _MAGIC:
            raise NotWeightsError('it is not a file of torch.save')
        if read_plain(data)[0] != _VERSION:
            raise NotWeightsError('its version is not 1001')
        machine = read_plain(data)[0]
        if not isinstance(machine, dict) or machine.get('little_endian') is not True:
            raise NotWeightsError('its numbers are not stored in the byte order little')
        value, found = read_plain(data)
        keys = read_plain(data)[0]
        if not isinstance(keys, list) or not all(type(key) is str for key in keys) \
                or len(set(keys)) != len(keys) or set(keys) != set(found):
            raise NotWeightsError('its list of storages is not that of its tensors')
        places: dict[str, Place] = {}
        for key in keys:
            counted = data.read(8)
            size = found[key].elements * found[key].dtype.itemsize
            if len(counted) != 8 or int.from_bytes(counted, 'little') != found[key].elements \
                    or data.tell() + size > len(data):
                raise NotWeightsError('it is damaged (a storage is cut short or has another size)')
            places[key] = Place(data.tell(), size)
            data.seek(size, io.SEEK_CUR)
        if data.tell() != len(data):
            raise NotWeightsError('more bytes follow its last storage')
    return value, places
