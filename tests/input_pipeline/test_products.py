"""Several labels as one class and back."""

import numpy as np
import pytest

from input_pipeline.errors import DataError
from input_pipeline.manifest import make_manifest
from input_pipeline.products import (
    combine_heads,
    marginal_log_probs,
    product_log_probs,
    separate_head,
)


@pytest.fixture
def manifest():
    return make_manifest(
        {'id': list('abcd'), 'location': list('abcd'), 'label/mask': [0, 1, 2, -1],
         'label/age': [1, 0, 1, 1], 'label/tool': [0, 0, 0, 0]},
        {'mask': ('worn', 'wrong', 'none'), 'age': ('old', 'young'), 'tool': ('pen',)})


def test_product_and_back(manifest):
    product = combine_heads(manifest, ['mask', 'age'])
    assert product.heads == ('mask/age', 'tool')
    assert product.classes['mask/age'][:3] == ('worn/old', 'worn/young', 'wrong/old')
    assert product.labels('mask/age').tolist() == [1, 2, 5, -1]
    back = separate_head(product, 'mask/age', ['mask', 'age'])
    for head in ('mask', 'age'):
        words = [None if i < 0 else back.classes[head][i] for i in back.labels(head)]
        before = [None if i < 0 else manifest.classes[head][i] for i in manifest.labels(head)]
        # A row without a product label loses the others.
        assert words[:3] == before[:3] and words[3] is None


def test_log_probs_of_product_and_marginals():
    rng = np.random.default_rng(0)
    logits = {'mask': rng.normal(size=(5, 3)), 'age': rng.normal(size=(5, 2))}
    joint = product_log_probs(logits, ['mask', 'age'])
    assert joint.shape == (5, 6)
    np.testing.assert_allclose(np.exp(joint).sum(1), 1)
    back = marginal_log_probs(joint, {'mask': 3, 'age': 2})
    for head in logits:
        probs = np.exp(logits[head]) / np.exp(logits[head]).sum(1, keepdims=True)
        np.testing.assert_allclose(np.exp(back[head]), probs)


def test_wrong_heads_are_named(manifest):
    with pytest.raises(DataError, match="no head 'sex'"):
        combine_heads(manifest, ['mask', 'sex'])
    with pytest.raises(DataError, match='fewer than two'):
        combine_heads(manifest, ['mask'])
    with pytest.raises(DataError, match="'worn' of head 'mask' has 1 parts"):
        separate_head(manifest, 'mask', ['a', 'b'])
