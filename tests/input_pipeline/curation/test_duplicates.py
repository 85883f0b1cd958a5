import cv2
import numpy as np
import pandas as pd
import pytest

from input_pipeline import sources
from input_pipeline.curation import duplicates
from input_pipeline.curation.duplicates import best_of_group, conflicting, find_duplicates
from input_pipeline.curation.hashes import POSITIONS
from input_pipeline.curation.measures import Measures, measure
from input_pipeline.curation.picture_measures import NUMBERS, WORDS, measure_picture, unmeasured
from input_pipeline.curation.registration import lone_strokes, register

PLANTED = dict(classes=8, per_class=12, near_duplicates=0.35, wrong_labels=0.1)


def measures_of(rows):
    table = pd.DataFrame([row.numbers for row in rows], columns=list(NUMBERS))
    table[list(WORDS)] = [row.words for row in rows]
    return Measures(table, np.stack([row.hashes for row in rows]),
                    np.stack([row.thumb for row in rows]), np.stack([row.tint for row in rows]))


def drawing(name, writer=3, size=96):
    return sources.read_image('', f'doodles:seed=0,size={size},class={name},writer={writer},'
                                  f'drawing=0,tool=pen')


def cropped(picture, top, bottom, left, right):
    height, width = picture.shape[:2]
    part = picture[round(top * height):height - round(bottom * height),
                   round(left * width):width - round(right * width)]
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)


@pytest.fixture(scope='module')
def planted():
    manifest = sources.load_source({'source': 'doodles', 'doodles': PLANTED})
    return manifest.table, find_duplicates(measure(manifest))


def test_planted_copies_are_found_and_nothing_else(planted):
    table, found = planted
    row = {name: k for k, name in enumerate(table['id'])}
    origin = np.array([row[of] if of else k for k, of in enumerate(table['truth/duplicate_of'])])
    copies = np.flatnonzero(table['truth/duplicate_of'] != '')
    hit = (found.group[copies] >= 0) & (found.group[copies] == found.group[origin[copies]])
    by_kind = pd.Series(hit).groupby(table['truth/alteration'][copies].to_numpy()).mean()
    assert len(by_kind) == 6 and by_kind.drop('crop-10').min() == 1 and by_kind['crop-10'] >= 0.8
    first, second = (found.pairs[name].to_numpy(int) for name in ('first', 'second'))
    assert (origin[first] == origin[second]).all()
    mirrored = (table['truth/alteration'][second] == 'flip').to_numpy()
    assert (found.pairs['position'].map(POSITIONS.__getitem__)[mirrored] == 'mirrored').all()
    assert set(found.kinds()) == {'near'}


def test_conflicting_labels_are_found(planted):
    table, found = planted
    labels = table['label/class'].to_numpy().copy()
    assert not conflicting(found.group, labels).any()  # copies inherit the mistake
    pair = found.pairs.iloc[0]
    labels[pair['second']] = (labels[pair['second']] + 1) % 8
    expected = np.arange(found.group.max() + 1) == found.group[pair['first']]
    np.testing.assert_array_equal(conflicting(found.group, labels), expected)
    labels[pair['second']] = -1
    assert not conflicting(found.group, labels).any()
    assert len(conflicting(np.full(3, -1), np.zeros(3, int))) == 0


def test_exact_copies_and_the_one_to_keep(tmp_path):
    (tmp_path / 'a').mkdir()
    house = drawing('house')[..., ::-1]
    cv2.imwrite(str(tmp_path / 'a/0.png'), house)
    (tmp_path / 'a/1.png').write_bytes((tmp_path / 'a/0.png').read_bytes())
    cv2.imwrite(str(tmp_path / 'a/2.bmp'), house)
    cv2.imwrite(str(tmp_path / 'a/3.png'), cv2.resize(house, (192, 192)))
    cv2.imwrite(str(tmp_path / 'a/4.png'), drawing('tree'))
    found_in = measure(sources.load_source({'source': 'folder', 'folder': str(tmp_path)}))
    found = find_duplicates(found_in)
    assert found.group.tolist() == [0, 0, 0, 0, -1] and found.kinds() == ['near']
    kinds = {(pair.first, pair.second): pair.kind for pair in found.pairs.itertuples()}
    assert kinds == {(0, 1): 'bytes', (0, 2): 'pixels', (0, 3): 'near'}
    assert best_of_group(found.group, found_in.table).tolist() == [3]
    assert find_duplicates(found_in.select([0, 1, 4])).kinds() == ['bytes']


def test_groups_are_transitive():
    whole = drawing('bicycle')
    left, right = cropped(whole, .1, 0, .1, 0), cropped(whole, 0, .1, 0, .1)
    other_way = np.ascontiguousarray(right[:, ::-1])
    rows = [measure_picture(picture) for picture in (left, drawing('cup'), whole, other_way)]
    found = find_duplicates(measures_of(rows))
    pairs = {(pair.first, pair.second): POSITIONS[pair.position]
             for pair in found.pairs.itertuples()}
    assert pairs[0, 2] == 'as it is' and pairs[2, 3] == 'mirrored'
    assert found.group.tolist() == [0, -1, 0, 0]


def test_thresholds_are_obeyed():
    house = drawing('house')
    spotted = house.copy()
    spotted[70:74, 30:34] = 0  # the correlation is still .983
    assert house[70:74, 30:34].min() > 128
    pair = measures_of([measure_picture(house), measure_picture(spotted)])
    assert find_duplicates(pair).group.tolist() == [-1, -1]
    assert find_duplicates(pair, residual=99, correlation=0.9).group.tolist() == [0, 0]
    assert find_duplicates(pair, residual=99, correlation=0.999).group.tolist() == [-1, -1]


def test_pictures_without_pixels_and_blank_ones_are_no_copies():
    blank = [measure_picture(np.full((size, size, 3), 255, np.uint8)) for size in (40, 50)]
    found = find_duplicates(measures_of([unmeasured('is missing'), unmeasured('is empty'), *blank]))
    assert (found.group == -1).all() and not len(found.pairs)
    assert (find_duplicates(measures_of([unmeasured('is missing')])).group == -1).all()


def stroke(left, top, bottom):
    picture = np.full((96, 96, 3), 255, np.uint8)
    cv2.line(picture, (left, top), (left, bottom), (0, 0, 0), 3, cv2.LINE_AA)
    return picture


def test_two_straight_strokes_are_copies_only_at_the_same_place():
    one, other = stroke(40, 20, 70), stroke(52, 18, 72)
    noisy = cv2.imdecode(cv2.imencode('.jpg', one)[1], cv2.IMREAD_COLOR)
    found = find_duplicates(measures_of([measure_picture(p) for p in (one, other, noisy)]))
    assert found.group.tolist() == [0, -1, 0]
    thumbs = np.stack([measure_picture(p).thumb for p in (one, drawing('house'))])
    assert lone_strokes(thumbs).tolist() == [True, False]


def test_registration_finds_the_crop_and_refuses_what_only_looks_alike():
    bicycle = drawing('bicycle')
    pictures = [bicycle, cropped(bicycle, .02, .08, .07, .03), drawing('bicycle', writer=5),
                cv2.convertScaleAbs(255 - bicycle), np.ascontiguousarray(bicycle[:, ::-1])]
    thumbs = np.stack([measure_picture(picture).thumb for picture in pictures])
    zeros = np.zeros(5, int)
    correlation, residual, motion = register(thumbs, zeros, np.arange(5), zeros)
    assert correlation[0] == pytest.approx(1, abs=1e-5) and motion[0] < 1e-3
    # The scale is 1 / .9. The centre lies .025 of a side to the left and .03 below: twice that in
    # half sides.
    assert correlation[1] > 0.985 and residual[1] < 1.5 and motion[1] == pytest.approx(.11, abs=.02)
    assert (correlation[2:] < 0.9).all() and np.isinf(residual[2:]).all()
    mirrored = register(thumbs, zeros[:1], np.array([4]), np.array([4]))
    assert mirrored[0][0] == pytest.approx(1, abs=1e-5)


def test_features_add_candidates():
    rng = np.random.default_rng(0)
    thumbs = rng.integers(0, 256, (40, 64, 64), dtype=np.uint8)
    hashes = rng.integers(0, 2**63, (40, 8)).astype(np.uint64)
    features = rng.standard_normal((40, 9))
    features[31] = 2 * features[7]
    plain = set(zip(*duplicates._candidates(thumbs, hashes, None, 2, 1)[:2]))
    given = set(zip(*duplicates._candidates(thumbs, hashes, features, 2, 1)[:2]))
    assert plain < given and (7, 31) in given - plain


def test_a_second_set_is_compared_with_the_first_only():
    """A picture with many copies in its own set is found in the other one, too."""
    shapes = [drawing(name) for name in ('house', 'fish')]
    brighter = lambda picture, k: np.clip(picture * (1 - 0.01 * k), 0, 255).astype(np.uint8)
    pictures = [*shapes, *(brighter(shapes[0], k) for k in range(1, 8))]
    second = np.arange(len(pictures)) >= 2
    measures = measures_of([measure_picture(picture) for picture in pictures])
    found = find_duplicates(measures, neighbours=1, second=second).pairs
    assert (found['first'] < 2).all() and (found['second'] >= 2).all()
    assert {(0, k) for k in range(2, 9)} <= set(zip(found['first'], found['second']))
    assert len(find_duplicates(measures, second=second > 2).pairs) == 0


def test_the_nearest_of_either_picture_are_kept():
    i, j = np.array([0, 0, 0, 1]), np.array([1, 2, 3, 2])
    keep = duplicates._nearest(i, j, np.array([3, 1, 2, 0]), 1)
    # The nearest of 0 is 2, of 1 it is 2, of 2 it is 1, of 3 it is 0.
    assert keep.tolist() == [False, True, True, True]
