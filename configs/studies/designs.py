"""Ways to choose the arms of a study, for `study()` of a config file.

An arm is {dotted.path: value}; arms named by hand are {name: {dotted.path: value}}. Each design
gives the base itself, {}, first, which makes it the baseline. The study leaves out an arm that
equals the base.

    def study():
        yield from one_factor_at_a_time({'schedule.name': ('cosine', 'step', 'exponential'),
                                         'batch_size': (16, 32, 64, 128)})
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy.stats import qmc

Arms = Iterator[dict]
Range = Callable[[float], object]  # from a share, 0 to 1, to a value


def one_factor_at_a_time(factors: Mapping[str, Sequence]) -> Arms:
    """The base, then each value of each path, with everything else as in the base."""
    yield {}
    for path, values in factors.items():
        for value in values:
            yield {path: value}


def grid(factors: Mapping[str, Sequence]) -> Arms:
    """The base, then every combination of the values; the last path changes fastest."""
    yield {}
    for values in itertools.product(*factors.values()):
        yield dict(zip(factors, values))


def pairs(changes: Mapping[str, Mapping]) -> dict[str, dict]:
    """'base', each of the named changes alone, and every two of them together as 'one + other'.

    Raises:
        ValueError: two of them set the same path.
    """
    arms = {'base': {}, **{name: dict(change) for name, change in changes.items()}}
    for (first, one), (second, other) in itertools.combinations(changes.items(), 2):
        if set(one) & set(other):
            raise ValueError(f'{first!r} and {second!r} both set {min(set(one) & set(other))}')
        arms[f'{first} + {second}'] = {**one, **other}
    return arms


def random_search(ranges: Mapping[str, Range], n: int, seed: int = 0) -> Arms:
    """The base, then n points drawn at random (Bergstra and Bengio 2012)."""
    yield from _points(ranges, np.random.default_rng(seed).random((n, len(ranges))))


def quasi_random(ranges: Mapping[str, Range], n: int, seed: int = 0) -> Arms:
    """The base, then n points of a scrambled Halton sequence, which leaves fewer gaps. With a
    larger n, the first points stay the same."""
    yield from _points(ranges, qmc.Halton(len(ranges), rng=seed).random(n))


def linear(low: float, high: float) -> Range:
    """Evenly between the two; three significant digits."""
    return lambda share: _rounded(low + share * (high - low))


def logarithmic(low: float, high: float) -> Range:
    """Evenly in the logarithm; three significant digits: for learning rates and weight decay."""
    return lambda share: _rounded(low * (high / low) ** share)


def whole(low: int, high: int) -> Range:
    """Whole numbers, both ends included."""
    return lambda share: low + int(share * (high - low + 1))


def choice(*values) -> Range:
    """One of these."""
    return lambda share: values[int(share * len(values))]


def _points(ranges: Mapping[str, Range], shares: np.ndarray) -> Arms:
    yield {}
    for row in shares:
        yield {path: make(float(share)) for (path, make), share in zip(ranges.items(), row)}


def _rounded(value: float) -> float:
    return float(f'{value:.3g}')
