"""Erasing: parts of the picture are covered, so that a model learns not to depend on one of them.

Each transform draws a function from picture to picture. Pictures are RGB uint8 [H, W, 3], RGBA
[H, W, 4] (a covered part is opaque) or grey [H, W]. Sizes are shares of the picture's sides (for
squares: of the shorter one) or area. `fill` is one of FILLS: 'noise' is a random level for each
value, 'mean' the picture's mean colour.
"""

import math
from functools import partial

import numpy as np

FILLS = ('noise', 'mean', 'black', 'grey', 'white')
_LEVELS = {'black': 0, 'grey': 128, 'white': 255}


def _erased(image: np.ndarray, boxes: list, fill: str, seed: int) -> np.ndarray:
    """Covers boxes (top, bottom, left, right)."""
    if image.ndim == 3 and image.shape[2] == 4:
        rgb, opaque = _erased(image[..., :3], boxes, fill, seed), image[..., 3].copy()
        for top, bottom, left, right in boxes:
            opaque[top:bottom, left:right] = 255
        return np.dstack([rgb, opaque])
    value = _LEVELS.get(fill)
    if fill == 'mean':
        value = np.rint(image.mean((0, 1))).astype(np.uint8)
    image = image.copy()
    rng = np.random.Generator(np.random.PCG64(seed)) if fill == 'noise' else None
    for top, bottom, left, right in boxes:
        hole = image[top:bottom, left:right]
        hole[:] = value if rng is None else rng.integers(0, 256, hole.shape, np.uint8)
    return image


def _random_erasing(rng, size, scale, ratio, fill):
    """Zhong et al. 2020: one box of random area and shape, with ten tries to place it."""
    seed = int(rng.integers(2**63))
    for _ in range(10):
        area = rng.uniform(*scale) * size[0] * size[1]
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        height, width = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < height < size[0] and 0 < width < size[1]:
            top, left = (int(at) for at in rng.integers((size[0] - height + 1,
                                                         size[1] - width + 1)))
            return partial(_erased, boxes=[(top, top + height, left, left + width)],
                           fill=fill, seed=seed)
    return partial(_erased, boxes=[], fill=fill, seed=seed)


def _cutout(rng, size, share, fill):
    """DeVries and Taylor 2017: a square around a random pixel, cut off at the border."""
    seed = int(rng.integers(2**63))
    side = max(1, round(share * min(size)))
    y, x = (int(at) for at in rng.integers(size))
    top, left = y - side // 2, x - side // 2
    boxes = [(max(top, 0), max(top + side, 0), max(left, 0), max(left + side, 0))]
    return partial(_erased, boxes=boxes, fill=fill, seed=seed)


def _coarse_dropout(rng, size, count, share, fill):
    """Several boxes; each side is a random share of the picture's side."""
    seed = int(rng.integers(2**63))
    boxes = []
    for _ in range(rng.integers(count[0], count[1] + 1)):
        height, width = (max(1, round(rng.uniform(*share) * side)) for side in size)
        top, left = (int(at) for at in rng.integers((size[0] - height + 1, size[1] - width + 1)))
        boxes.append((top, top + height, left, left + width))
    return partial(_erased, boxes=boxes, fill=fill, seed=seed)


def _grid_mask(rng, size, period, keep, fill):
    """Chen et al. 2020, without rotation: a grid of squares at a random phase. The period is
    random, and the side of a square is 1 - keep of it."""
    seed = int(rng.integers(2**63))
    step = max(2, round(rng.uniform(*period) * min(size)))
    hole = min(max(1, round((1 - keep) * step)), step - 1)
    y, x = (int(at) for at in rng.integers(step, size=2))
    boxes = [(max(top, 0), top + hole, max(left, 0), left + hole)
             for top in range(y - step, size[0], step) if top + hole > 0
             for left in range(x - step, size[1], step) if left + hole > 0]
    return partial(_erased, boxes=boxes, fill=fill, seed=seed)


# kind: (draw, defaults, allowed range or values of each parameter)
KINDS = {
    'random_erasing': (
        _random_erasing, dict(p=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3), fill='noise'),
        dict(scale=(0, 1), ratio=(0.01, 100), fill=FILLS)),
    'cutout': (_cutout, dict(p=0.5, share=0.5, fill='grey'), dict(share=(0, 1), fill=FILLS)),
    'coarse_dropout': (
        _coarse_dropout, dict(p=0.5, count=(1, 8), share=(0.05, 0.15), fill='black'),
        dict(count=(1, 1000), share=(0, 1), fill=FILLS)),
    'grid_mask': (_grid_mask, dict(p=0.5, period=(0.2, 0.5), keep=0.5, fill='black'),
                  dict(period=(0.01, 2), keep=(0.01, 0.99), fill=FILLS)),
}
