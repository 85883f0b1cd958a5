"""Resampling: how often each row comes in an epoch; and weights of classes in the loss.

A kind makes a plan of the training rows, and a plan an order (order.py). An epoch of the
order may be longer or shorter than the data: over-sampled data take longer to walk through. In
durations, logs and schedules an epoch stays as many examples as there are rows, so that the
arms of a study with one duration take the same number of steps.

Resample the training rows only, after the split.
"""

import difflib
import logging
import math
import numbers
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest, class_counts
from input_pipeline.order import Order, Plan, Systematic, Walk

DEFAULTS = {
    'kind': 'none', 'head': '', 'start': None, 'length': None, 'target': None, 'multipliers': (),
    'n': None, 'redraw': True, 'k': 10, 'column': '', 'beta': 0.9999}

# What a random stream is for; the order and the loader have others.
_SUBSET = 5
_MOST = 10**9  # examples of an epoch

_log = logging.getLogger(__name__)


def make_order(manifest: Manifest, resample: Mapping, *, seed: int, batch_size: int,
               to_steps: Callable[[Mapping, str], int]) -> Order:
    """The order of the training rows under `config.resample`.

    Args:
        manifest: the training rows.
        resample: any of the keys of `DEFAULTS`; those that a kind does not know are not used.
            kind: a name in `RESAMPLINGS`.
            head: whose classes; '' for the first. Rows without a label of it come once an
                epoch (kind 'weighted': as their weights say).
            start: a duration from which resampling applies, None or {} for from the beginning.
            length: examples of an epoch; None for what the kind gives. Quotas keep their
                proportions, and none becomes zero.
            target, multipliers, n, redraw, k, column, beta: see the functions in `RESAMPLINGS`.
        seed: of the run.
        batch_size: examples a step, over all processes.
        to_steps: (duration, config key) -> steps from the start of the run.

    Raises:
        DataError: a wrong value, or a column that is missing or holds what it must not.
    """
    options = _checked_options(resample, manifest)
    plan = RESAMPLINGS[options['kind']](manifest, options, seed)
    start = 0
    if options['start'] and not (options['kind'] == 'none' and options['length'] is None):
        start = to_steps(options['start'], 'resample.start') * batch_size
    if options['kind'] != 'none':
        _log.info('Resampling %r: an epoch of %d rows has %d examples%s.', options['kind'],
                  len(manifest), plan.length, f' from example {start} on' if start else '')
    return Order(plan, start)


# --- kinds: (manifest, options, seed) -> plan -------------------------------------------------


def none(manifest: Manifest, options: Mapping, seed: int) -> Walk:
    """Each row once an epoch."""
    return _by_class(manifest, options, seed, class_counts(manifest, options['head']))


def over(manifest: Manifest, options: Mapping, seed: int) -> Walk:
    """Classes of fewer than `target` images (None: than the largest) are repeated up to it."""
    counts = class_counts(manifest, options['head'])
    target = counts.max() if options['target'] is None else options['target']
    return _by_class(manifest, options, seed, np.where(counts, np.maximum(counts, target), 0))


def under(manifest: Manifest, options: Mapping, seed: int) -> Walk:
    """Classes of more than `target` images (None: than the smallest) show that many an epoch."""
    counts = class_counts(manifest, options['head'])
    target = options['target']
    if target is None:
        target = counts[counts > 0].min(initial=len(manifest))
    return _by_class(manifest, options, seed, np.minimum(counts, target))


def multiply(manifest: Manifest, options: Mapping, seed: int) -> Walk:
    """A class comes `multipliers[name]` times (not named: once), rounded to whole images."""
    names = manifest.classes[options['head']]
    factors = _by_name(options['multipliers'], names, 'resample.multipliers')
    counts = class_counts(manifest, options['head'])
    quotas = np.floor(counts * factors + 0.5)
    quotas[(counts > 0) & (factors > 0)] = np.maximum(quotas, 1)[(counts > 0) & (factors > 0)]
    return _by_class(manifest, options, seed, quotas)


def random(manifest: Manifest, options: Mapping, seed: int) -> Walk:
    """`n` (600) images of each class, others each epoch or (`redraw=False`) always the same.

    A class of fewer shows all of them.
    """
    quotas = np.minimum(class_counts(manifest, options['head']), options['n'] or 600)
    return _by_class(manifest, options, seed, quotas, fixed=not options['redraw'])


def cluster(manifest: Manifest, options: Mapping, seed: int) -> Walk:
    """`n` (60) images of each cluster of each class, as 'random'.

    The clusters are the values of `column` ('cluster'), e.g. of `cluster_rows`; the same
    value in two classes is two clusters.
    """
    values = _column(manifest, options['column'] or 'cluster', 'cluster')
    values = values.astype(str) if values.dtype == object else values
    labels = manifest.labels(options['head'])
    named = labels >= 0
    _, values = np.unique(values, return_inverse=True)
    pairs = labels.astype(np.int64) * (values.max() + 1) + values
    _, pairs = np.unique(pairs[named], return_inverse=True)
    cells = np.full(len(manifest), -1)
    cells[named] = pairs
    quotas = np.minimum(np.bincount(pairs), options['n'] or 60)
    return _walk_plan(cells, quotas, options, seed, fixed=not options['redraw'])


def sqrt(manifest: Manifest, options: Mapping, seed: int) -> Walk:
    """A class of n_c images comes in proportion to the square root of n_c (Mahajan 2018)."""
    counts = class_counts(manifest, options['head'])
    return _by_class(manifest, options, seed, _shares(np.sqrt(counts), counts))


def effective(manifest: Manifest, options: Mapping, seed: int) -> Walk:
    """An image of a class comes in proportion to (1 - beta) / (1 - beta^n_c) (Cui 2019)."""
    counts = class_counts(manifest, options['head'])
    weights = _effective(counts, _beta(options['beta'], 'resample.beta'))
    return _by_class(manifest, options, seed, _shares(counts * weights, counts))


def balanced(manifest: Manifest, options: Mapping, seed: int) -> Walk:
    """All classes come equally often, and an epoch keeps its length."""
    counts = class_counts(manifest, options['head'])
    return _by_class(manifest, options, seed, _shares((counts > 0).astype(float), counts))


def weighted(manifest: Manifest, options: Mapping, seed: int) -> Systematic:
    """A row comes in proportion to its value in `column` ('weight'); an epoch keeps its length.

    With `length` the sum of the weights, they are the numbers of examples themselves.
    """
    column = options['column'] or 'weight'
    values = _column(manifest, column, 'weighted')
    try:
        weights = values.astype(np.float64)
    except ValueError as error:
        raise DataError(f'The column {column!r}, which resample.column names, holds text '
                        f'({error}): give numbers.') from error
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        raise DataError(f'Image {manifest.table["id"][wrong[0]]!r} has {column}='
                        f'{weights[wrong[0]]:g}: a weight is a number that is not negative.')
    rows = np.flatnonzero(weights)
    if not len(rows):
        raise DataError(f'All of the column {column!r} is 0, so resample.kind=weighted leaves no '
                        f'image: give some a positive weight.')
    length = options['length'] or len(manifest)
    expected = weights[rows] * (length / weights.sum())
    return Systematic(len(manifest), seed, rows, expected, length)


RESAMPLINGS: dict[str, Callable[[Manifest, Mapping, int], Plan]] = {
    'none': none, 'over': over, 'under': under, 'multiply': multiply, 'random': random,
    'cluster': cluster, 'sqrt': sqrt, 'effective': effective, 'balanced': balanced,
    'weighted': weighted}


def cluster_rows(features: np.ndarray, labels: np.ndarray, k: int = 10, seed: int = 0
                 ) -> np.ndarray:
    """KMeans within each class: values for the column that kind 'cluster' reads.

    Args:
        features: float [N, D].
        labels: int [N]; -1 is unlabelled.
        k: clusters of a class; fewer where a class has fewer different rows.

    Returns:
        int32 [N]: the cluster within the class, or -1 for a row without a label.
    """
    from sklearn.cluster import KMeans
    clusters = np.full(len(labels), -1, np.int32)
    for label in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == label)
        different = len(np.unique(features[rows], axis=0))
        means = KMeans(min(k, different), n_init=3, random_state=seed)
        clusters[rows] = means.fit_predict(features[rows])
    return clusters


def _by_class(manifest: Manifest, options: Mapping, seed: int, quotas: np.ndarray, *,
              fixed: bool = False) -> Walk:
    return _walk_plan(manifest.labels(options['head']), quotas, options, seed, fixed=fixed)


def _walk_plan(cells: np.ndarray, quotas: np.ndarray, options: Mapping, seed: int, *,
               fixed: bool) -> Walk:
    """The plan of rows [N] in cells (-1: a cell of its own, once an epoch) of quotas [C].

    Quotas may be fractions. `fixed`: only the first quota of each cell ever takes part.
    """
    count = len(quotas)
    cells = np.where(cells < 0, count, cells)
    sizes = np.bincount(cells, minlength=count + 1)
    rows = np.argsort(cells, kind='stable')
    quotas = np.append(quotas, sizes[-1])
    if fixed:
        chosen = [np.random.default_rng((seed, _SUBSET, cell)).permutation(part)[:int(quota)]
                  for cell, (part, quota) in enumerate(zip(np.split(rows, np.cumsum(sizes)[:-1]),
                                                           quotas))]
        rows, sizes = np.concatenate([np.sort(part) for part in chosen]), quotas.astype(int)
    wanted = int((quotas > 0).sum())
    length = options['length'] or round(quotas.sum())
    if not wanted:
        raise DataError('resample.multipliers leave no image: give some class a positive one.')
    if length < wanted:
        raise DataError(f'resample.length={length} is less than the {wanted} classes or clusters '
                        f'to be shown: give at least one example for each.')
    return Walk(len(cells), seed, rows, sizes, _apportion(quotas, length))


def _shares(shares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Shares [C], scaled to the number of labelled images."""
    return shares * (counts.sum() / max(shares.sum(), 1e-300))


def _apportion(quotas: np.ndarray, length: int) -> np.ndarray:
    """Whole quotas, int64 [C], that add up to `length` (largest remainder); none becomes zero."""
    exact = quotas * (length / quotas.sum())
    whole = np.floor(exact + 1e-9).astype(np.int64)
    first = np.argsort(whole - exact, kind='stable')[:length - whole.sum()]
    whole[first] += 1
    for cell in np.flatnonzero((whole == 0) & (quotas > 0)):
        whole[np.argmax(whole)] -= 1
        whole[cell] = 1
    return whole


# --- class weights --------------------------------------------------------------------------

WEIGHTINGS = ('none', 'balanced', 'effective', 'sqrt', 'manual')


def class_weights(counts: Iterable[int], kind: str = 'balanced', *, names: Iterable[str] = (),
                  beta: float = 0.9999, manual: Mapping[str, float] = (),
                  key: str = 'class_weights') -> np.ndarray:
    """Weights of the classes in the loss, float64 [C].

    Args:
        counts: training images of each class, [C].
        kind: 'none': all 1. 'balanced': n / (C n_c), as in scikit-learn. 'effective':
            in proportion to (1 - beta) / (1 - beta^n_c) (Cui 2019). 'sqrt': to
            1 / sqrt(n_c). These three have mean 1 over the training images, so that the size
            of the loss, and with it the learning rate, keeps its meaning; a class without
            images gets 0 and does not count as one of C. 'manual': by hand, as they are.
        names: of the classes, for 'manual'.
        beta: of 'effective', in [0, 1): 0 weights all images alike, towards 1 all classes.
        manual: class name -> weight; a class that is not named has 1.
        key: under which the config has these settings, for errors.

    Raises:
        DataError: an unknown kind or class, a bad weight or beta, no images at all.
    """
    counts = np.asarray(counts, np.int64)
    if kind not in WEIGHTINGS:
        raise DataError(f'{key}.kind={kind!r} is unknown: {_hint(kind, WEIGHTINGS)}')
    if kind == 'manual':
        return _by_name(manual, tuple(names), f'{key}.manual')
    beta = _beta(beta, f'{key}.beta')
    if not counts.sum():
        raise DataError(f'{key}.kind={kind} needs labelled training images, and there are none: '
                        f'use none.')
    if kind == 'none':
        return np.ones(len(counts))
    if kind == 'effective':
        weights = _effective(counts, beta)
    else:
        weights = np.maximum(counts, 1.0) ** (-1 if kind == 'balanced' else -0.5) * (counts > 0)
    return weights * (counts.sum() / (weights * counts).sum())


def _effective(counts: np.ndarray, beta: float) -> np.ndarray:
    return np.where(counts, (1 - beta) / (1 - beta ** np.maximum(counts, 1)), 0.0)


# --- checks -----------------------------------------------------------------------------------


def _checked_options(resample: Mapping, manifest: Manifest) -> dict:
    for key in resample:
        if key not in DEFAULTS:
            raise DataError(f'resample.{key} is unknown: {_hint(key, DEFAULTS)}')
    options = DEFAULTS | dict(resample)
    if options['kind'] not in RESAMPLINGS:
        raise DataError(f'resample.kind={options["kind"]!r} is unknown: '
                        f'{_hint(options["kind"], RESAMPLINGS)}')
    options['head'] = options['head'] or manifest.heads[0]
    if options['head'] not in manifest.classes:
        raise DataError(f'resample.head={options["head"]!r} is no head: '
                        f'use one of {", ".join(manifest.heads)}.')
    for key in ('length', 'target', 'n'):
        value = options[key]
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if value is not None and not (whole and 0 < value <= _MOST):
            raise DataError(f'resample.{key}={value!r}: give a whole number of examples from 1 '
                            f'to {_MOST:,}, or None for the default.')
    return options


def _column(manifest: Manifest, name: str, kind: str) -> np.ndarray:
    if name not in manifest.table:
        raise DataError(f'resample.kind={kind} needs the column {name!r}, which the data do not '
                        f'have: name one of {", ".join(manifest.table.columns)} by '
                        f'resample.column, or make it.')
    empty = np.flatnonzero(manifest.table[name].isna())
    if len(empty):
        raise DataError(f'Image {manifest.table["id"][empty[0]]!r} has nothing in the column '
                        f'{name!r}, which resample.kind={kind} reads: fill it in.')
    return manifest.table[name].to_numpy()


def _by_name(factors: Mapping[str, float], names: tuple[str, ...], key: str) -> np.ndarray:
    """A number for each class, float64 [C]: those given by name, and 1 for the others."""
    result = np.ones(len(names))
    for name, value in dict(factors).items():
        if str(name) not in names:
            raise DataError(f'{key} names the class {name!r}, which does not exist: '
                            f'{_hint(str(name), names)}')
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not (number and 0 <= value < math.inf):
            raise DataError(f'{key}[{name!r}] = {value!r}: give a number that is not negative.')
        result[names.index(str(name))] = value
    return result


def _beta(beta: float, key: str) -> float:
    number = isinstance(beta, numbers.Real) and not isinstance(beta, bool)
    if not (number and 0 <= beta < 1):
        raise DataError(f'{key}={beta!r}: give a number from 0 to below 1, e.g. 0.9999.')
    return float(beta)


def _hint(word: object, known: Iterable[str]) -> str:
    """The rest of an error: what was meant, or what there is."""
    known = [str(name) for name in known]
    near = difflib.get_close_matches(str(word), known, n=1)
    if near:
        return f'did you mean {near[0]!r}?'
    return f'use one of {", ".join(known[:12])}{", ..." if len(known) > 12 else ""}.'
