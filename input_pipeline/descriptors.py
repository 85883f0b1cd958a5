"""A descriptor of pictures that needs no weights: gradients (HOG) and colours.

Good enough to group pictures that look alike, everywhere and offline; features of a trained
model are better where there is one.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from input_pipeline import decode, sources
from input_pipeline.manifest import Manifest
from input_pipeline.resampling import cluster_rows

_SIDE = 64  # pixels; cells of 8, blocks of 16: 7 x 7 blocks of 36 values
_BINS = (8, 4, 4)  # hue, saturation, value
WIDTH = 7 * 7 * 36 + 8 * 4 * 4


def describe(picture: np.ndarray) -> np.ndarray:
    """RGB uint8 [H, W, 3] -> float32 [WIDTH]: histograms of oriented gradients (Dalal and Triggs
    2005) of the picture squashed to 64 px, and a histogram of hue, saturation and value; each
    half has norm 1."""
    small = decode.resize(picture, (_SIDE, _SIDE))
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    hog = cv2.HOGDescriptor((_SIDE, _SIDE), (16, 16), (8, 8), (8, 8), 9).compute(grey).ravel()
    hsv = cv2.cvtColor(small, cv2.COLOR_RGB2HSV)
    colors = cv2.calcHist([hsv], [0, 1, 2], None, _BINS, [0, 180, 0, 256, 0, 256]).ravel()
    parts = [part / max(float(np.linalg.norm(part)), 1e-6) for part in (hog, colors)]
    return np.concatenate(parts).astype(np.float32)


def with_clusters(manifest: Manifest, head: str, k: int, seed: int) -> Manifest:
    """The manifest with the column cluster: KMeans of the descriptors within each class."""
    labels = manifest.labels(head or manifest.heads[0])
    return manifest.with_column('cluster', cluster_rows(describe_all(manifest), labels, k, seed))


def describe_all(manifest: Manifest, *, threads: int = 2,
                 progress: Callable[[], None] = lambda: None) -> np.ndarray:
    """Descriptors of every row, float32 [N, WIDTH].

    Raises:
        UnreadableImage: a picture cannot be read.
    """
    found = np.empty((len(manifest), WIDTH), np.float32)
    locations = manifest.table['location'].to_numpy()

    def fill(row):
        found[row] = describe(sources.read_image(manifest.root, locations[row], (_SIDE, _SIDE)))
        progress()

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for _ in pool.map(fill, range(len(manifest)), chunksize=64):
            pass
    return found
