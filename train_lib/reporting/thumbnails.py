"""Small pictures for pages, as data URIs."""

from collections.abc import Callable

import cv2
import numpy as np

from train_lib.reporting.figures import png_uri, webp_uri

SIDE = 96
BUDGET = 3_200_000  # characters of data URIs; a page stays under 5 MB


def thumbnailer(read_image: Callable, budget: int = BUDGET) -> Callable[[str], dict | None]:
    """A function location -> dict(uri=, small=), or None once the budget is spent.

    `uri` is '' for a picture that cannot be read. `small` is true for pictures of up to 32
    pixels, which are kept as they are (PNG) and shown with hard edges; others are shrunk to at
    most 96 pixels (WebP). Each location is read once.

    Args:
        read_image: location -> uint8 [H, W, 3], RGB.
        budget: characters of data URIs.
    """
    cache, spent = {}, 0

    def thumbnail(location: str) -> dict | None:
        nonlocal spent
        if location not in cache:
            if spent >= budget:
                return None
            cache[location] = _thumbnail(read_image, location)
        # The page holds one copy for each place where the picture is shown.
        spent += len(cache[location]['uri'])
        return cache[location]

    return thumbnail


def _thumbnail(read_image: Callable, location: str) -> dict:
    try:
        image = np.asarray(read_image(location))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f'{image.dtype} {image.shape}')
    except Exception:
        # Whatever is wrong with one picture, the rest of the page is wanted.
        return dict(uri='', small=False)
    image = np.ascontiguousarray(image[..., ::-1])
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest <= 32:
        return dict(uri=png_uri(image), small=True)
    if longest > SIDE:
        size = (max(1, round(width * SIDE / longest)), max(1, round(height * SIDE / longest)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return dict(uri=webp_uri(image), small=False)
