"""Geometry as one coordinate map and one interpolation.

Every geometric transform is a pull map: for a pixel of its output it says which point of
its input to look at. A chain of them composes from the last to the first. While all of
them are affine the result is one 2x3 matrix (`cv2.warpAffine`). Otherwise the composed
map is evaluated on a coarse lattice, enlarged bilinearly and used in one `cv2.remap`: one
interpolation of the picture instead of one a transform, so lines stay sharp.

Coordinates are (x, y) in pixels, pixel centres at whole numbers.
"""

import dataclasses
from functools import lru_cache

import cv2
import numpy as np
from scipy import ndimage

LATTICE = 8  # pixels between the nodes at which a composed map is evaluated

BORDERS = {'edge': (cv2.BORDER_REPLICATE, 0), 'reflect': (cv2.BORDER_REFLECT_101, 0),
           'white': (cv2.BORDER_CONSTANT, 255), 'black': (cv2.BORDER_CONSTANT, 0)}


@dataclasses.dataclass(frozen=True)
class Affine:
    """A pull map that is a matrix: float64 [3, 3] on homogeneous (x, y, 1)."""

    matrix: np.ndarray

    def pull(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The input points of output points."""
        m = self.matrix
        return m[0, 0] * x + m[0, 1] * y + m[0, 2], m[1, 0] * x + m[1, 1] * y + m[1, 2]


@dataclasses.dataclass(frozen=True)
class Elastic:
    """A smooth random displacement: a cubic B-spline over control points.

    `coefficients`: float [2, rows, columns], pixels along x and y; `spacing` between control
    points in pixels. The control points start two spacings before the picture's origin.
    """

    coefficients: np.ndarray
    spacing: float

    def pull(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The input points of output points."""
        at = np.stack([y / self.spacing + 2, x / self.spacing + 2])
        dx, dy = (ndimage.map_coordinates(plane, at, order=3, prefilter=False, mode='nearest')
                  for plane in self.coefficients)
        return x + dx, y + dy


@dataclasses.dataclass(frozen=True)
class Grid:
    """Each axis stretched piecewise linearly: knots of the output and of the input [k]."""

    x_out: np.ndarray
    x_in: np.ndarray
    y_out: np.ndarray
    y_in: np.ndarray

    def pull(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The input points of output points."""
        return np.interp(x, self.x_out, self.x_in), np.interp(y, self.y_out, self.y_in)


def about_centre(linear: np.ndarray, size: tuple[int, int],
                 shift: tuple[float, float] = (0.0, 0.0)) -> Affine:
    """The pull map of the 2x2 push matrix `linear` about the centre, then a push by `shift` px."""
    height, width = size
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    inverse = np.linalg.inv(linear)
    matrix = np.eye(3)
    matrix[:2, :2] = inverse
    matrix[:2, 2] = centre - inverse @ (centre + np.asarray(shift))
    return Affine(matrix)


def compose(maps: list) -> list:
    """The maps in the order of application, with neighbouring affine ones multiplied."""
    merged: list = []
    for item in maps:
        if merged and isinstance(item, Affine) and isinstance(merged[-1], Affine):
            # Pull maps run backwards: the later transform's matrix acts on the point first.
            merged[-1] = Affine(merged[-1].matrix @ item.matrix)
        else:
            merged.append(item)
    return merged


def pull(maps: list, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where output points (x, y) lie in the input of the whole chain."""
    for item in reversed(maps):
        x, y = item.pull(x, y)
    return x, y


@lru_cache(maxsize=8)
def _lattice(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of LATTICE-pixel cells, with one more cell around the picture."""
    rows, columns = -(-height // LATTICE) + 2, -(-width // LATTICE) + 2
    ys = (np.arange(rows) - 1) * LATTICE + (LATTICE - 1) / 2
    xs = (np.arange(columns) - 1) * LATTICE + (LATTICE - 1) / 2
    return np.meshgrid(xs, ys)


def dense_map(maps: list, size: tuple[int, int]) -> np.ndarray:
    """The composed map of every pixel: float32 [H, W, 2], as `cv2.remap` takes it."""
    height, width = size
    x, y = _lattice(height, width)
    nodes = np.stack(pull(maps, x, y), axis=-1).astype(np.float32)
    full = cv2.resize(nodes, (nodes.shape[1] * LATTICE, nodes.shape[0] * LATTICE),
                      interpolation=cv2.INTER_LINEAR)
    return full[LATTICE:LATTICE + height, LATTICE:LATTICE + width]


def warp(image: np.ndarray, maps: list, border: str = 'edge') -> np.ndarray:
    """Applies a chain of maps to a picture of the same size with one interpolation.

    Args:
        image: uint8 [H, W, C].
        maps: pull maps in the order of application; none leaves the picture as it is.
        border: what lies outside, a key of BORDERS.

    Returns:
        uint8 [H, W, C], bilinear.
    """
    maps = compose(maps)
    if not maps:
        return image
    mode, value = BORDERS[border]
    fill = (value,) * 4
    height, width = image.shape[:2]
    if len(maps) == 1 and isinstance(maps[0], Affine):
        return cv2.warpAffine(image, maps[0].matrix[:2], (width, height),
                              flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                              borderMode=mode, borderValue=fill)
    return cv2.remap(image, dense_map(maps, (height, width)), None, cv2.INTER_LINEAR,
                     borderMode=mode, borderValue=fill)
