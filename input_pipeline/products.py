"""Labels of several heads as one product class, and a product class as several labels.

A picture of (mask: worn, gender: female, age: 30-60) belongs to the product class
'worn/female/30-60'. One head of 18 classes and three heads of 3, 2 and 3 classes say the same;
an experiment shows which learns better.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.class_names import in_order
from input_pipeline.errors import DataError, listed
from input_pipeline.manifest import Manifest

SEPARATOR = '/'


def combine_heads(manifest: Manifest, heads: Sequence[str]) -> Manifest:
    """The manifest with these heads as one, named 'a/b' with classes 'x/y'.

    Every combination is a class, in the order of `np.ravel_multi_index`, whether it occurs or
    not. A row without one of the labels has no product label. Other heads stay.

    Raises:
        DataError: a head does not exist, or there are fewer than two.
    """
    _check(manifest, heads)
    sizes = [len(manifest.classes[head]) for head in heads]
    labels = np.stack([manifest.labels(head) for head in heads])
    known = (labels >= 0).all(0)
    product = np.full(len(manifest), -1, np.int32)
    product[known] = np.ravel_multi_index(tuple(labels[:, known]), sizes)
    names = [SEPARATOR.join(manifest.classes[head][i] for head, i in
                            zip(heads, np.unravel_index(number, sizes)))
             for number in range(int(np.prod(sizes)))]
    joined = SEPARATOR.join(heads)
    table = manifest.table.drop(columns=[f'label/{head}' for head in heads])
    kept = {head: value for head, value in manifest.classes.items() if head not in heads}
    return dataclasses.replace(manifest, table=table.assign(**{f'label/{joined}': product}),
                               classes={joined: tuple(names), **kept})


def separate_head(manifest: Manifest, head: str, names: Sequence[str], rules: int = 2) -> Manifest:
    """The manifest with a head, whose classes are called 'x/y', separated into heads with these
    names. Their classes are sorted by these `rules` of `class_names`.

    Raises:
        DataError: the head does not exist, or a class has another number of parts.
    """
    if head not in manifest.classes:
        raise DataError(f'The head {head!r} does not exist: separate one of '
                        f'{listed(manifest.heads)}.')
    parts = [name.split(SEPARATOR) for name in manifest.classes[head]]
    for name, split in zip(manifest.classes[head], parts):
        if len(split) != len(names):
            raise DataError(f'The class {name!r} of head {head!r} has {len(split)} parts, and '
                            f'data.separate names {len(names)} ({listed(names)}): give one '
                            f'name per part.')
    labels = manifest.labels(head)
    table, classes = manifest.table.drop(columns=[f'label/{head}']), {}
    for i, name in enumerate(names):
        classes[name] = in_order({split[i] for split in parts}, rules)
        number = {word: k for k, word in enumerate(classes[name])}
        of_class = np.array([number[split[i]] for split in parts], np.int32)
        table[f'label/{name}'] = np.where(labels >= 0, of_class[labels], -1).astype(np.int32)
    others = {key: value for key, value in manifest.classes.items() if key != head}
    return dataclasses.replace(manifest, table=table, classes={**classes, **others})


def product_log_probs(logits: Mapping[str, np.ndarray], heads: Sequence[str]) -> np.ndarray:
    """Log probabilities of the product classes from the logits of separate heads.

    The heads count as independent: {head: [N, C_h]} -> float64 [N, prod C_h], in the order of
    `combine_heads`.
    """
    total = np.zeros((len(logits[heads[0]]), 1))
    for head in heads:
        total = (total[:, :, None] + _log_softmax(logits[head])[:, None, :]).reshape(
            len(total), -1)
    return total


def marginal_log_probs(logits: np.ndarray, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Log probabilities of each head, summed over the other heads, from logits of product classes:
    [N, prod C_h] -> {head: float64 [N, C_h]}. `sizes` is {head: C_h} in the order of the product.
    """
    cube = np.exp(_log_softmax(logits)).reshape(len(logits), *sizes.values())
    found = {}
    for axis, head in enumerate(sizes, 1):
        others = tuple(i for i in range(1, cube.ndim) if i != axis)
        found[head] = np.log(np.maximum(cube.sum(others), 1e-300))
    return found


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _check(manifest: Manifest, heads: Sequence[str]) -> None:
    missing = [head for head in heads if head not in manifest.classes]
    if missing or len(set(heads)) < 2:
        reason = f'there is no head {missing[0]!r}' if missing else 'it names fewer than two heads'
        raise DataError(f'data.combine = {tuple(heads)!r}: {reason}; the heads are '
                        f'{listed(manifest.heads)}.')
