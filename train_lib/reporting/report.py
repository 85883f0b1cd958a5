"""report.html of a run: one file that needs no network and no other file."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline.manifest import SPLITS, Manifest, digest
from train_lib import scores
from train_lib.reporting import figures, gallery
from train_lib.reporting.inputs import (
    Head,
    flatten,
    read_json,
    read_metrics,
    read_predictions,
)
from train_lib.reporting.page import duration, number, whole, write_page

_COLUMNS = {'accuracy': 'accuracy', 'f1_macro': 'F1', 'precision_macro': 'precision',
            'recall_macro': 'recall', 'top5': 'top 5', 'loss': 'loss', 'nll': 'NLL',
            'ece': 'ECE', 'brier': 'Brier'}
_COUNTS_UP_TO = 30  # classes for which the confusion matrix is a table of counts
_TABLE_ROWS = 1000  # of the class table; beyond, the classes of lowest F1 are shown
_PAIRS = 15


def write_report(workdir: str | Path, *, manifest: Manifest, read_image: Callable,
                 title: str | None = None, max_errors: int = 24) -> Path:
    """Writes workdir/report.html from what a run left there, and returns its path.

    Reads config.json, metrics.jsonl, result.json and predictions/test.npz (else val.npz).
    What is missing or damaged is said in one line in its section.

    Args:
        manifest: the run's data, with the column `split`.
        read_image: location -> uint8 [H, W, 3], RGB. A picture it fails on is left blank.
        title: heading; by default the workdir's name.
        max_errors: errors shown, over all heads; at least four a head.
    """
    workdir = Path(workdir)
    config, config_note = read_json(workdir / 'config.json')
    result, result_note = read_json(workdir / 'result.json')
    metrics, metrics_note = read_metrics(workdir / 'metrics.jsonl')
    split, heads, predictions_note = read_predictions(workdir)
    score_rows = _score_rows(result, heads, split)
    thumbnail = gallery.thumbnailer(read_image)
    each = max(4, math.ceil(max_errors / max(1, len(heads)))) if max_errors > 0 else 0
    path = workdir / 'report.html'
    write_page(
        path, 'template.html.jinja',
        title=title or workdir.resolve().name or 'Report',
        subtitle=_subtitle(config, result), status=result.get('status', ''),
        headline=_headline(score_rows), facts=_facts(result),
        score_rows=score_rows,
        score_columns=[(key, name) for key, name in _COLUMNS.items()
                       if any(row['values'].get(key) is not None for row in score_rows)],
        curves=_curves(metrics, result, config),
        heads=[_head_block(head, manifest, thumbnail, each) for head in heads],
        predictions_split=split,
        settings=_settings(config),
        data=_data(manifest, result),
        seconds=_seconds(result.get('seconds')),
        notes=dict(config=config_note, result=result_note, metrics=metrics_note,
                   predictions=predictions_note),
        versions=_plain(result.get('versions')),
    )
    return path


def _plain(value) -> dict:
    return value if isinstance(value, dict) else {}


def _score_rows(result: dict, heads: list[Head], split: str) -> list[dict]:
    """[dict(split, head, values)], from result.json, else computed from the predictions."""
    rows = []
    for name in SPLITS:
        values = _plain(result.get(name))
        nested = {head: part for head, part in values.items() if isinstance(part, dict)}
        for head, part in (nested or ({'': values} if values else {})).items():
            # n belongs to the split where the head has none of its own; the loss is the
            # sum over heads there, so it isn't handed down.
            shared = {'n': values['n']} if 'n' in values else {}
            rows.append(dict(split=name, head=head, values={**shared, **part}))
    for head in heads:
        if not any((row['split'], row['head']) == (split, head.name) for row in rows):
            rows.append(dict(split=split, head=head.name,
                             values=scores.scores(head.logits, head.labels)))
    return rows


def _headline(rows: list[dict]) -> list[dict]:
    """Accuracy with its interval, F1 and n of each head on the last split there is."""
    splits = [row['split'] for row in rows if number(row['values'].get('accuracy')) is not None]
    if not splits:
        return []
    split = max(splits, key=SPLITS.index)
    found = []
    for row in rows:
        values = row['values']
        accuracy, n = number(values.get('accuracy')), number(values.get('n'))
        if row['split'] == split and accuracy is not None:
            interval = None
            if n and 0 <= accuracy <= 1:
                interval = scores.wilson_interval(accuracy, int(n))
            found.append(dict(split=split, head=row['head'], accuracy=accuracy, n=n,
                              f1=values.get('f1_macro'), interval=interval))
    return found


def _subtitle(config: dict, result: dict) -> str:
    model = config.get('model')
    name = model.get('name') if isinstance(model, dict) else model
    return ' · '.join(str(part) for part in (name, result.get('device')) if part)


def _facts(result: dict) -> list[tuple[str, str]]:
    facts = [('time', duration(_plain(result.get('seconds')).get('total')))]
    for label, key in [('epochs', 'epochs'), ('steps', 'steps'), ('best step', 'best_step'),
                       ('parameters', 'parameters')]:
        value = number(result.get(key))
        text = f'{value:g}' if key == 'epochs' and value is not None else whole(value)
        facts.append((label, text))
    return [(label, text) for label, text in facts if text != '–']


def _curves(metrics: pd.DataFrame, result: dict, config: dict) -> dict:
    """Panels (caption and SVG) and the stages of the curriculum in words."""
    if not len(metrics):
        return dict(panels=[], stages=[], splits=[], best=False)
    x = 'epoch' if 'epoch' in metrics and metrics['epoch'].notna().any() else 'step'
    stages = _stage_spans(metrics, x)
    best = _best_at(metrics, result.get('best_step'), x)
    wanted = [(name, name) for name in metrics if name == 'loss']
    wanted += [(name, name) for name in metrics
               if 'accuracy' in name.split('/') and name.count('/') <= 1]
    wanted += [(name, 'learning rate') for name in metrics if name == 'lr']
    panels, drawn = [], set()
    for column, label in wanted:
        lines = {}
        for split in ('train', 'val'):
            part = metrics[(metrics['split'] == split)].dropna(subset=[column, x])
            if len(part):
                lines[split] = part
        if not lines:
            continue
        drawn.update(lines)
        svg = figures.curve(
            lines, column, x, best=best, unit_range='accuracy' in column,
            stages=[(start, end, f'stage {k}' if len(stages) <= 4 else f'{k}')
                    for start, end, k in stages])
        last = {split: float(part[column].iloc[-1]) for split, part in lines.items()}
        panels.append(dict(label=label, svg=svg, last=last, is_lr=column == 'lr'))
    return dict(panels=panels, splits=[s for s in ('train', 'val') if s in drawn],
                best=best is not None, stages=_stage_words(stages, config, x))


def _stage_spans(metrics: pd.DataFrame, x: str) -> list[tuple[float, float, int]]:
    """(start, end, stage) in units of x; [] when there are not at least two stages."""
    if 'stage' not in metrics:
        return []
    part = metrics[metrics['split'] == 'train'].dropna(subset=['stage', x])
    stage, at = part['stage'].to_numpy(int), part[x].to_numpy(float)
    turns = np.flatnonzero(np.diff(stage)) + 1
    if not len(turns):
        return []
    # A line speaks for the steps before it, so a stage ends where its last line stands.
    edges = [0.0, *at[turns - 1], at[-1]]
    return list(zip(edges[:-1], edges[1:], stage[np.append(0, turns)].tolist()))


def _stage_words(spans: list, config: dict, x: str) -> list[dict]:
    stages = config.get('curriculum')
    stages = stages if isinstance(stages, list) else []
    words = []
    for start, end, k in spans:
        stage = stages[k] if k < len(stages) and isinstance(stages[k], dict) else {}
        words.append(dict(stage=k, start=f'{start:.4g}', end=f'{end:.4g}', x=x,
                          transforms=_transform_words(stage.get('transforms'))))
    return words


def _transform_words(transforms) -> str:
    if not isinstance(transforms, list):
        return ''
    names = [str(one.get('name', one.get('kind', one))) if isinstance(one, dict) else
             str(one[0]) if isinstance(one, list) and one else str(one) for one in transforms]
    return ', '.join(names) or 'no transforms'


def _best_at(metrics: pd.DataFrame, best_step, x: str) -> float | None:
    best_step = number(best_step)
    if best_step is None:
        return None
    part = metrics.dropna(subset=[x])
    near = part[part['step'] == best_step]
    return float(near[x].iloc[0]) if len(near) else None


def _head_block(head: Head, manifest: Manifest, thumbnail: Callable, most: int) -> dict:
    table = scores.class_table(head.logits, head.labels, head.classes)
    examples = gallery.examples_by_class(manifest, head)
    wanted = set(head.ids.tolist())
    part = manifest.table[manifest.table['id'].isin(wanted)]
    locations = dict(zip(part['id'], part['location'].astype(str)))
    bins = scores.reliability(head.logits, head.labels)
    sides = gallery.extremes(head, table, locations, thumbnail)
    cards, wrong = gallery.errors(head, locations, examples, thumbnail, most)
    name = gallery.manifest_head(manifest, head)
    table['train'] = _train_counts(manifest, name, head.classes)
    matrix = head.confusion
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    small = len(head.classes) <= _COUNTS_UP_TO
    return dict(
        name=head.name, classes=head.classes, n=len(head.labels),
        counts=matrix.tolist() if small else None, shares=shares.tolist() if small else None,
        heat=None if small else figures.heat_map(matrix),
        blocks=[] if small else _blocks(head.classes), pairs=_pairs(matrix, shares, head.classes),
        rows=table.sort_values(['f1', 'n'], ascending=[True, False], kind='stable')
        .iloc[:_TABLE_ROWS].to_dict('records'),
        sides=sides, cards=cards, wrong=wrong, examples=bool(examples),
        reliability=figures.reliability_diagram(bins),
        ece=scores.expected_calibration_error(bins),
        confidence=float((bins['confidence'].fillna(0) * bins['n']).sum() / bins['n'].sum()),
        accuracy=float(np.trace(matrix) / max(1, matrix.sum())))


def _train_counts(manifest: Manifest, name: str | None, classes) -> list[int | None]:
    if name is None or 'split' not in manifest.table:
        return [None] * len(classes)
    labels = manifest.labels(name)[(manifest.table['split'] == 'train').to_numpy()]
    counts = np.bincount(labels[labels >= 0], minlength=len(manifest.classes[name]))
    by_name = dict(zip(manifest.classes[name], counts.tolist()))
    return [by_name.get(one) for one in classes]


def _pairs(matrix: np.ndarray, shares: np.ndarray, classes) -> list[dict]:
    """The most frequent confusions, by count, then by share of the true class."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    true, predicted = np.nonzero(wrong)
    order = np.lexsort((-shares[true, predicted], -wrong[true, predicted]))[:_PAIRS]
    return [dict(true=classes[i], predicted=classes[j], count=int(matrix[i, j]),
                 share=float(shares[i, j])) for i, j in zip(true[order], predicted[order])]


def _blocks(classes) -> list[tuple[str, int]]:
    """Runs of classes with one folder before the '/', (folder, size); [] for no such order."""
    blocks = []
    for name in classes:
        folder = name.rpartition('/')[0]
        if blocks and blocks[-1][0] == folder:
            blocks[-1][1] += 1
        else:
            blocks.append([folder, 1])
    tidy = 2 <= len(blocks) <= 12 and all(folder for folder, _ in blocks)
    return [tuple(block) for block in blocks] if tidy else []


def _settings(config: dict) -> list[tuple[str, list[tuple[str, str]]]]:
    """The config flattened, grouped by its first key; lone values come first."""
    groups = {'': []}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            groups[key] = [(name, _setting(v)) for name, v in flatten(value).items()]
        else:
            groups[''].append((key, _setting(value)))
    return [(name, rows) for name, rows in groups.items() if rows]


def _setting(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _data(manifest: Manifest, result: dict) -> dict:
    table = manifest.table
    given = table['split'].astype(str) if 'split' in table else pd.Series('all', index=table.index)
    names = [name for name in SPLITS if (given == name).any()]
    names += sorted(set(given) - set(SPLITS))
    splits = []
    for name in names:
        part = manifest.select((given == name).to_numpy())
        # An empty group is a group of its own, so it isn't counted among the named ones.
        groups = part.table['group'].astype(str) if 'group' in table else None
        splits.append(dict(
            name=name, n=len(part),
            groups=None if groups is None else int(groups[groups != ''].nunique()),
            heads=[_class_spread(part, head) for head in manifest.heads]))
    computed = digest(manifest)
    stored = result.get('data_digest')
    return dict(splits=splits, n=len(manifest), heads=[
        (head, len(manifest.classes[head])) for head in manifest.heads],
        has_groups='group' in table, digest=str(stored or computed),
        other_digest=computed if stored and stored != computed else '')


def _class_spread(part: Manifest, head: str) -> dict:
    labels = part.labels(head)
    counts = np.bincount(labels[labels >= 0], minlength=len(part.classes[head]))
    seen = counts[counts > 0]
    return dict(classes=len(seen), unlabelled=int((labels < 0).sum()),
                least=int(seen.min()) if len(seen) else 0,
                most=int(seen.max()) if len(seen) else 0)


def _seconds(seconds) -> list[dict]:
    """[dict(kind, seconds, share)], longest first; what the kinds leave of the total is 'other'."""
    known = {str(kind): number(value) for kind, value in _plain(seconds).items()}
    known = {kind: value for kind, value in known.items() if value is not None and value >= 0}
    total = known.pop('total', None)
    rest = (total or 0.0) - sum(known.values())
    if total and rest > 0.005 * total:
        known['other'] = known.get('other', 0.0) + rest
    whole = sum(known.values())
    return [dict(kind=kind, seconds=value, share=value / whole if whole else 0.0)
            for kind, value in sorted(known.items(), key=lambda item: -item[1])]
