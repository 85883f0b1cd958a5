"""Which answers become pseudo-labels: a threshold per class, and a cap per class."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.class_names import place_of
from input_pipeline.errors import did_you_mean
from train_lib.runtime.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Selection:
    """What an answer must have to become a label.

    Attributes:
        threshold: least confidence, 0 to 1; for one class otherwise: `thresholds`.
        thresholds: {class: least confidence}.
        quantile: of the answers of each class the most confident share 1 - quantile is taken, 0 to
            below 1. An answer must pass both.
        per_class: most labels of a class, the most confident ones; 0 for any number.
    """

    threshold: float = 0.0
    thresholds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    quantile: float = 0.0
    per_class: int = 0


def read_selection(threshold: str, quantile: str, per_class: str) -> Selection:
    """The selection that flags ask for, each as text; '' for what it is without.

    Args:
        threshold: '0.9', or with some classes otherwise '0.9,cat=0.8,dog=0.95'.
        quantile: '0.5'.
        per_class: '20'.

    Raises:
        ConfigError: one of them is not a number in its range.
    """
    first, named = 0.0, {}
    for word in filter(None, threshold.split(',')):
        name, equals, value = word.rpartition('=')
        number = _number(value, '--threshold', 0, 1)
        if equals:
            named[name.strip()] = number
        else:
            first = number
    found = _number(quantile or '0', '--quantile', 0, 1)
    if found == 1:
        raise ConfigError('--quantile=1 leaves no label: give less, e.g. 0.5.')
    try:
        most = int(per_class or '0')
    except ValueError:
        most = -1
    if most < 0:
        raise ConfigError(f'--per-class={per_class!r}: give a whole number of labels, or 0 for '
                          f'any.')
    return Selection(first, named, found, most)


def _number(text: str, flag: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not low <= value <= high:
        raise ConfigError(f'{flag}={text!r}: give a number from {low} to {high}.')
    return value


def check_names(selection: Selection, classes: Mapping[str, Sequence[str]]) -> None:
    """Refuses thresholds of classes that no head has; `classes` are those of each head.

    Raises:
        ConfigError: there is one.
    """
    known = [name for names in classes.values() for name in names]
    for name in selection.thresholds:
        if place_of(name, known) is None:
            raise ConfigError(f'--threshold names {name!r}, which is not a class: '
                              f'{did_you_mean(name, known)}')


def thresholds_of(selection: Selection, probabilities: np.ndarray, classes: Sequence[str]
                  ) -> np.ndarray:
    """The least confidence of each class, float [C].

    Args:
        selection: what is asked for.
        probabilities: float [N, C], rows of sum 1.
        classes: C names; those of the selection that are not among them are of other heads.
    """
    least = np.full(len(classes), float(selection.threshold))
    for name, value in selection.thresholds.items():
        place = place_of(name, classes)
        if place is not None:
            least[place] = value
    if selection.quantile:
        answers, confidence = probabilities.argmax(1), probabilities.max(1)
        for place in np.unique(answers):
            own = confidence[answers == place]
            least[place] = max(least[place], float(np.quantile(own, selection.quantile,
                                                               method='higher')))
    return least


def select(probabilities: np.ndarray, least: np.ndarray, per_class: int) -> np.ndarray:
    """Which answers become labels, bool [N]; of equally confident ones beyond the cap the first.

    Args:
        probabilities: float [N, C].
        least: float [C], of `thresholds_of`.
        per_class: see `Selection`.
    """
    if not len(probabilities):
        return np.zeros(0, bool)
    answers, confidence = probabilities.argmax(1), probabilities.max(1)
    chosen = confidence >= least[answers]
    if per_class:
        for place in np.unique(answers[chosen]):
            own = np.flatnonzero(chosen & (answers == place))
            chosen[own[np.argsort(-confidence[own], kind='stable')[per_class:]]] = False
    return chosen
