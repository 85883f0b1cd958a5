"""The long tail of the literature, cut from balanced rows."""

import numpy as np
import pytest

from input_pipeline.errors import DataError
from input_pipeline.long_tail import cut_tail, tail_counts
from input_pipeline.manifest import class_counts, make_manifest


def balanced(per_class=50, classes=4):
    labels = np.repeat(np.arange(classes), per_class)
    names = [f'{i:04}' for i in range(len(labels))]
    split = np.where(np.arange(len(labels)) % 5 == 0, 'test', 'train')
    return make_manifest({'id': names, 'location': names, 'label/class': labels, 'split': split},
                         {'class': [str(i) for i in range(classes)]})


def test_counts_are_those_of_the_published_data_sets():
    assert tail_counts(5000, 10, 100).sum() == 12_406
    assert tail_counts(500, 100, 100).sum() == 10_847
    assert tail_counts(5000, 10, 100)[[0, -1]].tolist() == [5000, 50]
    assert tail_counts(7, 1, 100).tolist() == [7]


def test_only_training_rows_go():
    found = cut_tail(balanced(), dict(imbalance=10.0, largest=0, head=''), seed=0)
    train = (found.table['split'] == 'train').to_numpy()
    assert class_counts(found.select(train), 'class').tolist() == [40, 18, 8, 4]
    assert (~train).sum() == 40
    again = cut_tail(balanced(), dict(imbalance=10.0, largest=0, head=''), seed=0)
    assert again.table['id'].tolist() == found.table['id'].tolist()
    other = cut_tail(balanced(), dict(imbalance=10.0, largest=0, head=''), seed=1)
    assert other.table['id'].tolist() != found.table['id'].tolist()


def test_wrong_settings():
    with pytest.raises(DataError, match="needs 50 training images of '0', which has 40"):
        cut_tail(balanced(), dict(imbalance=2.0, largest=50, head=''), seed=0)
    with pytest.raises(DataError, match='at least 1'):
        cut_tail(balanced(), dict(imbalance=0.5, largest=0, head=''), seed=0)
