"""How a picture is made, in numbers: edges, areas of one colour, colours and texture.

A drawing has areas of one colour and edges as sharp as a pen's. In a photograph the lens blurs
edges, the light changes everywhere, and there is noise. This follows the idea of Athitsos, Swain
and Frankel (1997), Distinguishing photographs and graphics on the World Wide Web.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from input_pipeline import sources
from input_pipeline.manifest import Manifest

SIDE = 128  # pixels, the largest size of the longest side
_LEVELS = 3  # each half as large as the one before
# Bins of the joint histograms: slope (grey levels per pixel), bend / slope, deviation around.
_SLOPES, _BENDS, _AROUND = (.5, 1.5, 4, 10, 24), (.3, .7, 1.2, 2), (1.5, 5, 15)


def statistics(picture: np.ndarray) -> dict[str, float]:
    """Statistics, by name, of the edges, areas, colours and texture of RGB uint8 [H, W, 3]."""
    height, width = picture.shape[:2]
    ratio = SIDE / max(height, width)
    if ratio < 1:
        picture = cv2.resize(picture, (max(8, round(width * ratio)), max(8, round(height * ratio))),
                             interpolation=cv2.INTER_AREA)
    found = _color_statistics(picture)
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(np.float32)
    for level in range(_LEVELS):
        found |= {f'{name}_{level}': value for name, value in _edge_statistics(lab).items()}
        if level < 2:
            found |= {f'{name}_{level}': value for name, value in _textures(lab[..., 0]).items()}
        if min(lab.shape[:2]) >= 16:
            lab = cv2.resize(lab, None, fx=.5, fy=.5, interpolation=cv2.INTER_AREA)
    return found


def _color_statistics(picture: np.ndarray) -> dict[str, float]:
    pixels = picture.shape[0] * picture.shape[1]
    colors = np.sort(_count_colors(picture, 5))[::-1]
    grey = np.bincount(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).ravel() >> 2, minlength=64)
    highest = picture.max(2).astype(np.float32)
    saturation = (highest - picture.min(2)) / np.maximum(highest, 1)
    small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA)
    return {
        'top_color': colors[0] / pixels, 'top_colors': colors[:8].sum() / pixels,
        'colors': np.log(len(colors)) / np.log(max(pixels, 2)), 'color_entropy': _entropy(colors),
        'coarse_entropy': _entropy(_count_colors(small, 4)),
        'grey_entropy': _entropy(grey), 'grey_gaps': float(np.mean(grey < 1e-3 * pixels)),
        'saturation': float(saturation.mean()), 'saturated': float(np.mean(saturation > .8)),
        'saturation_entropy': _entropy(np.histogram(saturation, 32, (0, 1))[0])}


def _edge_statistics(lab: np.ndarray) -> dict[str, float]:
    light = np.ascontiguousarray(lab[..., 0])
    slope, bend = _slope_and_bend(light)
    mean = cv2.blur(lab, (5, 5))
    spread = np.sqrt(np.maximum(cv2.blur(lab * lab, (5, 5)) - mean * mean, 0))
    found = {
        'flat': float(np.mean(slope < 1)), 'steep': float(np.mean(slope > 24)),
        'gentle': float(np.sum((slope > 1.5) & (slope < 12)) / max(np.sum(slope > 1.5), 1)),
        'slope_entropy': _entropy(np.histogram(np.log2(slope + .25), 16, (-2, 7))[0])}
    for share in (.25, .5, .75, .95):
        found[f'bend{share * 100:.0f}'] = np.log(np.quantile(bend, share) + .5)
    for share in (.1, .25, .5, .75):
        percent = f'{share * 100:.0f}'
        found[f'texture{percent}'] = np.log(np.quantile(spread[..., 0], share) + .5)
        found[f'tint{percent}'] = np.log(np.quantile(spread[..., 1] + spread[..., 2], share) + .5)
    # Places that look photographed: slopes that are neither flat nor steep, and change slowly.
    live = ((slope > 1) & (slope < 16) & (bend < slope)).astype(np.float32)
    for share in (.3, .5):
        found[f'live{share * 100:.0f}'] = float(np.mean(cv2.blur(live, (9, 9)) > share))
    found['noisy'] = float(np.mean(cv2.blur((bend > 2 * slope).astype(np.float32), (9, 9)) > .3))
    edges = slope >= max(np.quantile(slope, .9), 3)
    # How fast the slope itself changes at edges: a pen's edge is one pixel wide, a lens's is wider.
    sharp = np.log((bend[edges] + .5) / (slope[edges] + .5)) if edges.any() else np.ones(1)
    found |= {'sharpness': float(sharp.mean()), 'sharpness_spread': float(sharp.std())}
    steepest = slope >= max(np.quantile(slope, .98), 3)
    found['sharpness_top'] = (float(np.median(bend[steepest] / slope[steepest]))
                              if steepest.any() else 2.0)
    return found | {f'sharpness{share * 100:.0f}': np.quantile(sharp, share)
                    for share in (.1, .5, .9)}


def _textures(light: np.ndarray) -> dict[str, float]:
    """Square roots of the shares of pixels in the joint bins of slope and bend, slope and
    deviation, and bend and deviation."""
    light = np.ascontiguousarray(light)
    slope, bend = _slope_and_bend(light)
    mean = cv2.blur(light, (9, 9))
    around = np.sqrt(np.maximum(cv2.blur(light * light, (9, 9)) - mean * mean, 0))
    bins = {'slope': (np.digitize(slope, _SLOPES), len(_SLOPES) + 1),
            'bend': (np.digitize(bend / (slope + .5), _BENDS), len(_BENDS) + 1),
            'around': (np.digitize(around, _AROUND), len(_AROUND) + 1)}
    found = {}
    for first, second in (('slope', 'bend'), ('slope', 'around'), ('bend', 'around')):
        (one, rows), (other, columns) = bins[first], bins[second]
        counts = np.bincount((one * columns + other).ravel(), minlength=rows * columns)
        found |= {f'{first}_{second}{cell}': float(np.sqrt(count / light.size))
                  for cell, count in enumerate(counts)}
    return found


def _slope_and_bend(light: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    slope = np.hypot(cv2.Sobel(light, cv2.CV_32F, 1, 0), cv2.Sobel(light, cv2.CV_32F, 0, 1)) / 8
    return slope, np.abs(cv2.Laplacian(light, cv2.CV_32F))


def _count_colors(picture: np.ndarray, bits: int) -> np.ndarray:
    """Number of pixels of each colour that occurs, with `bits` bits per channel."""
    code = (picture >> (8 - bits)).astype(np.int32) @ np.array([1 << 2 * bits, 1 << bits, 1])
    counts = np.bincount(code.ravel())
    return counts[counts > 0]


def _entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-np.sum(share * np.log2(share)))


NAMES = tuple(statistics(np.zeros((16, 16, 3), np.uint8)))


def measure(manifest: Manifest, *, threads: int = 2,
            progress: Callable[[], None] = lambda: None) -> np.ndarray:
    """Statistics of all rows, float32 [N, len(NAMES)].

    Args:
        manifest: N rows.
        threads: how many work at once.
        progress: called after each picture.

    Raises:
        UnreadableImage: a picture cannot be read.
    """
    found = np.empty((len(manifest), len(NAMES)), np.float32)
    locations, read = manifest.table['location'].to_numpy(), sources.reader(manifest)

    def fill(row):
        picture = read(locations[row], (SIDE, SIDE))
        found[row] = list(statistics(picture).values())
        progress()

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for _ in pool.map(fill, range(len(manifest)), chunksize=64):
            pass
    return found
