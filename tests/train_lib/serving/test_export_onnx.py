"""An ONNX file gives the model's logits in ONNX Runtime at any batch size, and needs nothing else.

The tests that write one need torch, timm, onnxscript and onnxruntime (requirements-onnx.txt).
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from test_export_timm import LARGE, SMALL
from trained_by_recipe import CLASSES, by_recipe, pictures

from models.errors import ModelError
from train_lib.runtime.errors import ConfigError
from train_lib.serving import export_onnx
from train_lib.training.step import make_normalise

FAST = SMALL[:1] + SMALL[5:7]  # the others take torch, XLA and two cores minutes


@pytest.fixture
def needs_torch():
    for name in export_onnx.NEEDED:
        pytest.importorskip(name, reason='needs what requirements-onnx.txt lists')


def logits_in_runtime(path, images):
    """In a process that can import neither torch nor JAX nor this project."""
    np.save(path / 'images.npy', images)
    subprocess.run([sys.executable, '-c', f'''
import sys
for name in ('torch', 'jax', 'flax', 'timm', 'models', 'train_lib', 'input_pipeline'):
    sys.modules[name] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
images = numpy.load("images.npy")
assert session.get_inputs()[0].shape[1:] == {list(images.shape[1:])}
numpy.save("logits.npy", numpy.concatenate([
    session.run(None, {{"images": part}})[0] for part in (images[:1], images[1:])]))
'''], cwd=path, check=True)
    return np.load(path / 'logits.npy')


@pytest.mark.parametrize(('name', 'settings'), [
    case if case in FAST else pytest.param(*case, marks=pytest.mark.slow)
    for case in SMALL + LARGE])
def test_logits_in_onnx_runtime_are_those_of_the_model(name, settings, needs_torch, tmp_path):
    offsets = np.float32([.1, 0, -.2, .3, 1])
    trained = by_recipe(name, **settings, offsets={'class': offsets})
    files = export_onnx.write(trained, tmp_path)
    assert {path.name + '/' * path.is_dir() for path in tmp_path.iterdir()} == set(files)
    images = pictures(trained, 8)  # batches of 1 and 7
    spec = trained.preprocess
    ours = np.asarray(trained.model(make_normalise(spec.mean, spec.std, np.float32)(images)))
    found = logits_in_runtime(tmp_path, images)
    assert np.abs(found - ours - offsets).max() / ours.std() <= 1e-4


def test_the_script_beside_it_reads_pictures_without_this_project(needs_torch, tmp_path):
    trained = by_recipe('resnet18', layers=(1, 1, 1, 1), size=(32, 48),
                        prepare=dict(resize='crop', interpolation='bicubic', crop_pct=0.9))
    export_onnx.write(trained, tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (80, 90, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / 'a.png')
    said = subprocess.run([sys.executable, 'load.py', 'a.png'], cwd=tmp_path, check=True,
                          capture_output=True, text=True).stdout
    from input_pipeline.resize import resize
    spec = trained.preprocess
    ready = resize(picture, spec.frame, 'crop', interpolation='bicubic', crop_pct=0.9)[None]
    logits = np.asarray(trained.model(make_normalise(spec.mean, spec.std, np.float32)(ready)))[0]
    odds = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    first, second = np.argsort(-odds)[:2]
    assert said.startswith(f'a.png: {CLASSES[first]} {odds[first]:.3f}, {CLASSES[second]} ')
    assert json.loads((tmp_path / 'preparation.json').read_text())['resize'] == 'crop'
    bare = subprocess.run([sys.executable, 'load.py'], cwd=tmp_path, capture_output=True, text=True)
    assert bare.returncode == 1 and bare.stderr.startswith('python load.py PICTURE')


def test_weights_of_large_models_are_in_a_file_of_their_own(needs_torch, tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, '_MOST_BYTES', 1000)
    trained = by_recipe('vit_tiny_patch16_224', depth=1, embed_dim=48, size=32)
    files = export_onnx.write(trained, tmp_path)
    assert 'model.onnx.data' in files
    assert (tmp_path / 'model.onnx').stat().st_size < (tmp_path / 'model.onnx.data').stat().st_size
    assert export_onnx.compare(trained, tmp_path / 'model.onnx') <= export_onnx.BOUND


def test_a_run_in_bfloat16_is_compared_in_float32(needs_torch, tmp_path):
    trained = by_recipe('vit_tiny_patch16_224', depth=1, embed_dim=48, size=(32, 64),
                        precision='bfloat16', offsets={'class': np.float32([.1, 0, -.2, .3, 1])})
    export_onnx.write(trained, tmp_path)
    assert export_onnx.compare(trained, tmp_path / 'model.onnx') <= 2e-5


def test_a_file_with_other_logits_is_refused(needs_torch, tmp_path, monkeypatch):
    right = export_onnx.timm_weights
    def wrong(trained):
        weights = right(trained)
        return weights | {'head.bias': weights['head.bias'] + np.float32([0, 0, 0.01, 0, 0])}
    monkeypatch.setattr(export_onnx, 'timm_weights', wrong)
    with pytest.raises(ModelError, match=r'differ by .* of their deviation'):
        export_onnx.write(by_recipe('vit_tiny_patch16_224', depth=1, embed_dim=48, size=32),
                          tmp_path)


def test_models_that_timm_lacks_and_missing_packages_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="timm has no model 'small_cnn'"):
        export_onnx.write(by_recipe('small_cnn'), tmp_path)
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    for name in ('torch', 'timm', 'onnxruntime'):
        monkeypatch.setitem(sys.modules, name, json)  # there, as far as this looks
    with pytest.raises(ConfigError, match=r'onnxscript: pip install -r requirements-onnx\.txt'):
        export_onnx.write(by_recipe('vit_tiny_patch16_224', depth=1, size=32), tmp_path)
    assert not list(tmp_path.iterdir())
