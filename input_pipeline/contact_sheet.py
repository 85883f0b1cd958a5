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

_GAP, _CAPTION = 4, 16  # px


def contact_sheet(pictures: Sequence[np.ndarray], rows: Mapping[str, tuple[Transform, ...]],
                  size: Size, *, border: str = 'edge', seed: int = 0, epoch: int = 0,
                  keys: Sequence[int] = ()) -> np.ndarray:
    """Draws each row's transforms for each picture, under a caption.

    Args:
        pictures: uint8 [h, w, 3], [h, w, 4] or [h, w], one per column; see `pictures.as_rgb`.
        rows: caption -> transforms.
        size: (height, width) of the model's input.
        border: what a warp sees outside the picture, a key of `pull_maps.BORDERS`.
        seed, epoch, keys: as in `loader.example_rng`, with one key per picture. With those of a
            run, the sheet shows what it trains on. Without keys they are 0, 1, ...

    Returns:
        RGB uint8 [H, W, 3], on white.
    """
    height, width = size
    keys = keys if len(keys) else range(len(pictures))
    captions = [cv2.getTextSize(row, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)[0][0] for row in rows]
    across = max(len(pictures) * (width + _GAP), *captions) + 2 * _GAP
    sheet = np.full((len(rows) * (height + _CAPTION + _GAP) + _GAP, across, 3), 255, np.uint8)
    for i, (caption, row) in enumerate(rows.items()):
        top = _GAP + i * (height + _CAPTION + _GAP)
        cv2.putText(sheet, caption, (_GAP, top + _CAPTION - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4,
                    (0, 0, 0), 1, cv2.LINE_AA)
        for j, picture in enumerate(pictures):
            plan = transforms.draw(row, example_rng(seed, epoch, keys[j]), size, picture.shape[:2])
            left = _GAP + j * (width + _GAP)
            sheet[top + _CAPTION:top + _CAPTION + height, left:left + width] = as_rgb(
                transforms.apply(plan, picture, size, border))
    return sheet


def stage_rows(stages: Sequence[Stage]) -> dict[str, tuple[Transform, ...]]:
    """{caption: transforms} of the stages of a curriculum; a caption lists the transforms."""
    return {f'{number} (step {stage.start}): '
            + (' '.join(item.kind for item in stage.transforms) or 'no transforms'):
            stage.transforms for number, stage in enumerate(stages)}
