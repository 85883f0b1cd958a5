"""Model soups: one set of weights averaged from several fine-tunings (Wortsman et al. 2022).

Averages make sense only among runs that started from the same weights. BatchNorm statistics are
averaged too, which is only an approximation; training/batch_statistics.py estimates them anew.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from train_lib.runtime.errors import ConfigError

Arrays = Mapping[str, np.ndarray]


def check_ingredients(members: Sequence[Arrays], names: Sequence[str],
                      initialisations: Sequence[Hashable]) -> None:
    """Checks that these weights may be averaged.

    Args:
        members: flat {path: array}.
        names: of the members, for messages.
        initialisations: what each started from (a digest, a tag); None if unknown.

    Raises:
        ConfigError: members that started from other weights, or whose arrays differ in names,
            shapes, dtypes, or in values that are not floating-point.
    """
    first = members[0]
    for member, name, start in zip(members, names, initialisations):
        if start is None or start != initialisations[0]:
            raise ConfigError(f'A soup needs one common start, but {names[0]} started from '
                              f'{initialisations[0]} and {name} from {start}: leave one out.')
        missing = sorted(set(first) ^ set(member))
        if missing:
            raise ConfigError(f'A soup needs equal models, but only one of {names[0]} and {name} '
                              f'has {missing[0]}: leave one out.')
        for key, array in first.items():
            other = member[key]
            if array.shape != other.shape or array.dtype != other.dtype:
                raise ConfigError(
                    f'A soup needs equal models, but {key} is {array.dtype}{array.shape} in '
                    f'{names[0]} and {other.dtype}{other.shape} in {name}: leave one out.')
            if not _is_float(array) and not np.array_equal(array, other):
                raise ConfigError(f'A soup averages floating-point numbers only, but {key} differs '
                                  f'between {names[0]} and {name}: leave one out.')


def uniform_soup(members: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """The mean of each array, computed in float64 and returned in its own dtype.

    Args:
        members: flat {path: array} that passed `check_ingredients`.
    """
    return {key: _mean([member[key] for member in members]) for key in members[0]}


def greedy_soup(members: Sequence[Arrays], scores: Sequence[float],
                evaluate: Callable[[dict[str, np.ndarray]], float]
                ) -> tuple[dict[str, np.ndarray], list[int], float]:
    """Adds members from the best to the worst, and keeps each that does not lower the score.

    Args:
        members: flat {path: array} that passed `check_ingredients`.
        scores: of each alone on the validation rows, higher is better.
        evaluate: weights -> score on the validation rows, to which the soup is thereby fitted.

    Returns:
        (weights, indices of the members in the soup, score).
    """
    order = sorted(range(len(members)), key=lambda i: (-scores[i], i))
    chosen, best = order[:1], scores[order[0]]
    soup = dict(members[order[0]])
    for i in order[1:]:
        trial = uniform_soup([members[j] for j in [*chosen, i]])
        value = evaluate(trial)
        if value >= best:
            soup, best = trial, value
            chosen.append(i)
    return soup, chosen, float(best)


def _mean(arrays: list[np.ndarray]) -> np.ndarray:
    if not _is_float(arrays[0]):
        return arrays[0]
    total = np.zeros(arrays[0].shape)
    for array in arrays:
        total += np.asarray(array, np.float64)
    return (total / len(arrays)).astype(arrays[0].dtype)


def _is_float(array: np.ndarray) -> bool:
    """Also of bfloat16, which is not a subtype of NumPy's floating."""
    return np.issubdtype(array.dtype, np.floating) or 'float' in array.dtype.name
