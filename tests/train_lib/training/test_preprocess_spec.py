"""How pictures are prepared and loaded: the config reaches the input pipeline."""

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from configs.common import get_config
from input_pipeline import loader
from input_pipeline.decode import decode
from input_pipeline.resize import resize
from input_pipeline.sources import folder
from train_lib.training.preprocess_spec import input_record, loader_spec, preprocess_spec


@pytest.mark.parametrize('reduced', [True, False])
def test_reduced_decode_reaches_the_pictures(tmp_path, reduced):
    """A JPEG is decoded in full if the config says so, at a half of its size otherwise."""
    photo = load_sample_image('china.jpg')[:400, :400]
    cv2.imwrite(str(tmp_path / 'photo.jpg'), photo[..., ::-1])
    data = (tmp_path / 'photo.jpg').read_bytes()
    config = get_config()
    config.image.size = 96
    config.image.reduced_decode = reduced
    batch, = loader.eval_dataset(folder.load(str(tmp_path), labelled=False),
                                 preprocess_spec(config), batch_size=1,
                                 loading=loader_spec(config))()
    whole, half = (resize(decode(data, name='', min_size=size), (96, 96))
                   for size in (None, (96, 96)))
    assert (whole != half).any()
    np.testing.assert_array_equal(batch['image'][0], half if reduced else whole)


def test_every_key_of_the_config_reaches_its_spec():
    config = get_config()
    with config.ignore_type():
        config.image.update(dict(size=48, border='white', resize='pad', interpolation='bicubic',
                                 crop_pct=0.9, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6),
                                 reduced_decode=False, cache_mb=7))
    config.loader.update(dict(threads=3, workers=1, prefetch=5))
    config.data.unreadable = 'drop'
    spec = preprocess_spec(config)
    for key in ('size', 'border', 'resize', 'interpolation', 'crop_pct', 'mean', 'std',
                'reduced_decode'):
        assert getattr(spec, key) == config.image[key]
    assert loader_spec(config) == loader.LoaderSpec(
        threads=3, workers=1, prefetch=5, cache_mb=7, unreadable='drop')


def test_result_json_records_the_same_keys_in_the_same_order():
    assert list(input_record(preprocess_spec(get_config())).items()) == [
        ('mean', (0.5, 0.5, 0.5)), ('std', (0.5, 0.5, 0.5)), ('resize', 'squash'),
        ('interpolation', 'area'), ('crop_pct', 1.0)]
