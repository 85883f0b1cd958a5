"""What a report reads from a workdir. Whatever is missing or damaged becomes a note.

A report is most wanted when a run went wrong, so nothing here raises for a bad file:
each reader returns what it could read and one sentence about the rest ('' for none).
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from train_lib.metrics.scores import confusion
from train_lib.run_dir.npz import read_npz


@dataclasses.dataclass(frozen=True)
class Head:
    """The predictions of one head: only the labelled rows.

    ids: [N] str; labels: [N] int64; logits: [N, C] float, finite; classes: C names;
    confusion: int64 [C, C], rows are true classes; name: '' when there is but one head.
    """

    name: str
    ids: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    classes: tuple[str, ...]
    confusion: np.ndarray


SHOWN_SPLITS = ('test', 'val')  # the first with a labelled picture is the one that a page shows


def shown_split(labels: Mapping[str, Sequence[np.ndarray]]) -> str:
    """The split that a report is about, of {split: labels of each head}; '' for none."""
    return next((split for split in SHOWN_SPLITS if split in labels
                 and any((values >= 0).any() for values in labels[split])), '')


def errors_a_head(errors: int, heads: int) -> int:
    """How many errors of each head a report shows, of `errors` over all; at least four."""
    return max(4, math.ceil(errors / max(1, heads))) if errors > 0 else 0


def read_heat_maps(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """What `heatmaps.explain_errors` found, {} and why if the file is damaged."""
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
        return {}, f'{path.name} holds no JSON object.'
    return content, ''


def read_metrics(path: Path) -> tuple[pd.DataFrame, str]:
    """The lines of metrics.jsonl as a table, nested keys joined by '/'.

    A line that a kill cut short is skipped. Where a resumed run wrote a step of a split
    twice, the later line counts.
    """
    if not path.is_file():
        return pd.DataFrame(), f'{path.name} is missing.'
    rows, damaged = [], 0
    for line in path.read_text('utf-8', 'replace').splitlines():
        if not line.strip():
            continue
        try:
            rows.append(flatten(json.loads(line), '/'))
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


def read_predictions(workdir: Path) -> tuple[str, list[Head], str]:
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


def _heads(path: Path) -> list[Head]:
    heads, arrays = [], read_npz(path)
    ids = arrays['ids'].astype(str)
    # 'labels' of a single head, 'labels/<head>' of several.
    tails = [key[len('labels'):] for key in arrays if key == 'labels' or key.startswith('labels/')]
    if not tails:
        raise KeyError('no array "labels"')
    for tail in tails:
        labels = arrays['labels' + tail].astype(np.int64)
        logits = arrays['logits' + tail]
        classes = tuple(arrays['classes' + tail].astype(str).tolist())
        if len(ids) != len(labels):
            raise ValueError(f'{len(ids)} ids, but {len(labels)} labels')
        if logits.shape != (len(ids), len(classes)) or logits.dtype.kind != 'f':
            raise ValueError(f'{logits.dtype} logits of shape {logits.shape} for {len(ids)} '
                             f'ids and {len(classes)} classes')
        if not np.isfinite(logits).all() or (labels >= len(classes)).any():
            raise ValueError('logits that are not finite, or labels that are no classes')
        matrix = confusion(logits, labels, len(classes))
        rows = labels >= 0
        if rows.any():
            heads.append(Head(tail[1:], ids[rows], labels[rows], logits[rows], classes, matrix))
    return heads


def as_dict(value) -> dict:
    """The value if it is a dict, else {}."""
    return value if isinstance(value, dict) else {}


def flatten(tree: dict, separator: str = '.', prefix: str = '') -> dict:
    """Nested dicts as one dict with joined keys; lists stay values; an empty dict too."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, separator, f'{prefix}{key}{separator}'))
        else:
            flat[f'{prefix}{key}'] = value
    return flat
