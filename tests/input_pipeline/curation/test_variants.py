"""Pictures that coincide in shape, and differ on purpose."""

import cv2
import numpy as np
import pytest

from benchmarks.curation import brighter, crop, jpeg
from input_pipeline.curation.duplicates import find_duplicates
from input_pipeline.curation.hashes import POSITIONS
from input_pipeline.curation.measures import Measures, measure
from input_pipeline.manifest import make_manifest


def heart(color=(220, 30, 40), paper=(250, 250, 250), size=160, mouth=False):
    picture = np.full((size, size, 3), paper, np.uint8)
    t = np.linspace(0, 2 * np.pi, 200)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    points = np.stack([size / 2 + x * size / 40, size / 2 - y * size / 40], 1).astype(np.int32)
    cv2.fillPoly(picture, [points], color, cv2.LINE_AA)
    cv2.circle(picture, (size // 3, size // 3), size // 16, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.polylines(picture, [points], True, (30, 30, 30), 3, cv2.LINE_AA)
    if mouth:
        cv2.ellipse(picture, (size // 2, size // 2), (24, 12), 0, 0, 180, (90, 10, 20), 6)
    return picture


def hand(size=160):
    """A shape that is like itself in no position."""
    picture = np.full((size, size, 3), 255, np.uint8)
    cv2.rectangle(picture, (20, 60), (140, 80), (240, 190, 90), -1)
    cv2.rectangle(picture, (20, 60), (70, 130), (240, 190, 90), -1)
    cv2.circle(picture, (40, 110), 12, (60, 60, 160), -1)
    return picture


def compared(tmp_path, *pictures) -> tuple:
    """(the pair of the first two pictures or None, groups, copies)"""
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(tmp_path / f'{number}.png'), np.ascontiguousarray(picture[..., ::-1]))
    names = [f'{number}.png' for number in range(len(pictures))]
    manifest = make_manifest({'id': names, 'location': names, 'label/class': [0] * len(names)},
                             {'class': ('x',)}, root=str(tmp_path))
    found = find_duplicates(measure(manifest))
    pairs = found.pairs[(found.pairs['first'] == 0) & (found.pairs['second'] == 1)]
    assert len(pairs) <= 1
    return pairs.iloc[0] if len(pairs) else None, found.group.tolist(), found.copies().tolist()


@pytest.mark.parametrize('color', [(30, 60, 220), (40, 180, 60), (150, 60, 190)])
def test_hearts_of_another_colour_share_a_group_and_are_no_copies(tmp_path, color):
    pair, group, copies = compared(tmp_path, heart(), heart(color))
    assert group == [0, 0] and copies == [-1, -1]
    assert pair['differs'] == 'color' and pair['position'] == 0


@pytest.mark.parametrize('alter', [
    jpeg(60), jpeg(90), brighter(.8), brighter(.72), crop(.03),
    lambda picture, rng: cv2.resize(picture, None, fx=.5, fy=.5, interpolation=cv2.INTER_AREA)])
@pytest.mark.parametrize('draw', [heart, hand])
def test_what_is_only_encoded_or_lit_otherwise_is_a_copy(tmp_path, alter, draw):
    picture = draw() if draw is hand else draw(paper=(180, 200, 190))
    _, group, copies = compared(tmp_path, picture, alter(picture, np.random.default_rng(0)))
    assert group == [0, 0] and copies == [0, 0]


def test_what_is_lit_until_it_clips_is_for_a_person(tmp_path):
    _, group, copies = compared(tmp_path, hand(), brighter(1.15)(hand(), None))
    assert group == [0, 0] and copies == [-1, -1]


@pytest.mark.parametrize('altered, position', [
    (lambda p: p[:, ::-1], 'mirrored'), (lambda p: np.rot90(p, 2), 'turned 180'),
    (lambda p: np.rot90(p), 'turned 270'), (lambda p: p[::-1], 'mirrored, turned 180')])
def test_what_points_elsewhere_is_no_copy(tmp_path, altered, position):
    pair, group, copies = compared(tmp_path, hand(), altered(hand()))
    assert group == [0, 0] and copies == [-1, -1]
    assert POSITIONS[pair['position']] == position and pair['differs'] == ''


def test_what_is_symmetric_is_a_copy_of_its_mirror_image(tmp_path):
    picture = heart()
    picture = np.where(np.arange(160)[None, :, None] < 80, picture, picture[:, ::-1])
    again = jpeg(95)(np.ascontiguousarray(picture[:, ::-1]), None)
    pair, _, copies = compared(tmp_path, picture, again)
    assert copies == [0, 0] and pair['position'] == 0


def test_what_is_nearly_symmetric_is_no_copy_of_its_mirror_image(tmp_path):
    picture = heart()
    picture = np.where(np.arange(160)[None, :, None] < 80, picture, picture[:, ::-1]).copy()
    cv2.line(picture, (95, 50), (115, 90), (120, 20, 30), 6, cv2.LINE_AA)
    pair, group, copies = compared(tmp_path, picture, picture[:, ::-1])
    assert group == [0, 0] and copies == [-1, -1] and pair['position'] == 4


def test_another_detail_is_no_copy(tmp_path):
    pair, group, copies = compared(tmp_path, heart(), heart(mouth=True))
    assert group == [0, 0] and copies == [-1, -1] and pair['differs'] in ('detail', 'color')


def test_a_variant_does_not_join_copies(tmp_path):
    again = jpeg(90)(heart(), None)
    _, group, copies = compared(tmp_path, heart(), heart((30, 60, 220)), again)
    assert group == [0, 0, 0] and copies == [0, -1, 0]


def test_the_colours_are_kept_between_runs(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), hand()[..., ::-1])
    manifest = make_manifest({'id': ['a'], 'location': ['a.png'], 'label/class': [0]},
                             {'class': ('x',)}, root=str(tmp_path))
    first, second = (measure(manifest, cache_dir=str(tmp_path / 'cache')) for _ in range(2))
    assert isinstance(second, Measures) and (first.tints == second.tints).all()
    assert first.tints.shape == (1, 16, 16, 3) and np.ptp(first.tints) > 100
