"""Descriptors of pictures that need no weights, gradients (HOG) and colours, and their clusters.

They are good enough to group pictures that look alike, on any machine and offline. Features of
a trained model are better where there is one.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from input_pipeline import sources
from input_pipeline.manifest import Manifest
from input_pipeline.resize import resize

SIDE = 64  # pixels; cells of 8, blocks of 16: 7 x 7 blocks of 36 values
_BINS = (8, 4, 4)  # hue, saturation, value
WIDTH = 7 * 7 * 36 + 8 * 4 * 4


def describe(picture: np.ndarray) -> np.ndarray:
    """The descriptor of a picture: RGB uint8 [H, W, 3] -> float32 [WIDTH].

    The first part holds histograms of oriented gradients (Dalal and Triggs 2005) of the picture
    squashed to 64 px, the second a histogram of hue, saturation and value. Each part has norm 1.
    """
    small = resize(picture, (SIDE, SIDE))
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    hog = cv2.HOGDescriptor((SIDE, SIDE), (16, 16), (8, 8), (8, 8), 9).compute(grey).ravel()
    hsv = cv2.cvtColor(small, cv2.COLOR_RGB2HSV)
    colors = cv2.calcHist([hsv], [0, 1, 2], None, _BINS, [0, 180, 0, 256, 0, 256]).ravel()
    parts = [part / max(float(np.linalg.norm(part)), 1e-6) for part in (hog, colors)]
    return np.concatenate(parts).astype(np.float32)


def with_clusters(manifest: Manifest, head: str, k: int, seed: int) -> Manifest:
    """The manifest with the column `cluster`: k clusters of the descriptors within each class.

    Args:
        manifest: N rows.
        head: the head whose classes count; '' for the first.
        k, seed: as in `cluster_rows`.

    Raises:
        UnreadableImage: a picture cannot be read.
    """
    labels = manifest.labels(head or manifest.heads[0])
    return manifest.with_column('cluster', cluster_rows(describe_all(manifest), labels, k, seed))


def cluster_rows(features: np.ndarray, labels: np.ndarray, k: int = 10, seed: int = 0
                 ) -> np.ndarray:
    """KMeans within each class: values for the column that the resampling 'cluster' reads.

    Args:
        features: float [N, D].
        labels: int [N]; -1 is unlabelled.
        k: clusters per class; fewer where a class has fewer different rows.
        seed: of KMeans.

    Returns:
        int32 [N]: the cluster within the class, or -1 for a row without a label.
    """
    from sklearn.cluster import KMeans
    clusters = np.full(len(labels), -1, np.int32)
    for label in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == label)
        different = len(np.unique(features[rows], axis=0))
        means = KMeans(min(k, different), n_init=3, random_state=seed)
        clusters[rows] = means.fit_predict(features[rows])
    return clusters


def describe_all(manifest: Manifest, *, threads: int = 2,
                 progress: Callable[[], None] = lambda: None) -> np.ndarray:
    """Descriptors of all rows, float32 [N, WIDTH].

    Args:
        manifest: N rows.
        threads: how many work at once.
        progress: called after each picture.

    Raises:
        UnreadableImage: a picture cannot be read.
    """
    found = np.empty((len(manifest), WIDTH), np.float32)
    locations, read = manifest.table['location'].to_numpy(), sources.reader(manifest)

    def fill(row):
        found[row] = describe(read(locations[row], (SIDE, SIDE)))
        progress()

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for _ in pool.map(fill, range(len(manifest)), chunksize=64):
            pass
    return found
