"""Weight files and repositories: what can be read, and the error for what cannot."""

import hashlib
import pickle
import socket
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from models import ModelError, create_model
from models import weight_files as files
from models.pretrained import load_timm, to_timm
from models.weight_files import open_weights

WEIGHTS = {'fc.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
           'fc.bias': np.array([0.5, -0.5], np.float32)}


def read_all(source):
    shapes, read, name = open_weights(source)
    weights = {key: read(key) for key in shapes}
    assert {key: value.shape for key, value in weights.items()} == shapes
    assert name == str(source)
    return weights


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def error_of(source):
    with pytest.raises(ModelError) as error:
        read_all(source)
    text = str(error.value)
    assert '\n' not in text
    return text


def stored(folder, name='weights.safetensors', weights=WEIGHTS):
    save_file(dict(weights), folder / name)
    return folder / name


def test_safetensors_are_read_key_by_key(tmp_path, monkeypatch):
    assert same(read_all(stored(tmp_path)), WEIGHTS)
    assert same(read_all(str(stored(tmp_path))), WEIGHTS)
    monkeypatch.setattr(files, '_MAPPED_BYTES', 8)  # opened anew for every array
    assert same(read_all(stored(tmp_path)), WEIGHTS)


def test_bfloat16_weights_are_read(tmp_path):
    half = {key: value.astype(ml_dtypes.bfloat16) for key, value in WEIGHTS.items()}
    read = read_all(stored(tmp_path, weights=half))
    assert all(np.array_equal(read[key].astype(np.float32), WEIGHTS[key]) for key in WEIGHTS)


def test_a_model_is_filled_from_a_file(tmp_path):
    model = nnx.eval_shape(lambda: create_model(
        'small_cnn', 3, rngs=nnx.Rngs(0), width=4, stages=1))
    draw = np.random.default_rng(0)
    full = create_model('small_cnn', 3, rngs=nnx.Rngs(0), width=4, stages=1)
    weights = {key: draw.standard_normal(value.shape).astype(np.float32)
               for key, value in to_timm(full).items()}
    path = stored(tmp_path, weights=weights)
    load_timm(model, path)
    assert same(to_timm(model), weights)
    del weights['conv1.weight']
    with pytest.raises(ModelError, match=r'of .*short\.safetensors.* conv1\.weight is missing'):
        load_timm(model, stored(tmp_path, 'short.safetensors', weights))


@pytest.mark.parametrize('damage', [
    lambda data: data[:-5],  # cut short
    lambda data: data[:6],
    lambda data: b'',
    lambda data: data[:8] + b'\xff' * 20 + data[28:],  # the header is not JSON
    lambda data: b'\xff' * 8 + data[8:],  # the header is longer than the file
    lambda data: b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n',
])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = stored(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    text = error_of(path)
    assert str(path) in text and 'not a readable safetensors file' in text


def test_a_file_that_breaks_while_it_is_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files, '_MAPPED_BYTES', 0)
    path = stored(tmp_path)
    _, read, _ = open_weights(path)
    assert np.array_equal(read('fc.bias'), WEIGHTS['fc.bias'])
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ModelError, match=r'weights\.safetensors'):
        read('fc.weight')
    path.unlink()
    with pytest.raises(ModelError, match=r'weights\.safetensors'):
        read('fc.weight')


@pytest.mark.parametrize('wrapper', [None, 'state_dict', 'model', 'model_ema'])
@pytest.mark.parametrize('zipped', [True, False])
def test_torch_files_are_read_even_those_from_before_its_zip_format(tmp_path, wrapper, zipped):
    torch = pytest.importorskip('torch')
    weights = {key: torch.tensor(value) for key, value in WEIGHTS.items()}
    weights['fc.bias'] = weights['fc.bias'].bfloat16()
    content = {wrapper: weights, 'epoch': 3} if wrapper else weights
    path = tmp_path / 'weights.pth'
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    read = read_all(path)
    assert same(read, WEIGHTS)
    assert all(value.dtype == np.float32 for value in read.values())


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize('saver', ['pickle', 'torch'])
def test_a_pickle_with_more_than_weights_is_refused_and_not_executed(tmp_path, saver):
    torch = pytest.importorskip('torch')
    path, trace = tmp_path / 'weights.pth', tmp_path / 'executed'
    if saver == 'pickle':
        path.write_bytes(pickle.dumps({'fc.weight': Bomb(trace)}, protocol=2))
    else:
        torch.save({'fc.weight': torch.zeros(2), 'optimizer': Bomb(trace)}, path)
    text = error_of(path)
    assert str(path) in text and '.safetensors' in text
    assert not trace.exists()


def test_torch_files_without_weights_are_refused(tmp_path):
    torch = pytest.importorskip('torch')
    path = tmp_path / 'weights.pth'
    for content in ([1, 2], {'epoch': 3}, torch.zeros(3)):
        torch.save(content, path)
        assert 'holds no state_dict' in error_of(path)
    path.write_bytes(b'<html>404</html>')
    assert str(path) in error_of(path)


@pytest.mark.parametrize('source, words', [
    ('nowhere/weights.safetensors', "'nowhere/weights.safetensors' is neither"),
    ('./nowhere', "'./nowhere' is neither"),
    ('resnet18', "'resnet18' is neither"),
    ('a/b/c', "'a/b/c' is neither"),
])
def test_neither_a_file_nor_a_repository_is_an_error_without_asking_the_network(
        source, words, monkeypatch):
    monkeypatch.setattr(files, 'download', lambda name: pytest.fail('asked the network'))
    assert words in error_of(source)


def test_folders_and_other_files_are_refused(tmp_path):
    assert 'is neither a file' in error_of(tmp_path)
    path = tmp_path / 'weights.npz'
    path.write_bytes(b'x')
    assert 'weights.npz' in error_of(path)


def hub(monkeypatch, fetch):
    """Replaces Hugging Face by `fetch(repository, file, local_files_only=False)`."""
    monkeypatch.setattr('huggingface_hub.hf_hub_download', fetch)
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_: [])


def test_a_cached_repository_is_read_without_the_network(tmp_path, monkeypatch):
    asked = []

    def fetch(repository, file, local_files_only=False):
        asked.append((repository, file, local_files_only))
        return str(stored(tmp_path))

    hub(monkeypatch, fetch)
    for source in ('timm/resnet18.a1_in1k', 'hf-hub:timm/resnet18.a1_in1k'):
        shapes, read, _ = open_weights(source)
        assert same({key: read(key) for key in shapes}, WEIGHTS)
    assert asked == [('timm/resnet18.a1_in1k', 'model.safetensors', True)] * 2


@pytest.mark.parametrize('cached', [True, False])
def test_a_file_is_checked_against_the_digest_that_the_hub_states(tmp_path, monkeypatch, cached):
    blob = tmp_path / hashlib.sha256(stored(tmp_path).read_bytes()).hexdigest()
    stored(tmp_path).rename(blob)
    pointer = tmp_path / 'model.safetensors'
    pointer.symlink_to(blob)

    def fetch(repository, file, local_files_only=False):
        if local_files_only and not cached:
            raise FileNotFoundError('not in the cache')
        return str(pointer)

    hub(monkeypatch, fetch)
    assert set(open_weights('timm/resnet18.a1_in1k')[0]) == set(WEIGHTS)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    text = error_of('timm/resnet18.a1_in1k')
    assert 'SHA-256' in text and str(blob) in text
    blob.rename(tmp_path / 'f00d')  # like a small file, which has the name of its Git hash
    pointer.unlink()
    pointer.symlink_to(tmp_path / 'f00d')
    assert set(open_weights('timm/resnet18.a1_in1k')[0]) == set(WEIGHTS)


def test_a_file_that_is_not_cached_is_fetched(tmp_path, monkeypatch):
    def fetch(repository, file, local_files_only=False):
        if local_files_only:
            raise FileNotFoundError('not in the cache')
        return str(stored(tmp_path))

    hub(monkeypatch, fetch)
    assert set(open_weights('timm/resnet18.a1_in1k')[0]) == set(WEIGHTS)


def test_without_a_network_the_error_says_what_to_do(monkeypatch):
    def fetch(repository, file, local_files_only=False):
        raise OSError('Network is unreachable\nMax retries exceeded ' + 'x' * 500)

    hub(monkeypatch, fetch)
    text = error_of('timm/resnet18.a1_in1k')
    for words in ("'timm/resnet18.a1_in1k'", 'not in the local cache', 'Network is unreachable',
                  'download model.safetensors'):
        assert words in text
    assert len(text) < 500


@pytest.mark.parametrize('proxies', [{}, {'https': 'http://proxy.example:3128'}])
def test_without_name_resolution_nothing_is_fetched_unless_there_is_a_proxy(monkeypatch, proxies):
    asked = []

    def fetch(repository, file, local_files_only=False):
        asked.append(local_files_only)
        raise OSError('no route')

    def resolve(*_):
        raise socket.gaierror('Name or service not known')

    hub(monkeypatch, fetch)
    monkeypatch.setattr(socket, 'getaddrinfo', resolve)
    monkeypatch.setattr(files, 'getproxies', lambda: proxies)
    assert ('no route' if proxies else 'not known') in error_of('timm/resnet18.a1_in1k')
    assert asked == [True, False][:1 + bool(proxies)]


def test_a_missing_huggingface_hub_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    assert 'pip install huggingface_hub' in error_of('timm/resnet18.a1_in1k')
