"""config.ensembles as data: which members vote by which rule, with which weights."""

import dataclasses
import difflib
from collections.abc import Mapping

import numpy as np

from train_lib.ensembles.aligned import Panel, patterns_of, unit_of
from train_lib.ensembles.pool import Ballot
from train_lib.ensembles.rules import RULES
from train_lib.predictions.members import workdirs_of
from train_lib.predictions.store import fold_of
from train_lib.runtime.errors import ConfigError

FITTED = ('fit', 'greedy')
_KEYS = ('members', 'rule', 'weights')


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """One way to vote.

    Attributes:
        inner: the rule of the members within a model, None for one level.
        weights: 'none', one of FITTED, or given: float [M] of the panel's members.
        there: bool [M], who votes.
    """

    name: str
    rule: str
    inner: str | None
    weights: str | np.ndarray
    there: np.ndarray
    trim: float

    @property
    def fitted(self) -> bool:
        """Whether its weights come from the rows of config.fit_source."""
        return isinstance(self.weights, str) and self.weights in FITTED

    @property
    def label(self) -> str:
        """Its rule in words: 'soft', or 'soft-hard' of two levels."""
        return self.rule if self.inner is None else f'{self.inner}-{self.rule}'

    def ballot(self, panel: Panel, weights: np.ndarray | None = None) -> Ballot:
        """On all members of a panel; weights float [M], None: equal (those given if they are)."""
        if weights is None and isinstance(self.weights, np.ndarray):
            weights = self.weights
        if weights is None:
            return Ballot(self.rule, self.inner, tuple(self.there.astype(float)), trim=self.trim)
        by_model = None
        if self.inner is not None:
            by_model = {}
            for model, weight in zip(panel.models, weights):
                by_model[model] = by_model.get(model, 0.0) + float(weight)
        return Ballot(self.rule, self.inner, tuple(map(float, weights)), by_model, self.trim)


def read_ensembles(config: Mapping, panel: Panel) -> list[Ensemble]:
    """The ensembles of a vote, at least one; the first is the one that answers unless
    config.choose says otherwise.

    Raises:
        ConfigError: an unknown key, rule, member or weight.
    """
    table = {str(name): spec for name, spec in config['ensembles'].items()}
    if not table:
        own = _rules(config['rule'], 'config.rule')
        name = own[1] if own[0] is None else '-'.join(own)
        table = {name: {}}
        table.update({rule: dict(rule=rule) for rule in RULES if rule != name})
    found = []
    for name, spec in table.items():
        where = f'config.ensembles[{name!r}]' if config['ensembles'] else 'config'
        for key in spec:
            if key not in _KEYS:
                near = difflib.get_close_matches(key, _KEYS, n=1) or _KEYS
                raise ConfigError(f'{where} has no key {key!r}: did you mean '
                                  f'{" or ".join(near)}?')
        inner, rule = _rules(spec.get('rule', config['rule']), f'{where}.rule')
        there = _members(spec.get('members', ()), panel, where)
        weights = _weights(spec.get('weights', config['weights']), panel, there, where)
        found.append(Ensemble(name, rule, inner, weights, there, config['trim']))
    return found


def counts_of_units(panel: Panel, units: list, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int [M], the unit of each member, -1 for none; int [U], members of each that vote)"""
    of = np.array([units.index(unit_of(member)) if unit_of(member) in units else -1
                   for member in panel.members])
    return of, np.bincount(of[there & (of >= 0)], minlength=len(units))


def _rules(value, where: str) -> tuple[str | None, str]:
    """(inner or None, outer)"""
    levels = patterns_of(value)
    if len(levels) not in (1, 2):
        raise ConfigError(f"{where} = {value!r}: give one rule, or two for two levels, as in "
                          f"('soft', 'hard').")
    for rule in levels:
        if rule not in RULES:
            near = difflib.get_close_matches(rule, RULES, n=1) or list(RULES)
            raise ConfigError(f'{where} = {value!r}: the rule {rule!r} is not known; did you mean '
                              f'{" or ".join(near)}?')
    return (None, levels[0]) if len(levels) == 1 else (levels[0], levels[1])


def _members(names, panel: Panel, where: str) -> np.ndarray:
    names = patterns_of(names)
    if not names:
        return np.ones(len(panel.members), bool)
    there = np.zeros(len(panel.members), bool)
    for name in names:
        mine = np.array([name == member.model for member in panel.members])
        if not mine.any():
            paths = {path.resolve() for path in workdirs_of(name)}
            mine = np.array([bool({member.workdir.resolve(), member.workdir.resolve().parent if
                                   fold_of(member.workdir) is not None else None} & paths)
                             for member in panel.members])
        if not mine.any():
            raise ConfigError(f'{where}.members names {name!r}, which is no member: use some of '
                              f'{", ".join(dict.fromkeys(panel.models))}, or a workdir.')
        there |= mine
    return there


def _weights(value, panel: Panel, there: np.ndarray, where: str) -> str | np.ndarray:
    if isinstance(value, Mapping):
        # A model's weight is shared by its members; one that is not named has 1.
        size = {model: there[[one == model for one in panel.models]].sum()
                for model in panel.models}
        by_model = any(name in size for name in value)
        weights = np.array([1 / max(size[model], 1) if by_model else 1.0
                            for model in panel.models])
        for name, weight in value.items():
            mine = np.array([name in (member.name, member.model) for member in panel.members])
            if not mine.any():
                raise ConfigError(f'{where}.weights names {name!r}, which is no member: use some '
                                  f'of {", ".join(dict.fromkeys(panel.models))}.')
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) \
                    or not 0 <= weight < np.inf:
                raise ConfigError(f'{where}.weights[{name!r}] = {weight!r}: give a finite number '
                                  f'from 0.')
            weights[mine] = weight / max(size[name], 1) if name in size else weight
        if not (weights * there).any():
            raise ConfigError(f'{where}.weights are all 0: give at least one that is more.')
        return weights * there
    if value not in ('none', *FITTED):
        raise ConfigError(f"{where}.weights = {value!r}: choose none, {' or '.join(FITTED)}, or "
                          f"give numbers by model, as in dict(a=2, b=1).")
    return value
