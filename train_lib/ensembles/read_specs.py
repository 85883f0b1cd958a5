"""config.ensembles, read into EnsembleSpecs of the members that vote."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from input_pipeline.errors import did_you_mean, listed
from train_lib.ensembles.aligned import AlignedPredictions
from train_lib.ensembles.rules import RULES
from train_lib.ensembles.spec import FITTED, EnsembleSpec
from train_lib.ensembles.voters import split_words
from train_lib.predictions.members import workdirs_of
from train_lib.predictions.run_folders import fold_of
from train_lib.runtime.errors import ConfigError

_KEYS = ('members', 'rule', 'weights')


def read_specs(config: Mapping, aligned: AlignedPredictions) -> list[EnsembleSpec]:
    """The ensembles of a vote, at least one; the first gives the answer unless config.choose says
    otherwise.

    Raises:
        ConfigError: an unknown key, rule, member or weight.
    """
    table = {str(name): entry for name, entry in config['ensembles'].items()}
    if not table:
        inner, rule = _rules(config['rule'], 'config.rule')
        name = EnsembleSpec(rule, inner).label
        table = {name: {}} | {rule: dict(rule=rule) for rule in RULES if rule != name}
    found = []
    for name, entry in table.items():
        where = f'config.ensembles[{name!r}]' if config['ensembles'] else 'config'
        for key in entry:
            if key not in _KEYS:
                raise ConfigError(f'{where} has no key {key!r}: '
                                  f'{did_you_mean(key, _KEYS, show=str)}')
        inner, rule = _rules(entry.get('rule', config['rule']), f'{where}.rule')
        members = _members(entry.get('members', ()), aligned, where)
        spec = EnsembleSpec(rule, inner, trim=config['trim'], members=members, name=name)
        weights = entry.get('weights', config['weights'])
        if isinstance(weights, Mapping):
            given = _given_weights(weights, aligned, members, where)
            spec = dataclasses.replace(spec, weighting='given').with_weights(given, aligned.models)
        elif weights in ('none', *FITTED):
            spec = dataclasses.replace(spec, weighting=weights)
        else:
            raise ConfigError(f"{where}.weights = {weights!r}: choose none, "
                              f"{' or '.join(FITTED)}, or give numbers by model, as in "
                              f"dict(a=2, b=1).")
        found.append(spec)
    return found


def check_rules(config: Mapping) -> None:
    """Refuses a rule before there are members.

    Raises:
        ConfigError: it is unknown, or there are more than two levels.
    """
    for name, entry in {'': {}, **config['ensembles']}.items():
        _rules(entry.get('rule', config['rule']),
               f'config.ensembles[{name!r}].rule' if name else 'config.rule')


def _rules(value, where: str) -> tuple[str | None, str]:
    """(inner or None, outer)"""
    levels = split_words(value)
    if len(levels) not in (1, 2):
        raise ConfigError(f"{where} = {value!r}: give one rule, or two for two levels, as in "
                          f"('soft', 'hard').")
    for rule in levels:
        if rule not in RULES:
            raise ConfigError(f'{where} = {value!r}: the rule {rule!r} is unknown; '
                              f'{did_you_mean(rule, RULES, show=str)}')
    return (None, levels[0]) if len(levels) == 1 else (levels[0], levels[1])


def _members(names, aligned: AlignedPredictions, where: str) -> np.ndarray:
    """bool [M]: the members of these models, or of these workdirs; all of them without names."""
    names = split_words(names)
    if not names:
        return np.ones(len(aligned.members), bool)
    voting = np.zeros(len(aligned.members), bool)
    for name in names:
        named = np.array([name == model for model in aligned.models])
        if not named.any():
            paths = {path.resolve() for path in workdirs_of(name)}
            named = np.array([bool({member.workdir.resolve(), member.workdir.resolve().parent if
                                    fold_of(member.workdir) is not None else None} & paths)
                              for member in aligned.members])
        if not named.any():
            raise ConfigError(f'{where}.members names {name!r}, which is not a member: use some '
                              f'of {listed(dict.fromkeys(aligned.models))}, or a workdir.')
        voting |= named
    return voting


def _given_weights(value: Mapping, aligned: AlignedPredictions, voting: np.ndarray,
                   where: str) -> np.ndarray:
    """float [M] from {model or member: weight}. The members of a model share its weight; whatever
    is not named has 1."""
    size = {model: voting[[one == model for one in aligned.models]].sum()
            for model in aligned.models}
    by_model = any(name in size for name in value)
    weights = np.array([1 / max(size[model], 1) if by_model else 1.0 for model in aligned.models])
    for name, weight in value.items():
        named = np.array([name in (member.name, member.model) for member in aligned.members])
        if not named.any():
            raise ConfigError(f'{where}.weights names {name!r}, which is not a member: use some '
                              f'of {listed(dict.fromkeys(aligned.models))}.')
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) \
                or not 0 <= weight < np.inf:
            raise ConfigError(f'{where}.weights[{name!r}] = {weight!r}: give a finite number of 0 '
                              f'or more.')
        weights[named] = weight / max(size[name], 1) if name in size else weight
    if not (weights * voting).any():
        raise ConfigError(f'{where}.weights are all 0: give at least one above 0.')
    return weights * voting
