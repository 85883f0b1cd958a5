"""The pickle inside a file of torch.save, read without unpickling.

`pickletools.genops` only decodes opcodes. What they ask for is carried out here, and only if it is
on one of two short lists: opcodes that make plain values, and the globals with which torch writes
tensors and ordered dicts. Nothing is imported, looked up by name or called. The result holds dicts,
lists, tuples, strings, numbers, and `Tensor`s, which say where in the file an array lies.
"""

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

# More than the largest model needs (some thousand tensors at 30 opcodes), and few enough that what
# they make fits into some 200 MB.
MOST_OPCODES = 1_000_000
MOST_BYTES = 1 << 26
_LONGEST = 1000  # characters of a key
_MOST_AXES = 16
_LARGEST = 1 << 62

STORAGES = {  # classes of torch whose elements NumPy can hold
    'FloatStorage': np.dtype(np.float32), 'DoubleStorage': np.dtype(np.float64),
    'HalfStorage': np.dtype(np.float16), 'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
    'ByteStorage': np.dtype(np.uint8), 'CharStorage': np.dtype(np.int8),
    'ShortStorage': np.dtype(np.int16), 'IntStorage': np.dtype(np.int32),
    'LongStorage': np.dtype(np.int64), 'BoolStorage': np.dtype(np.bool_),
}


class NotWeightsError(ValueError):
    """The file holds something else than plain weights, or is damaged; the text says what."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of elements in the file, by its key there."""

    key: str
    dtype: np.dtype
    elements: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count elements. It lies inside the storage, and no
    two of its elements are the same one."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Elements from the first to the last one, both included; 0 if it is empty."""
        return _span(self.shape, self.strides)


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that the file mentions. It stands for itself; nothing is looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return ascii(f'{self.module}.{self.name}'[:80])


class _OrderedDict(dict):
    """What the file writes as a collections.OrderedDict: it may be given attributes, which are
    dropped."""


_ORDERED_DICT = _Global('collections', 'OrderedDict')
_SIZE = _Global('torch', 'Size')
_TENSOR = _Global('torch._utils', '_rebuild_tensor')
_TENSOR_V2 = _Global('torch._utils', '_rebuild_tensor_v2')
_PARAMETER = _Global('torch._utils', '_rebuild_parameter')
_KNOWN = {_ORDERED_DICT, _SIZE, _TENSOR, _TENSOR_V2, _PARAMETER,
          *(_Global('torch', name) for name in STORAGES)}

_VALUES = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_ARGUMENTS = {'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE',
              'SHORT_BINUNICODE', 'BINUNICODE8', 'BINSTRING', 'SHORT_BINSTRING'}
_EMPTY: dict[str, Callable[[], Any]] = {'EMPTY_DICT': dict, 'EMPTY_LIST': list,
                                        'EMPTY_TUPLE': tuple}
_SKIPPED = {'PROTO', 'FRAME'}


def read_plain(file: Any) -> tuple[Any, dict[str, Storage]]:
    """What the pickle at the position of a file describes; the position is behind it afterwards.

    Args:
        file: with `read`, `readline` and `tell`, whose `read` never allocates more than is left.

    Returns:
        (the object, the storages that it refers to by their keys)

    Raises:
        NotWeightsError: it holds anything else than plain values and tensors, or is damaged.
    """
    machine, begin = _Machine(), file.tell()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count >= MOST_OPCODES or file.tell() - begin > MOST_BYTES:
                raise NotWeightsError('its pickle is longer than that of any state_dict')
            if opcode.name == 'STOP':
                return machine.result(), machine.storages
            machine.step(opcode.name, argument)
    except NotWeightsError:
        raise
    except (ValueError, IndexError, TypeError, KeyError, OverflowError, EOFError) as error:
        # UnicodeDecodeError is a ValueError. genops and the stack raise these on damaged bytes.
        raise NotWeightsError(f'its pickle is damaged ({ascii(str(error))[1:-1][:80]})') from None
    raise NotWeightsError('its pickle has no end')


class _Machine:
    """The stack and the memo of a pickle; below the last mark is another stack."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def result(self) -> Any:
        value, *more = self.stack  # a ValueError if there is nothing
        if more or self.below:
            raise ValueError('several objects')
        return value

    def step(self, name: str, argument: Any) -> None:
        """Carries out one opcode.

        Raises:
            NotWeightsError: it is not one of those that weights need. IndexError, ValueError,
                TypeError, KeyError: the stack does not hold what it takes.
        """
        stack = self.stack
        if name in _SKIPPED:
            return
        if name in _VALUES:
            stack.append(_VALUES[name])
        elif name in _ARGUMENTS:
            stack.append(argument)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == 'MARK':
            self.below.append(stack)
            self.stack = []
        elif name in ('BINPUT', 'LONG_BINPUT'):
            self.memo[argument] = stack[-1]
        elif name == 'MEMOIZE':
            self.memo[len(self.memo)] = stack[-1]
        elif name in ('BINGET', 'LONG_BINGET'):
            stack.append(self.memo[argument])
        elif name in _BUILDERS:
            _BUILDERS[name](self)
        elif name == 'GLOBAL':
            stack.append(_known(*argument.split(' ', 1)))
        else:
            raise NotWeightsError(f'it uses the pickle opcode {name}, which weights do not need')

    def pop(self, kind: type | tuple[type, ...] = object) -> Any:
        value = self.stack.pop()
        if not isinstance(value, kind):
            raise NotWeightsError('its pickle is damaged (a value is not of the expected type)')
        return value

    def pop_to_mark(self) -> list[Any]:
        found, self.stack = self.stack, self.below.pop()
        return found

    def top(self, kind: type) -> Any:
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise NotWeightsError('its pickle is damaged (a value is not of the expected type)')
        return value

    def make_tuple(self, size: int | None = None) -> None:
        found = self.pop_to_mark() if size is None else [self.pop() for _ in range(size)][::-1]
        self.stack.append(tuple(found))

    def append(self) -> None:
        value = self.pop()
        self.top(list).append(value)

    def extend(self) -> None:
        values = self.pop_to_mark()
        self.top(list).extend(values)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        _put(self.top(dict), key, value)

    def set_items(self) -> None:
        found = self.pop_to_mark()
        target = self.top(dict)
        if len(found) % 2:
            raise ValueError('a key without a value')
        for key, value in zip(found[::2], found[1::2]):
            _put(target, key, value)

    def stack_global(self) -> None:
        name, module = self.pop(str), self.pop(str)
        self.stack.append(_known(module, name))

    def reduce(self) -> None:
        arguments, what = self.pop(tuple), self.pop(_Global)
        if what not in _MAKERS:
            raise NotWeightsError(f'it calls {what}')
        self.stack.append(_MAKERS[what](*arguments))

    def build(self) -> None:
        self.pop((dict, tuple))  # attributes such as the versions of the modules
        self.top(_OrderedDict)

    def storage(self) -> None:
        """A persistent id: ('storage', class, key, device, elements), in old files with None."""
        found = self.pop(tuple)
        if len(found) not in (5, 6) or found[0] != 'storage' \
                or not isinstance(found[1], _Global) or found[1].name not in STORAGES \
                or not isinstance(found[2], str) or found[5:] not in ((), (None,)):
            raise NotWeightsError('it refers to data outside of it that are not plain storages')
        made = Storage(found[2], STORAGES[found[1].name], _natural(found[4]))
        if self.storages.setdefault(made.key, made) != made:
            raise NotWeightsError(f'its storage {made.key[:40]!a} has two sizes or types')
        self.stack.append(self.storages[made.key])


_BUILDERS: dict[str, Callable[[_Machine], None]] = {
    'TUPLE': lambda machine: machine.make_tuple(),
    'TUPLE1': lambda machine: machine.make_tuple(1),
    'TUPLE2': lambda machine: machine.make_tuple(2),
    'TUPLE3': lambda machine: machine.make_tuple(3),
    'APPEND': _Machine.append, 'APPENDS': _Machine.extend,
    'SETITEM': _Machine.set_item, 'SETITEMS': _Machine.set_items,
    'STACK_GLOBAL': _Machine.stack_global, 'REDUCE': _Machine.reduce, 'BUILD': _Machine.build,
    'BINPERSID': _Machine.storage,
}


def _known(module: str, name: str) -> _Global:
    found = _Global(module, name)
    if found not in _KNOWN:
        raise NotWeightsError(f'it holds an object of {found}')
    return found


def _put(target: dict, key: Any, value: Any) -> None:
    """Keys are short texts and small numbers: hashing nested tuples, or numbers that collide, could
    take forever."""
    if type(key) is int:
        if abs(key) >= 1 << 31:
            raise NotWeightsError('it has a number of more than 32 bits as a key')
    elif type(key) is not str or len(key) > _LONGEST or not key.isprintable():
        raise NotWeightsError(f'it has a key that is not a valid name: {ascii(key)[:60]}'
                              if type(key) is str else 'it has a key that is not text')
    target[key] = value


def _ordered(*arguments: Any) -> _OrderedDict:
    """An ordered dict, of pairs where Python 2 wrote it."""
    made = _OrderedDict()
    if arguments:
        pairs, = arguments
        if not isinstance(pairs, (list, tuple)):
            raise TypeError('pairs expected')
        for key, value in pairs:
            _put(made, key, value)
    return made


def _size(*arguments: Any) -> tuple[int, ...]:
    axes, = arguments or ((),)
    return _naturals(axes)


def _tensor_v2(storage: Any, offset: Any, shape: Any, strides: Any, needs_gradient: Any = False,
               hooks: Any = None, metadata: Any = None) -> Tensor:
    if hooks or metadata or not isinstance(needs_gradient, bool):
        raise NotWeightsError('one of its tensors has hooks or flags')
    return _tensor(storage, offset, shape, strides)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise NotWeightsError('one of its tensors has no storage')
    made = Tensor(storage, _natural(offset), _naturals(shape), _naturals(strides))
    if len(made.shape) != len(made.strides):
        raise NotWeightsError('one of its tensors has another number of axes than of strides')
    if made.offset + made.span > storage.elements:
        raise NotWeightsError('one of its tensors reaches beyond its storage')
    if _overlaps(made.shape, made.strides):
        raise NotWeightsError('the elements of one of its tensors overlap')
    return made


def _parameter(value: Any, needs_gradient: Any, hooks: Any = None) -> Tensor:
    if not isinstance(value, Tensor) or hooks:
        raise NotWeightsError('one of its parameters has hooks, or is not a tensor')
    return value


_MAKERS: dict[_Global, Callable[..., Any]] = {
    _ORDERED_DICT: _ordered, _SIZE: _size, _TENSOR: _tensor, _TENSOR_V2: _tensor_v2,
    _PARAMETER: _parameter}


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise NotWeightsError('a size in it is not a number from 0')
    return value


def _naturals(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > _MOST_AXES:
        raise NotWeightsError('a shape in it is not a list of numbers')
    return tuple(_natural(value) for value in values)


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))


def _overlaps(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether two elements may be the same one: an axis steps over less than the faster ones
    cover. An expanded axis has the stride 0, so that a huge array would take no space in a file."""
    if 0 in shape:
        return False
    covered = 1
    for stride, size in sorted(zip(strides, shape)):
        if size > 1:
            if stride < covered:
                return True
            covered += (size - 1) * stride
    return False
