"""Scores of trained heads, the choice of the best one, and the files of each."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from flax import nnx
from safetensors.numpy import save_file

from input_pipeline.atomic_files import atomic_open
from input_pipeline.errors import counted
from input_pipeline.manifest import Manifest
from input_pipeline.splits import save_splits
from train_lib.metrics.scores import log_softmax
from train_lib.probing.feature_cache import Features
from train_lib.probing.head_training import TrainedHeads
from train_lib.probing.nearest_heads import NearestKind, fit, rows_at_once
from train_lib.probing.probe_folds import Fold, FoldedData
from train_lib.probing.stacked_heads import predict_heads
from train_lib.runtime.trees import by_path
from train_lib.training.class_structure import with_structure
from train_lib.training.evaluate import save_predictions, score_split

log = logging.getLogger(__name__)
Logits = dict[str, np.ndarray]  # {label head: float32 [n, C]}
_Head = tuple[nnx.GraphDef, dict]  # the definition and the parameters of one head


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

    @property
    def accuracy(self) -> float:
        """By which settings are compared; 0 without validation."""
        return self.scores.get('accuracy') or 0


def score_heads(data: FoldedData, trained: TrainedHeads, features: Features, workdir: Path,
                nearest: Sequence[NearestKind] = (), ordered: Sequence[str] = (),
                medians: Sequence[str] = ()) -> tuple[pd.DataFrame, dict]:
    """Scores every setting, chooses the best one, and writes what they predict.

    The choice is made by validation rows, which no head was trained on. Only the chosen setting is
    scored on the test rows, by the mean probability of its folds. `nearest` are heads that are
    fitted here, `ordered` label heads whose classes have an order, and `medians`
    those that answer the median of theirs.

    Returns:
        (one row per setting, as in heads.csv; the keys `chosen`, `out_of_fold` or `val`, and
        `test` of result.json)
    """
    with_val = [fold for fold in data.folds if len(fold.val)]
    rows: list[dict] = []
    best: _Setting | None = None
    for kind, rate, name, heads in _settings(data, trained, features, nearest):
        setting, row = _score_setting(data, heads, features, name, workdir, medians)
        rows.append(dict(head=kind, lr=rate, name=name, **row))
        if best is None or setting.accuracy > best.accuracy:
            best = setting
    assert best is not None, 'there is at least one head and one rate'
    table = pd.DataFrame(rows)
    with atomic_open(workdir / 'heads.csv') as file:
        table.to_csv(file, index=False, lineterminator='\n')
    chosen: dict = dict(chosen=best.name)
    if with_val:
        key = 'out_of_fold' if len(data.folds) > 1 else 'val'
        rows, logits = _val_rows(data), _val_logits(data, best.logits)
        chosen[key] = with_structure(best.scores, logits, rows, ordered)
        save_predictions(workdir / 'predictions' / f'{key}.npz', rows, logits, medians=medians)
    if len(data.folds[0].test):
        chosen['test'] = _score_test(data, best, workdir, ordered, medians)
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
                {head: manifest.labels(head)[fold.train] for head in classes}, classes)
            for fold in data.folds]


def _score_setting(data: FoldedData, heads: Sequence[_Head], features: Features, name: str,
                   workdir: Path, medians: Sequence[str]) -> tuple[_Setting, dict]:
    """(a setting from the head of each fold, its scores for heads.csv)"""
    logits = {fold.name: _predict_fold(data, fold, *head, features, workdir / name / fold.name,
                                       medians)
              for fold, head in zip(data.folds, heads)}
    with_val = [fold for fold in data.folds if len(fold.val)]
    scores = score_split(_val_logits(data, logits), _val_rows(data)) if with_val else {}
    by_fold = [score_split(logits[fold.name]['val'], data.manifest.select(fold.val))['accuracy']
               for fold in with_val]
    lowest, highest = min(by_fold, default=None), max(by_fold, default=None)
    log.info('%-24s out of fold  accuracy %.4f  (folds %.4f to %.4f, n %d)', name,
             scores.get('accuracy', np.nan), np.nan if lowest is None else lowest,
             np.nan if highest is None else highest, scores.get('n', 0))
    return _Setting(name, logits, scores), dict(
        accuracy=scores.get('accuracy'), loss=scores.get('loss'), folds=len(data.folds),
        lowest=lowest, highest=highest)


def _val_rows(data: FoldedData) -> Manifest:
    """The validation rows of all folds, one fold after another."""
    return data.manifest.select(np.concatenate([fold.val for fold in data.folds if len(fold.val)]))


def _val_logits(data: FoldedData, logits: dict[str, dict[str, Logits]]) -> Logits:
    """The logits of `_val_rows`."""
    return {head: np.concatenate([logits[fold.name]['val'][head]
                                  for fold in data.folds if len(fold.val)])
            for head in data.manifest.heads}


def _score_test(data: FoldedData, best: _Setting, workdir: Path, ordered: Sequence[str],
                medians: Sequence[str]) -> dict:
    """Scores the mean probability of the folds on the test rows, and writes it as logits."""
    test = data.manifest.select(data.folds[0].test)
    logits = {}
    for head in data.manifest.heads:
        probabilities = np.mean([np.exp(log_softmax(best.logits[fold.name]['test'][head]))
                                 for fold in data.folds], axis=0)
        logits[head] = np.log(probabilities + 1e-12).astype(np.float32)
    scores = with_structure(score_split(logits, test), logits, test, ordered)
    save_predictions(workdir / 'predictions' / 'test.npz', test, logits, medians=medians)
    log.info('test     accuracy %.4f  (%s, mean probability of %s, n %d)',
             scores['accuracy'], best.name, counted(len(data.folds), 'fold'), len(test))
    return scores


def _predict_fold(data: FoldedData, fold: Fold, graphdef: nnx.GraphDef, params: dict,
                  features: Features, folder: Path, medians: Sequence[str]) -> dict[str, Logits]:
    """The logits of one head on one fold, {split: logits}; writes them and the head."""
    folder.mkdir(parents=True, exist_ok=True)
    save_splits(data.rows_of(fold), folder / 'split.csv')
    found = {}
    for split, rows in (('val', fold.val), ('test', fold.test)):
        if len(rows):
            found[split] = predict_heads(graphdef, params, features.plain[rows],
                                         data.manifest.heads, rows_at_once(params))
            save_predictions(folder / 'predictions' / f'{split}.npz', data.manifest.select(rows),
                             found[split], medians=medians)
    save_file({name: np.asarray(leaf) for name, leaf in by_path(params).items()},
              folder / 'head.safetensors')
    return found
