"""From a picture of any size to the size of the model's input."""

import math

import cv2
import numpy as np
from PIL import Image

from input_pipeline.errors import DataError

MODES = ('squash', 'pad', 'crop')
INTERPOLATIONS = ('area', 'bilinear', 'bicubic')

_PILLOW = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}


def resize(image: np.ndarray, size: tuple[int, int], mode: str = 'squash', *,
           interpolation: str = 'area', crop_pct: float = 1.0) -> np.ndarray:
    """Resizes a picture.

    With mode='crop', interpolation='bicubic' and the crop_pct of a timm model this is timm's
    evaluation transform, without normalisation.

    Args:
        image: uint8 [H, W, 3] or [H, W, 4], or [H, W] in grey.
        size: (h, w), pixels.
        mode: 'squash' changes the aspect ratio. 'pad' keeps it and fills the rest, evenly on
            both sides, with the median colour of the picture's border. 'crop' keeps it, covers
            `size` and cuts out the centre.
        interpolation: 'area' averages areas to shrink and is cubic to enlarge; 'bilinear' and
            'bicubic' are Pillow's, whose filters widen to shrink.
        crop_pct: above 0 to 1; the picture is resized to floor(size / crop_pct), and the centre
            is cut out.

    Returns:
        uint8 [h, w, 3], [h, w, 4] or [h, w].

    Raises:
        DataError: the mode or interpolation is unknown, or crop_pct is out of range.
    """
    if mode not in MODES:
        raise DataError(f'The resize mode {mode!r} is unknown: use one of {", ".join(MODES)}.')
    if interpolation not in INTERPOLATIONS:
        raise DataError(f'The interpolation {interpolation!r} is unknown: '
                        f'use one of {", ".join(INTERPOLATIONS)}.')
    target = resize_target(size, crop_pct)
    if mode == 'squash':
        return _center(_scale(image, *target, interpolation), size)
    if mode == 'crop':
        image = _shorten(image, target)
        return _center(_scale(image, *_cover(image.shape, target), interpolation), size)
    ratio = min(target[0] / image.shape[0], target[1] / image.shape[1])
    height, width = (max(1, round(side * ratio)) for side in image.shape[:2])
    top, left = (target[0] - height) // 2, (target[1] - width) // 2
    canvas = np.empty((*target, *image.shape[2:]), np.uint8)
    canvas[:] = border_color(image)
    canvas[top:top + height, left:left + width] = _scale(image, height, width, interpolation)
    return _center(canvas, size)


def resize_target(size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """(h, w) to which a picture is resized before its centre of `size` is cut out.

    Raises:
        DataError: crop_pct is out of range.
    """
    if not 0 < crop_pct <= 1:
        raise DataError(f'crop_pct={crop_pct} is out of range: use more than 0 and at most 1.')
    return math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct)


def border_color(image: np.ndarray) -> np.ndarray:
    """Median colour of the outermost pixels of a picture, uint8: [H, W, C] -> [C], [H, W] -> []."""
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return np.round(np.median(edge, axis=0)).astype(np.uint8)


def _scale(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    if interpolation != 'area' and image.ndim == 3 and image.shape[2] == 4:
        # Pillow would weigh the colours by their transparency, which OpenCV does not.
        return np.dstack([_scale(np.ascontiguousarray(part), height, width, interpolation)
                          for part in (image[..., :3], image[..., 3])])
    if interpolation != 'area':
        return np.asarray(Image.fromarray(image).resize((width, height), _PILLOW[interpolation]))
    # Axis by axis, because area averaging only helps an axis that shrinks.
    least = min(height, image.shape[0]), min(width, image.shape[1])
    if least != image.shape[:2]:
        if all(out < side <= 4 * out for side, out in zip(image.shape, least)):
            # The mean of two points per axis, each between pixels: within .4 grey levels of the
            # area's mean on photographs, while cv2.INTER_AREA takes 1.5 to 4 times as long.
            image = cv2.resize(image, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
        image = cv2.resize(image, (least[1], least[0]), interpolation=cv2.INTER_AREA)
    if least != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return image


def _cover(shape: tuple[int, ...], target: tuple[int, int]) -> tuple[int, int]:
    """The least (h, w) with the aspect ratio of `shape` that covers `target`; rounded down, as in
    timm."""
    if target[0] * shape[1] >= target[1] * shape[0]:
        return target[0], int(target[0] * shape[1] / shape[0])
    return int(target[1] * shape[0] / shape[1]), target[1]


def _shorten(image: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    # Only the middle of a ribbon is resized: covering 224 x 224, 20,000 x 20 would have 50 million
    # pixels.
    height, width = image.shape[:2]
    keep = (max(1, math.ceil(8 * width * target[0] / target[1])),
            max(1, math.ceil(8 * height * target[1] / target[0])))
    if height <= keep[0] and width <= keep[1]:
        return image
    return _center(image, (min(height, keep[0]), min(width, keep[1])))


def _center(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    top, left = (round((image.shape[axis] - size[axis]) / 2) for axis in (0, 1))
    return np.ascontiguousarray(image[top:top + size[0], left:left + size[1]])
