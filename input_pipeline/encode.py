"""From the pixels of a picture to the bytes of a file."""

import cv2
import numpy as np


def encode(image: np.ndarray, quality: int | str) -> bytes:
    """The bytes of an image file.

    Args:
        image: RGB uint8 [H, W, 3].
        quality: 1 to 100 for a JPEG, 'lossless' for a PNG, 'raw' for a PPM, whose pixels are not
            compressed.
    """
    if quality == 'raw':
        return b'P6\n%d %d\n255\n' % image.shape[1::-1] + np.ascontiguousarray(image).tobytes()
    kind, options = (('.png', []) if quality == 'lossless' else
                     ('.jpg', [cv2.IMWRITE_JPEG_QUALITY, int(quality)]))
    return cv2.imencode(kind, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()
