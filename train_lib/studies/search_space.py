"""What a search tries: a space of settings, and who proposes points of it.

The config file of a search has `search()`, `search(config)` or `search(config, arg)`, which gives

    {dotted.path: (low, high)}            a number between the two
    {dotted.path: (low, high, 'log')}     the same, evenly in the logarithm
    {dotted.path: (low, high, 'whole')}   a whole number, both ends included
    {dotted.path: [one, another, ...]}    one of these values

A proposal is {dotted.path: value}. What a proposer says is a function of the seed, the space and
the results that it is given, so the same search proposes the same arms wherever it runs.
"""

import dataclasses
import itertools
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy.stats import qmc

from input_pipeline.errors import did_you_mean
from train_lib.runtime.errors import ConfigError

KINDS = ('linear', 'log', 'whole', 'choice')
PINNED = ('split', 'data', 'eval', 'duration', 'checkpoint', 'probe', 'resample')
Space = Mapping[str, 'Range']


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a setting may have.

    Attributes:
        kind: one of `KINDS`.
        low, high: of numbers, both included.
        values: of 'choice'.
    """

    kind: str
    low: float = 0.0
    high: float = 0.0
    values: tuple = ()

    def at(self, share: float) -> Any:
        """The value at a share of the range, 0 to 1; numbers have three significant digits."""
        if self.kind == 'choice':
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        if self.kind == 'whole':
            return int(self.low) + min(int(share * (self.high - self.low + 1)),
                                       int(self.high - self.low))
        value = (self.low * (self.high / self.low) ** share if self.kind == 'log' else
                 self.low + share * (self.high - self.low))
        return self.rounded(value)

    def rounded(self, value: float) -> float:
        """Three significant digits, inside the range."""
        return float(min(max(float(f'{value:.3g}'), self.low), self.high))

    def ends(self) -> tuple:
        """Values that show whether the config takes all of them."""
        return self.values if self.kind == 'choice' else (self.at(0.0), self.at(1.0))


@dataclasses.dataclass(frozen=True)
class Known:
    """What became of a proposal.

    Attributes:
        changes: the proposal.
        value: of a finished trial, more is better; None if it was stopped or has failed.
        rungs: {rung, from 1: its value there, more is better}.
    """

    changes: Mapping[str, Any]
    value: float | None
    rungs: Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Search:
    """The space, and config.study.search.

    Attributes:
        space: what is tried.
        trials: how many proposals in all.
        per_bracket: how many at a time.
        proposer: a key of `PROPOSERS`.
        seed: of the proposals, and config.seed of the trials.
        rungs: shares of the run at which trials are judged, percent, ascending.
        factor: at each rung the best 1 / factor go on, above 1.
    """

    space: Mapping[str, Range]
    trials: int
    per_bracket: int
    proposer: str
    seed: int
    rungs: tuple[float, ...]
    factor: float

    def as_listed(self, path: str, value: Any) -> Any:
        """A value as the space has it; JSON makes lists of tuples."""
        return next((one for one in self.space[path].values
                     if json.loads(json.dumps(one)) == value), value)

    def to_json(self) -> dict[str, Any]:
        """What a search keeps from its first start to its last."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def read_search(found: Any, section: ConfigDict, path: str) -> Search:
    """The search of a config file.

    Args:
        found: what `search()` returned.
        section: config.study.
        path: of the file.

    Raises:
        ConfigError: the space or a setting is wrong.
    """
    space, settings = read_space(found, path), section.search
    for key in space:
        if key.partition('.')[0] in PINNED:
            raise ConfigError(f'{path}: search() tries {key}, and trials are compared on the same '
                              f'rows at the same share of a run: leave it out.')
    if settings.proposer not in PROPOSERS:
        raise ConfigError(f'config.study.search.proposer = {settings.proposer!r}: '
                          f'{did_you_mean(settings.proposer, PROPOSERS, n=3, show=str)}')
    trials = settings.trials
    if settings.proposer == 'grid':
        listed = [key for key, one in space.items() if one.kind != 'choice']
        if listed:
            raise ConfigError(f"config.study.search.proposer = 'grid' needs lists of values, and "
                              f"{listed[0]} has none in {path}: list them, or choose 'random'.")
        size = math.prod(len(one.values) for one in space.values())
        trials = min(trials or size, size)
    if trials < 2:
        raise ConfigError(f'config.study.search.trials = {trials}: give 2 or more.')
    per_bracket = settings.per_bracket or (8 if settings.proposer == 'optuna' else trials)
    if per_bracket < 2:
        raise ConfigError(f'config.study.search.per_bracket = {per_bracket}: give 2 or more, or 0.')
    rungs = tuple(settings.rungs)
    if any(isinstance(one, str) or not 0 < one < 100 for one in rungs) or any(
            a >= b for a, b in itertools.pairwise(rungs)):
        raise ConfigError(f'config.study.search.rungs = {rungs}: give ascending shares of the run '
                          f'in percent, such as (20, 50), or () to stop none.')
    if not 1 < settings.factor < 1e3:
        raise ConfigError(f'config.study.search.factor = {settings.factor}: give a number above '
                          f'1, such as 3.')
    if settings.seed < 0 or settings.seed in section.seeds:
        raise ConfigError(f'config.study.search.seed = {settings.seed}: give 0 or more, and none '
                          f'of config.study.seeds, with which the winner is trained anew.')
    return Search(space, trials, per_bracket, settings.proposer, settings.seed, rungs,
                  settings.factor)


def read_space(found: Any, path: str) -> dict[str, Range]:
    """Checks what `search()` returned.

    Raises:
        ConfigError: it is not a mapping of settings to ranges.
    """
    if not isinstance(found, Mapping) or not found:
        raise ConfigError(f'{path}: search() gives {found!r:.80}: give {{dotted.path: (low, high) '
                          f'or [values]}}.')
    return {str(key).removeprefix('config.'): _read_range(str(key), value, path)
            for key, value in found.items()}


def _read_range(key: str, value: Any, path: str) -> Range:
    if isinstance(value, list):
        if len(value) < 2 or any(value[i] in value[:i] for i in range(len(value))):
            raise ConfigError(f'{path}: search() gives {key}: {value!r:.80}: list two or more '
                              f'different values.')
        return Range('choice', values=tuple(value))
    wrong = ConfigError(f"{path}: search() gives {key}: {value!r:.80}: give (low, high), (low, "
                        f"high, 'log'), (low, high, 'whole') or a list of values.")
    if not isinstance(value, tuple) or len(value) not in (2, 3):
        raise wrong
    kind = value[2] if len(value) == 3 else 'linear'
    numbers = [one for one in value[:2] if isinstance(one, (int, float))
               and not isinstance(one, bool) and math.isfinite(one)]
    if kind not in ('linear', 'log', 'whole') or len(numbers) < 2:
        raise wrong
    low, high = numbers
    if low >= high or (kind == 'log' and low <= 0) or (
            kind == 'whole' and (low != int(low) or high != int(high))):
        raise ConfigError(f'{path}: search() gives {key}: {value!r:.80}: low must be below high'
                          f'{", and above 0" if kind == "log" else ""}'
                          f'{", and both be whole numbers" if kind == "whole" else ""}.')
    return Range(kind, low, high)


# --- who proposes ---------------------------------------------------------------------------


def propose_random(space: Space, seed: int, known: Sequence[Known], n: int) -> list[dict]:
    """The next n points of a scrambled Halton sequence, which leaves fewer gaps than independent
    ones; of the results it needs only their number."""
    shares = qmc.Halton(len(space), rng=seed).random(len(known) + n)[len(known):]
    return [{path: one.at(float(share)) for (path, one), share in zip(space.items(), row)}
            for row in shares]


def propose_grid(space: Space, seed: int, known: Sequence[Known], n: int) -> list[dict]:
    """The next n combinations of listed values, in an order drawn by the seed; fewer at the end."""
    points = [dict(zip(space, values))
              for values in itertools.product(*(one.values for one in space.values()))]
    order = np.random.default_rng(seed).permutation(len(points))
    return [points[i] for i in order[len(known):len(known) + n]]


def propose_optuna(space: Space, seed: int, known: Sequence[Known], n: int) -> list[dict]:
    """Points of Optuna's TPE sampler (Bergstra et al. 2011), which learns from the results. Nothing
    but asking is left to Optuna: it is told everything each time, and forgets it.

    Raises:
        ConfigError: Optuna is not installed.
    """
    try:
        import optuna
        from optuna.trial import TrialState, create_trial
    except ImportError:
        raise ConfigError("config.study.search.proposer = 'optuna' needs Optuna, which is not "
                          "installed: pip install -r requirements-search.txt, or choose "
                          "'random'.") from None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # features that it calls experimental
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed + len(known), constant_liar=True,
                                             multivariate=True, n_startup_trials=min(n, 10))
        study = optuna.create_study(direction='maximize', sampler=sampler)
        laws = {path: _distribution(optuna, one) for path, one in space.items()}
        for one in known:
            if one.value is None and not one.rungs:
                continue  # it failed, and has no number
            study.add_trial(create_trial(
                state=TrialState.PRUNED if one.value is None else TrialState.COMPLETE,
                value=one.value, distributions=laws, intermediate_values=dict(one.rungs),
                params={path: kind.values.index(one.changes[path]) if kind.kind == 'choice' else
                        one.changes[path] for path, kind in space.items()}))
        asked = [study.ask(laws).params for _ in range(n)]
    return [{path: _value(kind, params[path]) for path, kind in space.items()}
            for params in asked]


def _distribution(optuna: Any, one: Range) -> Any:
    if one.kind == 'choice':  # by number, for a value may be of any type
        return optuna.distributions.CategoricalDistribution(range(len(one.values)))
    if one.kind == 'whole':
        return optuna.distributions.IntDistribution(int(one.low), int(one.high))
    return optuna.distributions.FloatDistribution(one.low, one.high, log=one.kind == 'log')


def _value(one: Range, asked: Any) -> Any:
    if one.kind == 'choice':
        return one.values[asked]
    return int(asked) if one.kind == 'whole' else one.rounded(asked)


# name: (space, seed, what is known, how many) -> proposals
PROPOSERS: dict[str, Callable[[Space, int, Sequence[Known], int], list[dict]]] = {
    'random': propose_random,
    'grid': propose_grid,
    'optuna': propose_optuna,
}
