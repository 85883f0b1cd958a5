import numpy as np
import pytest

from input_pipeline.curation import clusters


@pytest.fixture(scope='module')
def clouds():
    """Three clouds of 60 points in 20 dimensions, and 6 points far from all of them."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2, -1], [60, 60, 60, 6])
    centres = 8 * rng.standard_normal((3, 20))
    points = centres[truth] + .5 * rng.standard_normal((186, 20))
    points[truth < 0] = 30 * rng.standard_normal((6, 20))
    return points.astype(np.float32), truth


def alike(labels, truth):
    return len(set(zip(labels, truth))) == len(set(truth)) == len(set(labels))


def test_k_is_that_of_the_clouds(clouds):
    points, truth = clouds
    assert alike(clusters.kmeans(points[truth >= 0]), truth[truth >= 0])


def test_eps_from_the_knee_leaves_only_the_far_points_out(clouds):
    points, truth = clouds
    found = clusters.dbscan(points)
    assert alike(found, truth) and (found[truth < 0] == -1).all()


def test_distances_are_those_of_the_neighbour(clouds):
    points, _ = clouds
    full = np.sort(np.linalg.norm(points[:, None] - points[None], axis=-1), axis=1)
    np.testing.assert_allclose(clusters.neighbour_distances(points, 4), full[:, 3], rtol=2e-3,
                               atol=5e-3)
    assert clusters.knee(np.array([1, 1.1, 1.2, 1.3, 9])) == pytest.approx(1.3)
    assert clusters.knee(np.full(5, 2.0)) == 2


def test_components_are_few(clouds):
    assert clusters.reduce(clouds[0]).shape == (186, 20)
    assert clusters.reduce(np.eye(5, 100)).shape == (5, 5)
