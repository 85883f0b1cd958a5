import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from benchmarks.curation_photographs import described, illustration
from input_pipeline import sources
from input_pipeline.curation import clusters
from input_pipeline.curation.decisions import moderated
from input_pipeline.curation.photographs import (
    of_clusters,
    photographs,
    ranked,
    read_marks,
    read_objects,
    to_finding,
    to_mark,
)
from input_pipeline.curation.picture_statistics import NAMES, measure, statistics
from input_pipeline.errors import DataError


@pytest.fixture(scope='module')
def doodles():
    """(statistics, whether a photograph) of 120 drawings and 8 photographs."""
    manifest = sources.load_source({'source': 'doodles', 'doodles': dict(
        classes=24, per_class=5, photos=1 / 15, size=64)})
    return measure(manifest), manifest.table['truth/photo'].to_numpy()


@pytest.fixture(scope='module')
def illustrations():
    """(statistics, descriptors) of 110 illustrations and 16 crops of scikit-learn's photographs."""
    rng, photos = np.random.default_rng(0), []
    for picture in load_sample_images().images:
        for _ in range(8):
            side = int(min(picture.shape[:2]) * rng.uniform(.3, .9))
            top, left = (rng.integers(0, size - side) for size in picture.shape[:2])
            photos.append(picture[top:top + side, left:left + side])
    return described([*(illustration(1, number) for number in range(110)), *photos])


def test_photographs_among_doodles(doodles):
    values, truth = doodles
    odd = photographs(values)
    assert ((odd > .5) == truth).all()
    finding = to_finding(odd, wanted='drawings', drop=.5, review=.1)
    assert (finding.action[truth] == 'drop').all() and not (finding.action[~truth] == 'drop').any()


def test_nothing_is_found_where_there_is_nothing(doodles, illustrations):
    values, truth = doodles
    assert not (photographs(values[~truth]) > .5).any()
    assert not (photographs(illustrations[0][:110], features=illustrations[1][:110]) > .5).any()


def test_drawings_among_photographs(doodles):
    values, truth = doodles
    mostly = np.concatenate([np.repeat(values[truth], 8, 0), values[~truth][:5]])
    odd = photographs(mostly, wanted='photographs')
    assert (np.flatnonzero(odd > .5) == np.arange(64, 69)).all()


def test_among_illustrations_with_a_few_marks(illustrations):
    values, features = illustrations
    truth = np.arange(len(values)) >= 110
    rows = [*range(0, 10), *range(110, 113), *range(118, 121)]
    odd = photographs(values, features=features, marks={row: bool(truth[row]) for row in rows})
    assert (odd[truth] > .5).all() and np.sum(odd[~truth] > .5) <= 5
    marked = photographs(values, features=features, marks={0: True, 1: True, 120: False})
    assert marked[:2].tolist() == [1, 1] and marked[120] == 0  # whatever they look like


def test_no_two_rows_have_the_same_score_for_no_reason(doodles, illustrations):
    for values, features in ((doodles[0], None), illustrations):
        odd = photographs(values, features=features)
        assert len(np.unique(odd)) == len(np.unique(values, axis=0)) and (odd > 0).all()
        assert (odd < 1).all()
    values = np.concatenate([illustrations[0], illustrations[0][:3]])
    odd = photographs(values)
    assert (odd[:3] == odd[-3:]).all()  # copies are alike
    # What is missed comes right below what is found.
    truth = np.arange(len(values)) >= 110
    missed = truth[:-3] & (odd[:-3] < .5)
    rank = np.argsort(np.argsort(-odd[:-3]))
    assert np.median(rank[missed]) < 40


def test_a_rank_keeps_the_order_of_probabilities():
    odd, by = np.array([0, 0, 1e-9, .2, .6, 1, 1]), np.array([3, 1, 2, 9, 0, 5, 6])
    found = ranked(odd, by)
    assert np.argsort(found).tolist() == [1, 2, 0, 3, 4, 5, 6]
    assert (found[:3] < .01).all() and (found[5:] > .99).all() and found[3:5].tolist() == [.2, .6]


@pytest.mark.parametrize('dropped, rows', [
    (3, [3, 2, 4, 1, 5, 0]), (0, [0, 1, 2, 3, 4, 5]), (1, [1, 0, 2, 3, 4, 5]),
    (10, [9, 8, 7, 6, 5, 4])])
def test_the_pictures_nearest_the_border_are_to_be_marked(dropped, rows):
    score = np.linspace(.95, .05, 10)  # rows 10 and 11 are marked already
    drop = np.append(score, 0)[dropped - 1] if dropped else 2
    found = to_finding(np.append(score, [1, 0]), wanted='drawings', review=0, drop=drop)
    assert to_mark(found, 6, drop).tolist() == rows
    assert sorted(to_mark(found, 99, drop)) == list(range(10))
    held = moderated(found, .5)  # so many are flagged that none is dropped
    assert held.note and not (held.action == 'drop').any()
    assert to_mark(held, 6, drop).tolist() == rows


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('count', [1, 2, 3, 6, 12])
def test_few_or_equal_pictures_are_no_reason_to_fail(illustrations, count):
    values, features = (part[:count] for part in illustrations)
    for one, other in ((values, features), (values[:1].repeat(count, 0),
                                            features[:1].repeat(count, 0))):
        for wanted in ('drawings', 'photographs'):
            odd = photographs(one, features=other, wanted=wanted)
            assert odd.shape == (count,) and np.isfinite(odd).all()
            found = to_finding(odd, wanted=wanted, drop=.5, review=.3)
            assert len(to_mark(found, 20, .5)) == count
        points = clusters.reduce(other)
        for found in (clusters.kmeans(points), clusters.dbscan(points)):
            assert of_clusters(one, found).shape == (count,)


def test_edges_of_a_lens_differ_from_those_of_a_pen():
    sharp = np.full((100, 100, 3), 255, np.uint8)
    cv2.circle(sharp, (50, 50), 30, (20, 20, 20), 3)
    soft = cv2.GaussianBlur(sharp, (0, 0), 2)
    first, second = statistics(sharp), statistics(soft)
    assert first['sharpness_0'] > second['sharpness_0'] + .5
    assert first['flat_0'] > second['flat_0']
    assert tuple(first) == NAMES and np.isfinite(list(first.values())).all()
    assert np.isfinite(list(statistics(np.zeros((1, 40, 3), np.uint8)).values())).all()


def test_a_cluster_is_judged_as_a_whole(doodles):
    values, truth = doodles
    cluster = np.where(truth, 1, 0)
    cluster[0] = 1  # a drawing in the cluster of the photographs
    cluster[1:3] = -1  # and two in no cluster, each of which counts on its own
    found = of_clusters(values, cluster)
    assert found[truth].all() and found[0] == 1 and not found[1:3].any()


def test_marks_and_objects_are_read_by_id(tmp_path):
    ids = np.array(['a', 'b', 'c'], object)
    (tmp_path / 'm.csv').write_text('id,photograph\nc,Yes\na,no\nb,\n')
    assert read_marks(str(tmp_path / 'm.csv'), ids) == {2: True, 0: False}
    (tmp_path / 'l.csv').write_text('id\nb\n')
    assert read_marks(str(tmp_path / 'l.csv'), ids) == {1: True}
    (tmp_path / 'o.csv').write_text('id,objects\nc,3\n')
    assert read_objects(str(tmp_path / 'o.csv'), ids).tolist() == [0, 0, 3]
    (tmp_path / 'w.csv').write_text('id,photograph\nc,perhaps\n')
    with pytest.raises(DataError, match=r"line 2.*'perhaps'"):
        read_marks(str(tmp_path / 'w.csv'), ids)
    (tmp_path / 'x.csv').write_text('id\nd\n')
    with pytest.raises(DataError, match="'d'"):
        read_marks(str(tmp_path / 'x.csv'), ids)
    (tmp_path / 'y.csv').write_text('id,photograph\na,yes\na,photo\na,no\n')
    with pytest.raises(DataError, match="line 4, contradict an earlier line about 'a'"):
        read_marks(str(tmp_path / 'y.csv'), ids)
    for objects in ('nan', 'inf', '', 'two'):
        (tmp_path / 'n.csv').write_text(f'id,objects\nc,3\na,{objects}\n')
        with pytest.raises(DataError, match=f"objects='{objects}' in line 3"):
            read_objects(str(tmp_path / 'n.csv'), ids)
    (tmp_path / 'z.csv').write_text('id,objects\nall/a,3\n')
    with pytest.raises(DataError, match="no id of the data, only such as 'all/a'"):
        read_objects(str(tmp_path / 'z.csv'), ids)
    with pytest.raises(DataError, match="wanted='photos'"):
        photographs(np.zeros((4, len(NAMES))), wanted='photos')
