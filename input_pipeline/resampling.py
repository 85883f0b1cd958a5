"""Resampling: how often each training row comes in an epoch.

A kind makes a plan from the training rows, and a plan makes an order (order.py). An epoch of
the order may be longer or shorter than the data: over-sampled data take longer to walk through.
In durations, logs and schedules an epoch always has as many examples as there are rows, so that
the arms of a study with one duration take the same number of steps.

Resample only the training rows, after the split.
"""

import logging
import numbers
from collections.abc import Callable, Mapping

import numpy as np

from input_pipeline.class_factors import checked_beta, effective_weights, factors_by_name
from input_pipeline.errors import DataError, did_you_mean, listed
from input_pipeline.manifest import Manifest, class_counts
from input_pipeline.order import Order, Plan, Systematic, Walk
from input_pipeline.sections import checked_section

KEYS = ('kind', 'head', 'start', 'length', 'target', 'multipliers', 'n', 'redraw', 'k', 'column',
        'beta')

# The purpose of a random stream; the order and the loader use other numbers.
_SUBSET = 5
_OF_SETS = ('none', 'weighted', 'repeat_factor')  # rows may have several labels
_MAX_LENGTH = 10**9  # examples per epoch

_log = logging.getLogger(__name__)


def make_order(manifest: Manifest, resample: Mapping, *, seed: int, batch_size: int,
               to_steps: Callable[[Mapping, str], int]) -> Order:
    """The order of the training rows under `config.resample`.

    Args:
        manifest: the training rows.
        resample: `config.resample`, with all of the keys in `KEYS`. A kind ignores the keys
            that it does not need.
            kind: a name in `RESAMPLINGS`.
            head: the head whose classes count; '' for the first. Rows without a label of it
                come once per epoch (kind 'weighted': as their weights say).
            start: the duration after which resampling applies; None or {}: from the beginning.
            length: examples per epoch; None for what the kind gives. Quotas keep their
                proportions, and no quota becomes zero.
            target, multipliers, n, redraw, k, column, beta: see the functions in `RESAMPLINGS`.
        seed: of the run.
        batch_size: examples per step, over all processes.
        to_steps: (duration, config key) -> steps from the start of the run.

    Raises:
        DataError: an unknown or missing key, a wrong value, or a column that is missing or has
            unusable values.
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
    """Each row once per epoch."""
    if options['head'] in manifest.label_sets:
        return _walk_plan(np.zeros(len(manifest), int), np.array([len(manifest)]), options, seed,
                          fixed=False)
    return _by_class(manifest, options, seed, class_counts(manifest, options['head']))


def over(manifest: Manifest, options: Mapping, seed: int) -> Walk:
    """Classes with fewer than `target` images (None: the largest class) are repeated up to it."""
    counts = class_counts(manifest, options['head'])
    target = counts.max() if options['target'] is None else options['target']
    return _by_class(manifest, options, seed, np.where(counts, np.maximum(counts, target), 0))


def under(manifest: Manifest, options: Mapping, seed: int) -> Walk:
    """Classes with more than `target` images (None: the smallest class) show so many per epoch."""
    counts = class_counts(manifest, options['head'])
    target = options['target']
    if target is None:
        target = counts[counts > 0].min(initial=len(manifest))
    return _by_class(manifest, options, seed, np.minimum(counts, target))


def multiply(manifest: Manifest, options: Mapping, seed: int) -> Walk:
    """A class comes `multipliers[name]` times (once if not named), rounded to whole images."""
    names = manifest.classes[options['head']]
    factors = factors_by_name(options['multipliers'], names, 'resample.multipliers')
    counts = class_counts(manifest, options['head'])
    quotas = np.floor(counts * factors + 0.5)
    quotas[(counts > 0) & (factors > 0)] = np.maximum(quotas, 1)[(counts > 0) & (factors > 0)]
    return _by_class(manifest, options, seed, quotas)


def random(manifest: Manifest, options: Mapping, seed: int) -> Walk:
    """`n` (600) images of each class: different ones each epoch, or with `redraw=False` the same.

    A class with fewer images shows all of them.
    """
    quotas = np.minimum(class_counts(manifest, options['head']), options['n'] or 600)
    return _by_class(manifest, options, seed, quotas, fixed=not options['redraw'])


def cluster(manifest: Manifest, options: Mapping, seed: int) -> Walk:
    """`n` (60) images of each cluster of each class, drawn as by 'random'.

    The clusters are the values of `column` ('cluster'), e.g. those of
    `descriptors.cluster_rows`; the same value in two classes means two clusters.
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
    """A class with n_c images comes in proportion to the square root of n_c (Mahajan 2018)."""
    counts = class_counts(manifest, options['head'])
    return _by_class(manifest, options, seed, _shares(np.sqrt(counts), counts))


def effective(manifest: Manifest, options: Mapping, seed: int) -> Walk:
    """An image of a class comes in proportion to (1 - beta) / (1 - beta^n_c) (Cui 2019)."""
    counts = class_counts(manifest, options['head'])
    weights = effective_weights(counts, checked_beta(options['beta'], 'resample.beta'))
    return _by_class(manifest, options, seed, _shares(counts * weights, counts))


def balanced(manifest: Manifest, options: Mapping, seed: int) -> Walk:
    """All classes come equally often; the length of the epoch stays the same."""
    counts = class_counts(manifest, options['head'])
    return _by_class(manifest, options, seed, _shares((counts > 0).astype(float), counts))


def repeat_factor(manifest: Manifest, options: Mapping, seed: int) -> Systematic:
    """A row comes sqrt(target / n_c) times, at least once, for the rarest of its classes, which has
    n_c images: repeat factor sampling of LVIS (Gupta et al. 2019, arXiv 1908.03195), whose
    threshold t is `target` as a share of the labelled rows (None: their 0.001).

    Rows without a label come once, and so do those of several labels to which none applies.
    """
    head = options['head']
    numbers, counts = manifest.numbers(head), class_counts(manifest, head)
    labelled = int((numbers >= 0).sum())
    target = 0.001 * labelled if options['target'] is None else options['target']
    factors = np.maximum(np.sqrt(target / np.maximum(counts, 1)), 1.0)
    if head in manifest.label_sets:
        factors = np.where(manifest.label_sets[head].table, factors, 1.0).max(axis=1, initial=1.0)
    more = np.append(factors, 1.0)[numbers] - 1.0  # the last one is of rows without a label
    whole = round(more.sum())
    if not whole:
        _log.warning('resample no class is rare enough for target=%g: nothing is repeated', target)
        _log.warning('         (more by --config.resample.target)')
    expected = 1.0 + more * (whole / max(more.sum(), 1e-300))
    length = options['length'] or len(manifest) + whole
    return Systematic(len(manifest), seed, np.arange(len(manifest)),
                      expected * (length / (len(manifest) + whole)), length)


def weighted(manifest: Manifest, options: Mapping, seed: int) -> Systematic:
    """A row comes in proportion to its value in `column` ('weight').

    The length of the epoch stays the same. If `length` is the sum of the weights, each weight is
    the number of times that its row comes.
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
                        f'{weights[wrong[0]]:g}: give weights that are not negative.')
    rows = np.flatnonzero(weights)
    if not len(rows):
        raise DataError(f'Every value in the column {column!r} is 0, so resample.kind=weighted '
                        f'leaves no image: give some images a positive weight.')
    length = options['length'] or len(manifest)
    expected = weights[rows] * (length / weights.sum())
    return Systematic(len(manifest), seed, rows, expected, length)


RESAMPLINGS: dict[str, Callable[[Manifest, Mapping, int], Plan]] = {
    'none': none, 'over': over, 'under': under, 'multiply': multiply, 'random': random,
    'cluster': cluster, 'sqrt': sqrt, 'effective': effective, 'balanced': balanced,
    'weighted': weighted, 'repeat_factor': repeat_factor}


def _by_class(manifest: Manifest, options: Mapping, seed: int, quotas: np.ndarray, *,
              fixed: bool = False) -> Walk:
    return _walk_plan(manifest.labels(options['head']), quotas, options, seed, fixed=fixed)


def _walk_plan(cells: np.ndarray, quotas: np.ndarray, options: Mapping, seed: int, *,
               fixed: bool) -> Walk:
    """The plan of a walk through cells (classes or clusters).

    Args:
        cells: int [N], the cell of each row; -1 for rows that come once per epoch.
        quotas: [C], examples of each cell per epoch; fractions are allowed.
        fixed: the same choice of `quota` rows of each cell is shown in every epoch.
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
        raise DataError('resample.multipliers leave no image: give some class a positive '
                        'multiplier.')
    if length < wanted:
        raise DataError(f'resample.length={length} is less than the {wanted} classes or clusters '
                        f'to show: give at least one example for each.')
    return Walk(len(cells), seed, rows, sizes, _apportion(quotas, length))


def _shares(shares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Shares [C], scaled to the number of labelled images."""
    return shares * (counts.sum() / max(shares.sum(), 1e-300))


def _apportion(quotas: np.ndarray, length: int) -> np.ndarray:
    """Whole quotas, int64 [C], that add up to `length` (largest remainder). A positive quota does
    not become zero."""
    exact = quotas * (length / quotas.sum())
    whole = np.floor(exact + 1e-9).astype(np.int64)
    first = np.argsort(whole - exact, kind='stable')[:length - whole.sum()]
    whole[first] += 1
    for cell in np.flatnonzero((whole == 0) & (quotas > 0)):
        whole[np.argmax(whole)] -= 1
        whole[cell] = 1
    return whole


# --- checks -----------------------------------------------------------------------------------


def _checked_options(resample: Mapping, manifest: Manifest) -> dict:
    options = checked_section(resample, KEYS, 'resample')
    if options['kind'] not in RESAMPLINGS:
        raise DataError(f'resample.kind={options["kind"]!r} is unknown: '
                        f'{did_you_mean(options["kind"], RESAMPLINGS)}')
    options['head'] = options['head'] or manifest.heads[0]
    if options['head'] not in manifest.classes:
        raise DataError(f'resample.head={options["head"]!r} is not a head: '
                        f'use one of {listed(manifest.heads)}.')
    if options['head'] in manifest.label_sets and options['kind'] not in _OF_SETS:
        raise DataError(f'resample.kind={options["kind"]} goes by one label per picture, and the '
                        f'head {options["head"]!r} has several: use the kind repeat_factor or '
                        f'weighted, or name another head in resample.head.')
    for key in ('length', 'target', 'n'):
        value = options[key]
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if value is not None and not (whole and 0 < value <= _MAX_LENGTH):
            raise DataError(f'resample.{key}={value!r}: give a whole number of examples from 1 '
                            f'to {_MAX_LENGTH:,}, or None for the default.')
    return options


def _column(manifest: Manifest, name: str, kind: str) -> np.ndarray:
    if name not in manifest.table:
        raise DataError(f'resample.kind={kind} needs the column {name!r}, which the data do not '
                        f'have: set resample.column to one of {listed(manifest.table.columns)}, '
                        f'or add the column.')
    empty = np.flatnonzero(manifest.table[name].isna())
    if len(empty):
        raise DataError(f'Image {manifest.table["id"][empty[0]]!r} has no value in the column '
                        f'{name!r}, which resample.kind={kind} reads: fill it in.')
    return manifest.table[name].to_numpy()
