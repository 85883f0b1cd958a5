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


def test_a_few_per_class_are_among_more_of_them_and_other_splits_stay():
    def ids(per_class, seed=0, **options):
        options = dict(imbalance=1.0, largest=0, head='', per_class=per_class, **options)
        return set(cut_tail(balanced(), options, seed=seed).table['id'])

    few, more, every = ids(5), ids(10), ids(0)
    assert [len(few), len(more), len(every)] == [40 + 4 * 5, 40 + 4 * 10, 200]
    assert few < more < every and ids(5, seed=1) != few
    assert ids(40) == ids(1000) == every  # no class has more


def test_the_tail_comes_before_the_most_images_of_a_class():
    options = dict(imbalance=10.0, largest=0, head='', per_class=9)
    found = cut_tail(balanced(), options, seed=0)
    train = (found.table['split'] == 'train').to_numpy()
    assert class_counts(found.select(train), 'class').tolist() == [9, 9, 8, 4]


def test_rows_without_a_label_stay_among_a_few_per_class():
    rows = balanced()
    labels = rows.labels('class').copy()
    labels[[1, 2]] = -1  # both train
    found = cut_tail(rows.with_column('label/class', labels),
                     dict(imbalance=1.0, largest=0, head='', per_class=5), seed=0)
    assert {'0001', '0002'} < set(found.table['id']) and len(found) == 40 + 4 * 5 + 2


def test_wrong_settings():
    with pytest.raises(DataError, match="needs 50 training images of '0', which has 40"):
        cut_tail(balanced(), dict(imbalance=2.0, largest=50, head=''), seed=0)
    with pytest.raises(DataError, match='at least 1'):
        cut_tail(balanced(), dict(imbalance=0.5, largest=0, head=''), seed=0)
    for wrong in (-1, 2.5, True, '5'):
        with pytest.raises(DataError, match=r'per_class = .* is not a valid number'):
            cut_tail(balanced(), dict(imbalance=1.0, largest=0, head='', per_class=wrong), seed=0)
