"""Measures of one picture without a model; measures.py describes them."""

import dataclasses
import hashlib

import cv2
import numpy as np

from input_pipeline.curation.hashes import POSITIONS, dct_hashes
from input_pipeline.curation.variants import SIDE, tint_of

NUMBERS = ('width', 'height', 'aspect', 'bytes', 'brightness', 'contrast', 'darkest', 'brightest',
           'sharpness', 'colourfulness', 'chroma', 'edges', 'flat', 'entropy', 'white')
WORDS = ('problem', 'mode', 'file_type', 'sha256', 'pixels')
THUMB = 64  # px
_SIDE = 256


@dataclasses.dataclass(frozen=True)
class Row:
    """The measures of one picture.

    Attributes:
        numbers: float64 [15], in the order of NUMBERS.
        words: in the order of WORDS.
        hashes: uint64 [8], see `hashes.dct_hashes`.
        thumb: uint8 [64, 64], grey.
        tint: uint8 [16, 16, 3], RGB.
    """

    numbers: np.ndarray
    words: tuple[str, ...]
    hashes: np.ndarray
    thumb: np.ndarray
    tint: np.ndarray


def measure_picture(picture: np.ndarray, *, mode: str = 'RGB', file_type: str = 'drawn',
                    data: bytes = b'') -> Row:
    """Measures a picture.

    Args:
        picture: RGB uint8 [H, W, 3].
        mode, file_type: as in measures.py.
        data: the file from which it was decoded, b'' if there is none.
    """
    height, width = picture.shape[:2]
    small = _shrunk(picture, _SIDE)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    counts = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel()
    shares = counts / grey.size
    below = np.cumsum(shares)
    levels = np.arange(256) / 255
    mean = float(shares @ levels)
    deviation = float(np.sqrt(max(shares @ (levels - mean) ** 2, 0)))
    darkest, brightest = np.searchsorted(below, (0.01, 0.99))
    occurring = shares[shares > 0]
    spans = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    numbers = np.array([
        width, height, width / height, len(data), mean, deviation, darkest / 255,
        min(brightest, 255) / 255, cv2.Laplacian(grey, cv2.CV_32F).var(), _colourfulness(small),
        _chroma(small), np.count_nonzero(cv2.Canny(grey, 100, 200)) / grey.size,
        np.count_nonzero(spans <= 4) / grey.size, -(occurring @ np.log2(occurring)) + 0.0,
        np.count_nonzero(cv2.inRange(small, (240,) * 3, (255,) * 3)) / grey.size])
    whole = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    hasher = hashlib.sha256(f'{height} {width} '.encode())
    hasher.update(np.ascontiguousarray(picture))
    words = ('', mode, file_type, hashlib.sha256(data).hexdigest() if data else '',
             hasher.hexdigest())
    return Row(numbers, words, dct_hashes(whole), thumb_of(whole), tint_of(picture))


def thumb_of(grey: np.ndarray) -> np.ndarray:
    """The small picture of a picture in grey: uint8 [H, W] -> uint8 [64, 64], squashed."""
    shrinks = min(grey.shape) >= THUMB
    return cv2.resize(grey, (THUMB, THUMB),
                      interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def unmeasured(reason: str) -> Row:
    """The row of a picture that cannot be read."""
    return Row(np.full(len(NUMBERS), np.nan), (reason, '', '', '', ''),
               np.zeros(len(POSITIONS), np.uint64), np.zeros((THUMB, THUMB), np.uint8),
               np.zeros((SIDE, SIDE, 3), np.uint8))


def _shrunk(picture: np.ndarray, side: int) -> np.ndarray:
    ratio = side / max(picture.shape[:2])
    if ratio >= 1:
        return picture
    size = [max(1, round(length * ratio)) for length in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _colourfulness(picture: np.ndarray) -> float:
    red, green, blue = (picture[..., channel].astype(np.float32) for channel in range(3))
    one, other = red - green, (red + green) / 2 - blue
    return float(np.hypot(one.std(), other.std()) + 0.3 * np.hypot(one.mean(), other.mean()))


def _chroma(picture: np.ndarray) -> float:
    lab = cv2.cvtColor(_shrunk(picture, 64).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return float(np.percentile(np.hypot(lab[..., 1], lab[..., 2]), 99))
