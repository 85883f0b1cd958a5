"""Pull maps: geometric transforms that compose into one coordinate map.

For a pixel of its output, a pull map says which point of its input to look at. A chain of pull
maps composes from the last to the first. As long as all of them are projective, the result is
one 3x3 matrix. Otherwise it is a map of every pixel. Either way `warp.warp` interpolates the
picture once instead of once per transform, so lines stay sharp.

The composed map is accurate to 0.1 px, kinks included. It is cheap because a chain starts at a
grid. As long as x depends only on the column and y only on the row, a transform costs one table
per axis. A spline over such axes, with all affine maps after it, is a matrix product of low rank.
Only what comes after that works on every pixel. Pull maps run backwards, so a chain is fastest
if its list ends with the grid distortion, with the elastic one before it, and all affine
transforms before both.

Coordinates are (x, y) in pixels, with pixel centres at whole numbers. A chain works in the frame
of its output, [0, width - 1] x [0, height - 1], and the whole picture is laid over that frame. The
points of all pixels are two planes, x and y, float32 [H, W]: they are faster to make and to look
up than pairs.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import cv2
import numpy as np

from input_pipeline import splines

Size = tuple[int, int]  # height, width
Part = tuple[float, float]  # shares of a picture's sides: down, right
Planes = tuple[np.ndarray, np.ndarray]  # x, y

BORDERS = {'edge': (cv2.BORDER_REPLICATE, 0), 'reflect': (cv2.BORDER_REFLECT_101, 0),
           'white': (cv2.BORDER_CONSTANT, 255), 'black': (cv2.BORDER_CONSTANT, 0)}

_IDENTITY = np.eye(3)
_PHASES = 64  # per px: the points of a spline are rounded to these
_TOLERANCE = 0.08  # px, error of linear interpolation between the nodes of a table of offsets


@dataclasses.dataclass(frozen=True)
class Projective:
    """A pull map that is a matrix: float64 [3, 3] on homogeneous (x, y, 1), last entry 1."""

    matrix: np.ndarray

    @property
    def affine(self) -> bool:
        """Whether parallel lines stay parallel."""
        return not self.matrix[2, 0] and not self.matrix[2, 1]

    def pull(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The input points of output points."""
        m = self.matrix
        x, y, w = (row[0] * x + row[1] * y + row[2] for row in m)
        return x / w, y / w

    def on_planes(self, x: np.ndarray, y: np.ndarray) -> Planes:
        """The input points of planes."""
        rows = self.matrix[:2 if self.affine else 3]
        x, y, *w = (cv2.addWeighted(x, a, y, b, c) for a, b, c in rows.tolist())
        return (cv2.divide(x, w[0]), cv2.divide(y, w[0])) if w else (x, y)


@dataclasses.dataclass(frozen=True)
class Elastic:
    """A smooth random displacement: a cubic B-spline over control points.

    The control points start two spacings before the frame's origin and end two spacings behind
    its end. A point outside the frame moves like the nearest point inside.

    Attributes:
        coefficients: float32 [2, rows, columns], displacements along x and y in pixels.
        spacing: distance of the control points in pixels.
        size: (height, width) of the frame.
    """

    coefficients: np.ndarray
    spacing: float
    size: Size

    def pull(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The input points of output points."""
        from scipy import ndimage  # a tenth of a second, and training needs `on_axes` alone

        at = np.stack([np.clip(y, 0, self.size[0] - 1), np.clip(x, 0, self.size[1] - 1)])
        dx, dy = (ndimage.map_coordinates(plane, at / self.spacing + 2, order=3, prefilter=False)
                  for plane in self.coefficients)
        return x + dx, y + dy

    def on_axes(self, axes: '_Axes') -> '_Axes':
        """The input points of a grid."""
        return _Axes(*axes.moved(), spline=self)

    def on_planes(self, x: np.ndarray, y: np.ndarray) -> Planes:
        """The input points of planes, accurate to _TOLERANCE."""
        # The second derivative of a cubic B-spline lies between the second differences.
        bend = sum(np.abs(np.diff(self.coefficients, 2, axis)).max() for axis in (1, 2))
        pitch = self.spacing * math.sqrt(8 * _TOLERANCE / max(bend, 1e-9))
        pitch = min(max(pitch, 0.25), self.spacing)
        rows, columns = (np.linspace(0, side - 1, math.ceil((side - 1) / pitch) + 1)
                         for side in self.size)
        return _moved(x, y, self.on_grid(columns, rows, self.coefficients), self.size)

    def on_grid(self, x: np.ndarray, y: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """The spline with these coefficients at every (x[j], y[i]): float32 [2, len(y), len(x)]."""
        return splines.on_grid(coefficients, x, y, self.spacing, math.ceil(_PHASES * self.spacing))


@dataclasses.dataclass(frozen=True)
class Grid:
    """Each axis is stretched piecewise linearly; the ends of the frame stay where they are.

    Knots divide each axis of the output evenly. Outside the frame nothing moves.

    Attributes:
        x, y: float [steps + 1], where the knots of each axis lie in the input.
    """

    x: np.ndarray
    y: np.ndarray

    def pull(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The input points of output points."""
        return _stretched(x, self.x), _stretched(y, self.y)

    def on_axes(self, axes: '_Axes') -> '_Axes':
        """The input points of a grid."""
        return _Axes(*self.pull(*axes.moved()))

    def on_planes(self, x: np.ndarray, y: np.ndarray) -> Planes:
        """The input points of planes."""
        table = np.zeros((2, _nodes(self.y), _nodes(self.x)), np.float32)
        for axis, moved in ((0, self.x), (1, self.y)):
            # The table has a node on every knot, so that it bends where the grid does.
            at = np.linspace(0, moved[-1], _nodes(moved))
            offsets = _stretched(at, moved) - at
            table[axis] = offsets[:, None] if axis else offsets
        return _moved(x, y, table, (round(self.y[-1]) + 1, round(self.x[-1]) + 1))


def _stretched(at: np.ndarray, moved: np.ndarray) -> np.ndarray:
    knots = _knots(len(moved), moved.item(-1))
    return at + np.interp(at, knots, moved - knots)


@functools.lru_cache(maxsize=16)
def _knots(count: int, end: float) -> np.ndarray:
    return np.linspace(0, end, count)


def _nodes(moved: np.ndarray) -> int:
    steps = len(moved) - 1
    return steps * math.ceil(moved[-1] / steps) + 1


@dataclasses.dataclass(frozen=True)
class Radial:
    """A lens: a point at distance r from the centre is taken from r * (1 + k * r**2).

    r is 1 in the corners of the frame, which is `size` (height, width) large.
    """

    k: float
    size: Size

    def pull(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The input points of output points."""
        cx, cy = (self.size[1] - 1) / 2, (self.size[0] - 1) / 2
        dx, dy = x - cx, y - cy
        bend = (dx * dx + dy * dy) * (self.k / (cx * cx + cy * cy or 1))
        return x + dx * bend, y + dy * bend

    def on_planes(self, x: np.ndarray, y: np.ndarray) -> Planes:
        """The input points of planes."""
        return self.pull(x, y)


class _Axes(NamedTuple):
    """The points matrix @ (x[j], y[i], 1), or of (x[j], y[i]) moved by a spline."""

    x: np.ndarray
    y: np.ndarray
    matrix: np.ndarray | None = None
    spline: Elastic | None = None

    @property
    def separable(self) -> bool:
        return self.spline is None and (
            self.matrix is None or not (self.matrix[0, 1] or self.matrix[1, 0]))

    def moved(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y after the matrix; only for separable axes."""
        if self.matrix is None:
            return self.x, self.y
        (a, _, c), (_, e, f), _ = self.matrix
        return a * self.x + c, e * self.y + f

    def transformed(self, matrix: np.ndarray) -> '_Axes':
        """The points after one more matrix."""
        matrix = matrix if self.matrix is None else matrix @ self.matrix
        return _Axes(self.x, self.y, matrix, self.spline)

    def planes(self) -> Planes:
        """The points of the grid."""
        m, spline = (_IDENTITY if self.matrix is None else self.matrix), self.spline
        if spline is None:
            return tuple(self._linear(m, self.x, self.y))
        # A cubic B-spline whose control points lie on a straight line is that line. So (x, y) and
        # the matrix can go into the coefficients.
        _, rows, columns = spline.coefficients.shape
        points = spline.coefficients + _control_points(rows, columns, spline.spacing)
        m32 = m[:2].astype(np.float32)
        points = (m32[:, :2] @ points.reshape(2, -1) + m32[:, 2:]).reshape(2, rows, columns)
        height, width = spline.size
        # Axes are monotone: if any point lies outside, an end does.
        right, bottom = width - 1, height - 1
        if (0 <= self.x.item(0) <= right and 0 <= self.x.item(-1) <= right
                and 0 <= self.y.item(0) <= bottom and 0 <= self.y.item(-1) <= bottom):
            return tuple(spline.on_grid(self.x, self.y, points))
        x, y = self.x.clip(0, width - 1), self.y.clip(0, height - 1)
        return tuple(spline.on_grid(x, y, points)
                     + self._linear(m * (1, 1, 0), self.x - x, self.y - y))

    @staticmethod
    def _linear(m: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """matrix @ (x[j], y[i], 1): float32 [2, len(y), len(x)]."""
        left, right = np.ones((2, len(y), 2), np.float32), np.ones((2, 2, len(x)), np.float32)
        left[:, :, 0] = m[:2, 1:2] * y + m[:2, 2:]
        right[:, 1] = m[:2, :1] * x
        return left @ right


@functools.lru_cache(maxsize=8)
def _control_points(rows: int, columns: int, spacing: float) -> np.ndarray:
    """Where the control points of a spline lie, (x, y): float32 [2, rows, columns]."""
    y, x = np.mgrid[:rows, :columns]
    return ((np.stack([x, y]) - 2) * spacing).astype(np.float32)


def _moved(x: np.ndarray, y: np.ndarray, table: np.ndarray, size: Size) -> Planes:
    """Points moved by offsets, interpolated bilinearly in a table [2, rows, columns] over the
    frame."""
    rows, columns = ((count - 1) / max(side - 1, 1) for count, side in zip(table.shape[1:], size))
    at_x, at_y = x * columns, y * rows
    dx, dy = (cv2.remap(part, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
              for part in table)
    dx += x
    dy += y
    return dx, dy


def about_centre(linear, size: Size, shift: tuple[float, float] = (0.0, 0.0)) -> Projective:
    """The pull map of a push: the 2x2 matrix `linear` about the centre, then a shift in pixels."""
    (a, b), (c, d) = linear
    scale = 1 / (a * d - b * c)
    a, b, c, d = d * scale, -b * scale, -c * scale, a * scale
    x, y = (size[1] - 1) / 2, (size[0] - 1) / 2
    to_x, to_y = x + shift[0], y + shift[1]
    return Projective(np.array([[a, b, x - a * to_x - b * to_y],
                                [c, d, y - c * to_x - d * to_y], [0.0, 0.0, 1.0]]))


def box(left: float, top: float, width: float, height: float, size: Size) -> Projective:
    """The pull map that enlarges a box to the whole frame; the box is in shares of the sides."""
    return Projective(np.array([[width, 0.0, left * size[1] + 0.5 * width - 0.5],
                                [0.0, height, top * size[0] + 0.5 * height - 0.5],
                                [0.0, 0.0, 1.0]]))


def compose(maps: list) -> list:
    """The maps in the order of application, with neighbouring projective maps multiplied."""
    merged: list = []
    for item in maps:
        if merged and isinstance(item, Projective) and isinstance(merged[-1], Projective):
            # Pull maps run backwards: the later transform's matrix acts on the point first.
            matrix = merged[-1].matrix @ item.matrix
            end = matrix.item(2, 2)
            merged[-1] = Projective(matrix if end == 1 else matrix / end)
        else:
            merged.append(item)
    return merged


def pull(maps: list, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where output points (x, y) lie in the input of the whole chain, one map after another."""
    for item in reversed(maps):
        x, y = item.pull(x, y)
    return x, y


def dense_map(maps: list, size: Size) -> Planes:
    """The composed map of every pixel: x and y, float32 [H, W], the inputs of `cv2.remap`."""
    at = _Axes(_pixels(size[1]), _pixels(size[0]))
    for item in reversed(compose(maps)):
        if isinstance(at, _Axes):
            if isinstance(item, Projective) and item.affine:
                at = at.transformed(item.matrix)
                continue
            if isinstance(item, (Grid, Elastic)) and at.separable:
                at = item.on_axes(at)
                continue
            at = at.planes()
        at = item.on_planes(*at)
    return at.planes() if isinstance(at, _Axes) else at


@functools.lru_cache(maxsize=16)
def _pixels(side: int) -> np.ndarray:
    return np.arange(side, dtype=float)


def detail(maps: list, size: Size) -> tuple[float, float]:
    """How many pixels of the frame one output pixel spans along y and x.

    It is measured at the centre, and maps that are not projective are ignored. Values below 1 mean
    that the chain enlarges, as a crop does: a source of size / detail pixels then loses nothing.
    """
    matrices = [item.matrix for item in maps if isinstance(item, Projective)]
    if not matrices:
        return 1.0, 1.0
    (a, b, e), (c, d, f), (g, h, i) = functools.reduce(np.matmul, matrices).tolist()
    x, y = (size[1] - 1) / 2, (size[0] - 1) / 2
    x, y, w = a * x + b * y + e, c * x + d * y + f, g * x + h * y + i
    return (math.hypot(c * w - g * y, d * w - h * y) / w**2,
            math.hypot(a * w - g * x, b * w - h * x) / w**2)
