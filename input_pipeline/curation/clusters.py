"""Clusters of features: KMeans with k by the silhouette, DBSCAN with eps by the distances' knee."""

import numpy as np

from input_pipeline.curation.quiet import without_sklearn_warnings

_WIDTH = 64  # components that are kept: more say little about distances and cost much
_SAMPLE = 2000  # rows from which a silhouette is computed
_MAX_DISTANCES = 1_000_000  # distances computed at once


@without_sklearn_warnings()
def reduce(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """The first principal components of features [N, D], float32 [N, at most 64]."""
    from sklearn.decomposition import PCA
    width = min(_WIDTH, *features.shape)
    return PCA(width, svd_solver='randomized', random_state=seed).fit_transform(
        np.asarray(features, np.float32))


@without_sklearn_warnings()
def kmeans(points: np.ndarray, *, most: int = 8, seed: int = 0) -> np.ndarray:
    """Clusters by KMeans, int [N], with the k from 2 to `most` that has the best silhouette."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score
    best, found = -np.inf, np.zeros(len(points), int)
    sample = np.random.default_rng(seed).permutation(len(points))[:_SAMPLE]
    for k in range(2, min(most, len(points) - 1) + 1):
        labels = KMeans(k, n_init=3, random_state=seed).fit_predict(points)
        if len(np.unique(labels[sample])) < 2:
            continue
        score = silhouette_score(points[sample], labels[sample])
        if score > best:
            best, found = score, labels
    return found


@without_sklearn_warnings()
def dbscan(points: np.ndarray, *, neighbours: int = 5, eps: float | None = None) -> np.ndarray:
    """Clusters by DBSCAN (Ester et al. 1996), int [N]; -1 for points that are in no cluster.

    Args:
        points: float [N, D].
        neighbours: so many points within eps, itself included, make a point the core of a
            cluster.
        eps: the distance; None for the knee of the distances to neighbour number `neighbours`.
    """
    from sklearn.cluster import DBSCAN
    if eps is None:
        eps = knee(neighbour_distances(points, neighbours))
    return DBSCAN(eps=max(eps, 1e-9), min_samples=neighbours, algorithm='brute'
                  ).fit_predict(points)


def neighbour_distances(points: np.ndarray, number: int) -> np.ndarray:
    """Distance of each point to neighbour number `number`, float [N]; the point itself is the
    first."""
    number = min(number, len(points))
    squares = np.einsum('nd,nd->n', points, points)
    found = np.empty(len(points))
    step = max(1, _MAX_DISTANCES // len(points))
    for start in range(0, len(points), step):
        part = points[start:start + step]
        apart = squares[start:start + step, None] + squares - 2 * part @ points.T
        found[start:start + step] = np.partition(apart, number - 1, axis=1)[:, number - 1]
    return np.sqrt(np.maximum(found, 0))


def knee(distances: np.ndarray) -> float:
    """The distance from which sorted distances rise steeply: the point farthest below the line
    from the first to the last (Satopaa et al. 2011)."""
    rising = np.sort(distances)
    span = rising[-1] - rising[0]
    if span <= 0:
        return float(rising[-1])
    line = np.linspace(0, 1, len(rising))
    return float(rising[np.argmax(line - (rising - rising[0]) / span)])
