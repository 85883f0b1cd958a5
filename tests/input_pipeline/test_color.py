"""Colour against Pillow and plain numpy, and the one table against its parts."""

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from input_pipeline import color

PHOTO = load_sample_image('flower.jpg')[::4, ::4]
PALE = PHOTO // 3 + np.uint8([60, 80, 100])
PAPER = np.where(PHOTO.max(-1, keepdims=True) > 90, PHOTO // 2, 250)  # mostly one level


def applied(*steps, image=PHOTO):
    return color.apply(image, steps)


def worst(ours, pillow):
    return np.abs(ours.astype(int) - np.asarray(pillow)).max()


@pytest.mark.parametrize('image', [PHOTO, PALE, PAPER], ids=['photo', 'pale', 'paper'])
def test_tone_curves_are_those_of_pillow(image):
    pillow = Image.fromarray(image)
    for bits in (1, 4, 7):
        assert worst(applied(color.posterize(bits), image=image),
                     ImageOps.posterize(pillow, bits)) == 0
    assert worst(applied(color.solarize(100), image=image), ImageOps.solarize(pillow, 100)) == 0
    assert worst(applied(color.solarize(0), image=image), ImageOps.invert(pillow)) == 0
    assert worst(applied(color.equalize(), image=image), ImageOps.equalize(pillow)) == 0
    assert worst(applied(color.autocontrast(), image=image), ImageOps.autocontrast(pillow)) <= 1
    for factor in (0.0, 0.4, 1.7):
        assert worst(applied(color.brightness(factor), image=image),
                     ImageEnhance.Brightness(pillow).enhance(factor)) <= 1
        assert worst(applied(color.contrast(factor), image=image),
                     ImageEnhance.Contrast(pillow).enhance(factor)) <= 1
        assert worst(applied(color.saturation(factor), image=image),
                     ImageEnhance.Color(pillow).enhance(factor)) <= 2


def test_gamma_is_a_power():
    expected = np.rint(255 * (PHOTO / 255) ** 1.4)
    np.testing.assert_array_equal(applied(color.gamma_correction(1.4)), expected)


@pytest.mark.parametrize('seed', range(8))
def test_one_table_is_bit_for_bit_its_parts(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    steps = [color.brightness(0.8), color.contrast(1.5), color.gamma_correction(0.7),
             color.posterize(5), color.solarize(140), color.autocontrast(), color.equalize(),
             color.contrast(0.6)]
    rng.shuffle(steps)
    parts = PALE
    for step in steps:
        parts = color.apply(parts, [step])
    looks, look_up = [], color._look_up
    monkeypatch.setattr(color, '_look_up', lambda *args: looks.append(1) or look_up(*args))
    np.testing.assert_array_equal(color.apply(PALE, steps), parts)
    assert len(looks) == 1


def test_order_matters_around_a_step_that_is_not_a_table():
    dark, grey = color.brightness(0.5), color.saturation(0)
    np.testing.assert_array_equal(applied(dark, grey, color.equalize()),
                                  applied(color.equalize(), image=applied(grey, image=applied(
                                      dark))))


@pytest.mark.parametrize('turn', [0.1, -0.3, 0.5])
def test_hue_turns_the_colour_circle(turn):
    step = color.KINDS['hue'][0](FixedRng(turn), PHOTO.shape[:2], shift=0.5)
    flat = PHOTO[::7, ::7].reshape(-1, 3) / 255
    expected = np.array([colorsys.hsv_to_rgb((h + turn) % 1, s, v) for h, s, v in
                         (colorsys.rgb_to_hsv(*pixel) for pixel in flat)]) * 255
    difference = np.abs(step(PHOTO)[::7, ::7].reshape(-1, 3) - expected)
    assert difference.mean() < 1.5 and difference.max() < 12  # hue in 256 levels


class FixedRng:
    def __init__(self, value):
        self.value = value

    def uniform(self, low, high):
        return self.value


def test_clahe_raises_local_contrast_and_keeps_the_colours():
    step = color.KINDS['clahe'][0](FixedRng(3.0), (), clip_limit=(3.0, 3.0), tiles=8)
    after = step(PALE)
    assert after.std() > 1.3 * PALE.std()
    assert np.abs((after.mean((0, 1)) - after.mean()) - (PALE.mean((0, 1)) - PALE.mean())).max() < 8


def test_the_picture_is_not_written_to():
    before = PHOTO.copy()
    for kind, (draw, defaults, _) in color.KINDS.items():
        params = {key: value for key, value in defaults.items() if key != 'p'}
        step = draw(np.random.default_rng(0), PHOTO.shape[:2], **params)
        after = applied(step)
        assert after.shape == PHOTO.shape and after.dtype == np.uint8, kind
    np.testing.assert_array_equal(PHOTO, before)
