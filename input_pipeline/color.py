"""Colour as one table: neighbouring tone curves compose into 256 entries per channel.

A tone curve is a table, or a function from the picture's current histogram to a table. The
histogram after a table follows from the histogram before it, so even contrast, autocontrast and
equalize need not look at the pixels in between. Steps that mix channels or neighbouring pixels
(saturation, hue, CLAHE, ...) run on their own between two tables.

Pictures are RGB uint8 [H, W, 3]; a table is uint8 [3, 256], a histogram int64 [3, 256]. Grey
pictures are uint8 [H, W]: three equal channels, of which one is kept. On them `saturation` changes
nothing, and hue and sepia have no meaning (see `IN_COLOR`).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np

_LEVELS = np.arange(256, dtype=np.float64)
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue, ITU-R BT.601
_SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])


class Adaptive:
    """A tone curve that depends on the picture: histogram -> table."""

    def __init__(self, curve: Callable[[np.ndarray], np.ndarray]):
        self.curve = curve


def _table(values: np.ndarray) -> np.ndarray:
    """A table from levels of any shape that broadcasts to [3, 256], rounded and clipped."""
    return np.broadcast_to(np.clip(np.rint(values), 0, 255).astype(np.uint8), (3, 256))


def brightness(factor: float) -> np.ndarray:
    """Multiplies every level by `factor`."""
    return _table(_LEVELS * factor)


def contrast(factor: float) -> Adaptive:
    """Multiplies the difference from the picture's mean grey by `factor`."""
    def curve(histogram):
        mean = LUMA @ (histogram @ _LEVELS) / histogram[0].sum()
        return _table(mean + (_LEVELS - mean) * factor)
    return Adaptive(curve)


def gamma_correction(exponent: float) -> np.ndarray:
    """255 * (level / 255) ** exponent; exponents above 1 darken."""
    return _table(255 * (_LEVELS / 255) ** exponent)


def posterize(bits: int) -> np.ndarray:
    """Keeps the upper `bits` (0 to 8) of each level."""
    return _table(np.arange(256) & (256 - (1 << (8 - bits))))


def solarize(threshold: float) -> np.ndarray:
    """Inverts the levels that are `threshold` or more."""
    return _table(np.where(threshold <= _LEVELS, 255 - _LEVELS, _LEVELS))


def autocontrast() -> Adaptive:
    """Stretches each channel to 0 to 255."""
    def curve(histogram):
        low = (histogram > 0).argmax(1)[:, None]
        high = 255 - (histogram[:, ::-1] > 0).argmax(1)[:, None]
        stretched = (_LEVELS - low) * (255 / np.maximum(high - low, 1))
        return _table(np.where(high > low, stretched, _LEVELS))
    return Adaptive(curve)


def equalize() -> Adaptive:
    """Flattens the histogram of each channel, as Pillow does."""
    def curve(histogram):
        rows = []
        for counts in histogram:
            used = counts[counts > 0]
            step = int(counts.sum() - used[-1]) // 255
            below = np.concatenate([[0], np.cumsum(counts)[:-1]])
            rows.append(np.minimum((step // 2 + below) // step, 255) if step else _LEVELS)
        return _table(np.stack(rows))
    return Adaptive(curve)


def _saturated(image: np.ndarray, factor: float) -> np.ndarray:
    if image.ndim == 2:
        return image
    return _mixed(image, np.eye(3) * factor + (1 - factor) * LUMA)


def _mixed(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return cv2.transform(image, matrix)


def _hue_turned(image: np.ndarray, turn: float) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(turn * 256) % 256)  # 256 levels are the circle
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _clahe(image: np.ndarray, clip_limit: float, tiles: int) -> np.ndarray:
    equalizer = cv2.createCLAHE(clip_limit, (tiles, tiles))
    if image.ndim == 2:
        return equalizer.apply(image)
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lab[..., 0] = equalizer.apply(np.ascontiguousarray(lab[..., 0]))
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


def saturation(factor: float) -> partial:
    """Multiplies the difference from grey by `factor`: 0 gives grey, 1 changes nothing."""
    return partial(_saturated, factor=factor)


def apply(image: np.ndarray, steps: Sequence) -> np.ndarray:
    """Applies tone curves and other steps in order, neighbouring curves in one look-up.

    Args:
        image: uint8 [H, W, 3] or [H, W]; it is not written to.
        steps: tables, `Adaptive` curves, and functions from picture to picture.

    Returns:
        uint8 of the same shape; the picture itself if there are no steps.
    """
    table = histogram = None
    for step in steps:
        if isinstance(step, Adaptive):
            if histogram is None:
                histogram = _histogram(image)
            step = step.curve(histogram if table is None else _behind(histogram, table))
        if isinstance(step, np.ndarray):
            table = step if table is None else np.take_along_axis(step, table.astype(int), 1)
            continue
        if table is not None:
            image = _look_up(image, table)
        image, table, histogram = step(image), None, None
    return image if table is None else _look_up(image, table)


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    if image.ndim == 2:
        return cv2.LUT(image, np.ascontiguousarray(table[0]))
    return cv2.LUT(image, np.ascontiguousarray(table.T)[None])


def _histogram(image: np.ndarray) -> np.ndarray:
    channels = (0, 1, 2) if image.ndim == 3 else (0, 0, 0)
    return np.stack([cv2.calcHist([image], [channel], None, [256], [0, 256])[:, 0]
                     for channel in channels]).astype(np.int64)


def _behind(histogram: np.ndarray, table: np.ndarray) -> np.ndarray:
    moved = np.zeros_like(histogram)
    np.add.at(moved, (np.arange(3)[:, None], table), histogram)
    return moved


def _around_one(rng, limit):
    return max(0.0, rng.uniform(1 - limit, 1 + limit))


def _draw_gamma(rng, size, gamma):
    return gamma_correction(math.exp(rng.uniform(*np.log(gamma))))


# These mix or turn the three colours; grey pictures have none.
IN_COLOR = ('saturation', 'hue', 'grayscale', 'sepia')

# kind: (draw, defaults, allowed range of each parameter)
KINDS = {
    'brightness': (lambda rng, size, limit: brightness(_around_one(rng, limit)),
                   dict(p=1.0, limit=0.2), dict(limit=(0, 10))),
    'contrast': (lambda rng, size, limit: contrast(_around_one(rng, limit)),
                 dict(p=1.0, limit=0.2), dict(limit=(0, 10))),
    'gamma': (_draw_gamma, dict(p=1.0, gamma=(0.8, 1.25)), dict(gamma=(0.05, 20))),
    'posterize': (lambda rng, size, bits: posterize(rng.integers(bits[0], bits[1] + 1)),
                  dict(p=0.5, bits=(4, 4)), dict(bits=(1, 8))),
    'solarize': (lambda rng, size, threshold: solarize(rng.uniform(*threshold)),
                 dict(p=0.5, threshold=(128, 128)), dict(threshold=(0, 256))),
    'invert': (lambda rng, size: solarize(0), dict(p=0.5), {}),
    'autocontrast': (lambda rng, size: autocontrast(), dict(p=0.5), {}),
    'equalize': (lambda rng, size: equalize(), dict(p=0.5), {}),
    'saturation': (lambda rng, size, limit: saturation(_around_one(rng, limit)),
                   dict(p=1.0, limit=0.2), dict(limit=(0, 10))),
    'hue': (lambda rng, size, shift: partial(_hue_turned, turn=rng.uniform(-shift, shift)),
            dict(p=1.0, shift=0.1), dict(shift=(0, 0.5))),
    'grayscale': (lambda rng, size: saturation(0), dict(p=0.1), {}),
    'sepia': (lambda rng, size: partial(_mixed, matrix=_SEPIA), dict(p=0.1), {}),
    'clahe': (lambda rng, size, clip_limit, tiles: partial(
        _clahe, clip_limit=rng.uniform(*clip_limit), tiles=tiles),
        dict(p=0.5, clip_limit=(1.0, 4.0), tiles=8),
        dict(clip_limit=(0.1, 100), tiles=(1, 64))),
}
