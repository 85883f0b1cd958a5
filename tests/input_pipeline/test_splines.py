"""Splines on grids, against SciPy's."""

import numpy as np
import pytest
from scipy import ndimage

from input_pipeline import splines


@pytest.mark.parametrize('spacing', [1.5, 6.93, 60])
@pytest.mark.parametrize('backwards', [False, True])
def test_a_grid_is_that_of_scipy(spacing, backwards):
    height, width = 150, 97
    shape = [int(side / spacing) + 5 for side in (height, width)]
    coefficients = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    y = np.linspace(0, height - 1, 171) ** 2 / (height - 1)
    x = np.linspace(3, width - 1, 80)
    if backwards:
        y = y[::-1]
    found = splines.on_grid(coefficients, x, y, spacing, 2000)
    at = np.stack(np.meshgrid(y, x, indexing='ij')) / spacing + 2
    for plane, values in zip(found, coefficients):
        want = ndimage.map_coordinates(values.astype(float), at, order=3, prefilter=False)
        np.testing.assert_allclose(plane, want, atol=2e-3)
