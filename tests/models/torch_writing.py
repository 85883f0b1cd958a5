"""Files as torch.save writes them, made without torch: a test can put anything into them."""

import dataclasses
import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

NAMES = {'float32': 'FloatStorage', 'float64': 'DoubleStorage', 'float16': 'HalfStorage',
         'bfloat16': 'BFloat16Storage', 'int64': 'LongStorage', 'int32': 'IntStorage',
         'int16': 'ShortStorage', 'int8': 'CharStorage', 'uint8': 'ByteStorage',
         'bool': 'BoolStorage'}


@dataclasses.dataclass(frozen=True)
class Global:
    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    what: Global
    arguments: tuple


@dataclasses.dataclass(frozen=True)
class Reference:
    """A persistent id."""

    content: tuple


@dataclasses.dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    data: bytes


ORDERED = Global('collections', 'OrderedDict')
REBUILD = Global('torch._utils', '_rebuild_tensor_v2')


def body(value: Any) -> bytes:
    """Opcodes of protocol 2 that leave the value on the stack."""
    match value:
        case Raw():
            return value.data
        case Global():
            return f'c{value.module}\n{value.name}\n'.encode()
        case Call():
            return body(value.what) + body(value.arguments) + b'R'
        case Reference():
            return body(value.content) + b'Q'
        case tuple():
            return b'(' + b''.join(map(body, value)) + b't'
        case list():
            return b'](' + b''.join(map(body, value)) + b'e'
        case dict():
            return b'}(' + b''.join(body(key) + body(one) for key, one in value.items()) + b'u'
    return pickle.dumps(value, 2)[2:-1]


def pickled(value: Any) -> bytes:
    return b'\x80\x02' + body(value) + b'.'


def tensor(key: str, array: np.ndarray, *, stream: bool = False, **changes: Any) -> Call:
    """What torch writes for a contiguous tensor; `changes` of storage, elements, offset, shape,
    strides, hooks."""
    strides, step = [], 1
    for size in array.shape[::-1]:
        strides.insert(0, step)
        step *= size
    given = dict(storage=Global('torch', NAMES[str(array.dtype)]), elements=array.size, offset=0,
                 shape=array.shape, strides=tuple(strides), hooks=Call(ORDERED, ())) | changes
    reference = Reference(('storage', given['storage'], key, 'cpu', given['elements'],
                           *((None,) if stream else ())))
    return Call(REBUILD, (reference, given['offset'], given['shape'], given['strides'], False,
                          given['hooks']))


def zipped(data: bytes, storages: Mapping[str, bytes], order: bytes = b'little',
           compression: int = zipfile.ZIP_STORED, extra: tuple[str, bytes] | None = None) -> bytes:
    """An archive with this pickle, and one member more."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', compression) as archive:
        archive.writestr('archive/data.pkl', data)
        archive.writestr('archive/byteorder', order)
        for key, content in storages.items():
            archive.writestr(f'archive/data/{key}', content)
        if extra:
            archive.writestr(*extra)
        archive.writestr('archive/version', b'3\n')
    return buffer.getvalue()


def streamed(data: bytes, storages: Mapping[str, tuple[int, bytes]], *, keys: Any = None,
             little: bool = True) -> bytes:
    """The format before torch 1.6, with this pickle; storages as (number of elements, bytes)."""
    start = (0x1950a86a20f9469cfc6c, 1001, dict(
        protocol_version=1001, little_endian=little, type_sizes=dict(short=2, int=4, long=4)))
    return b''.join([*map(pickled, start), data, pickled(list(storages) if keys is None else keys),
                     *(struct.pack('<q', count) + content
                       for count, content in storages.values())])


def saved(arrays: Mapping[str, np.ndarray], *, stream: bool, wrap: Any = lambda value: value
          ) -> tuple[bytes, bytes]:
    """(the whole file, its pickle) of a state_dict."""
    data = pickled(wrap({name: tensor(str(place), array, stream=stream)
                         for place, (name, array) in enumerate(arrays.items())}))
    return packed(data, arrays, stream=stream), data


def packed(data: bytes, arrays: Mapping[str, np.ndarray], *, stream: bool) -> bytes:
    """A file with this pickle, and the storages of these arrays."""
    contents = {str(place): array for place, array in enumerate(arrays.values())}
    if stream:
        return streamed(data, {key: (array.size, array.tobytes())
                               for key, array in contents.items()})
    return zipped(data, {key: array.tobytes() for key, array in contents.items()})
