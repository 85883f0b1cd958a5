"""curriculum.png: a few training pictures as each stage of the curriculum shows them."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from input_pipeline import sources
from input_pipeline.contact_sheet import contact_sheet, stage_rows
from input_pipeline.curriculum import Stage
from input_pipeline.decode import UnreadableImage
from input_pipeline.loader import example_keys
from input_pipeline.manifest import Manifest
from input_pipeline.pictures import PreprocessSpec, grey
from input_pipeline.resize import resize

PICTURES = 8


def write_stages(path: Path, manifest: Manifest, stages: Sequence[Stage], spec: PreprocessSpec,
                 seed: int) -> None:
    """Draws the stages, each with the randomness of epoch 0, for pictures of different classes.

    Args:
        path: of the PNG.
        manifest: the training rows.
        stages: the curriculum; nothing is written if it has no transforms.
        spec: of the run.
        seed: of the run.
    """
    if not any(stage.transforms for stage in stages):
        return
    labels = manifest.labels(manifest.heads[0])
    first = np.unique(labels, return_index=True)[1]
    rows = first[np.linspace(0, len(first) - 1, min(PICTURES, len(first))).astype(int)]
    locations = manifest.table['location'].to_numpy()
    read = sources.reader(manifest, alpha=spec.channels == 4)
    pictures = {}
    for row in rows:
        with contextlib.suppress(UnreadableImage):  # the loader reports it
            picture = read(locations[row])
            picture = grey(picture) if spec.channels == 1 else picture
            pictures[row] = resize(picture, spec.frame, spec.resize)
    sheet = contact_sheet(list(pictures.values()), stage_rows(stages), spec.frame,
                          border=spec.border, seed=seed,
                          keys=example_keys(manifest)[list(pictures)])
    cv2.imwrite(str(path), sheet[..., ::-1])
