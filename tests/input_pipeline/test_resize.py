"""Resizing: its modes, its interpolations, and timm's evaluation transform."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.decode import decode
from input_pipeline.errors import DataError
from input_pipeline.resize import border_color, resize

PHOTOS = Path(__file__).parent / 'photos'


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40),
       st.sampled_from(['squash', 'pad', 'crop']))
def test_resize_keeps_a_flat_color(height, width, new_height, new_width, mode):
    image = np.full((height, width, 3), (10, 200, 77), np.uint8)
    resized = resize(image, (new_height, new_width), mode)
    assert resized.dtype == np.uint8 and resized.flags.c_contiguous
    np.testing.assert_array_equal(resized, np.broadcast_to(image[0, 0], resized.shape))


def test_resize_modes():
    image = np.full((40, 20, 3), 255, np.uint8)
    image[10:30, 4:16] = 0
    squashed, padded, cropped = (
        resize(image, (20, 20), mode) for mode in ('squash', 'pad', 'crop'))
    assert (squashed[:, :, 0] < 128).sum() == 10 * 12
    assert (padded[:, :, 0] < 128).sum() == 10 * 6 and (padded[:, :5] == 255).all()
    assert (cropped[:, :, 0] < 128).sum() == 20 * 12
    assert border_color(image).tolist() == [255, 255, 255]
    averaged = resize(np.tile(np.uint8([0, 255])[None, :, None], (64, 32, 3)), (8, 8))
    assert np.abs(averaged.astype(int) - 127).max() <= 1  # area: no aliasing
    with pytest.raises(DataError, match='squash, pad, crop'):
        resize(image, (8, 8), 'strech')


@pytest.mark.parametrize('case', json.loads((PHOTOS / 'eval_transform.json').read_text()),
                         ids=lambda case: case['key'])
def test_resize_is_timms_evaluation_transform(case):
    image = decode((PHOTOS / case['file']).read_bytes(), name=case['file'])
    resized = resize(image, (case['size'],) * 2, 'crop', interpolation=case['interpolation'],
                     crop_pct=case['crop_pct'])
    with np.load(PHOTOS / 'eval_transform.npz') as reference:
        assert np.abs(resized.astype(int) - reference[case['key']]).mean() < .02


def test_crop_pct():
    image = np.zeros((100, 100, 3), np.uint8)
    image[25:75, 25:75] = 255
    for mode in ('squash', 'pad', 'crop'):
        assert resize(image, (50, 50), mode, crop_pct=.5).min() == 255  # the inner half
    # timm's rounding: from 27 to 20 rows, the first row of the centre is round(3.5) = 4.
    rows = np.repeat(np.arange(27, dtype=np.uint8)[:, None, None], 20, 1).repeat(3, 2)
    assert resize(rows, (20, 20), 'crop')[0, 0, 0] == 4
    for wrong in ({'crop_pct': 0.}, {'crop_pct': 1.1}, {'interpolation': 'lanczos'}):
        with pytest.raises(DataError, match=next(iter(wrong))):
            resize(image, (8, 8), **wrong)


@pytest.mark.parametrize('interpolation', ['area', 'bicubic'])
def test_a_ribbon_and_a_dot(interpolation):
    ribbon = np.zeros((20, 20_000, 3), np.uint8)
    ribbon[:, 9_995:10_005] = 255
    cropped = resize(ribbon, (64, 64), 'crop', interpolation=interpolation)
    assert (cropped[:, 20:44] == 255).all() and (cropped[:, :10] == 0).all()
    assert resize(ribbon, (64, 64), 'pad', interpolation=interpolation).shape == (64, 64, 3)
    assert (resize(ribbon[:1, 10_000:10_001], (9, 9), 'crop') == 255).all()


@pytest.mark.parametrize('size', [(50, 60), (37, 91), (30, 30), (96, 96), (20, 100)])
def test_shrinking_is_the_mean_of_areas(size):
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(
        0, 256, (97, 113, 3), dtype=np.uint8), (0, 0), 1)

    def means(side, out):  # [out, side]: how much of an output pixel each input pixel covers
        edges = np.arange(out + 1)[:, None] * side / out - np.arange(side)
        return np.diff(edges.clip(0, 1), axis=0) * out / side

    want = np.einsum('ij,jkc,lk->ilc', means(97, size[0]), image, means(113, size[1]))
    difference = np.abs(resize(image, size) - want)
    assert difference.mean() < 2 and difference.max() < 16
