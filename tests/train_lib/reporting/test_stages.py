"""curriculum.png: the pictures as they are, then each stage in three epochs."""

import cv2
import numpy as np
import pytest

from input_pipeline import loader
from input_pipeline.contact_sheet import contact_sheet
from input_pipeline.curriculum import Stage
from input_pipeline.pictures import Pictures, PreprocessSpec
from input_pipeline.sources import digits
from input_pipeline.transforms import make_transform
from train_lib.reporting.stages import write_stages

CELL, LINE, GAP = 128, 16, 4


def made(*specs):
    return tuple(make_transform(spec, 'stage') for spec in specs)


def cells(sheet, rows):
    """The pictures of a sheet: [row][column], from the number of rows under each caption."""
    found, top = [], GAP
    for count in rows:
        top += LINE
        for _ in range(count):
            found.append([sheet[top:top + CELL, left:left + CELL]
                          for left in range(GAP, sheet.shape[1] - CELL, CELL + GAP)])
            top += CELL + GAP
    assert top == sheet.shape[0]
    return np.array(found)


@pytest.fixture
def sheet(tmp_path):
    manifest, spec = digits.load().select(np.arange(60)), PreprocessSpec(size=16)
    rotate = dict(kind='rotate', degrees=40, p=1)
    stages = (Stage(0, ()), Stage(5, made(rotate)),
              Stage(9, made(rotate, dict(kind='invert', p=1))))
    write_stages(tmp_path / 'curriculum.png', manifest, stages, spec, seed=3)
    picture = cv2.imread(str(tmp_path / 'curriculum.png'))[..., ::-1]
    return manifest, spec, stages, cells(picture, (1, 1, 3, 3))


def enlarged(picture):
    return picture.repeat(8, axis=0).repeat(8, axis=1)


def test_the_first_row_is_without_augmentation(sheet):
    manifest, spec, _, found = sheet
    assert found.shape[:2] == (8, 8)
    np.testing.assert_array_equal(found[0], found[1])  # a stage without transforms
    shown = Pictures(manifest, spec)
    plain = [enlarged(shown[row]) for row in range(len(manifest))]
    for cell in found[0]:
        assert any(np.array_equal(cell, one) for one in plain)
    for row in found[2:]:
        assert all((cell != first).any() for cell, first in zip(row, found[0]))


def test_each_stage_shows_what_three_epochs_train_on(sheet):
    manifest, spec, stages, found = sheet
    labels = manifest.labels('class')
    first = np.unique(labels, return_index=True)[1]
    rows = first[np.linspace(0, len(first) - 1, 8).astype(int)]
    keys, shown = loader.example_keys(manifest), Pictures(manifest, spec)
    for number, stage in enumerate(stages[1:]):
        for epoch in range(3):
            for column, row in enumerate(rows):
                wanted = shown.augmented(row, stage, loader.example_rng(3, epoch, keys[row]),
                                         exact=True)
                np.testing.assert_array_equal(found[2 + 3 * number + epoch][column],
                                              enlarged(wanted))


def test_captions_are_whole_and_large_pictures_shrink():
    many = made('hflip', 'rotate', 'scale', 'shear', 'shift', 'elastic', 'grid_distortion',
                'brightness')
    picture = np.full((400, 300, 3), 90, np.uint8)
    caption = ' '.join(one.kind for one in 3 * many)
    drawn = contact_sheet([picture] * 5, {'as it is': (), caption: many}, (400, 300),
                          epochs=range(2), side=CELL)
    assert drawn.shape[1] == GAP + 5 * (96 + GAP)
    height = CELL + GAP
    assert (drawn.shape[0] - GAP - 3 * height) % LINE == 0
    assert drawn.shape[0] - GAP - 3 * height >= 4 * LINE  # the second caption has several lines
    assert (drawn[GAP + LINE + 5, GAP + 5] == 90).all()
    one = contact_sheet([picture], {'x': ()}, (40, 30))
    assert one.shape == (GAP + LINE + 40 + GAP, GAP + 30 + GAP, 3)
    wide = contact_sheet([picture], {caption: ()}, (40, 30))
    assert wide.shape[1] < 500 and wide.shape[0] > GAP + 2 * LINE + 40 + GAP
