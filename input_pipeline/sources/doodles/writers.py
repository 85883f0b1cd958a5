"""The people who draw: what the sketches of one person have in common, and the tools."""

import dataclasses
import functools

import numpy as np

TOOLS = ('pencil', 'pen', 'brush', 'marker')

_INKS = ((18, 18, 20), (10, 10, 12), (30, 30, 34), (22, 26, 48))
_MARKERS = ((25, 25, 28), (40, 40, 44), (196, 40, 44), (30, 84, 180), (26, 120, 70),
            (122, 54, 150), (222, 108, 20), (120, 72, 40), (12, 128, 140), (204, 48, 120))
_PAPERS = ((255, 255, 255), (255, 255, 255), (252, 252, 250), (250, 248, 242), (247, 248, 250),
           (252, 247, 236))


@dataclasses.dataclass(frozen=True)
class Writer:
    """One person's hand. Lengths are fractions of the figure's longer side, angles are radians."""

    width: float  # of the lines, relative to the tool's usual width
    tremor: float  # amplitude of the fast shake along a line
    wobble: float  # how far whole strokes miss their place
    bend: float  # how strongly the whole figure is bent
    slant: float  # shear, x per y
    aspect: float  # width / height, relative to the figure as designed
    speed: int  # number of smoothing passes: a fast hand rounds corners
    overshoot: float  # mean length by which a line runs past its end (below 0: stops short)
    looseness: float  # standard deviation of that length
    extent: float  # usual size on the paper, fraction of the paper
    tilt: float  # usual rotation on the paper
    retrace: float  # probability that a stroke is drawn twice
    pressure: float  # how much the width changes between strokes
    ink: tuple[int, int, int]
    colours: tuple[tuple[int, int, int], ...]  # the markers in this person's pencil case
    paper: tuple[int, int, int]
    tools: tuple[float, ...]  # probability of each of TOOLS


@functools.lru_cache(maxsize=8192)
def make_writer(seed: int, writer: int) -> Writer:
    """Writer number `writer` (from 0) of the data set `seed`; always the same person."""
    rng = np.random.default_rng((seed, 0x5EED, writer))
    u = rng.random(12).tolist()
    tools = np.full(len(TOOLS), .12)
    tools[rng.integers(len(TOOLS))] += .52
    colours = rng.choice(len(_MARKERS), size=3, replace=False)
    return Writer(
        width=.75 + .6 * u[0],
        tremor=.0012 + .0055 * u[1] ** 2,
        wobble=.003 + .011 * u[2] ** 1.5,
        bend=.008 + .02 * u[3],
        slant=.36 * (u[4] - .5),
        aspect=float(np.exp(.44 * (u[5] - .5))),
        speed=int(4 * u[6]),
        overshoot=-.006 + .02 * u[7],
        looseness=.002 + .012 * u[8] ** 2,
        extent=.65 + .18 * u[9],
        tilt=.22 * (u[10] - .5),
        retrace=.3 * max(0., u[11] - .7) / .3,
        pressure=.05 + .15 * float(rng.random()),
        ink=_INKS[rng.integers(len(_INKS))],
        colours=tuple(_MARKERS[c] for c in colours),
        paper=_PAPERS[rng.integers(len(_PAPERS))],
        tools=tuple((tools / tools.sum()).tolist()),
    )
