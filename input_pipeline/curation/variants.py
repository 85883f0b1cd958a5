"""Near copies that differ on purpose: another colour, or another detail in the same drawing.

Copies are encoded again, resized, brighter or cropped, which moves colours by a neighbouring part
of the picture at most. Two hearts of different colours, or two faces of which one smiles, coincide
in shape too, but are two pictures.
"""

import cv2
import numpy as np

from input_pipeline.curation.hashes import position

SIDE = 16  # cells of a side of the small coloured picture
WORDS = {'color': 'other colour', 'detail': 'other detail', 'little': 'nearly the same'}
_TINT = 15.0  # CIELAB, the difference in a and b, and in lightness, that makes another colour
_LIGHT = 25.0
_TINTED, _LIT = 4, 8  # so many cells of 256 must differ by that
_GAINS = (0.7, 1.45)  # a brightness within these factors makes no other picture
_DETAIL = 0.5  # residual of two pictures that lie upon each other without having been moved
_AT_REST = 0.02  # motion, see `registration.register`


def tint_of(picture: np.ndarray) -> np.ndarray:
    """The small coloured picture of RGB uint8 [H, W, 3]: uint8 [SIDE, SIDE, 3], squashed."""
    shrinks = min(picture.shape[:2]) >= SIDE
    return cv2.resize(picture, (SIDE, SIDE),
                      interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def differences(tints: np.ndarray, pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
                residual: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """How the pictures of near pairs differ: object [M], of the keys of WORDS, or '' for copies.

    Args:
        tints: uint8 [N, SIDE, SIDE, 3], from `tint_of`.
        pairs: (first, second, position of the second), int [M] each.
        residual, motion: float [M], from `register`.
    """
    found = np.full(len(residual), '', object)
    found[(residual > _DETAIL) & (motion <= _AT_REST)] = 'detail'
    for row, (first, second, turn) in enumerate(zip(*pairs)):
        if _recoloured(tints[first], position(tints[second], turn)):
            found[row] = 'color'
    return found


def _recoloured(first: np.ndarray, second: np.ndarray) -> bool:
    a, b = _as_bright(first, second)
    apart = np.maximum(_beyond(a, b), _beyond(b, a))
    tint, light = np.hypot(apart[..., 1], apart[..., 2]), apart[..., 0]
    return (np.partition(tint, -_TINTED, axis=None)[-_TINTED] > _TINT
            or np.partition(light, -_LIT, axis=None)[-_LIT] > _LIGHT)


def _as_bright(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in CIELAB, float32, after the darker one was brightened as a whole."""
    a, b = first.astype(np.float32), second.astype(np.float32)
    one, other = a.max(axis=2), b.max(axis=2)
    open_ = (np.minimum(one, other) > 16) & (np.maximum(one, other) < 250)
    gain = np.median(other[open_] / one[open_]) if open_.sum() >= _LIT else 1.0
    if _GAINS[0] < gain < _GAINS[1]:
        a, b = np.clip(a * max(gain, 1), 0, 255), np.clip(b / min(gain, 1), 0, 255)
    return tuple(cv2.cvtColor(one / np.float32(255), cv2.COLOR_RGB2LAB) for one in (a, b))


def _beyond(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far each cell of a lies outside the range of the cells around it in b, [SIDE, SIDE, 3]:
    a crop moves an edge by less than a cell and mixes the colours on its sides anew."""
    padded = np.pad(b, ((1, 1), (1, 1), (0, 0)), mode='edge')
    around = np.stack([padded[down:down + SIDE, right:right + SIDE]
                       for down in range(3) for right in range(3)])
    return np.maximum(np.maximum(around.min(0) - a, a - around.max(0)), 0)
