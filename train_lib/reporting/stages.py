"""curriculum.png: a few training pictures as they are, and as each stage of the curriculum shows
them."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from input_pipeline.contact_sheet import contact_sheet, stage_rows
from input_pipeline.curriculum import Stage
from input_pipeline.decode import UnreadableImage
from input_pipeline.loader import example_keys
from input_pipeline.manifest import Manifest
from input_pipeline.pictures import Pictures, PreprocessSpec

PICTURES, EPOCHS = 8, 3  # columns, and rows per stage
SIDE = 128  # px of a picture on the sheet
AS_IT_IS = 'as it is'


def write_stages(path: Path, manifest: Manifest, stages: Sequence[Stage], spec: PreprocessSpec,
                 seed: int) -> None:
    """Draws pictures of different classes as they are prepared without augmentation, and below
    them each stage with the randomness of the first three epochs, which is the same for all stages.

    Args:
        path: of the PNG.
        manifest: the training rows.
        stages: the curriculum; nothing is written if it has no transforms.
        spec: of the run.
        seed: of the run.
    """
    if not any(stage.transforms for stage in stages):
        return
    labels = manifest.numbers(manifest.heads[0])
    first = np.unique(labels, return_index=True)[1]
    rows = first[np.linspace(0, len(first) - 1, min(PICTURES, len(first))).astype(int)]
    prepared, pictures = Pictures(manifest, spec), {}
    for row in rows:
        with contextlib.suppress(UnreadableImage):  # the loader reports it
            pictures[row] = prepared[row]
    sheet = contact_sheet(list(pictures.values()), {AS_IT_IS: ()} | stage_rows(stages), spec.frame,
                          border=spec.border, seed=seed, epochs=range(EPOCHS), side=SIDE,
                          keys=example_keys(manifest)[list(pictures)])
    cv2.imwrite(str(path), sheet[..., ::-1])
