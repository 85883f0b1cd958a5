"""Pictures whose value lies at the border of a label, such as ages 57 to 59 next to '60 and older':
rules leave them out or give them less weight.

A rule is dict(column='age', between=(57, 59), action='drop'), dict(column='age', between=(57, 59),
weight=0.5), or dict(column='source', values=('web', 'scan'), action='review').
"""

from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.curation.decisions import ACTIONS, Finding
from input_pipeline.errors import DataError, perhaps
from input_pipeline.manifest import Manifest

_KEYS = ('column', 'between', 'values', 'action', 'weight')


def find_borders(manifest: Manifest, rules: Sequence[Mapping],
                 columns: Mapping[str, Sequence[str]] | None = None) -> Finding:
    """Applies the rules. Where several apply, the strongest action and the product of the weights
    count.

    Args:
        manifest: N rows; its heads may be used as columns too, with their classes as values.
        rules: each has a `column`, either `between` (two numbers, both included) or `values`, and
            either an `action` ('drop' or 'review') or a `weight` (0 to 1).
        columns: more columns, {name: values in the order of the manifest}.

    Raises:
        DataError: a rule has an unknown key, column or value.
    """
    check(rules)
    count = len(manifest)
    strength, weight = np.zeros(count, int), np.full(count, np.nan)
    reason = np.full(count, '', object)
    for number, rule in enumerate(rules):
        key = _key(number)
        values = _values(manifest, columns or {}, rule['column'], key)
        if 'between' in rule:
            low, high = rule['between']
            inside = np.array([low <= _number(value) <= high for value in values])
            words = f'{rule["column"]} from {low:g} to {high:g}'
        else:
            inside = np.isin(values, [str(value) for value in rule['values']])
            words = f'{rule["column"]} at a border'
        if 'weight' in rule:
            weight[inside] = np.nan_to_num(weight[inside], nan=1.0) * rule['weight']
            words = f'{words}: weight {rule["weight"]:g}'
        action = ACTIONS.index(rule.get('action', 'keep'))
        strength[inside] = np.maximum(strength[inside], action)
        for row in np.flatnonzero(inside):
            reason[row] = f'{reason[row]}; {words}' if reason[row] else words
    return Finding('borders', (reason != '').astype(float), np.array(ACTIONS, object)[strength],
                   reason, weight=None if np.isnan(weight).all() else weight)


def missing_columns(manifest: Manifest, rules: Sequence[Mapping]) -> list[str]:
    """Columns that the rules name and the manifest does not have."""
    known = {*manifest.table, *manifest.heads}
    return [rule['column'] for rule in rules if rule['column'] not in known]


def check(rules: Sequence[Mapping]) -> None:
    """Checks all of the rules that can be checked without data.

    Raises:
        DataError: a rule lacks something, or has an unknown key or a wrong value.
    """
    for number, rule in enumerate(rules):
        _check(_key(number), rule)


def _key(number: int) -> str:
    return f'curate.borders[{number}]'


def _check(key: str, rule: Mapping) -> None:
    if not isinstance(rule, Mapping):
        raise DataError(f"{key}={rule!r} is not a rule: write it as dict(column='age', "
                        f"between=(57, 59), action='drop').")
    unknown = sorted(set(rule) - set(_KEYS))
    if unknown:
        raise DataError(f'{key}.{unknown[0]} is unknown{perhaps(unknown[0], _KEYS)}: '
                        f'use {", ".join(_KEYS)}.')
    if not rule.get('column'):
        raise DataError(f'{key}.column is missing: name the column.')
    if ('between' in rule) == ('values' in rule):
        raise DataError(f'{key} must have one of between=(low, high) and values=(...).')
    if 'between' in rule:
        pair = rule['between']
        sound = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(
            isinstance(v, (int, float)) for v in pair)
        if not sound or pair[0] > pair[1]:
            raise DataError(f'{key}.between={pair!r} is not a valid range: give (low, high).')
    if 'values' in rule and not isinstance(rule['values'], (tuple, list)):
        raise DataError(f"{key}.values={rule['values']!r} is not a tuple of values: "
                        f"write ({rule['values']!r},).")
    if ('action' in rule) == ('weight' in rule):
        raise DataError(f"{key} must have one of action='drop' or 'review' and weight=0.5.")
    if 'action' in rule and rule['action'] not in ('drop', 'review'):
        raise DataError(f"{key}.action={rule['action']!r} is unknown: use 'drop' or 'review'.")
    if 'weight' in rule and not (isinstance(rule['weight'], (int, float))
                                 and 0 <= rule['weight'] <= 1):
        raise DataError(f'{key}.weight={rule["weight"]!r} is out of range: use 0 to 1.')


def _values(manifest: Manifest, columns: Mapping, name: str, key: str) -> np.ndarray:
    if name in columns:
        found = columns[name]
    elif name in manifest.classes:
        found = np.array([*manifest.classes[name], ''], object)[manifest.labels(name)]
    elif name in manifest.table:
        found = manifest.table[name]
    else:
        known = [*manifest.table, *manifest.heads, *columns]
        raise DataError(f'{key}.column={name!r} does not exist{perhaps(name, known)}: '
                        f'use a column of the table or a head.')
    return np.array([str(value).strip() for value in found], object)


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return np.nan
