"""Is one small picture a copy of another, perhaps cropped? Many pairs are compared at once.

A crop that was scaled back is a scale and a shift of each axis. They are found by Gauss-Newton
steps on the correlation of the two pictures, which does not depend on brightness and contrast
(the enhanced correlation coefficient of Evangelidis and Psarakis, 2008). The steps go from coarse
to fine; pairs that stay unlike are given up on the way.
"""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from input_pipeline.curation.hashes import position

# side in pixels, Gauss-Newton steps, and the correlation below which a pair is given up
_LEVELS = ((16, 6, 0.85), (32, 5, 0.94), (64, 4, -1.0))
_STARTS = (1.0, 0.92, 1.08)  # scales tried first, at the coarsest level
_SCALES = (0.8, 1.25)  # the range allowed for the scale of an axis
_ASPECT = 1.04  # the largest ratio of the two scales
_SHIFT = 0.25  # the largest shift, as a share of a side
_OVERLAP = 0.7  # the least share of the picture that must overlap
_BLUR = 0.8  # px: two resized versions of one picture differ in its finest detail
_SPECKS = 8  # pixels of 64 x 64 that may differ by any amount
_ONE_WAY = 0.15  # smallest / largest eigenvalue of the gradients' second moments
_BLOCK = 256  # pairs compared at once
_ONE_SCALE = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]], np.float32)


def register(thumbs: np.ndarray, first: np.ndarray, second: np.ndarray, positions: np.ndarray, *,
             threads: int = 2, progress=lambda done, total: None
             ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How alike the two pictures of each pair are once one is laid over the other.

    Args:
        thumbs: uint8 [N, 64, 64].
        first, second: int [M], the pairs.
        positions: int [M], the position of the second picture, of `hashes.POSITIONS`.
        threads: how many blocks of pairs are compared at once.
        progress: called with (pairs done, pairs).

    Returns:
        correlation: float32 [M], -1 to 1; for a pair that was given up, the value it had reached.
        residual: float32 [M], the largest difference of a pixel except the eight largest, in
            standard deviations of the pictures; infinite for a pair that was given up.
        motion: float32 [M], the largest change of a scale (1: doubled) or shift (1: half a
            side); infinite for a pair that was given up.
    """
    correlation = np.empty(len(first), np.float32)
    residual, motion = np.empty_like(correlation), np.empty_like(correlation)

    def block(start: int) -> int:
        part = slice(start, start + _BLOCK)
        correlation[part], residual[part], motion[part] = _register(
            thumbs, first[part], second[part], positions[part])
        return min(start + _BLOCK, len(first))

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for done in pool.map(block, range(0, len(first), _BLOCK)):
            progress(done, len(first))
    return correlation, residual, motion


def lone_strokes(thumbs: np.ndarray) -> np.ndarray:
    """Which pictures, uint8 [N, 64, 64], contain little more than lines of one direction: bool [N].

    Any two of them can be laid over each other, so it proves nothing if they coincide.
    """
    found = np.zeros(len(thumbs), bool)
    for row, thumb in enumerate(thumbs):
        grey = cv2.GaussianBlur(thumb.astype(np.float32), (0, 0), _BLUR)
        x, y = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
        xx, yy, xy = (float((one * other).sum()) for one, other in ((x, x), (y, y), (x, y)))
        spread = np.hypot(xx - yy, 2 * xy)
        found[row] = xx + yy - spread < _ONE_WAY * (xx + yy + spread)
    return found


def _register(thumbs, first, second, positions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    best = np.full(len(first), -1, np.float32)
    residual, motion = np.full((2, len(first)), np.inf, np.float32)
    alive = np.arange(len(first))
    # Scale and shift of x, then of y.
    warp = np.tile(np.array([1, 0, 1, 0], np.float32), (len(first), 1))
    for side, steps, least in _LEVELS:
        a = np.stack([_level(thumbs[k], side) for k in first[alive]])
        b = np.stack([position(_level(thumbs[k], side), turn)
                      for k, turn in zip(second[alive], positions[alive])])
        coarsest, finest = side == _LEVELS[0][0], side == _LEVELS[-1][0]
        reached, kept = np.full(len(alive), -1, np.float32), warp[alive]
        for start in _STARTS if coarsest else (1.0,):
            now = warp[alive] * np.array([start, 1, start, 1], np.float32)
            for step in range(steps + 1):
                value, change = _step(a, b, now, both_scales=finest, last=step == steps)
                value[~_allowed(now)] = -1
                better = value > reached
                reached[better], kept[better] = value[better], now[better]
                now = now + change
        warp[alive], best[alive] = kept, reached
        if finest:
            residual[alive] = _residual(a, b, kept)
            motion[alive] = np.abs(kept - [1, 0, 1, 0]).max(1)
        alive = alive[reached >= least]
        if not len(alive):
            break
    return best, residual, motion


def _level(thumb: np.ndarray, side: int) -> np.ndarray:
    small = thumb if side == len(thumb) else cv2.resize(thumb, (side, side),
                                                        interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small.astype(np.float32), (0, 0), _BLUR)


def _allowed(warp: np.ndarray) -> np.ndarray:
    scales, shifts = warp[:, ::2], warp[:, 1::2]
    ratio = scales.max(1) / np.maximum(scales.min(1), 1e-3)
    return ((scales > _SCALES[0]) & (scales < _SCALES[1]) & (np.abs(shifts) < 2 * _SHIFT)
            ).all(1) & (ratio < _ASPECT)


def _step(a: np.ndarray, b: np.ndarray, warp: np.ndarray, *, both_scales: bool, last: bool
          ) -> tuple[np.ndarray, np.ndarray]:
    """Correlation [M] of a with b under the warps [M, 4], and the next step [M, 4]."""
    count, side = a.shape[:2]
    at = _axis(side)
    down, down_slope, across, across_slope, inside = _samples(warp, at)
    area = np.maximum(inside.sum(1), 1)
    lines = down @ b
    target, _ = _unit(a, inside)
    moved, size = _unit(lines @ across.transpose(0, 2, 1), inside)
    value = np.einsum('mp,mp->m', target, moved)
    value[area < _OVERLAP * side * side] = -1
    if last:
        return value, np.zeros_like(warp)
    x_slope = (lines @ across_slope.transpose(0, 2, 1)) * (side / 2)
    y_slope = (down_slope @ b @ across.transpose(0, 2, 1)) * (side / 2)
    slopes = np.stack([x_slope * at, x_slope, y_slope * at[:, None], y_slope], 1)
    slopes = slopes.reshape(count, 4, -1) * inside[:, None]
    # Slopes of the normalised picture: a change of its mean or contrast is not a motion.
    slopes -= (slopes.sum(2) / area[:, None])[..., None] * inside[:, None]
    slopes -= (slopes @ moved[..., None]) * moved[:, None]
    slopes /= size[:, None, None]
    curvature = slopes @ slopes.transpose(0, 2, 1)
    damping = 1e-3 * np.trace(curvature, axis1=1, axis2=2)[:, None, None] + 1e-6
    curvature += damping * np.eye(4, dtype=np.float32)
    pull = slopes @ (target - moved)[..., None]
    free = np.eye(4, dtype=np.float32) if both_scales else _ONE_SCALE
    change = free @ np.linalg.solve(free.T @ curvature @ free, free.T @ pull)
    return value, np.clip(change[..., 0], -0.1, 0.1)


def _residual(a: np.ndarray, b: np.ndarray, warp: np.ndarray) -> np.ndarray:
    down, _, across, _, inside = _samples(warp, _axis(a.shape[1]))
    target, _ = _unit(a, inside)
    moved, _ = _unit(down @ b @ across.transpose(0, 2, 1), inside)
    apart = np.partition(np.abs(target - moved), -_SPECKS, axis=1)[:, -_SPECKS]
    return apart * np.sqrt(inside.sum(1))


def _unit(values: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pictures [M, P] with mean 0 and norm 1 inside, and the norm that they had."""
    values = values.reshape(inside.shape)
    means = np.einsum('mp,mp->m', values, inside) / np.maximum(inside.sum(1), 1)
    values = (values - means[:, None]) * inside
    size = np.maximum(np.sqrt(np.einsum('mp,mp->m', values, values)), 1e-2)
    return values / size[:, None], size


def _axis(side: int) -> np.ndarray:
    """The centres of the pixels, from -1 to 1 across the picture."""
    return (2 * np.arange(side, dtype=np.float32) + 1) / side - 1


def _samples(warp: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, ...]:
    """Linear interpolation: the weights and their slopes [M, side, side] of each axis, down and
    across, and a mask, float32 [M, P], of the pixels that come from inside the picture."""
    side, found, within = len(at), [], []
    for scale, shift in ((warp[:, 2:3], warp[:, 3:]), (warp[:, :1], warp[:, 1:2])):
        place = (scale * at + shift + 1) * (side / 2) - 0.5
        within.append((place > -0.5) & (place < side - 0.5))
        away = np.clip(place, 0, side - 1)[..., None] - np.arange(side, dtype=np.float32)
        weights, ahead, behind = (np.maximum(1 - np.abs(away + step), 0)
                                  for step in (0, 0.5, -0.5))
        found += [weights, ahead - behind]
    inside = within[0][:, :, None] & within[1][:, None]
    return *found, inside.reshape(len(warp), -1).astype(np.float32)
