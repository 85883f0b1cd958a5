"""Finds the foreground of a picture, and replaces the background.

GrabCut (Rother, Kolmogorov & Blake, SIGGRAPH 2004) needs no weights. It models the colours of
foreground and background, so it works well only if they differ. rembg, an optional package,
recognises objects.
"""

import functools
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import cv2
import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.preprocessing import faces

BACKENDS = ('grabcut', 'rembg')
FILLS = ('white', 'black', 'blur')
STARTS = ('border', 'face')

_GAUSSIANS = 5  # OpenCV's GrabCut has five per side, and needs at least as many pixels
_SPECK = 0.1  # pieces and holes below this share of the largest piece are mistakes
_BLUR_SIDE = 64  # pixels at which the background is blurred
_lock = threading.Lock()


def replace_background(image: np.ndarray, options: dict,
                       before: Mapping[str, dict] = MappingProxyType({}),
                       ) -> tuple[np.ndarray, dict]:
    """The picture with a white, black or blurred background.

    Args:
        image: RGB uint8 [H, W, 3].
        options: `fill`: a word of FILLS; `backend`: 'grabcut' or 'rembg'; `least`: the share of
            foreground below which the picture stays as it is. For GrabCut: `start`: start from
            the 'border' or from the 'face' (without a face the picture stays as it is);
            `border`: width of the margin that is background, as a share of the shorter side;
            `core`: diameter of the middle that is foreground, as a share of the picture (0:
            none); `size`: pixels of the longest side at which it works; `iterations`: how many;
            `detector`: of the face. For rembg: `model`: its name.
        before: the records of the earlier steps; the face of an earlier crop is used.

    Returns:
        The picture, uint8 [H, W, 3], and the record: foreground (its share, 0 to 1), fallback.

    Raises:
        DataError: the backend or the detector is missing.
    """
    if options['backend'] == 'rembg':
        mask = _rembg(image, options['model'])
    elif options['start'] == 'border':
        mask = grabcut(image, options)
    else:
        face = _face_of(image, options['detector'], before)
        if face is None:
            return image, dict(foreground=1.0, fallback='keep')
        mask = grabcut(image, options, face)
    share = float(mask.mean())
    record = dict(foreground=round(share, 4), fallback='')
    if share < options['least']:
        return image, record | dict(fallback='keep')
    return _fill(image, mask, options['fill']), record


def grabcut(image: np.ndarray, options: dict, face: Sequence[float] | None = None) -> np.ndarray:
    """The foreground of a picture.

    Args:
        image: RGB uint8 [H, W, 3].
        options: `border`, `core`, `size` and `iterations` of `replace_background`.
        face: (left, top, width, height) in pixels, to start from; None: start from the border.

    Returns:
        float32 [H, W], 0 or 1; values in between occur only along edges, where a smaller mask was
        enlarged.
    """
    height, width = image.shape[:2]
    scale = min(1, options['size'] / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    if face is None:
        seeds = _border_seeds(size, options['border'], options['core'])
    else:
        seeds = _face_seeds(size, [n * scale for n in face], options['border'])
    front = (seeds & 1).astype(bool)  # OpenCV: 0 background, 1 foreground, 2 and 3 probably
    if min(front.sum(), (~front).sum()) >= _GAUSSIANS:
        # Its clusters start at random; each thread has its own generator.
        cv2.setRNGSeed(0)
        cv2.grabCut(np.ascontiguousarray(small), seeds, None, np.zeros((1, 65)),
                    np.zeros((1, 65)), options['iterations'], cv2.GC_INIT_WITH_MASK)
        front = (seeds & 1).astype(bool)
    mask = _without_specks(front).astype(np.float32)
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)


def _face_of(image: np.ndarray, detector: str, before: Mapping[str, dict]):
    crops = [record for record in before.values() if 'crop_left' in record]
    if crops:
        face = crops[-1]
        return [face['left'] - face['crop_left'], face['top'] - face['crop_top'],
                face['width'], face['height']] if face['found'] else None
    boxes, _ = faces.find_faces(image, detector)
    return boxes[0].tolist() if len(boxes) else None


def _border_seeds(size: tuple[int, int], border: float, core: float) -> np.ndarray:
    width, height = size
    edge = max(1, round(border * min(size)))
    seeds = np.full((height, width), cv2.GC_PR_FGD, np.uint8)
    seeds[:edge] = seeds[-edge:] = cv2.GC_BGD
    seeds[:, :edge] = seeds[:, -edge:] = cv2.GC_BGD
    _ellipse(seeds, (width / 2, height / 2), (core * width / 2, core * height / 2), cv2.GC_FGD)
    return seeds


def _face_seeds(size: tuple[int, int], face: Sequence[float], border: float) -> np.ndarray:
    """The face is foreground, hair and shoulders probably are, the border beside them is not."""
    width, height = size
    left, top, across, down = face
    center = left + across / 2, top + down / 2
    seeds = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
    edge = max(1, round(border * min(size)))
    seeds[:edge] = seeds[:, :edge] = seeds[:, -edge:] = cv2.GC_BGD
    shoulders = int(min(height, top + 1.3 * down))
    seeds[shoulders:, int(max(0, center[0] - 1.5 * across)):
          int(max(0, center[0] + 1.5 * across))] = cv2.GC_PR_FGD
    _ellipse(seeds, center, (0.8 * across, 0.95 * down), cv2.GC_PR_FGD)
    _ellipse(seeds, center, (0.35 * across, 0.45 * down), cv2.GC_FGD)
    return seeds


def _ellipse(seeds: np.ndarray, center, radii, value: int) -> None:
    if min(radii) >= 1:
        cv2.ellipse(seeds, [round(n) for n in center], [round(n) for n in radii], 0, 0, 360,
                    value, -1)


def _without_specks(front: np.ndarray) -> np.ndarray:
    """The mask without small pieces of foreground and without small holes."""
    if not front.any():
        return front
    pieces, areas = _pieces(front)
    least = _SPECK * areas.max()
    front = (areas >= least)[pieces]
    pieces, areas = _pieces(~front)
    for edge in (pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]):
        areas[edge] = front.size  # a region at the edge is not a hole
    return front | (areas < least)[pieces]


def _pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of each pixel's piece (0: outside the mask), and the areas of the pieces in
    pixels."""
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    return pieces, areas


def _fill(image: np.ndarray, mask: np.ndarray, fill: str) -> np.ndarray:
    mask = mask[..., None]
    behind = (_blurred_background(image, mask) if fill == 'blur' else
              np.float32(255 if fill == 'white' else 0))
    return np.round(image * mask + behind * (1 - mask)).astype(np.uint8)


def _blurred_background(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The background alone, blurred over a tenth of the side, so that the foreground leaves no
    halo."""
    height, width = image.shape[:2]
    scale = min(1, _BLUR_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    both = np.concatenate([image * (1 - mask), 1 - mask], 2).astype(np.float32)
    both = cv2.resize(both, size, interpolation=cv2.INTER_AREA)
    both = cv2.GaussianBlur(both, (0, 0), max(size) / 10, borderType=cv2.BORDER_REPLICATE)
    blurred = both[..., :3] / np.maximum(both[..., 3:], 1e-3)
    return np.clip(cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR), 0, 255)


def _rembg(image: np.ndarray, model: str) -> np.ndarray:
    remove, session = _rembg_session(model)
    mask = np.asarray(remove(image, session=session, only_mask=True))
    return mask.reshape(image.shape[:2]).astype(np.float32) / 255


def load_rembg(model: str) -> None:
    """Loads rembg's model once, for all threads.

    Raises:
        DataError: rembg is not installed or does not have this model.
    """
    _rembg_session(model)


def _rembg_session(model: str):
    with _lock:
        return _load_rembg(model)


@functools.lru_cache(maxsize=2)
def _load_rembg(model: str):
    try:
        import rembg
    except ImportError:
        raise DataError("The background backend 'rembg' is not installed: install rembg, or use "
                        "backend='grabcut'.") from None
    try:
        return rembg.remove, rembg.new_session(model)
    except Exception as error:  # unknown names, downloads and runtimes raise nearly every type
        raise DataError(f'The rembg model {model!r} cannot be loaded ({error}): check the name '
                        f'and the network, or use backend=\'grabcut\'.') from None
