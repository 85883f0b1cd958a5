import numpy as np
import pandas as pd

from input_pipeline.curation.copies import to_finding
from input_pipeline.curation.duplicates import Duplicates
from input_pipeline.curation.measures import Measures
from input_pipeline.manifest import make_manifest


def finding(labels, **columns):
    """Seven pictures: 0, 1 and 2 are copies (1 is the largest), 4 and 5 are the same file."""
    table = pd.DataFrame(dict(width=[9, 20, 9, 9, 9, 9, 9], height=9, bytes=1))
    pairs = pd.DataFrame(dict(first=[0, 1, 4], second=[1, 2, 5], kind=['near', 'near', 'bytes'],
                              correlation=[.99, .98, 1.0]))
    manifest = make_manifest({'id': list('abcdefg'), 'location': list('abcdefg'),
                              'label/class': labels, **columns}, {'class': ('x', 'y')})
    group = np.array([0, 0, 0, -1, 1, 1, -1])
    measures = Measures(table, np.zeros((7, 8)), np.zeros((7, 64, 64)))
    return to_finding(Duplicates(group, pairs), measures, manifest)


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
