"""What a report reads from a workdir. Whatever is missing or damaged becomes a note.

A report is most wanted when a run went wrong, so nothing here raises for a bad file:
each reader returns what it could read and one sentence about the rest ('' for none).
"""

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from train_lib.scores import confusion


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


def read_json(path: Path) -> tuple[dict, str]:
    """A JSON object, or {} and why."""
    if not path.is_file():
        return {}, f'{path.name} is missing.'
    try:
        content = json.loads(path.read_text('utf-8', 'replace'))
    except (OSError, ValueError) as error:
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
        except (ValueError, AttributeError):
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
    for split in ('test', 'val'):
        path = workdir / 'predictions' / f'{split}.npz'
        if not path.is_file():
            continue
        try:
            heads = _heads(path)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            notes.append(f'predictions/{path.name} could not be used ({error}).')
            continue
        if heads:
            return split, heads, ' '.join(notes)
        notes.append(f'predictions/{path.name} has no labelled picture.')
    return '', [], ' '.join(notes) or 'predictions/test.npz and val.npz are missing.'


def _heads(path: Path) -> list[Head]:
    heads = []
    with np.load(path, allow_pickle=False) as arrays:
        ids = arrays['ids'].astype(str)
        # 'labels' of a single head, 'labels/<head>' of several.
        tails = [key[len('labels'):] for key in arrays.files
                 if key == 'labels' or key.startswith('labels/')]
        if not tails:
            raise KeyError('no array "labels"')
        for tail in tails:
            labels = arrays['labels' + tail].astype(np.int64)
            logits = arrays['logits' + tail]
            classes = tuple(arrays['classes' + tail].astype(str).tolist())
            if len(ids) != len(labels):
                raise ValueError(f'{len(ids)} ids, but {len(labels)} labels')
            matrix = confusion(logits, labels, len(classes))
            rows = labels >= 0
            if rows.any():
                heads.append(Head(tail[1:], ids[rows], labels[rows], logits[rows], classes, matrix))
    return heads


def flatten(tree: dict, separator: str = '.', prefix: str = '') -> dict:
    """Nested dicts as one dict with joined keys; lists stay values; an empty dict too."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, separator, f'{prefix}{key}{separator}'))
        else:
            flat[f'{prefix}{key}'] = value
    return flat
