import cv2
import numpy as np
import pytest

from input_pipeline import sources
from input_pipeline.curation.hashes import POSITIONS, dct_hashes, near_pairs, position
from input_pipeline.sources.doodles.plants import ALTERATIONS


@pytest.fixture(scope='module')
def drawings():
    manifest = sources.load_source({'source': 'doodles',
                                    'doodles': dict(classes=6, per_class=2)})
    return [sources.read_image('', location) for location in manifest.table['location']]


def hashes_of(picture):
    return dct_hashes(cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY))


def bits(one, other):
    return int(np.bitwise_count(one ^ other))


@pytest.mark.parametrize('number', range(8), ids=POSITIONS)
def test_one_transform_gives_the_hash_of_each_position(drawings, number):
    for picture in drawings:
        assert bits(hashes_of(picture)[number], hashes_of(position(picture, number))[0]) <= 2


def test_positions_differ_from_each_other(drawings):
    found = hashes_of(drawings[0])
    apart = np.bitwise_count(found[:, None] ^ found)
    assert apart[~np.eye(8, dtype=bool)].min() > 10


@pytest.mark.parametrize('alteration, most', [
    ('jpeg-50', 4), ('brightness-1.2', 8), ('brightness-0.8', 6), ('crop-3', 14)])
def test_a_hash_survives_small_changes(drawings, alteration, most):
    apart = [bits(hashes_of(picture)[0], hashes_of(ALTERATIONS[alteration](picture))[0])
             for picture in drawings]
    assert max(apart) <= most


def test_different_drawings_have_different_hashes(drawings):
    found = [hashes_of(picture)[0] for picture in drawings[::2]]
    assert min(bits(a, b) for k, a in enumerate(found) for b in found[:k]) > 10


def test_near_pairs_are_all_pairs():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, (400, 8)).astype(np.uint64)
    for first, second, column, flips in ((3, 4, 0, 5), (0, 399, 0, 10), (7, 200, 5, 0),
                                         (20, 21, 1, 11)):
        mask = sum(1 << int(bit) for bit in rng.permutation(64)[:flips])
        hashes[second, column] = hashes[first, 0] ^ np.uint64(mask)
    apart = np.bitwise_count(hashes[:, None, :1] ^ hashes[None]).min(2)
    i, j = np.nonzero(np.triu(apart <= 10, 1))
    first, second, distance = near_pairs(hashes, 10)
    assert list(zip(first, second)) == list(zip(i, j))
    assert {(3, 4), (0, 399), (7, 200)} <= set(zip(first.tolist(), second.tolist()))
    np.testing.assert_array_equal(distance, apart[i, j])


def test_pairs_of_distant_blocks_and_too_many_pairs():
    hashes = np.random.default_rng(1).integers(0, 2**63, (17_000, 1)).astype(np.uint64)
    hashes[16_900] = hashes[5]
    assert (5, 16_900, 0) in set(zip(*(part.tolist() for part in near_pairs(hashes, 2))))
    same = np.zeros((60, 1), np.uint64)
    same[::2] = 1
    first, second, distance = near_pairs(same, 10, limit=1000)
    assert len(first) == 2 * (30 * 29 // 2) and not distance.any()
    assert all((second - first) % 2 == 0)
    assert not len(near_pairs(same, 10, limit=100)[0])
