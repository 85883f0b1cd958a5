"""How well features tell classes apart: nearest neighbours, and a logistic regression.

Both are fitted on the training rows alone. The number of neighbours and the strength of the
penalty are chosen on the validation rows; the test rows are scored once, with what was chosen.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.curation.quiet import without_sklearn_warnings
from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest
from train_lib.metrics.intervals import accuracy_interval, f1_interval, f1_rows
from train_lib.metrics.statistics import macro_f1
from train_lib.runtime.errors import ConfigError

KNN, LINEAR = 'knn', 'linear'
_QUERIES = 1024  # rows whose neighbours are searched at once
_STEPS, _TOLERANCE = 500, 1e-6  # of the solver


@dataclasses.dataclass(frozen=True)
class ScoreSpec:
    """What is tried.

    Attributes:
        neighbours: numbers of neighbours, 1 or more.
        strengths: values of C, the inverse strength of the penalty, above 0.
        seed: of the solver.
    """

    neighbours: Sequence[int]
    strengths: Sequence[float]
    seed: int


def check_spec(neighbours: Any, strengths: Any, seed: int) -> ScoreSpec:
    """config.features.neighbours and .strengths, checked.

    Raises:
        ConfigError: one of them is empty, or a value is out of range.
    """
    for key, values, kinds, what in (
            ('neighbours', neighbours, (int,), 'whole numbers of 1 or more'),
            ('strengths', strengths, (int, float), 'numbers above 0')):
        if not isinstance(values, (tuple, list)) or not values or any(
                isinstance(one, bool) or not isinstance(one, kinds) or not 0 < one < 1e12
                for one in values):
            raise ConfigError(f'config.features.{key} = {values!r}: give {what}, between commas.')
    return ScoreSpec(tuple(sorted(set(neighbours))), tuple(sorted(set(strengths))), seed)


def score_features(features: np.ndarray, manifest: Manifest, spec: ScoreSpec
                   ) -> dict[str, dict[str, Any]]:
    """The scores of every head.

    Args:
        features: float [N, D].
        manifest: N rows with the column split. If it has groups, intervals are by group.
        spec: what is tried.

    Returns:
        {head: dict(classes, train, knn, linear)}: the number of classes and of training rows; of
        each method `chosen`, its validation accuracy for every value that was `tried`, and for
        'val' and 'test' (if there are such rows) n, accuracy, f1_macro and their 95 % intervals
        accuracy_low, accuracy_high, f1_low, f1_high.

    Raises:
        DataError: a head has too few rows to train on or to choose by.
    """
    sides = manifest.table['split'].to_numpy(object)
    groups = None
    if 'group' in manifest.table:
        names = manifest.table['group'].astype(str).to_numpy(object)
        alone = np.array([f'\0{row}' for row in range(len(names))], object)
        groups = np.where(names == '', alone, names)
    found = {}
    for head in manifest.heads:
        labels = manifest.labels(head)
        rows = {side: np.flatnonzero((sides == side) & (labels >= 0))
                for side in ('train', 'val', 'test')}
        _check_rows(head, rows, labels)
        found[head] = dict(classes=len(manifest.classes[head]), train=len(rows['train']))
        for method, predict in ((KNN, _by_neighbours), (LINEAR, _by_regression)):
            answers = predict(features, labels, rows, spec)
            tried = {str(value): float(np.mean(of_value['val'] == labels[rows['val']]))
                     for value, of_value in answers.items()}
            # Of equally good values the smallest: it is the first.
            chosen = max(answers, key=lambda value: tried[str(value)])
            found[head][method] = dict(chosen=chosen, tried=tried) | {
                side: _scores(answers[chosen][side], labels[rows[side]],
                              len(manifest.classes[head]),
                              None if groups is None else groups[rows[side]])
                for side in ('val', 'test') if len(rows[side])}
    return found


def _check_rows(head: str, rows: Mapping[str, np.ndarray], labels: np.ndarray) -> None:
    if len(np.unique(labels[rows['train']])) < 2:
        raise DataError(f'The head {head!r} has training rows of fewer than two classes, which '
                        f'no classifier can tell apart: add labels, or set '
                        f'config.features.evaluate=False.')
    if not len(rows['val']):
        raise DataError(f'The head {head!r} has no validation rows, by which anything could be '
                        f'chosen: set config.split.val, or config.features.evaluate=False.')


def _by_neighbours(features: np.ndarray, labels: np.ndarray, rows: Mapping[str, np.ndarray],
                   spec: ScoreSpec) -> dict[int, dict[str, np.ndarray]]:
    """{k: {side: predicted labels}} by the k training rows of the highest cosine, each of which
    votes with that."""
    train = rows['train']
    counts = sorted({min(count, len(train)) for count in spec.neighbours})
    known = _unit(features[train])
    of_train, classes = labels[train], int(labels[train].max()) + 1
    found: dict[int, dict[str, np.ndarray]] = {count: {} for count in counts}
    for side in ('val', 'test'):
        parts: dict[int, list[np.ndarray]] = {count: [np.zeros(0, int)] for count in counts}
        for start in range(0, len(rows[side]), _QUERIES):
            cosines = _unit(features[rows[side][start:start + _QUERIES]]) @ known.T
            near = np.argpartition(-cosines, counts[-1] - 1, axis=1)[:, :counts[-1]]
            order = np.take_along_axis(cosines, near, 1).argsort(axis=1, kind='stable')[:, ::-1]
            near = np.take_along_axis(near, order, 1)
            weight = np.take_along_axis(cosines, near, 1).astype(np.float64)
            places = np.broadcast_to(np.arange(len(near))[:, None], near.shape)
            for count in counts:
                votes = np.zeros((len(near), classes))
                np.add.at(votes, (places[:, :count], of_train[near[:, :count]]),
                          np.maximum(weight[:, :count], 1e-6))
                parts[count].append(votes.argmax(axis=1))
        for count in counts:
            found[count][side] = np.concatenate(parts[count])
    return found


@without_sklearn_warnings()
def _by_regression(features: np.ndarray, labels: np.ndarray, rows: Mapping[str, np.ndarray],
                   spec: ScoreSpec) -> dict[float, dict[str, np.ndarray]]:
    """{C: {side: predicted labels}} by a multinomial logistic regression on features of length 1,
    of which each then has mean 0 and variance 1 on the training rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    train = _unit(features[rows['train']])
    scaler = StandardScaler(copy=False).fit(train)
    train = scaler.transform(train)
    others = {side: scaler.transform(_unit(features[rows[side]])) if len(rows[side]) else None
              for side in ('val', 'test')}
    found = {}
    for strength in spec.strengths:
        # From zero: from the end of another penalty the solver may stop at once.
        model = LogisticRegression(C=strength, max_iter=_STEPS, tol=_TOLERANCE,
                                   random_state=spec.seed)
        model.fit(train, labels[rows['train']])
        found[strength] = {side: np.zeros(0, int) if values is None else model.predict(values)
                           for side, values in others.items()}
    return found


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32: a copy."""
    values = np.array(features, np.float32)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return values


def _scores(predicted: np.ndarray, labels: np.ndarray, classes: int, groups: np.ndarray | None
            ) -> dict[str, Any]:
    right = predicted == labels
    accuracy = accuracy_interval(right, groups)
    f1 = f1_interval(f1_rows(predicted, labels, classes), right, groups)
    return dict(n=len(labels), accuracy=float(np.mean(right)), accuracy_low=float(accuracy[0]),
                accuracy_high=float(accuracy[1]),
                f1_macro=float(macro_f1(predicted, labels, classes)),
                f1_low=float(f1[0]), f1_high=float(f1[1]))


def table_of(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The scores as lines of at most 80 columns; long names of heads are cut."""
    lines = [f'{"head":12} {"by":9} {"split":5} {"n":>6}  {"accuracy [95 %]":20}  F1 [95 %]']
    for head, found in scores.items():
        for method in (KNN, LINEAR):
            of_method = found[method]
            name = (f'kNN k={of_method["chosen"]}' if method == KNN else
                    f'C={of_method["chosen"]:g}')
            for side in ('val', 'test'):
                if side not in of_method:
                    continue
                one = of_method[side]
                lines.append(
                    f'{head[:12]:12} {name:9} {side:5} {one["n"]:6}  '
                    f'{_interval(one, "accuracy_", "accuracy")}  '
                    f'{_interval(one, "f1_", "f1_macro")}')
    return lines


def _interval(one: Mapping[str, Any], prefix: str, name: str) -> str:
    value, low, high = (f'{one[key]:.3f}' for key in (name, f'{prefix}low', f'{prefix}high'))
    return f'{value} [{low}, {high}]'
