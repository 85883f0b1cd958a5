"""Files of torch.save without torch: what is read, what is refused, and that nothing is executed.

Where torch is installed, its own reader says what the arrays are.
"""

import io
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from models import torch_pickle
from models.errors import ModelError
from models.torch_files import open_torch
from models.torch_pickle import NotWeightsError
from models.weight_files import open_weights
from tests.models.torch_writing import (
    ORDERED,
    Call,
    Global,
    Raw,
    Reference,
    packed,
    pickled,
    saved,
    streamed,
    tensor,
    zipped,
)

ARRAYS = {'conv.weight': np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
          'norm.bias': np.array([.5, -.5], ml_dtypes.bfloat16),
          'norm.count': np.array(7, np.int64)}
FORMATS = pytest.mark.parametrize('stream', [False, True], ids=['zip', 'stream'])
EXECUTED: list = []


def executed(*arguments):
    """A global that a hostile file names."""
    EXECUTED.append(arguments)
    return {}


FOREIGN = Global(__name__, 'executed')


def arrays_of(path):
    tensors, read = open_torch(path)
    return {key: read(key) for key in tensors}


def written(folder, data):
    path = folder / 'weights.pth'
    path.write_bytes(data)
    return path


def refusal(folder, data):
    path = written(folder, data)
    with pytest.raises(ModelError) as error:
        shapes, read, _ = open_weights(path)
        for key in shapes:
            read(key)
    text = str(error.value)
    assert str(path) in text and '\n' not in text and len(text) < 600
    return text


def same(found, wanted):
    return found.keys() == wanted.keys() and all(
        found[key].dtype == np.asarray(wanted[key]).dtype and found[key].shape == wanted[key].shape
        and np.array_equal(found[key], wanted[key]) for key in wanted)


@FORMATS
@pytest.mark.parametrize('wrap', [
    lambda value: value, lambda value: {'state_dict': value, 'epoch': 3},
    lambda value: {'epoch': 3, 'model': value, 'args': ('a', 1.5, None, [True])},
    lambda value: {'model_ema': value, 'optimizer': {'state': {0: {'step': 1}}}},
    lambda value: {'state_dict': Call(ORDERED, ([[key, one] for key, one in value.items()],))}])
def test_a_state_dict_is_read_without_torch(tmp_path, stream, wrap):
    path = written(tmp_path, saved(ARRAYS, stream=stream, wrap=wrap)[0])
    assert same(arrays_of(path), ARRAYS)
    shapes, read, name = open_weights(path)
    assert shapes == {key: value.shape for key, value in ARRAYS.items()} and name == str(path)
    assert all(read(key).dtype == np.float32 for key in shapes)


@FORMATS
@pytest.mark.parametrize('dtype', ['float32', 'float64', 'float16', 'bfloat16', 'int64', 'int32',
                                   'int16', 'int8', 'uint8', 'bool'])
def test_every_type_of_number_is_read(tmp_path, stream, dtype):
    arrays = {'a': np.array([[0, 1], [1, 1]]).astype(dtype), 'none': np.zeros((0, 3), dtype)}
    assert same(arrays_of(written(tmp_path, saved(arrays, stream=stream)[0])), arrays)


def test_views_of_one_storage_are_read(tmp_path):
    whole = np.arange(12, dtype=np.float32)
    view = lambda **changes: tensor('0', whole, **changes)
    data = pickled({'turned': view(shape=(4, 3), strides=(1, 4)),
                    'part': view(offset=10, shape=(2,), strides=(1,)),
                    'every third': view(shape=(4,), strides=(3,))})
    found = arrays_of(written(tmp_path, zipped(data, {'0': whole.tobytes()})))
    assert same(found, {'turned': whole.reshape(3, 4).T, 'part': whole[10:],
                        'every third': whole[::3]})


ONE = {'a': np.arange(6, dtype=np.float32)}


def of_one(**changes):
    return pickled({'a': tensor('0', ONE['a'], **changes)})


BAD_TENSORS = {
    'beyond its storage': dict(offset=1), 'reaches beyond': dict(shape=(2, 4), strides=(4, 1)),
    'overlap': dict(shape=(1 << 30, 1 << 30), strides=(0, 0)),
    'elements of one of its tensors overlap': dict(shape=(2, 4), strides=(2, 1)),
    'not a number from 0': dict(offset=-1), 'a size in it': dict(shape=(-6,)),
    'size in it is not': dict(shape=(6,), strides=(-1,)), 'number of axes': dict(strides=(1, 1)),
    'not a list of numbers': dict(shape='abc'), 'is not a number': dict(offset=True),
    'a shape in it': dict(shape=(1,) * 40, strides=(1,) * 40), 'has hooks': dict(hooks={1: 2}),
    'missing or has another size': dict(elements=7), 'another size': dict(elements=10 ** 15),
    'plain storages': dict(storage=Global('torch', 'Size')), 'QInt8Storage': dict(
        storage=Global('torch', 'QInt8Storage'))}


@pytest.mark.parametrize(('words', 'changes'), BAD_TENSORS.items())
def test_a_tensor_that_does_not_fit_its_storage_is_refused(tmp_path, words, changes):
    assert words in refusal(tmp_path, packed(of_one(**changes), ONE, stream=False))


BAD_PICKLES = {
    'object of ': {'a': Call(FOREIGN, (1,))}, 'an object of': FOREIGN,
    'holds an object of': {'a': Call(Global('builtins', 'print'), ('x',))},
    'opcode NEWOBJ': Raw(b'ccollections\nOrderedDict\n)\x81'),
    'opcode INST': Raw(f'(i{__name__}\nexecuted\n'.encode()),
    'opcode OBJ': Raw(b'(ccollections\nOrderedDict\no'), 'opcode EXT1': Raw(b'\x82\x01'),
    'opcode PERSID': Raw(b'Pstorage\n'), 'opcode POP': Raw(b'0'),
    'opcode BINBYTES': Raw(b'B\1\0\0\0a'),
    "calls 'torch.FloatStorage'": {'a': Call(Global('torch', 'FloatStorage'), (4,))},
    'expected type': Raw(b'}}b'), 'has a key that is not text': Raw(b'})Ns'),
    'key that is not a valid name': {'a\nb': 1}, '32 bits': {1 << 40: 1},
    'pickle is damaged (': Raw(b'(((t'), 'its pickle is damaged': Raw(b''),
    'holds no state_dict': {'a': 1}, 'no state_dict': [1, 2],
    'outside of it': {'a': Reference(('storage', 1))}}


@pytest.mark.parametrize(('words', 'content'), BAD_PICKLES.items())
def test_more_than_weights_is_refused_and_not_executed(tmp_path, words, content):
    """Also in a file that holds weights besides."""
    assert words in refusal(tmp_path, packed(pickled(content), {}, stream=False))
    assert words in refusal(tmp_path, packed(pickled(content), {}, stream=True)) or \
        'damaged' in words
    if isinstance(content, dict) and words != 'holds no state_dict':
        both = pickled({'state_dict': {'a': tensor('0', ONE['a'])}, 'more': content})
        assert words in refusal(tmp_path, packed(both, ONE, stream=False))
    assert not EXECUTED


def test_a_dict_that_holds_itself_ends(tmp_path):
    inside = Raw(b'}q\1X\5\0\0\0modelh\1s')
    assert 'no state_dict' in refusal(tmp_path, packed(pickled(inside), {}, stream=False))


@pytest.mark.parametrize('flood', [
    b']' * 120_000, b'(' * 120_000,
    b')' * 30_000 + b'(t' * 30_000,  # a search for the mark would take hours
    b')q\0' + b'h\0h\0\x86q\0' * 60 + b'}h\0Ns',  # a key whose hash visits 2 ** 60 tuples
    b'}' + b''.join(b'\x8a\x0a' + (k * (2 ** 61 - 1)).to_bytes(10, 'little') + b'Ns'
                    for k in range(20_000)),  # keys with one hash
    b'\x8b\xff\xff\xff\x7f', b'X\xff\xff\xff\xff', b'\x8d' + b'\xff' * 8
], ids=['lists', 'marks', 'tuples', 'hash', 'collisions', 'number', 'text', 'long text'])
def test_a_pickle_that_asks_for_too_much_is_refused_soon(tmp_path, monkeypatch, flood):
    monkeypatch.setattr(torch_pickle, 'MOST_OPCODES', 100_000)
    data = packed(b'\x80\x02' + flood + b'.', {}, stream=False)
    began = time.process_time()
    refusal(tmp_path, data)
    assert time.process_time() - began < 10


def test_archives_that_torch_never_writes_are_refused(tmp_path):
    data, values = of_one(), {'0': ONE['a'].tobytes()}
    assert 'compressed' in refusal(tmp_path, zipped(data, values, compression=zipfile.ZIP_DEFLATED))
    assert 'byte order' in refusal(tmp_path, zipped(data, values, b'big'))
    assert 'missing' in refusal(tmp_path, zipped(data, {}))
    assert 'without one data.pkl' in refusal(tmp_path, empty_zip())
    with pytest.warns(UserWarning, match='Duplicate'):
        twice = zipped(data, values, extra=('archive/data/0', b'x' * 24))
    assert 'two members' in refusal(tmp_path, twice)
    whole = zipped(data, values)
    place = whole.rindex(b'PK\x01\x02', 0, whole.rindex(b'archive/version'))
    first = struct.pack('<L', 0)  # the last member begins where the first one does
    assert 'overlap' in refusal(tmp_path, whole[:place + 42] + first + whole[place + 46:])


def empty_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('a/b', b'')
    return buffer.getvalue()


def test_streams_that_torch_never_writes_are_refused(tmp_path):
    data, values = pickled({'a': tensor('0', ONE['a'], stream=True)}), ONE['a'].tobytes()
    good = streamed(data, {'0': (6, values)})
    assert same(arrays_of(written(tmp_path, good)), ONE)
    assert 'byte order' in refusal(tmp_path, streamed(data, {'0': (6, values)}, little=False))
    for keys in ([], ['0', '0'], ['1'], ['0', '1'], {'0': 1}):
        assert 'list of storages' in refusal(tmp_path, streamed(data, {'0': (6, values)},
                                                                keys=keys))
    assert 'another size' in refusal(tmp_path, streamed(data, {'0': (5, values)}))
    assert 'cut short' in refusal(tmp_path, good[:-1])
    assert 'more bytes follow' in refusal(tmp_path, good + b'\0')
    old_view = data.replace(b'NtQ', b'(X\1\0\0\0vK\0K\6ttQ')
    assert old_view != data
    assert 'plain storages' in refusal(tmp_path, streamed(old_view, {'0': (6, values)}))


def test_a_changed_value_is_found_by_its_crc(tmp_path):
    whole = bytearray(packed(of_one(), ONE, stream=False))
    whole[whole.index(ONE['a'].tobytes()) + 3] ^= 1
    assert 'CRC-32' in refusal(tmp_path, bytes(whole))


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path):
    path = written(tmp_path, saved(ONE, stream=True)[0])
    _, read, _ = open_weights(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelError, match='become shorter'):
        read('a')
    path.unlink()
    with pytest.raises(ModelError, match=r'weights\.pth'):
        read('a')


OPCODES = [code.to_bytes(1, 'big') for code in b'(.0124FGIJKLMNPQRSTUVX]}abcdeghijloqrstu)'
           b'\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96']
GLOBALS = [f'c{__name__}\nexecuted\n'.encode(), f'c{__name__}\nEXECUTED\n'.encode(),
           b'cbuiltins\nlist\n', b'ctorch\nload\n', b'ccollections\nOrderedDict\n',
           b'ctorch._utils\n_rebuild_parameter\n', b'ctorch\nFloatStorage\n']


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes of bytes, of opcodes, of lengths, of globals."""
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(data) or 1))
        kind = rng.integers(7)
        if kind == 0:
            data = data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) \
                + data[place + 1:] if data else data
        elif kind == 1:
            data = data[:place]
        elif kind == 2:
            data = data[:place] + OPCODES[rng.integers(len(OPCODES))] + data[place + 1:]
        elif kind == 3:
            data = data[:place] + OPCODES[rng.integers(len(OPCODES))] + data[place:]
        elif kind == 4:
            data = data[:place] + data[place + int(rng.integers(1, 9)):]
        elif kind == 5:
            starts = [at for at in range(len(data)) if data[at:at + 2] in (b'ct', b'cc')] or [0]
            at = starts[rng.integers(len(starts))]
            end = data.find(b'\n', data.find(b'\n', at) + 1) + 1
            data = data[:at] + GLOBALS[rng.integers(len(GLOBALS))] + data[end:]
        else:
            end = place + int(rng.integers(1, 30))
            data = data[:place] + data[place:end] * 2 + data[end:]
    return data


@FORMATS
@pytest.mark.parametrize('inside', [True, False], ids=['pickle', 'file'])
def test_no_damage_does_more_than_end_in_a_sentence(tmp_path, stream, inside):
    """400 changed files each: the reader refuses them, or gives arrays no larger than the file."""
    wrap = lambda value: {'state_dict': Call(ORDERED, ([list(one) for one in value.items()],)),
                          'epoch': 3, 'rate': .5}
    whole, data = saved(ARRAYS, stream=stream, wrap=wrap)
    ends = {'refused': 0, 'read': 0}
    began = time.process_time()
    tracemalloc.start()
    try:
        for seed in range(400):
            rng = np.random.default_rng(seed)
            path = written(tmp_path, packed(mutated(data, rng), ARRAYS, stream=stream) if inside
                           else mutated(whole, rng))
            try:
                shapes, read, _ = open_weights(path)
                found = [read(key) for key in shapes]
            except ModelError as error:
                ends['refused'] += 1
                assert '\n' not in str(error)
                continue
            ends['read'] += 1
            assert all(type(one) is np.ndarray and one.nbytes <= 4 * len(whole) for one in found)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not EXECUTED and ends['refused'] > 100
    assert peak < 32 << 20 and time.process_time() - began < 120


def test_the_foreign_global_would_do_something():
    """Else the tests above would prove nothing."""
    pickle.loads(pickled(Call(FOREIGN, (1,))))
    assert EXECUTED == [(1,)]
    EXECUTED.clear()


def of_torch(torch, path):
    value = torch.load(path, weights_only=True)
    for wrapper in ('state_dict', 'model', 'model_ema'):
        value = value.get(wrapper, value)
    plain = {key: (one.detach().float() if one.dtype == torch.bfloat16 else one.detach()).numpy()
             for key, one in value.items()}
    return plain, {key for key, one in value.items() if one.dtype == torch.bfloat16}


@FORMATS
def test_arrays_are_those_of_torch(tmp_path, stream):
    torch = pytest.importorskip('torch')
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8),
                              torch.nn.LSTM(4, 3))
    base = torch.randn(6, 4)
    odd = OrderedDict(turned=base.t(), part=base[2:, 1:3], scalar=torch.tensor(3.),
                      empty=torch.zeros(0, 4), half=base.half(), brain=base.bfloat16(),
                      double=base.double(), flags=base > 0, byte=(base * 9).byte(),
                      short=base.short(), parameter=torch.nn.Parameter(base),
                      last=net[0].weight.to(memory_format=torch.channels_last))
    optimizer = torch.optim.AdamW(net.parameters())
    net[1](net[0](torch.randn(1, 3, 5, 5))).sum().backward()
    optimizer.step()
    for content in (net.state_dict(), odd, {'model': odd},
                    {'state_dict': net.state_dict(), 'optimizer': optimizer.state_dict()}):
        path = tmp_path / 'weights.pth'
        torch.save(content, path, _use_new_zipfile_serialization=not stream)
        (wanted, brain), found = of_torch(torch, path), arrays_of(path)
        found = {key: one.astype(np.float32) if key in brain else one
                 for key, one in found.items()}
        assert same(found, wanted)


def test_checksums_that_torch_leaves_out_are_not_missed(tmp_path):
    torch = pytest.importorskip('torch')
    from torch.serialization import set_crc32_options
    set_crc32_options(False)
    try:
        torch.save({'a': torch.arange(6.)}, tmp_path / 'weights.pth')
    finally:
        set_crc32_options(True)
    assert same(arrays_of(tmp_path / 'weights.pth'), ONE)


def test_what_torch_itself_refuses_to_load_safely_is_refused(tmp_path):
    torch = pytest.importorskip('torch')
    path = tmp_path / 'weights.pth'
    torch.save(torch.nn.Linear(2, 2), path)  # a whole module
    with pytest.raises(NotWeightsError, match='Linear'):
        open_torch(path)
