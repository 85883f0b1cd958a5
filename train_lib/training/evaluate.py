"""Logits of every example of a split, the scores from them, and the files they go to."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from input_pipeline.atomic_files import atomic_open
from input_pipeline.batches import Batches
from input_pipeline.manifest import Manifest
from input_pipeline.products import SEPARATOR, combine_heads, product_log_probs
from train_lib.losses.losses import LossSpec, split_loss
from train_lib.metrics.scores import scores
from train_lib.metrics.set_scores import (
    DECIDED,
    decided,
    is_labelled,
    predicted_sets,
    set_scores,
)
from train_lib.metrics.thresholds import fit_thresholds, nested_scores
from train_lib.predictions import provenance
from train_lib.predictions.answers import MEDIAN, Deciding, write_answers
from train_lib.run_dir.npz import write_npz
from train_lib.runtime.sharding import gather, shard_batch
from train_lib.runtime.signals import Interrupted
from train_lib.training.state import Weights

log = logging.getLogger(__name__)
_MOST_PRODUCTS = 256
_ROWS = 1024  # looked at once


@dataclasses.dataclass(frozen=True)
class EvalSplit:
    """One split to evaluate.

    Attributes:
        manifest: its rows.
        batches: a function that starts one pass over them, see `loader.eval_dataset`.
    """

    manifest: Manifest
    batches: Callable[[], Batches]


def predict(eval_step: Callable, weights: Weights, split: EvalSplit, mesh: Mesh,
            stop: Callable[[], bool] = lambda: False) -> dict[str, np.ndarray]:
    """Logits of every row of a split, none dropped: {head: float32 [N, C]}, in row order.

    Raises:
        Interrupted: `stop()` became true between two batches.
    """
    found: dict[str, np.ndarray] = {}
    for rows, logits in logits_of(eval_step, weights, split.batches(), mesh, stop):
        for head, values in logits.items():
            if head not in found:
                found[head] = np.zeros((len(split.manifest), values.shape[-1]), np.float32)
            found[head][rows] = values
    return found


def logits_of(eval_step: Callable, weights: Weights, iterator, mesh: Mesh,
              stop: Callable[[], bool] = lambda: False
              ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Rows of the manifest and their logits {head: float32 [n, C]}, one batch after another. Every
    process gets those of all processes. The iterator is closed at the end.

    Raises:
        Interrupted: `stop()` became true between two batches.
    """
    def fetch(logits, rows, mask):
        mask, rows = gather(mask), gather(rows)
        logits = {head: gather(values) for head, values in logits.items()}
        if mask.all():
            return rows, logits
        return rows[mask], {head: values[mask] for head, values in logits.items()}

    try:
        pending = None
        for batch in iterator:
            if stop():
                raise Interrupted
            batch = shard_batch({key: batch[key] for key in ('image', 'row', 'mask')}, mesh)
            current = (eval_step(weights, batch['image']), batch['row'], batch['mask'])
            if pending is not None:  # one batch behind, so that the device never waits
                yield fetch(*pending)
            pending = current
        if pending is not None:
            yield fetch(*pending)
    finally:
        iterator.close()


def score_split(logits: Mapping[str, np.ndarray], manifest: Manifest,
                losses: Mapping[str, LossSpec] | None = None,
                thresholds: Mapping[str, np.ndarray | None] | None = None) -> dict:
    """The scores of a split; with several heads, one dict per head and their means.

    A multi-label head has those of `set_scores`, at the threshold 0.5. With `thresholds` each score
    that thresholds decide comes as `<name>_fitted` too: by thresholds per class, {head: float [C]},
    that were fitted on other rows, or with None by those of the other parts of these rows (nested).

    `loss` is the training objective (`losses` by head; None for cross-entropy), `nll` the plain
    negative log likelihood. `accuracy_product` and `f1_macro_product` treat each combination of
    labels as one class, whether one head learnt it or several did (up to 256 such classes).
    """
    heads = {}
    for head in manifest.heads:
        labels, several = manifest.truth(head), head in manifest.label_sets
        plain = LossSpec('binary_cross_entropy', multi_label=True) if several else LossSpec()
        loss = split_loss((losses or {}).get(head, plain), logits[head], labels)
        heads[head] = {**(set_scores if several else scores)(logits[head], labels), 'loss': loss}
        if several and thresholds is not None and head in thresholds:
            fitted = _fitted(manifest, logits[head], labels, thresholds[head])
            heads[head] |= {f'{name}_fitted': value for name, value in fitted.items()}
    if len(heads) == 1:
        (head, found), = heads.items()
        return found | (_of_product(found) if SEPARATOR in head else {})

    def mean(name):
        values = [head[name] for head in heads.values() if head[name] is not None]
        return float(np.mean(values)) if values else None

    return {'n': len(manifest), 'loss': mean('loss'), 'accuracy': mean('accuracy'),
            'f1_macro': mean('f1_macro'), 'nll': mean('nll'),
            **_means_of_sets([heads[head] for head in manifest.label_sets]),
            **_product_scores(logits, manifest), **heads}


def _fitted(manifest: Manifest, logits: np.ndarray, targets: np.ndarray,
            thresholds: np.ndarray | None) -> dict:
    """The scores of fitted thresholds; None: of those fitted on the other parts of these rows."""
    if thresholds is not None:
        known = is_labelled(targets)
        return decided(predicted_sets(logits[known], thresholds), targets[known].astype(bool)) \
            if known.any() else dict.fromkeys(DECIDED)
    return nested_scores(logits, targets, units_of(manifest))


def units_of(manifest: Manifest) -> list[str]:
    """The group of each row, or its id where it has none: what must stay together."""
    ids = manifest.table['id'].tolist()
    groups = manifest.table['group'].tolist() if 'group' in manifest.table else [''] * len(ids)
    return [f'group {group}' if group else f'id {name}' for name, group in zip(ids, groups)]


def fitted_thresholds(manifest: Manifest, logits: Mapping[str, np.ndarray]
                      ) -> dict[str, np.ndarray]:
    """Thresholds of the multi-label heads with the best F1 on these rows, {head: float64 [C]}; {}
    where no row has labels."""
    return {head: fit_thresholds(logits[head], manifest.truth(head))
            for head in manifest.label_sets if (manifest.numbers(head) >= 0).any()}


def _means_of_sets(found: Sequence[Mapping]) -> dict:
    """Means over the multi-label heads of the scores that only they have."""
    return {name: float(np.mean(values)) if values else None
            for name in ('map', 'f1_micro', 'f1_examples') if found
            for values in [[one[name] for one in found if one[name] is not None]]}


def say_set_scores(name: str, found: Mapping) -> None:
    """Logs what only multi-label heads have, of the scores of a split; nothing without them."""
    heads = {head: one for head, one in found.items()
             if isinstance(one, Mapping) and 'f1_examples' in one}
    if not heads and 'f1_examples' in found:
        heads = {'': found}
    for head, one in heads.items():
        if one['map'] is None:
            continue
        log.info('%-5s %s', name, f'{head} mAP {one["map"]:.4f}  f1 micro {one["f1_micro"]:.4f}  '
                 f'examples {one["f1_examples"]:.4f}  at 0.5'.strip())
        if one.get('f1_macro_fitted') is not None:
            log.info('      thresholds of other rows: f1 %.4f  micro %.4f  accuracy %.4f',
                     one['f1_macro_fitted'], one['f1_micro_fitted'], one['accuracy_fitted'])


def _product_scores(logits: Mapping[str, np.ndarray], manifest: Manifest) -> dict:
    sizes = [len(names) for names in manifest.classes.values()]
    if math.prod(sizes) > _MOST_PRODUCTS or manifest.label_sets:
        return {}
    product = combine_heads(manifest, manifest.heads)
    return _of_product(scores(product_log_probs(logits, manifest.heads),
                              product.labels(product.heads[0])))


def _of_product(found: Mapping) -> dict:
    return {f'{name}_product': found[name] for name in ('accuracy', 'f1_macro')}


def all_finite(logits: Mapping[str, np.ndarray]) -> bool:
    """Whether no head's logits hold a NaN or an infinity; such logits cannot be scored."""
    return all(np.isfinite(values[start:start + _ROWS]).all() for values in logits.values()
               for start in range(0, len(values), _ROWS))


def save_predictions(path: Path, manifest: Manifest, logits: Mapping[str, np.ndarray],
                     checkpoint: str = '', thresholds: Mapping[str, np.ndarray] | None = None,
                     medians: Sequence[str] = ()) -> None:
    """Writes predictions/<split>.npz: ids, labels, logits, classes (by head, if several); beside it
    <split>.csv, to be read by people and spreadsheets, and what they were made with: the digest of
    the checkpoint, '' if there is none. Labels of a multi-label head are uint8 [N, C], see
    `LabelSets.targets`, and its answers go by `thresholds`, 0.5 where there are none. The heads
    `medians` answer the median of their classes."""
    columns: dict[str, Any] = {'ids': manifest.table['id'].to_numpy(np.str_)}
    several = len(manifest.heads) > 1
    for head in manifest.heads:
        suffix = f'/{head}' if several else ''
        columns[f'labels{suffix}'] = manifest.truth(head)
        columns[f'logits{suffix}'] = logits[head]
        columns[f'classes{suffix}'] = np.array(manifest.classes[head], np.str_)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_answers(path.with_suffix('.csv'), columns['ids'].tolist(),
                  {head: manifest.truth(head) for head in manifest.heads}, logits,
                  manifest.classes, {**dict.fromkeys(medians, MEDIAN), **{
                      head: Deciding(sets.separator, (thresholds or {}).get(head))
                      for head, sets in manifest.label_sets.items()}})
    with atomic_open(path, 'wb') as file:
        write_npz(file, columns)
    provenance.record(path, checkpoint)
