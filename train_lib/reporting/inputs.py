"""What the report of a run reads from a workdir. Whatever is missing or damaged becomes a note.

A report is needed most when a run went wrong, so nothing here raises for a bad file: each reader
returns what it could read and one sentence about the rest ('' for none).
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline.manifest import Manifest
from train_lib.metrics.confusions import Confusions
from train_lib.metrics.scores import confusions
from train_lib.metrics.set_scores import is_labelled
from train_lib.metrics.thresholds import in_order
from train_lib.run_dir.dotted_keys import by_dotted_key
from train_lib.run_dir.npz import read_npz


@dataclasses.dataclass(frozen=True)
class Head:
    """The predictions of one head for its N labelled rows.

    Attributes:
        name: '' if the run has only one head.
        ids: str [N].
        labels: int64 [N].
        logits: float [N, C], finite.
        classes: C names.
        confusion: which class was taken for which.
    """

    name: str
    ids: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    classes: tuple[str, ...]
    confusion: Confusions


@dataclasses.dataclass(frozen=True)
class SetHead:
    """The predictions of one multi-label head for its N labelled rows.

    Attributes:
        name: '' if the run has only one head.
        ids: str [N].
        targets: uint8 [N, C], 0 and 1.
        logits: float [N, C], finite.
        classes: C names.
        thresholds: float [C] that the run fitted, None for none.
    """

    name: str
    ids: np.ndarray
    targets: np.ndarray
    logits: np.ndarray
    classes: tuple[str, ...]
    thresholds: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class RunInputs:
    """What the report of a run is made from.

    Attributes:
        manifest: the run's data, with the column `split`.
        config, result: the content of config.json and result.json, {} without them.
        metrics: the table of metrics.jsonl, empty without it.
        split: whose predictions are shown, '' for none.
        heads: the predictions of each head.
        heat_maps: the arrays of heatmaps.npz, {} without it.
        notes: {'config', 'result', 'metrics', 'predictions', 'heat_maps': what is missing or
            damaged, in one sentence, or ''}.
        thumbnail: of `thumbnails.thumbnailer`.
        errors_per_head: how many errors of each head are shown.
        set_heads: the predictions of each multi-label head.
    """

    manifest: Manifest
    config: dict
    result: dict
    metrics: pd.DataFrame
    split: str
    heads: Sequence[Head]
    heat_maps: Mapping[str, np.ndarray]
    notes: Mapping[str, str]
    thumbnail: Callable[[str], dict | None]
    errors_per_head: int
    set_heads: Sequence[SetHead] = ()


def read_run(workdir: Path, manifest: Manifest, thumbnail: Callable[[str], dict | None],
             errors: int) -> RunInputs:
    """Reads a workdir; `errors`: how many are shown, over all heads."""
    config, config_note = read_json(workdir / 'config.json')
    result, result_note = read_json(workdir / 'result.json')
    metrics, metrics_note = read_metrics(workdir / 'metrics.jsonl')
    split, heads, predictions_note = read_predictions(workdir)
    heat_maps, heat_note = read_heat_maps(workdir / 'heatmaps.npz')
    notes = dict(config=config_note, result=result_note, metrics=metrics_note,
                 predictions=predictions_note, heat_maps=heat_note)
    plain, sets = by_kind(heads, result)
    return RunInputs(manifest, config, result, metrics, split, plain, heat_maps, notes, thumbnail,
                     errors_per_head(errors, len(heads)), sets)


def by_kind(heads: Sequence[Head | SetHead], result: Mapping) -> tuple[list[Head], list[SetHead]]:
    """The heads with one label per picture, and the multi-label ones with the thresholds of
    result.json."""
    stored = as_dict(result.get('thresholds'))
    sets = []
    for head in heads:
        if isinstance(head, SetHead):
            known = as_dict(stored.get(head.name) if head.name else next(iter(stored.values()), {}))
            sets.append(dataclasses.replace(
                head, thresholds=in_order(known, head.classes) if known else None))
    return [head for head in heads if isinstance(head, Head)], sets


OUT_OF_FOLD = 'out of fold'  # RunInputs.split of a k-fold run
SHOWN_SPLITS = ('test', 'val')  # the first of them with a labelled picture is shown


def shown_split(labels: Mapping[str, Sequence[np.ndarray]]) -> str:
    """The split that a report shows, from {split: labels of each head}; '' for none."""
    return next((split for split in SHOWN_SPLITS if split in labels
                 and any((values >= 0).any() for values in labels[split])), '')


def errors_per_head(errors: int, heads: int) -> int:
    """How many errors a report shows of each head, given the number over all; at least four."""
    return max(4, math.ceil(errors / max(1, heads))) if errors > 0 else 0


def read_heat_maps(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """What `heatmaps.explain_errors` found; {} and why if the file is damaged."""
    if not path.is_file():
        return {}, ''
    try:
        found = read_npz(path)
        if found and len({len(values) for values in found.values()}) != 1:
            raise ValueError('its arrays differ in length')
    except Exception as error:  # as in read_predictions
        return {}, f'{path.name} could not be used ({error}).'
    return found, ''


def read_json(path: Path) -> tuple[dict, str]:
    """A JSON object, or {} and why."""
    if not path.is_file():
        return {}, f'{path.name} is missing.'
    try:
        content = json.loads(path.read_text('utf-8', 'replace'))
    except (OSError, ValueError, RecursionError) as error:
        return {}, f'{path.name} could not be read ({error}).'
    if not isinstance(content, dict):
        return {}, f'{path.name} is not a JSON object.'
    return content, ''


def read_metrics(path: Path) -> tuple[pd.DataFrame, str]:
    """The lines of metrics.jsonl as a table, nested keys joined by '/'.

    A line that was cut short is skipped. Where a resumed run wrote a step of a split twice, the
    later line counts.
    """
    if not path.is_file():
        return pd.DataFrame(), f'{path.name} is missing.'
    rows, damaged = [], 0
    for line in path.read_text('utf-8', 'replace').splitlines():
        if not line.strip():
            continue
        try:
            rows.append(by_dotted_key(json.loads(line), '/'))
        except (ValueError, AttributeError, RecursionError):
            damaged += 1
    note = f'{damaged} lines of {path.name} could not be read.' if damaged else ''
    table = pd.DataFrame(rows)
    if not len(table) or 'step' not in table or 'split' not in table:
        return pd.DataFrame(), note or f'{path.name} holds no steps.'
    for column in table.columns.drop('split'):
        table[column] = pd.to_numeric(table[column], errors='coerce')
    table = table.replace([np.inf, -np.inf], np.nan).dropna(subset='step')
    table = table.groupby(['split', 'step'], sort=False, as_index=False).last()
    return table.sort_values('step', kind='stable').reset_index(drop=True), note


def read_predictions(workdir: Path) -> tuple[str, list[Head | SetHead], str]:
    """Split, heads and a note: predictions/test.npz, else val.npz, whichever has labels."""
    notes = []
    for split in SHOWN_SPLITS:
        path = workdir / 'predictions' / f'{split}.npz'
        if not path.is_file():
            continue
        try:
            heads = _heads(path)
        except Exception as error:  # NumPy and zipfile raise nearly every type on damaged files
            notes.append(f'predictions/{path.name} could not be used ({error}).')
            continue
        if heads:
            return split, heads, ' '.join(notes)
        notes.append(f'predictions/{path.name} has no labelled picture.')
    return '', [], ' '.join(notes) or 'predictions/test.npz and val.npz are missing.'


def read_out_of_fold(workdir: Path) -> tuple[list[Head | SetHead], str]:
    """Heads and a note: predictions/out_of_fold.npz of a k-fold run."""
    path = workdir / 'predictions' / 'out_of_fold.npz'
    if not path.is_file():
        return [], 'predictions/out_of_fold.npz is missing.'
    try:
        heads = _heads(path)
    except Exception as error:  # as in read_predictions
        return [], f'predictions/{path.name} could not be used ({error}).'
    return heads, '' if heads else f'predictions/{path.name} has no labelled picture.'


def _heads(path: Path) -> list[Head | SetHead]:
    heads: list[Head | SetHead] = []
    arrays = read_npz(path)
    ids = arrays['ids'].astype(str)
    # 'labels' of a single head, 'labels/<head>' of several.
    tails = [key[len('labels'):] for key in arrays if key == 'labels' or key.startswith('labels/')]
    if not tails:
        raise KeyError('no array "labels"')
    for tail in tails:
        several = arrays['labels' + tail].ndim == 2
        labels = arrays['labels' + tail].astype(np.uint8 if several else np.int64)
        logits = arrays['logits' + tail]
        classes = tuple(arrays['classes' + tail].astype(str).tolist())
        if len(ids) != len(labels):
            raise ValueError(f'{len(ids)} ids, but {len(labels)} labels')
        if logits.shape != (len(ids), len(classes)) or logits.dtype.kind != 'f':
            raise ValueError(f'{logits.dtype} logits of shape {logits.shape} for {len(ids)} '
                             f'ids and {len(classes)} classes')
        if not np.isfinite(logits).all() or (not several and (labels >= len(classes)).any()):
            raise ValueError('logits that are not finite, or labels without a class')
        if several:
            if labels.shape != logits.shape:
                raise ValueError(f'targets of shape {labels.shape}')
            rows = is_labelled(labels)
            if rows.any():
                heads.append(SetHead(tail[1:], ids[rows], labels[rows], logits[rows], classes))
            continue
        found = confusions(logits, labels, len(classes))
        rows = labels >= 0
        if rows.any():
            shown = logits if rows.all() else logits[rows]
            heads.append(Head(tail[1:], ids[rows], labels[rows], shown, classes, found))
    return heads


def as_dict(value) -> dict:
    """The value if it is a dict, else {}."""
    return value if isinstance(value, dict) else {}
