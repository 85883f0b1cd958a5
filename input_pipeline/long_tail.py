"""Fewer training images: a long tail, as the literature makes CIFAR-10-LT from CIFAR-10, or a few
per class, as for a learning curve."""

import numpy as np

from input_pipeline.errors import DataError, listed
from input_pipeline.manifest import Manifest, class_counts


def tail_counts(largest: int, classes: int, imbalance: float) -> np.ndarray:
    """Images per class, int64 [C]: largest x imbalance^(-c / (C - 1)), rounded down (Cui et al.,
    arXiv 1901.05555).

    With 5,000 images in the largest of 10 classes and an imbalance of 100, 12,406 images remain.
    """
    if classes == 1:
        return np.array([largest])
    share = np.arange(classes) / (classes - 1)
    # The tiny addend undoes rounding such as 49.999999 for 50.
    return np.floor(largest * imbalance ** -share + 1e-6).astype(np.int64)


def cut_tail(manifest: Manifest, options, *, seed: int) -> Manifest:
    """The manifest without the training rows that do not belong to the long tail, and then with at
    most `per_class` of each class; rows without a label stay if there is no tail.

    Classes keep their order: the first of a tail is the largest. Other splits stay whole. With the
    same seed the rows of a smaller `per_class` are among those of a larger one.

    Args:
        manifest: has the column `split`.
        options: `config.data.long_tail`: imbalance (largest / smallest class; 1 for no cut),
            largest (images of the first class; 0 for as many as the smallest class has now),
            per_class (the most images of a class; 0 for all),
            head (the head whose classes count; '' for the first).
        seed: seed of the choice.

    Raises:
        DataError: the imbalance is below 1, the head is unknown, a class has too few images for
            the tail, or `per_class` is not a whole number.
    """
    per_class, tail = options.get('per_class', 0), options['imbalance'] != 1 or options['largest']
    if type(per_class) is not int or per_class < 0:
        raise DataError(f'data.long_tail.per_class = {per_class!r} is not a valid number of images '
                        f'per class: use a whole number, or 0 for all of them.')
    if not tail and not per_class:
        return manifest
    head = options['head'] or manifest.heads[0]
    if head not in manifest.classes or options['imbalance'] < 1:
        raise DataError(f'data.long_tail = {dict(options)}: give an imbalance of at least 1 and '
                        f'one of the heads {listed(manifest.heads)}.')
    training = (manifest.table['split'] == 'train').to_numpy()
    labels = manifest.labels(head)
    there = class_counts(manifest.select(training), head)
    wanted = there if not tail else tail_counts(
        options['largest'] or int(there.min()), len(there), options['imbalance'])
    short = np.flatnonzero(there < wanted)
    if len(short):
        name = manifest.classes[head][short[0]]
        raise DataError(f'data.long_tail needs {wanted[short[0]]} training images of {name!r}, '
                        f'which has {there[short[0]]}: lower data.long_tail.largest.')
    if per_class:
        wanted = np.minimum(wanted, per_class)
    keep = ~training if tail else ~training | (labels < 0)
    for label, count in enumerate(wanted):
        rows = np.flatnonzero(training & (labels == label))
        keep[np.random.default_rng((seed, label)).permutation(rows)[:count]] = True
    return manifest.select(keep)
