import numpy as np
import pandas as pd

from input_pipeline.curation.copies import to_finding
from input_pipeline.curation.duplicates import Duplicates
from input_pipeline.curation.measures import Measures
from input_pipeline.manifest import make_manifest

PAIRS = ((0, 1, 'near'), (1, 2, 'near'), (4, 5, 'bytes'))


def finding(labels, *, pairs=PAIRS, position=(0, 0, 0), differs=('', '', ''), most=1.0, **columns):
    """Seven pictures: 0, 1 and 2 are alike (1 is the largest), 4 and 5 are the same file."""
    first, second, kind = zip(*pairs)
    table = pd.DataFrame(dict(width=[9, 20, 9, 9, 9, 9, 9], height=9, bytes=1))
    correlation = [.99 - .01 * k if one == 'near' else 1.0 for k, one in enumerate(kind)]
    pairs = pd.DataFrame(dict(first=first, second=second, kind=kind, correlation=correlation,
                              position=position, differs=differs))
    manifest = make_manifest({'id': list('abcdefg'), 'location': list('abcdefg'),
                              'label/class': labels, **columns}, {'class': ('x', 'y')})
    group = np.array([0, 0, 0, -1, 1, 1, -1])
    measures = Measures(table, np.zeros((7, 8)), np.zeros((7, 64, 64)), np.zeros((7, 16, 16, 3)))
    return to_finding(Duplicates(group, pairs), measures, manifest, most=most)


def test_the_best_of_a_group_is_kept():
    found = finding([0] * 7)
    assert found.action.tolist() == ['drop', 'keep', 'drop', 'keep', 'keep', 'drop', 'keep']
    assert found.twin.tolist() == [1, -1, 1, -1, -1, 4, -1]
    assert found.reason[0] == 'nearly the same as b' and found.reason[5] == 'the same file as e'
    assert found.score.tolist() == [.99, .99, .98, 0, 1, 1, 0]
    assert found.group.tolist() == ['0', '0', '0', '', '1', '1', '']


def test_different_labels_are_for_review():
    found = finding([0, 0, 1, 0, 0, -1, 0])
    assert found.action.tolist() == ['review'] * 3 + ['keep', 'keep', 'drop', 'keep']
    assert finding([0, 0, 0, 0, -1, 0, 0]).action[4:6].tolist() == ['drop', 'keep']  # labelled


def test_the_test_side_keeps_its_picture():
    split = ['test', 'train', 'train', 'train', 'train', 'val', 'train']
    assert finding([0] * 7, split=split).action.tolist() == [
        'keep', 'drop', 'drop', 'keep', 'drop', 'keep', 'keep']


def test_variants_are_for_review_beside_their_counterpart():
    for position, differs, words in ((4, '', 'mirrored'), (3, '', 'turned 270'),
                                     (0, 'color', 'other colour'), (0, 'detail', 'other detail'),
                                     (5, 'color', 'mirrored, turned 90, other colour')):
        found = finding([0] * 7, position=(0, position, 0), differs=('', differs, ''))
        # 0 is a copy of 1, of which 2 is a variant.
        assert found.action.tolist() == ['drop', 'review', 'review', 'keep', 'keep', 'drop', 'keep']
        assert found.reason[2] == f'{words}: b' and found.reason[1] == f'{words}: c'
        assert ', '.join(found.chips[2]) == words and found.chips[0] == ()
        assert found.beside.tolist() == [1, 2, 1, -1, -1, 4, -1]
        assert found.group.tolist() == ['0', '0', '0', '', '1', '1', '']
        assert found.twin.tolist() == [1, -1, -1, -1, -1, 4, -1]


def test_the_counterpart_of_a_variant_is_a_picture_that_stays():
    found = finding([0] * 7, position=(4, 0, 0))
    assert found.action.tolist()[:3] == ['review', 'review', 'drop']
    found = finding([0, 1, 1, 0, 0, 0, 0], position=(4, 0, 0))  # arrows to the left and right
    assert found.action.tolist()[:3] == ['review', 'review', 'drop'] and not found.note


def test_a_copy_of_a_copy_that_differs_is_for_review():
    """0 is a copy of 1 and of 2, but 2 has another colour than 1: recoloured in small steps."""
    pairs = ((0, 1, 'near'), (0, 2, 'near'), (1, 2, 'near'), (4, 5, 'bytes'))
    found = finding([0] * 7, pairs=pairs, position=(0,) * 4, differs=('', '', 'color', ''))
    assert found.action.tolist()[:3] == ['drop', 'review', 'review']
    assert found.beside.tolist()[:3] == [1, 2, 1] and found.twin.tolist()[:3] == [1, -1, -1]
    assert found.reason[1:3].tolist() == ['other colour: c', 'other colour: b']


def test_the_reason_is_how_a_picture_is_like_the_one_that_is_kept():
    """0 and 2 are one file, and 1, which is kept, is only nearly the same."""
    found = finding([0] * 7, pairs=((0, 1, 'near'), (0, 2, 'bytes'), (4, 5, 'pixels')))
    assert found.reason[[0, 2, 5]].tolist() == ['nearly the same as b', 'nearly the same as b',
                                                'the same pixels as e']


def test_a_set_full_of_near_copies_is_for_review_and_says_so():
    found = finding([0] * 7, most=.2)  # 2 of 7 would be dropped as near copies
    assert found.action.tolist() == ['review'] * 3 + ['keep', 'keep', 'drop', 'keep']
    assert 'describes the data' in found.note and found.note.startswith('2 of 7 pictures')
    assert found.chips[0] == ('nearly the same',) and found.reason[0] == 'nearly the same: b'
    assert not finding([0] * 7, most=.3).note
