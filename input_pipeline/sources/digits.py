"""scikit-learn's 1,797 handwritten digits of 8x8 pixels: real data without a download.

They are the test part of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten
Digits, UCI 1998. The writers of the digits are not recorded, so there is no group column.
"""

import functools

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest, make_manifest


def load() -> Manifest:
    """The manifest of the digits: ids `digits/0000`, head `class` with names '0' to '9'."""
    _, labels = _arrays()
    number = range(len(labels))
    return make_manifest(
        {'id': [f'digits/{i:04d}' for i in number],
         'location': [f'digits:{i}' for i in number],
         'label/class': labels},
        {'class': tuple(str(digit) for digit in range(10))})


def read(location: str) -> np.ndarray:
    """The picture `digits:<number>`, uint8 [8, 8, 3]; the ink is 255.

    Raises:
        DataError: there is no digit of that number.
    """
    images, _ = _arrays()
    number = location.partition(':')[2]
    if not number.isdecimal() or int(number) >= len(images):
        raise DataError(f'Image {location!r} does not exist: '
                        f'use digits:0 to digits:{len(images) - 1}.')
    return np.repeat(images[int(number)][:, :, None], 3, axis=2)


@functools.lru_cache(maxsize=1)
def _arrays() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # takes a second, so only where it is needed
    digits = load_digits()
    return (np.round(digits.images * (255 / 16)).astype(np.uint8),
            digits.target.astype(np.int32))
