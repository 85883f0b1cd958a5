"""The stroke engine: from strokes, a writer and a tool to an RGB picture.

All strokes of a figure are processed as one array of points, so a drawing costs a few dozen array
operations and one OpenCV call per stroke.
"""

import functools
import math
from collections.abc import Sequence

import cv2
import numpy as np

from input_pipeline.sources.doodles.shapes import COVER, OPEN, SOLID, Stroke
from input_pipeline.sources.doodles.writers import TOOLS, Writer

STEP = .022  # distance of points along a stroke, fraction of the figure's longer side
TURN = math.radians(10)  # standard deviation of a drawing's rotation
MARGIN = .015  # of the paper, kept free around a drawing
# Tremor: three waves along a line for x, three for y; radians per point, and weights.
_FREQUENCIES = np.array([.37, .7, 1.2, .33, .75, 1.1])
_AMPLITUDES = np.kron(np.eye(2), np.array([[1.2], [.8], [.4]]))
_PAIRS = np.kron(np.eye(2), np.ones((2, 1)))
_SHARE = np.linspace(0, 1, 256)[:, None]  # of the ink in a pixel
_SHIFT = 4  # fractional bits of OpenCV's coordinates
# Width of the line of each tool in an average hand, fraction of the paper.
_WIDTHS = dict(zip(TOOLS, (.0165, .0185, .031, .040)))
_GRAIN = 64  # extra pixels of the grain, from which each drawing cuts its own piece


def draw(strokes: Sequence[Stroke], writer: Writer, tool: str, rng: np.random.Generator,
         size: int, wild: bool = False) -> np.ndarray:
    """Draws a figure.

    Args:
        strokes: the figure, in any units; it is measured and fitted to the paper.
        writer: whose hand draws.
        tool: one of TOOLS.
        rng: the randomness of this drawing alone.
        size: side of the paper in pixels.
        wild: whether the paper is rotated by up to 40 degrees, mirrored and bent as well.

    Returns:
        uint8 [size, size, 3], RGB.
    """
    strokes = _retraced(strokes, writer, rng)
    points, first, counts = _sampled([s.points for s in strokes], writer, rng)
    _shake(points, first, counts, writer, rng)
    width = _WIDTHS[tool] * writer.width
    points = _posed(points, writer, rng, wild, MARGIN + .8 * width)
    side = size * (3 if size < 128 else 2)
    # Small drawings are drawn with the tip of the tool, large ones with its flat side.
    width *= side * math.sqrt(np.ptp(points, axis=0).max() / .75)
    layer = _inked(points, first, [s.inside for s in strokes], writer, tool, rng, side, width)
    return _coloured(cv2.resize(layer, (size, size), interpolation=cv2.INTER_AREA),
                     writer, tool, rng)


def _retraced(strokes: Sequence[Stroke], writer: Writer,
              rng: np.random.Generator) -> list[Stroke]:
    """Some hands draw a line twice, but not over what the first line hides."""
    again = rng.random(len(strokes)) < writer.retrace
    if not again.any():
        return list(strokes)
    result = []
    for stroke, twice in zip(strokes, again):
        result.append(stroke)
        if twice and stroke.inside != SOLID:
            result.append(Stroke(stroke.points, OPEN))
    return result


def _sampled(lines: list[np.ndarray], writer: Writer, rng: np.random.Generator):
    """Points at equal distances along each line; some lines end too early, as hands do.

    Returns:
        points: float64 [n, 2], centred; the longer side of the figure is 1.
        first: int [k + 1], where each line begins.
        counts: int [k], points of each line.
    """
    knots = np.concatenate(lines)
    low, high = knots.min(0), knots.max(0)
    knots = (knots - (low + high) / 2) / (high - low).max()
    sizes = np.array([len(points) for points in lines])
    ends = np.cumsum(sizes)
    starts = ends - sizes
    lengths = np.empty(len(knots))
    lengths[0] = 0
    lengths[1:] = np.sqrt((np.diff(knots, axis=0) ** 2).sum(1))
    lengths[starts] = 1  # a gap in the common arc length separates the lines
    way = np.cumsum(lengths)
    begin, length = way[starts], way[ends - 1] - way[starts]
    short = np.minimum(writer.overshoot + writer.looseness * rng.standard_normal(len(sizes)), 0)
    length = length + np.maximum(short, -.08 * length)
    counts = np.maximum(np.ceil(length / STEP).astype(int) + 1, 5)
    first = np.concatenate([[0], np.cumsum(counts)])
    within = np.arange(first[-1]) - np.repeat(first[:-1], counts)
    at = np.repeat(begin, counts) + within * np.repeat(length / (counts - 1), counts)
    points = np.empty((len(at), 2))
    points[:, 0] = np.interp(at, way, knots[:, 0])
    points[:, 1] = np.interp(at, way, knots[:, 1])
    return points, first, counts


def _shake(points: np.ndarray, first: np.ndarray, counts: np.ndarray, writer: Writer,
           rng: np.random.Generator) -> None:
    """Rounds corners, trembles, misplaces strokes and runs past ends; in place."""
    inner = np.repeat(counts > 9, counts)
    inner[first[:-1]] = inner[first[1:] - 1] = False
    inner = np.flatnonzero(inner)
    for _ in range(writer.speed):
        points[inner] = (points[inner - 1] + points[inner + 1]) / 4 + points[inner] / 2

    line = np.repeat(np.arange(len(counts)), counts)
    phase = rng.random((len(counts), 6)) * 2 * np.pi
    waves = (np.arange(len(points))[:, None] * _FREQUENCIES + phase[line]).astype(np.float32)
    points += np.sin(waves) @ (_AMPLITUDES * writer.tremor)

    # Each stroke is a little misplaced, a little turned, and a little too large or too small.
    centre = np.add.reduceat(points, first[:-1], axis=0) / counts[:, None]
    move = rng.standard_normal((len(counts), 4))
    extent = np.minimum(counts * STEP, 1)  # the angle of a long stroke is aimed more carefully
    angle = 3.5 * writer.wobble * move[:, 0] / (.5 + extent)
    grow = 1 + 2.5 * writer.wobble * move[:, 1]
    c, s = (grow * np.cos(angle))[line], (grow * np.sin(angle))[line]
    x, y = (points - centre[line]).T
    goal = (centre + .8 * writer.wobble * move[:, 2:])[line]
    points[:, 0] = goal[:, 0] + c * x - s * y
    points[:, 1] = goal[:, 1] + s * x + c * y

    last = first[1:] - 1
    beyond = np.maximum(writer.overshoot + writer.looseness * move[:, 0], 0) * (counts > 7)
    way = points[last] - points[last - 1]
    way /= np.maximum(np.sqrt((way**2).sum(1)), 1e-6)[:, None]
    points[last] += way * beyond[:, None]


def _bent(points: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """The points moved by a smooth displacement field of two long waves per axis."""
    u = rng.random((4, 3))
    angle = 2 * np.pi * u[:, 0]
    waves = np.array([np.cos(angle), np.sin(angle)]) * (3 + 4 * u[:, 1])
    return points + np.sin(points @ waves + 2 * np.pi * u[:, 2]) @ (_PAIRS * amount)


def _posed(points: np.ndarray, writer: Writer, rng: np.random.Generator,
           wild: bool, margin: float) -> np.ndarray:
    """The points on the paper, a unit square: proportions, slant, rotation, size and place."""
    points = _bent(points, writer.bend, rng)
    normal, u = rng.standard_normal(3).tolist(), rng.random(6).tolist()
    angle = writer.tilt + TURN * min(max(normal[0], -2.4), 2.4)
    aspect = math.sqrt(writer.aspect * math.exp(.08 * normal[1]))
    slant = -(writer.slant + .04 * normal[2])  # y runs downwards: tops lean right
    shape = np.array([[aspect, slant], [0, 1 / aspect]])
    extent = writer.extent * (.83 + .34 * u[0])
    if wild:
        points = _bent(points, .035, rng)
        angle += math.radians(80 * u[3] - 40)
        if u[4] < .5:
            shape[0] *= -1
        if u[5] < .25:
            shape[1] *= -1
    c, s = math.cos(angle), math.sin(angle)
    points = points @ (np.array([[c, -s], [s, c]]) @ shape).T
    low, high = points.min(0), points.max(0)
    points = (points - (low + high) / 2) * extent
    reach = (high - low) * extent
    free = 1 - 2 * margin
    if reach.max() > free:
        points *= free / reach.max()
        reach = reach * free / reach.max()
    # Most people aim at the middle of the paper.
    return points + .5 + .8 * (free - reach) * (np.array(u[1:3]) - .5)


def _inked(points: np.ndarray, first: np.ndarray, insides: list[int], writer: Writer, tool: str,
           rng: np.random.Generator, side: int, width: float) -> np.ndarray:
    """Coverage by ink, uint8 [side, side], of lines about `width` pixels wide."""
    layer = np.zeros((side, side), np.uint8)
    fixed = np.rint(points * (side << _SHIFT)).astype(np.int32)
    noise = rng.standard_normal(len(insides)).tolist()
    levels = _brush_levels(points, first, width, rng) if tool == 'brush' else None
    bounds = first.tolist()
    for i, inside in enumerate(insides):
        line = fixed[bounds[i]:bounds[i + 1]]
        ink = 255
        if tool == 'pencil':
            ink = min(max(int(236 + 100 * writer.pressure * noise[i]), 185), 255)
        if inside == COVER:
            cv2.fillPoly(layer, [line], 0, cv2.LINE_8, _SHIFT)
        elif inside == SOLID:
            cv2.fillPoly(layer, [line], ink, cv2.LINE_8, _SHIFT)
        if levels is None or inside == SOLID:
            slim = .45 if inside == SOLID else 1 + writer.pressure * noise[i]
            thick = max(1, round(width * slim))
            cv2.polylines(layer, [line], False, ink, thick, cv2.LINE_8, _SHIFT)
            continue
        level = levels[bounds[i]:bounds[i + 1]]
        cuts = np.flatnonzero(np.diff(level)).tolist()
        for a, b in zip([0, *(c + 1 for c in cuts)], [*(c + 1 for c in cuts), len(line) - 1]):
            cv2.polylines(layer, [line[a:b + 1]], False, ink, int(level[a]), cv2.LINE_8, _SHIFT)
    return layer


def _brush_levels(points: np.ndarray, first: np.ndarray, width: float,
                  rng: np.random.Generator) -> np.ndarray:
    """Width of a brush at each point in whole pixels; ends taper, downstrokes are heavier."""
    counts = np.diff(first)
    line = np.repeat(np.arange(len(counts)), counts)
    t = (np.arange(len(points)) - first[line]) / (counts - 1)[line]
    taper = np.sin(np.pi * np.clip(.06 + .9 * t, 0, 1)) ** .7
    way = np.diff(points, axis=0, append=points[-1:])
    steep = np.abs(way[:, 1]) / (np.abs(way).sum(1) + 1e-6)
    swell = 1 + .22 * np.sin(np.arange(len(points)) * .13 + rng.random() * 6.3)
    return np.maximum(np.rint(width * (.3 + .85 * taper) * (.75 + .4 * steep) * swell), 1)


@functools.lru_cache(maxsize=16)
def _grain(size: int, tool: str) -> np.ndarray:
    """The grain of the paper (pencil) or the flow of the ink (brush), uint8."""
    side = size + _GRAIN
    rng = np.random.default_rng((side, TOOLS.index(tool)))
    noise = rng.standard_normal((side, side), np.float32)
    if tool == 'pencil':
        noise = noise * .8 + 1.6 * cv2.GaussianBlur(noise, (0, 0), .9)
        value = 200 + 52 * noise
    else:
        value = 225 + 380 * cv2.GaussianBlur(noise, (0, 0), 4) + 10 * noise
    return np.clip(value, 90, 255).astype(np.uint8)


def _coloured(cover: np.ndarray, writer: Writer, tool: str,
              rng: np.random.Generator) -> np.ndarray:
    """Ink on paper: uint8 [s, s] -> uint8 [s, s, 3]."""
    u = rng.random(4)
    colour = np.array(writer.ink, float)
    strength = 1.
    if tool == 'pencil':
        colour = np.full(3, 46 + 32 * u[0])
    elif tool == 'brush':
        colour = np.array((16, 16, 18)) + 26 * u[0]
    elif tool == 'marker':
        colour = np.array(writer.colours[int(u[0] * len(writer.colours))], float)
        strength = .93
    if tool in ('pencil', 'brush'):
        size = len(cover)
        top, left = (u[1:3] * _GRAIN).astype(int)
        grain = _grain(size, tool)[top:top + size, left:left + size]
        cover = cv2.multiply(cover, grain, scale=1 / 255)
    paper = np.array(writer.paper)
    table = np.rint(paper + _SHARE * (strength * (colour - paper))).astype(np.uint8)
    return table.take(cover, axis=0)
