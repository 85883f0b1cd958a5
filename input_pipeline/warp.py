"""Applies a chain of pull maps to a picture with one interpolation.

If the chain composes to one matrix, `cv2.warpAffine` or `cv2.warpPerspective` applies it; flips and
crops at whole pixels are cut out and resized. Otherwise the composed map of every pixel goes into
one `cv2.remap`.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from input_pipeline.pull_maps import (
    BORDERS,
    Part,
    Projective,
    Size,
    box,
    compose,
    dense_map,
    detail,
)


def warp(image: np.ndarray, maps: list, border: str = 'edge', size: Size | None = None,
         part: Part = (1, 1), out: np.ndarray | None = None) -> np.ndarray:
    """Applies a chain of maps to a picture with one interpolation.

    A picture that would shrink by 2 or more along an axis is first halved along it, as often as
    necessary, because a bilinear look-up sees only two pixels.

    Args:
        image: uint8 [h, w, C] or [h, w], of any size; all of it is laid over the frame.
        maps: pull maps in the order of application; without maps the picture stays as it is.
        border: what lies outside the picture, a key of `pull_maps.BORDERS`.
        size: (H, W) of the output and of the frame of the maps; None for the picture's own.
        part: the shares of the picture's sides, from the upper left corner, that lie over the
            frame; the rest is padding.
        out: contiguous uint8 [H, W, C] or [H, W] that may take the result, which saves a copy.

    Returns:
        uint8 [H, W, C] or [H, W], interpolated bilinearly: `out`, a new array, or the picture
        itself if there is nothing to do.
    """
    height, width = size = size or image.shape[:2]
    whole = size == image.shape[:2] and part == (1, 1)
    if not maps and whole:
        return image
    maps = compose(maps)
    rows, columns = image.shape[:2]
    spans = detail(maps, size)
    if not whole:
        down, right = part[0] * rows / height, part[1] * columns / width
        maps = compose([box(0, 0, right, down, size), *maps])
    shrinks = spans[0] * rows / height + 1e-6, spans[1] * columns / width + 1e-6
    if max(shrinks) >= 2:
        times = [2 ** int(math.log2(min(max(shrink, 1), side)))
                 for shrink, side in zip(shrinks, image.shape)]
        image, to_means = _means(image, times, maps, size)
        maps = compose([to_means, *maps])
    mode, value = BORDERS[border]
    options = dict(borderMode=mode, borderValue=(value, value, value, 255), dst=out)  # opaque
    if len(maps) == 1 and isinstance(maps[0], Projective):
        matrix = maps[0].matrix
        cut = _cut(image, matrix, size, out)
        if cut is not None:
            return cut
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        if maps[0].affine:
            return cv2.warpAffine(image, matrix[:2], (width, height), flags=flags, **options)
        return cv2.warpPerspective(image, matrix, (width, height), flags=flags, **options)
    x, y = dense_map(maps, size)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, **options)


def halved(image: np.ndarray, size: Size) -> tuple[np.ndarray, Part]:
    """Halves each axis of a picture, uint8 [h, w, C] or [h, w], while it is at least twice that of
    `size`.

    Returns:
        The smaller picture, and the part of it that is not padding.
    """
    halvings = [max(int(math.log2(side / least)), 0) for side, least in zip(image.shape, size)]
    means = _halved(image, halvings)
    height, width = (side / (out << count) for side, out, count in zip(
        image.shape, means.shape, halvings))
    return means, (height, width)


def _halved(image: np.ndarray, halvings: Sequence[int]) -> np.ndarray:
    more = [-side % (1 << count) for side, count in zip(image.shape, halvings)]
    if any(more):
        image = cv2.copyMakeBorder(image, 0, more[0], 0, more[1], cv2.BORDER_REPLICATE)
    for step in range(max(halvings)):
        # Linear interpolation midway between two pixels is their mean.
        sides = [side >> (step < count) for side, count in zip(image.shape, halvings)]
        image = cv2.resize(image, sides[::-1], interpolation=cv2.INTER_LINEAR)
    return image


def _means(image: np.ndarray, times: list[int], maps: list, size: Size
           ) -> tuple[np.ndarray, Projective]:
    """The part of the picture that the chain sees, in means of times[0] x times[1] pixels, and the
    map from these means to the picture."""
    top, left, bottom, right = 0, 0, *image.shape[:2]
    if len(maps) == 1 and isinstance(maps[0], Projective):
        x, y = maps[0].pull(np.array([0, 0, size[1], size[1]]) - 0.5,
                            np.array([0, size[0], 0, size[0]]) - 0.5)
        top, bottom = _range(y, times[0], bottom)
        left, right = _range(x, times[1], right)
    part = _halved(image[top:bottom, left:right], [int(math.log2(count)) for count in times])
    matrix = np.diag([1 / times[1], 1 / times[0], 1.0])
    matrix[0, 2] = (0.5 - left) / times[1] - 0.5
    matrix[1, 2] = (0.5 - top) / times[0] - 0.5
    return part, Projective(matrix)


def _range(at: np.ndarray, times: int, side: int) -> tuple[int, int]:
    low = min(max(int(at.min()) // times * times - 2 * times, 0), side - 1)
    return low, max(min(int(at.max()) + 3 * times, side), low + 1)


def _cut(image: np.ndarray, matrix: np.ndarray, size: Size, out: np.ndarray | None
         ) -> np.ndarray | None:
    """Flips and crops at whole pixels with `cv2.resize`, which is faster; None for other maps."""
    (step_x, turn_x, first_x), (turn_y, step_y, first_y), (tilt_x, tilt_y, _) = matrix.tolist()
    if turn_x or turn_y or tilt_x or tilt_y:
        return None
    slices, flips = [], []
    for axis, step, first in ((0, step_y, first_y), (1, step_x, first_x)):
        ends = first - step / 2 + 0.5, first + (size[axis] - 0.5) * step + 0.5
        low, high = round(min(ends)), round(max(ends))
        if abs(low - min(ends)) + abs(high - max(ends)) > 1e-3 or not (
                0 <= low < high <= image.shape[axis]):
            return None
        slices.append(slice(low, high))
        flips.append(step < 0)
    part = image[slices[0], slices[1]]
    flipped = any(flips)
    if part.shape[:2] != size:
        part = cv2.resize(part, size[::-1], None if flipped else out,
                          interpolation=cv2.INTER_LINEAR)
    if flipped:
        part = cv2.flip(part, -1 if all(flips) else int(flips[1]), out)
    return np.ascontiguousarray(part)
