"""Smooths a picture: median, Gaussian, morphological opening and closing."""

import cv2
import numpy as np


def _morphology(operation: int):
    def smooth(image: np.ndarray, size: int) -> np.ndarray:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
        return cv2.morphologyEx(image, operation, kernel, borderType=cv2.BORDER_REPLICATE)
    return smooth


# The kernel is `size` pixels wide; opening removes bright specks, closing removes dark ones.
METHODS = {
    'median': cv2.medianBlur,
    'gaussian': lambda image, size: cv2.GaussianBlur(image, (size, size), 0),
    'open': _morphology(cv2.MORPH_OPEN),
    'close': _morphology(cv2.MORPH_CLOSE),
}


def denoise(image: np.ndarray, options: dict, before=None) -> tuple[np.ndarray, dict]:
    """The picture, smoothed.

    Args:
        image: RGB uint8 [H, W, 3].
        options: `method`: a key of `METHODS`; `size`: width of the kernel in pixels, made odd by
            adding 1 if necessary.
        before: unused.

    Returns:
        The picture, uint8 [H, W, 3], and the record: change, the mean difference in grey levels.
    """
    smooth = METHODS[options['method']](image, options['size'] | 1)
    return smooth, dict(change=round(float(cv2.absdiff(image, smooth).mean()), 4))
