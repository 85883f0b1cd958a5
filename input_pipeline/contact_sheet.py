"""A picture of what transforms do: one row per transform or curriculum stage."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from input_pipeline import transforms
from input_pipeline.curriculum import Stage
from input_pipeline.loader import example_rng
from input_pipeline.pictures import as_rgb
from input_pipeline.pull_maps import Size
from input_pipeline.transforms import Transform

_GAP, _LINE = 4, 16  # px
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_READABLE = 480  # px of a caption's line, also where there are few pictures
_FRAME = 228  # the grey between pictures, so that white ones have an edge


def contact_sheet(pictures: Sequence[np.ndarray], rows: Mapping[str, tuple[Transform, ...]],
                  size: Size, *, border: str = 'edge', seed: int = 0, epochs: Sequence[int] = (0,),
                  keys: Sequence[int] = (), side: int = 0) -> np.ndarray:
    """Draws each row's transforms for each picture, under a caption.

    Args:
        pictures: uint8 [h, w, 3], [h, w, 4] or [h, w], one per column; see `pictures.as_rgb`.
        rows: caption -> transforms.
        size: (height, width) of the model's input.
        border: what a warp sees outside the picture, a key of `pull_maps.BORDERS`.
        seed, keys: as in `loader.example_rng`, with one key per picture. With those of a run, the
            sheet shows what it trains on. Without keys they are 0, 1, ...
        epochs: whose randomness is shown, one below the other; without transforms only the first.
        side: pixels of the longer side of what is shown, larger by a whole factor or smaller; 0: as
            the model sees it.

    Returns:
        RGB uint8 [H, W, 3], captions on white and pictures on grey.
    """
    keys = keys if len(keys) else range(len(pictures))
    height, width = _shown_size(size, side)
    across = max(len(pictures), 1) * (width + _GAP)
    captions = {caption: _lines(caption, max(across - _GAP, _READABLE)) for caption in rows}
    across = max([across, *(_width(line) for lines in captions.values() for line in lines)])
    strips = []
    for caption, row in rows.items():
        strips.append(_caption(captions[caption], across + _GAP))
        for epoch in epochs if row else epochs[:1]:
            strip = np.full((height + _GAP, across + _GAP, 3), _FRAME, np.uint8)
            for j, picture in enumerate(pictures):
                plan = transforms.draw(row, example_rng(seed, epoch, keys[j]), size,
                                       picture.shape[:2])
                shown = as_rgb(transforms.apply(plan, picture, size, border))
                left = _GAP + j * (width + _GAP)
                strip[:height, left:left + width] = _resized(shown, (height, width))
            strips.append(strip)
    return np.concatenate([np.full((_GAP, across + _GAP, 3), 255, np.uint8), *strips])


def _shown_size(size: Size, side: int) -> tuple[int, int]:
    """(height, width) of what is shown. Small pictures keep their pixels, so they grow by a whole
    factor."""
    longest = max(size)
    if not side:
        return size[0], size[1]
    if longest <= side:
        return size[0] * (side // longest), size[1] * (side // longest)
    return max(1, round(size[0] * side / longest)), max(1, round(size[1] * side / longest))


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    grows = size[0] >= picture.shape[0]
    return picture if picture.shape[:2] == size else cv2.resize(
        picture, size[::-1], interpolation=cv2.INTER_NEAREST if grows else cv2.INTER_AREA)


def _width(text: str) -> int:
    return cv2.getTextSize(text, _FONT, 0.4, 1)[0][0]


def _lines(text: str, across: int) -> list[str]:
    """A caption in lines that are at most so many pixels wide, unless a word is wider."""
    lines = ['']
    for word in text.split(' '):
        longer = f'{lines[-1]} {word}'.strip()
        if lines[-1] and _width(longer) > across:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _caption(lines: Sequence[str], across: int) -> np.ndarray:
    strip = np.full((_LINE * len(lines), across, 3), 255, np.uint8)
    for i, line in enumerate(lines):
        cv2.putText(strip, line, (_GAP, i * _LINE + _LINE - 5), _FONT, 0.4, (0, 0, 0), 1,
                    cv2.LINE_AA)
    return strip


def stage_rows(stages: Sequence[Stage]) -> dict[str, tuple[Transform, ...]]:
    """{caption: transforms} of the stages of a curriculum; a caption lists the transforms."""
    return {f'stage {number}, from step {stage.start}: '
            + (' '.join(item.kind for item in stage.transforms) or 'no transforms'):
            stage.transforms for number, stage in enumerate(stages)}
