"""What an export says of the preparation is what evaluation does, pixel for pixel."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from input_pipeline.manifest import Manifest
from input_pipeline.pictures import Pictures, PreprocessSpec
from train_lib.serving.export_stablehlo import preparation
from train_lib.serving.preparing import prepare
from train_lib.serving.trained_models import TrainedModel


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)
    large = cv2.resize(coarse, (600, 480), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(large).save(folder / 'large.jpg', quality=90)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(large).save(folder / 'turned.jpg', exif=turned)
    Image.fromarray(large[:90, :70]).save(folder / 'small.png')
    Image.fromarray(np.dstack([large, large[..., 0]])[:99, :120]).save(folder / 'clear.png')
    cv2.imwrite(str(folder / 'deep.png'), rng.integers(0, 4096, (40, 50), dtype=np.uint16))
    return folder


@pytest.mark.parametrize('spec, range16', [
    (PreprocessSpec(size=32), (0, 65535)),
    (PreprocessSpec(size=(24, 40), resize='pad', reduced_decode=False), (0, 4095)),
    (PreprocessSpec(size=33, resize='crop', interpolation='bicubic', crop_pct=0.875), (0, 65535)),
    (PreprocessSpec(size=16, mean=(.5,), std=(.5,)), (0, 4095)),
    (PreprocessSpec(size=32, mean=(.5,) * 4, std=(.5,) * 4), (0, 65535)),
])
def test_a_picture_is_prepared_as_in_the_run(folder, spec, range16, monkeypatch):
    names = sorted(path.name for path in folder.iterdir())
    if spec.channels == 4:
        names = ['clear.png']
    table = pd.DataFrame({'id': names, 'location': names, 'label/class': np.int32(0)})
    rows = Pictures(Manifest(table, {'class': ('a',)}, str(folder), range16=range16), spec)
    trained = TrainedModel(folder, None, {}, spec, None, {}, 1, '')
    monkeypatch.setattr('train_lib.serving.export_stablehlo.range16_of', lambda run: range16)
    for row, name in enumerate(names):
        found = prepare((folder / name).read_bytes(), preparation(trained), name=name)
        assert found.dtype == np.uint8
        assert np.array_equal(found, rows[row]), name


def test_a_broken_picture_is_named():
    spec = PreprocessSpec(size=8)
    numbers = preparation(TrainedModel(Path('nowhere'), None, {}, spec, None, {}, 1, ''))
    with pytest.raises(ValueError, match=r'face\.png.*truncated'):
        prepare(b'\x89PNG\r\n\x1a\n', numbers, name='face.png')
