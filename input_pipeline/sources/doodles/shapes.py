"""The shapes from which figures are made: lines, curves, rings, and how they cover each other.

Coordinates run from 0 to 100, x to the right and y downwards; `pen.py` measures the
finished figure and fits it to the paper, so figures need not fill that square exactly.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

OPEN, COVER, SOLID = 0, 1, 2


class Stroke(NamedTuple):
    """One movement of the hand: `points` float64 [n, 2], and what its inside does.

    OPEN leaves the inside alone, COVER hides what was drawn there before (a wheel in
    front of a car's body), SOLID fills it with ink.
    """

    points: np.ndarray
    inside: int = OPEN


class Vary:
    """The random choices of one drawing: each call uses the next random number."""

    def __init__(self, rng: np.random.Generator):
        self._numbers = iter(rng.random(96).tolist())

    def __call__(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * next(self._numbers)

    def maybe(self, chance: float = 0.5) -> bool:
        """True with the probability `chance`."""
        return next(self._numbers) < chance

    def pick(self, *choices):
        """One of the choices, each equally likely."""
        return choices[int(next(self._numbers) * len(choices))]


def _catmull_rom_basis(samples: int) -> np.ndarray:
    """Weights of the four neighbouring knots, [samples, 4] (uniform Catmull-Rom, 1974)."""
    t = np.arange(samples)[:, None] / samples
    return np.hstack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3,
                      t + 4 * t**2 - 3 * t**3, -t**2 + t**3]) / 2


_BASIS = _catmull_rom_basis(7)
_WINDOW = np.arange(4)
_CIRCLE = np.array([(math.sin(math.radians(t)), -math.cos(math.radians(t)))
                    for t in range(0, 361, 10)])


def line(*xy: float) -> Stroke:
    """Straight segments through x0, y0, x1, y1, ..."""
    return Stroke(np.array(xy, float).reshape(-1, 2))


def poly(*xy: float) -> Stroke:
    """A closed polygon through x0, y0, x1, y1, ..."""
    return line(*xy, *xy[:2])


def box(x0: float, y0: float, x1: float, y1: float) -> Stroke:
    """A rectangle."""
    return line(x0, y0, x1, y0, x1, y1, x0, y1, x0, y0)


def curve(*xy: float) -> Stroke:
    """A smooth open curve through x0, y0, x1, y1, ..."""
    knots = np.array(xy, float).reshape(-1, 2)
    knots = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    windows = knots[np.arange(len(knots) - 3)[:, None] + _WINDOW]
    return Stroke(np.concatenate([(_BASIS @ windows).reshape(-1, 2), knots[-2:-1]]))


def blob(*xy: float) -> Stroke:
    """A smooth closed curve through x0, y0, x1, y1, ..."""
    knots = np.array(xy, float).reshape(-1, 2)
    n = len(knots)
    windows = knots[(np.arange(n)[:, None] + _WINDOW - 1) % n]
    return Stroke(np.concatenate([(_BASIS @ windows).reshape(-1, 2), knots[:1]]))


def _around(cx: float, cy: float, rx, ry, angles: np.ndarray) -> np.ndarray:
    points = np.empty((len(angles), 2))
    points[:, 0] = cx + rx * np.cos(angles)
    points[:, 1] = cy + ry * np.sin(angles)
    return points


def arc(cx: float, cy: float, rx: float, ry: float, start: float, end: float) -> Stroke:
    """A piece of an ellipse; degrees run clockwise on the paper, 0 points to the right."""
    pieces = 7 + int(abs(end - start) / 12)
    angles = math.radians(start) + np.arange(pieces + 1) * math.radians((end - start) / pieces)
    return Stroke(_around(cx, cy, rx, ry, angles))


def ring(cx: float, cy: float, rx: float, ry: float | None = None) -> Stroke:
    """An ellipse, begun at the top as most people do."""
    return Stroke(_CIRCLE * (rx, rx if ry is None else ry) + (cx, cy))


def dot(cx: float, cy: float, r: float) -> Stroke:
    """A disc of ink."""
    return Stroke(_CIRCLE[::4] * r + (cx, cy), SOLID)


def puffs(cx: float, cy: float, rx: float, ry: float, lobes: int, depth: float,
          phase: float = 0) -> Stroke:
    """The outline of a cloud: an ellipse with outward bulges."""
    t = np.linspace(0, 2 * np.pi, 12 * lobes + 1)
    r = 1 + depth * np.abs(np.sin((lobes * t + phase) / 2))
    return Stroke(_around(cx, cy, rx * r, ry * r, t))


def spiral(cx: float, cy: float, r0: float, r1: float, start: float, turns: float) -> Stroke:
    """Archimedes' spiral from radius r0 to r1; `start` in degrees."""
    t = np.linspace(0, 1, int(26 * turns))
    angle = np.radians(start) + 2 * np.pi * turns * t
    r = r0 + (r1 - r0) * t
    return Stroke(_around(cx, cy, r, r, angle))


def rays(cx: float, cy: float, r0: float, r1: float, count: int, start: float = 0,
         span: float = 360) -> list[Stroke]:
    """Straight lines outwards, spread over `span` degrees from `start`."""
    steps = count if span == 360 else count - 1
    angles = math.radians(start) + np.arange(count) * math.radians(span / max(steps, 1))
    lines = _around(0, 0, 1, 1, angles)[:, None] * np.array([[r0], [r1]]) + (cx, cy)
    return [Stroke(points) for points in lines]


def join(*strokes: Stroke) -> Stroke:
    """Strokes drawn one after the other without lifting the pen."""
    return Stroke(np.concatenate([s.points for s in strokes]))


def closed(stroke: Stroke) -> Stroke:
    """The stroke, led back to its beginning."""
    return Stroke(np.concatenate([stroke.points, stroke.points[:1]]), stroke.inside)


def cover(stroke: Stroke) -> Stroke:
    """The stroke, hiding what lies behind it."""
    return Stroke(stroke.points, COVER)


def solid(stroke: Stroke) -> Stroke:
    """The stroke, filled with ink."""
    return Stroke(stroke.points, SOLID)


def mirror(stroke: Stroke, axis: float = 50) -> Stroke:
    """The stroke reflected in the vertical line x = axis."""
    return Stroke(stroke.points * (-1, 1) + (2 * axis, 0), stroke.inside)


def both(stroke: Stroke, axis: float = 50) -> list[Stroke]:
    """The stroke and its mirror image."""
    return [stroke, mirror(stroke, axis)]


def turn(strokes: Iterable[Stroke], degrees: float, cx: float = 50,
         cy: float = 50) -> list[Stroke]:
    """The strokes turned clockwise about (cx, cy)."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix, centre = np.array([[c, s], [-s, c]]), np.array([cx, cy])
    return [Stroke((p - centre) @ matrix + centre, inside) for p, inside in strokes]
