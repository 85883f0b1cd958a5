"""Filters and noise: they change each pixel by its neighbours or by random numbers.

Pictures are RGB uint8 [H, W, 3] or grey uint8 [H, W]; lengths are pixels of the model's input.
Morphology works on the brightness of each channel: `erode` thickens dark strokes on white paper,
`dilate` thins them, `open` closes gaps between dark strokes, and `close` removes dark specks.
"""

import math
from functools import lru_cache, partial

import cv2
import numpy as np

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
_MORPHOLOGY = {'erode': (cv2.erode,), 'dilate': (cv2.dilate,),
               'open': (cv2.erode, cv2.dilate), 'close': (cv2.dilate, cv2.erode)}


def _gaussian_blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma) if sigma > 0 else image


def _motion_blurred(image: np.ndarray, length: float, degrees: float) -> np.ndarray:
    """Each pixel becomes the mean along a segment of `length` px."""
    reach = math.ceil(length / 2)
    x, y = length / 2 * math.cos(math.radians(degrees)), length / 2 * math.sin(
        math.radians(degrees))
    kernel = np.zeros((2 * reach + 1,) * 2, np.float32)
    for t in np.linspace(-1, 1, 8 * reach + 1):  # a point's weight is shared by four neighbours
        column, row = math.floor(x * t), math.floor(y * t)
        across, down = x * t - column, y * t - row
        for i, weight_y in ((row, 1 - down), (row + 1, down)):
            for j, weight_x in ((column, 1 - across), (column + 1, across)):
                if weight_x * weight_y:
                    kernel[reach + i, reach + j] += weight_x * weight_y
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)


def _sharpened(image: np.ndarray, factor: float) -> np.ndarray:
    smooth = image.copy()
    if min(image.shape[:2]) > 2:
        smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, _SMOOTH)[1:-1, 1:-1]
    return cv2.addWeighted(image, factor, smooth, 1 - factor, 0)


def sharpness(factor: float) -> partial:
    """Scales the difference from a lightly smoothed picture: with `factor` 1 nothing changes."""
    return partial(_sharpened, factor=factor)


@lru_cache(maxsize=1)
def _normal_quantiles() -> np.ndarray:
    from scipy import special  # a fifth of a second, only where needed

    return special.ndtri((np.arange(2**16) + 0.5) / 2**16).astype(np.float32)


def _noisy(image: np.ndarray, std: float, seed: int) -> np.ndarray:
    # 16 random bits choose one of 65,536 quantiles: three times as fast as normal numbers.
    bits = np.random.Generator(np.random.PCG64(seed)).integers(0, 2**16, image.shape, np.uint16)
    noise = _normal_quantiles()[bits] * np.float32(std * 255)
    return cv2.add(image, noise, dtype=cv2.CV_8U)


def _compressed(image: np.ndarray, quality: int) -> np.ndarray:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    if image.ndim == 2:
        return cv2.imdecode(cv2.imencode('.jpg', image, options)[1], cv2.IMREAD_GRAYSCALE)
    _, data = cv2.imencode('.jpg', image[..., ::-1], options)
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def _morphed(image: np.ndarray, functions: tuple, side: int) -> np.ndarray:
    """Minima or maxima over squares of `side` px."""
    kernel, anchor = np.ones((side, side), np.uint8), side // 2
    for function in functions:
        image = function(image, kernel, anchor=(anchor, anchor))
        anchor = side - 1 - anchor  # the second square is mirrored, or even sides would shift
    return image


def _morphology(functions: tuple) -> tuple:
    def draw(rng, size, length):
        return partial(_morphed, functions=functions,
                       side=int(rng.integers(length[0], length[1] + 1)))
    return draw, dict(p=0.5, length=(2, 3)), dict(length=(1, 99))


def _draw_noise(rng, size, std):
    return partial(_noisy, std=rng.uniform(*std), seed=int(rng.integers(2**63)))


# kind: (draw, defaults, allowed range of each parameter)
KINDS = {
    'gaussian_blur': (lambda rng, size, sigma: partial(
        _gaussian_blurred, sigma=rng.uniform(*sigma)),
        dict(p=0.5, sigma=(0.1, 2.0)), dict(sigma=(0, 100))),
    'motion_blur': (lambda rng, size, length: partial(
        _motion_blurred, length=rng.uniform(*length), degrees=rng.uniform(0, 180)),
        dict(p=0.5, length=(3.0, 7.0)), dict(length=(1, 100))),
    'sharpness': (lambda rng, size, limit: sharpness(rng.uniform(1 - limit, 1 + limit)),
                  dict(p=0.5, limit=0.5), dict(limit=(0, 10))),
    'gaussian_noise': (_draw_noise, dict(p=0.5, std=(0.01, 0.05)), dict(std=(0, 1))),
    'jpeg': (lambda rng, size, quality: partial(
        _compressed, quality=int(rng.integers(quality[0], quality[1] + 1))),
        dict(p=0.5, quality=(50, 95)), dict(quality=(1, 100))),
    **{name: _morphology(functions) for name, functions in _MORPHOLOGY.items()},
}
