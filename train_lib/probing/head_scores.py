"""Scores of trained heads, the choice of the best one, and the files of each."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from flax import nnx
from safetensors.numpy import save_file

from input_pipeline.atomic_files import atomic_open, write_json
from input_pipeline.errors import counted
from input_pipeline.manifest import Manifest
from input_pipeline.splits import save_splits
from train_lib.losses.losses import LossSpec
from train_lib.metrics.directions import more_is_better
from train_lib.metrics.scores import log_softmax
from train_lib.metrics.thresholds import by_class
from train_lib.predictions.answers import log_mean
from train_lib.predictions.run_folders import THRESHOLDS
from train_lib.probing.feature_cache import Features
from train_lib.probing.head_training import TrainedHeads
from train_lib.probing.nearest_heads import NearestKind, fit, rows_at_once
from train_lib.probing.probe_folds import Fold, FoldedData
from train_lib.probing.stacked_heads import predict_heads
from train_lib.runtime.trees import by_path
from train_lib.training.class_structure import with_order, with_structure
from train_lib.training.evaluate import (
    fitted_thresholds,
    save_predictions,
    say_set_scores,
    score_split,
)
from train_lib.training.patience import SET_METRICS

log = logging.getLogger(__name__)
Logits = dict[str, np.ndarray]  # {label head: float32 [n, C]}
_Head = tuple[nnx.GraphDef, dict]  # the definition and the parameters of one head


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How settings are scored and compared.

    Attributes:
        ordered: label heads whose classes have an order.
        medians: those of them that answer the median of their probabilities.
        metric: one of `patience.METRICS`, by which the best one is chosen.
        fit_thresholds: of multi-label heads, on validation rows; else they are 0.5.
        losses: of multi-label heads.
    """

    ordered: Sequence[str] = ()
    medians: Sequence[str] = ()
    metric: str = 'accuracy'
    fit_thresholds: bool = True
    losses: Mapping[str, LossSpec] = dataclasses.field(default_factory=dict)

    def value(self, scores: Mapping) -> float:
        """What is best where it is largest; -inf without validation."""
        found = scores.get(self.metric)
        if found is None:
            return -np.inf
        return found if more_is_better(self.metric) else -found

    def thresholds(self, rows: Manifest, logits: Logits) -> dict[str, np.ndarray]:
        """Those of multi-label heads, fitted on these rows, {head: float64 [C]}."""
        return fitted_thresholds(rows, logits) if self.fit_thresholds else {}

    def scores(self, logits: Logits, rows: Manifest,
               thresholds: Mapping[str, np.ndarray | None] | None = None) -> dict:
        """As `score_split`, with those of ordered heads."""
        return with_order(score_split(logits, rows, self.losses, thresholds), logits, rows,
                          self.ordered)


@dataclasses.dataclass(frozen=True)
class _Setting:
    """One kind of head with one learning rate.

    Attributes:
        name: such as 'mlp-lr0.001'.
        logits: {fold: {'val' or 'test': logits}}.
        scores: of its validation rows, all folds together; {} without validation.
    """

    name: str
    logits: dict[str, dict[str, Logits]]
    scores: dict


def score_heads(data: FoldedData, trained: TrainedHeads, features: Features, workdir: Path,
                nearest: Sequence[NearestKind] = (), scoring: Scoring = Scoring()
                ) -> tuple[pd.DataFrame, dict]:
    """Scores every setting, chooses the best one, and writes what they predict.

    The choice is made by validation rows, which no head was trained on. Only the chosen setting is
    scored on the test rows, by the mean probability of its folds. `nearest` are heads that are
    fitted here.

    Returns:
        (one row per setting, as in heads.csv; the keys `chosen`, `out_of_fold` or `val`, `test`
        and, of multi-label heads, `thresholds` of result.json)
    """
    with_val = [fold for fold in data.folds if len(fold.val)]
    rows: list[dict] = []
    best: _Setting | None = None
    for kind, rate, name, heads in _settings(data, trained, features, nearest):
        setting, row = _score_setting(data, heads, features, workdir / name, scoring)
        rows.append(dict(head=kind, lr=rate, name=name, **row))
        if best is None or scoring.value(setting.scores) > scoring.value(best.scores):
            best = setting
    assert best is not None, 'there is at least one head and one rate'
    table = pd.DataFrame(rows)
    with atomic_open(workdir / 'heads.csv') as file:
        table.to_csv(file, index=False, lineterminator='\n')
    chosen: dict = dict(chosen=best.name)
    thresholds: dict[str, np.ndarray] = {}
    if with_val:
        key = 'out_of_fold' if len(data.folds) > 1 else 'val'
        rows, logits = _val_rows(data), _val_logits(data, best.logits)
        thresholds = scoring.thresholds(rows, logits)
        scores = best.scores if not thresholds else scoring.scores(
            logits, rows, dict.fromkeys(thresholds))  # nested
        chosen[key] = with_structure(scores, logits, rows, scoring.ordered)
        save_predictions(workdir / 'predictions' / f'{key}.npz', rows, logits,
                         thresholds=thresholds, medians=scoring.medians)
        say_set_scores('folds' if len(data.folds) > 1 else 'val', chosen[key])
    if len(data.folds[0].test):
        chosen['test'] = _score_test(data, best, workdir, scoring, thresholds)
    if thresholds:
        chosen['thresholds'] = {head: by_class(values, data.manifest.classes[head])
                                for head, values in thresholds.items()}
    save_splits(data.manifest, workdir / 'split.csv')
    return table, chosen


def _settings(data: FoldedData, trained: TrainedHeads, features: Features,
              nearest: Sequence[NearestKind]
              ) -> Iterator[tuple[str, float | None, str, list[_Head]]]:
    """(kind, its learning rate, name, the head of each fold) of every setting."""
    for kind, graphdef in trained.definitions.items():
        for i, rate in enumerate(trained.rates):
            yield kind, rate, f'{kind}-lr{rate:g}', [
                (graphdef, jax.tree.map(lambda leaf, at=(i, number): leaf[at],
                                        trained.params[kind]))
                for number in range(len(data.folds))]
    manifest = data.manifest
    classes = {head: len(names) for head, names in manifest.classes.items()}
    for kind in nearest:
        yield kind.name, None, kind.name, [
            fit(kind, features.plain[fold.train],
                {head: manifest.truth(head)[fold.train] for head in classes}, classes)
            for fold in data.folds]


def _score_setting(data: FoldedData, heads: Sequence[_Head], features: Features, folder: Path,
                   scoring: Scoring) -> tuple[_Setting, dict]:
    """(a setting from the head of each fold, its scores for heads.csv); `folder`: of the setting,
    called like it."""
    name = folder.name
    logits = {fold.name: _predict_fold(data, fold, head, features, folder / fold.name, scoring)
              for fold, head in zip(data.folds, heads)}
    with_val = [fold for fold in data.folds if len(fold.val)]
    scores = scoring.scores(_val_logits(data, logits), _val_rows(data)) if with_val else {}
    by_fold = [scoring.scores(logits[fold.name]['val'], data.manifest.select(fold.val))['accuracy']
               for fold in with_val]
    lowest, highest = min(by_fold, default=None), max(by_fold, default=None)
    log.info('%-24s out of fold  accuracy %.4f  (folds %.4f to %.4f, n %d)', name,
             scores.get('accuracy', np.nan), np.nan if lowest is None else lowest,
             np.nan if highest is None else highest, scores.get('n', 0))
    row = dict(accuracy=scores.get('accuracy'), loss=scores.get('loss'), folds=len(data.folds),
               lowest=lowest, highest=highest,
               **{key: scores.get(key) for key in ('f1_macro', *SET_METRICS)
                  if data.manifest.label_sets})
    if scoring.metric not in row:  # by which the best one is chosen
        row[scoring.metric] = scores.get(scoring.metric)
        if row[scoring.metric] is not None:
            log.info('%-24s out of fold  %s %.4f', '', scoring.metric, row[scoring.metric])
    return _Setting(name, logits, scores), row


def _val_rows(data: FoldedData) -> Manifest:
    """The validation rows of all folds, one fold after another."""
    return data.manifest.select(np.concatenate([fold.val for fold in data.folds if len(fold.val)]))


def _val_logits(data: FoldedData, logits: dict[str, dict[str, Logits]]) -> Logits:
    """The logits of `_val_rows`."""
    return {head: np.concatenate([logits[fold.name]['val'][head]
                                  for fold in data.folds if len(fold.val)])
            for head in data.manifest.heads}


def _score_test(data: FoldedData, best: _Setting, workdir: Path, scoring: Scoring,
                thresholds: Mapping[str, np.ndarray]) -> dict:
    """Scores the mean probability of the folds on the test rows, and writes it as logits."""
    test = data.manifest.select(data.folds[0].test)
    logits = {}
    for head in data.manifest.heads:
        if head in data.manifest.label_sets:
            logits[head] = log_mean([best.logits[fold.name]['test'][head] for fold in data.folds],
                                    multi_label=True)
            continue
        probabilities = np.mean([np.exp(log_softmax(best.logits[fold.name]['test'][head]))
                                 for fold in data.folds], axis=0)
        logits[head] = np.log(probabilities + 1e-12).astype(np.float32)
    scores = with_structure(scoring.scores(logits, test, thresholds), logits, test,
                            scoring.ordered)
    save_predictions(workdir / 'predictions' / 'test.npz', test, logits, thresholds=thresholds,
                     medians=scoring.medians)
    log.info('test     accuracy %.4f  (%s, mean probability of %s, n %d)',
             scores['accuracy'], best.name, counted(len(data.folds), 'fold'), len(test))
    say_set_scores('test', scores)
    return scores


def _predict_fold(data: FoldedData, fold: Fold, head: _Head, features: Features, folder: Path,
                  scoring: Scoring) -> dict[str, Logits]:
    """The logits of one head on one fold, {split: logits}; writes them and the head."""
    graphdef, params = head
    folder.mkdir(parents=True, exist_ok=True)
    save_splits(data.rows_of(fold), folder / 'split.csv')
    found: dict[str, Logits] = {}
    thresholds: dict[str, np.ndarray] = {}
    for split, rows in (('val', fold.val), ('test', fold.test)):
        if len(rows):
            found[split] = predict_heads(graphdef, params, features.plain[rows],
                                         data.manifest.heads, rows_at_once(params))
            if split == 'val':
                thresholds = scoring.thresholds(data.manifest.select(rows), found[split])
            save_predictions(folder / 'predictions' / f'{split}.npz', data.manifest.select(rows),
                             found[split], thresholds=thresholds, medians=scoring.medians)
    if data.manifest.label_sets:
        write_json(folder / THRESHOLDS, {
            name: by_class(values, data.manifest.classes[name])
            for name, values in thresholds.items()})
    save_file({name: np.asarray(leaf) for name, leaf in by_path(params).items()},
              folder / 'head.safetensors')
    return found
