"""Descriptors of pictures: those of similar pictures are near, others far."""

import cv2
import numpy as np
import pytest

from input_pipeline import sources
from input_pipeline.descriptors import WIDTH, cluster_rows, describe, describe_all


@pytest.fixture(scope='module')
def manifest():
    return sources.load_source({'source': 'doodles', 'doodles': dict(classes=3, per_class=8)})


def test_a_touched_up_picture_stays_nearer_than_any_other(manifest):
    found = describe_all(manifest)
    assert found.shape == (24, WIDTH) and np.isfinite(found).all()
    pictures = [sources.read_image('', location) for location in manifest.table['location']]
    for row in (0, 9, 17):
        touched = cv2.GaussianBlur(pictures[row], (3, 3), 0)
        distances = np.linalg.norm(found - describe(touched), axis=1)
        assert distances.argmin() == row
    np.testing.assert_array_equal(found[5], describe(pictures[5]))


def test_colour_counts_and_flat_pictures_are_fine():
    red, blue = np.zeros((2, 20, 30, 3), np.uint8)
    red[..., 0] = blue[..., 2] = 255
    assert np.linalg.norm(describe(red) - describe(blue)) > 1
    assert np.isfinite(describe(np.zeros((1, 1, 3), np.uint8))).all()


def test_clusters_are_made_within_classes(manifest):
    labels = manifest.labels('class')
    clusters = cluster_rows(describe_all(manifest), labels, k=2)
    assert all(set(clusters[labels == label]) == {0, 1} for label in range(3))
