"""Pictures as the evaluation of a run prepares them, from the numbers of preparation.json.

A copy of this file lies in exports, together with the modules of the input pipeline that it needs.
"""

from collections.abc import Mapping

import cv2
import numpy as np

from input_pipeline.decode import decode
from input_pipeline.resize import resize, resize_target


def prepare(data: bytes, preparation: Mapping, *, name: str = 'picture') -> np.ndarray:
    """The bytes of an image file as the model takes it, uint8 [height, width, channels].

    Args:
        data: the content of the file.
        preparation: `height`, `width`, `channels`, `resize`, `interpolation`, `crop_pct`,
            `reduced_decode` and `range16`, as in preparation.json.
        name: of the file, for errors.

    Raises:
        ValueError: the picture cannot be read.
    """
    size = preparation['height'], preparation['width']
    crop_pct, interpolation = preparation['crop_pct'], preparation['interpolation']
    reduced = preparation['reduced_decode'] and interpolation == 'area'
    low, high = preparation['range16']
    picture = decode(data, name=name, range16=(low, high), alpha=preparation['channels'] == 4,
                     min_size=resize_target(size, crop_pct) if reduced else None)
    if preparation['channels'] == 1:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    picture = resize(picture, size, preparation['resize'], interpolation=interpolation,
                     crop_pct=crop_pct)
    return picture.reshape(*size, preparation['channels'])
