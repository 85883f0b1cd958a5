"""Scores of several labels, each by itself and all as one class."""

import dataclasses

import numpy as np
import pytest

from input_pipeline.manifest import make_manifest
from input_pipeline.products import combine_heads, product_log_probs
from train_lib.metrics.scores import scores
from train_lib.training.evaluate import score_split


@pytest.fixture(scope='module')
def split():
    rng = np.random.default_rng(0)
    mask, age = rng.integers(-1, 2, 40), rng.integers(0, 3, 40)
    manifest = make_manifest(
        {'id': [f'{i}' for i in range(40)], 'location': [f'{i}.png' for i in range(40)],
         'label/mask': mask, 'label/age': age},
        {'mask': ('worn', 'none'), 'age': ('young', 'middle', 'old')})
    return manifest, {'mask': rng.normal(size=(40, 2)), 'age': rng.normal(size=(40, 3))}


def test_one_head_and_several_are_scored_on_the_same_classes(split):
    manifest, logits = split
    several = score_split(logits, manifest)
    known = (manifest.labels('mask') >= 0) & (manifest.labels('age') >= 0)
    right = [logits[head].argmax(1) == manifest.labels(head) for head in manifest.heads]
    assert several['accuracy_product'] == pytest.approx((right[0] & right[1])[known].mean())
    assert several['accuracy'] > several['accuracy_product']

    product = combine_heads(manifest, manifest.heads)
    together = product_log_probs(logits, manifest.heads)
    one = score_split({product.heads[0]: together}, product)
    assert one['accuracy_product'] == one['accuracy'] == several['accuracy_product']
    assert one['f1_macro_product'] == several['f1_macro_product']
    assert one['f1_macro'] == scores(together, product.labels(product.heads[0]))['f1_macro']


def test_a_plain_label_has_no_product(split):
    manifest, logits = split
    table = manifest.table.drop(columns='label/mask')
    alone = dataclasses.replace(manifest, table=table, classes={'age': manifest.classes['age']})
    assert 'accuracy_product' not in score_split({'age': logits['age']}, alone)
