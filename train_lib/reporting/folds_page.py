"""report.html of a k-fold run: its folds together, each picture by the fold that did not see it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline.errors import DataError
from input_pipeline.manifest import SPLITS, Manifest, digest
from input_pipeline.splits import several_folds
from train_lib.metrics import intervals, scores
from train_lib.metrics.set_scores import set_scores
from train_lib.reporting.about import data_facts, settings_section, time_section
from train_lib.reporting.classes import head_sections
from train_lib.reporting.inputs import (
    OUT_OF_FOLD,
    Head,
    RunInputs,
    as_dict,
    by_kind,
    errors_per_head,
    read_json,
    read_out_of_fold,
)
from train_lib.reporting.page import Section, duration, number, render, write_page
from train_lib.reporting.score_table import headline
from train_lib.reporting.structured_section import structure_section
from train_lib.reporting.thumbnails import thumbnailer
from train_lib.run_dir import workdirs
from train_lib.run_dir.seen_rows import marks
from train_lib.runtime.errors import ConfigError

# (key in result.json, heading)
_COLUMNS = (('accuracy', 'accuracy'), ('f1_macro', 'F1'), ('nll', 'NLL'), ('ece', 'ECE'))
# Of multi-label heads alone.
_OF_SETS = (('map', 'mAP'), ('f1_micro', 'micro F1'), ('f1_examples', 'F1 of pictures'),
            ('f1_macro_fitted', 'F1, fitted'), ('f1_micro_fitted', 'micro F1, fitted'),
            ('accuracy_fitted', 'accuracy, fitted'))


@dataclasses.dataclass(frozen=True)
class _Fold:
    """A fold: its number, its result.json, why that cannot be read ('' if it can), its report."""

    number: int
    result: dict
    note: str
    report: str


def write_folds_report(workdir: str | Path, *, manifest: Manifest, read_image: Callable,
                       title: str | None = None, max_errors: int = 24) -> Path:
    """Writes workdir/report.html from the files of a k-fold run, and returns its path.

    Reads config.json, result.json and predictions/out_of_fold.npz, and result.json and split.csv
    of each fold. A file that is missing or damaged is named in its section.

    Args:
        workdir: of the whole run.
        manifest: the run's data; its splits do not count.
        read_image: location -> uint8 [H, W, 3], RGB. A picture it fails on is left blank.
        title: heading; by default the workdir's name.
        max_errors: errors shown, over all heads; at least four per head.
    """
    workdir = Path(workdir)
    config, config_note = read_json(workdir / 'config.json')
    result, result_note = read_json(workdir / 'result.json')
    found, heads_note = read_out_of_fold(workdir)
    heads, sets = by_kind(found, result)
    folds = _folds(workdir, config)
    sides = _sides(workdir, folds, manifest)
    # Every picture of a fold trains the other folds.
    trained = ['train' if side.startswith('fold') else side for side in sides]
    inputs = RunInputs(
        manifest.with_column('split', trained), config, result, pd.DataFrame(), OUT_OF_FOLD, heads,
        {}, dict(config=config_note, result=result_note, metrics='', predictions=heads_note,
             heat_maps=''), thumbnailer(read_image), errors_per_head(max_errors, len(found)), sets)
    # The headline is that of a run whose validation rows are those of all folds.
    top = headline(dataclasses.replace(
        inputs, split='val', result={'val': as_dict(result.get('out_of_fold'))}))
    sections = [_scores_section(inputs, top), _folds_section(inputs, folds, len(found) > 1),
                *structure_section(inputs), *head_sections(inputs),
                _data_section(manifest, sides, config),
                *time_section(inputs), *settings_section(inputs)]
    done = sum(not fold.note for fold in folds)
    facts = [('folds', _which(folds, config)),
             ('time', duration(as_dict(result.get('seconds')).get('total')))]
    path = workdir / 'report.html'
    write_page(path, 'folds.html.jinja', title=title or workdir.resolve().name or 'Report',
               subtitle=_subtitle(config, folds), headline=top,
               marks=marks(result),
               facts=[fact for fact in facts if fact[1] != '–'],
               unfinished=len(folds) - done, sections=sections)
    return path


def _folds(workdir: Path, config: Mapping) -> list[_Fold]:
    try:
        numbers = several_folds(config['split']) or ()
    except (DataError, KeyError, TypeError):  # a damaged config is named in its section
        numbers = sorted(int(path.name[5:]) for path in workdir.glob('fold_*')
                         if path.name[5:].isdecimal())
    found = []
    for fold in numbers:
        folder = workdir / f'fold_{fold}'
        result, note = read_json(folder / 'result.json')
        report = f'{folder.name}/report.html' if (folder / 'report.html').is_file() else ''
        found.append(_Fold(fold, result, note, report))
    return found


def _sides(workdir: Path, folds: Sequence[_Fold], manifest: Manifest) -> list[str]:
    """Of each row 'fold 0' for the fold that validates it, else 'test' or 'train'."""
    known: dict[str, str] = {}
    for fold in folds:
        try:
            sides = workdirs.known_sides(workdir / f'fold_{fold.number}')
        except (ConfigError, DataError, OSError):
            continue  # its rows are then shown as training rows
        for name, side in sides.items():
            if side == 'val':
                known[name] = f'fold {fold.number}'
            else:
                known.setdefault(name, side)
    return [known.get(name, 'train') for name in manifest.table['id']]


def _which(folds: Sequence[_Fold], config: Mapping) -> str:
    """Such as '5 of 5', or '0, 3, 6 of 7' where the run has some of the folds only."""
    total = as_dict(config.get('split')).get('folds', len(folds))
    if len(folds) != total:
        return f'{", ".join(str(fold.number) for fold in folds)} of {total}'
    return f'{sum(not fold.note for fold in folds)} of {total}'


def _subtitle(config: Mapping, folds: Sequence[_Fold]) -> str:
    model = as_dict(config.get('model')).get('name')
    device = next((fold.result['device'] for fold in folds if fold.result.get('device')), None)
    return ' · '.join(str(part) for part in (model, device) if part)


def _scores_section(inputs: RunInputs, top: Sequence[Mapping]) -> Section:
    """Out-of-fold scores of each head with their intervals, and the mean of the folds' tests."""
    rows = []
    for head in inputs.heads:
        found = scores.scores(head.logits, head.labels)
        groups = _groups(inputs.manifest, head.ids)
        ranges = _intervals(head, groups)
        of_accuracy = next((one['interval'] for one in top if one['head'] == head.name), None)
        if of_accuracy:
            ranges['accuracy'] = of_accuracy
        rows.append(dict(head=head.name, values=found, intervals=ranges,
                         groups=None if groups is None else len(np.unique(groups))))
    stored = as_dict(inputs.result.get('out_of_fold'))
    for several in inputs.set_heads:
        values = set_scores(several.logits, several.targets)
        of_head = as_dict(stored.get(several.name)) if several.name else stored
        values |= {key: value for key, value in of_head.items() if key.endswith('_fitted')}
        of_accuracy = next((one['interval'] for one in top if one['head'] == several.name), None)
        groups = _groups(inputs.manifest, several.ids)
        rows.append(dict(head=several.name, values=values,
                         intervals=dict(accuracy=of_accuracy) if of_accuracy else {},
                         groups=None if groups is None else len(np.unique(groups))))
    return Section('scores', 'Scores', render(
        'folds_scores.html.jinja', inputs=inputs, rows=rows,
        columns=(*_COLUMNS, *(_OF_SETS if inputs.set_heads else ())),
        several=len(rows) > 1))


def _groups(manifest: Manifest, ids: np.ndarray) -> np.ndarray | None:
    """The group of each picture, int [N], a picture without one being its own; None if no two
    pictures share a group."""
    if 'group' not in manifest.table:
        return None
    known = dict(zip(manifest.table['id'], manifest.table['group'].astype(str)))
    names = [(True, known[name]) if known.get(name) else (False, name) for name in ids.tolist()]
    numbers = {name: k for k, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names]) if len(numbers) < len(names) else None


def _intervals(head: Head, groups: np.ndarray | None) -> dict[str, tuple[float, float]]:
    """The 95 % interval of macro F1, by groups if there are any; none of a single group. The NLL
    has none: those tried cover too little (docs/statistics.md)."""
    if groups is not None and len(np.unique(groups)) < 2:
        return {}
    predicted = head.logits.argmax(axis=1)
    rows = intervals.f1_rows(predicted, head.labels, len(head.classes))
    return {'f1_macro': intervals.f1_interval(rows, predicted == head.labels, groups)}


def _folds_section(inputs: RunInputs, folds: Sequence[_Fold], several: bool) -> Section:
    """A row per fold (and head) with a link to its report, and their mean and deviation."""
    rows = []
    for fold in folds:
        names = [head.name for head in (*inputs.heads, *inputs.set_heads)] if several else ['']
        for name in names:
            val, test = (_of_head(fold.result.get(split), name) for split in ('val', 'test'))
            accuracy, n = number(val.get('accuracy')), number(val.get('n'))
            interval = None
            if accuracy is not None and n and 0 <= accuracy <= 1:
                interval = scores.wilson_interval(accuracy, int(n))
            rows.append(dict(fold=fold, head=name, val=val, test=test, interval=interval,
                             seconds=as_dict(fold.result.get('seconds')).get('total')))
    return Section('folds', 'Folds', render(
        'folds_table.html.jinja', rows=rows, columns=_COLUMNS, several=several,
        tested=any(row['test'] for row in rows),
        summary=[] if several else _summary(rows), missing=[fold for fold in folds if fold.note]))


def _of_head(values, name: str) -> dict:
    values = as_dict(values)
    return {**({'n': values['n']} if 'n' in values else {}), **as_dict(values.get(name))} \
        if name else values


def _summary(rows: Sequence[Mapping]) -> list[dict]:
    """Mean and standard deviation over the folds of each column, by split."""
    found = []
    for title, over in (('mean', np.mean), ('standard deviation', _deviation)):
        values: dict = {}
        for split in ('val', 'test'):
            for key, _ in _COLUMNS:
                known = [value for row in rows
                         if (value := number(row[split].get(key))) is not None]
                values[split, key] = float(over(known)) if known else None
        found.append(dict(title=title, values=values))
    return found


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float('nan')


def _data_section(manifest: Manifest, sides: Sequence[str], config: Mapping) -> Section:
    facts = data_facts(manifest.with_column('split', list(sides)), {})
    facts['splits'].sort(key=lambda part: (part['name'] in SPLITS, *_natural(part['name'])))
    computed, stored = digest(manifest), config.get('data_digest')
    facts |= dict(digest=str(stored or computed),
                  other_digest=computed if stored and stored != computed else '')
    return Section('data', 'Data', render('run_data.html.jinja', data=facts))


def _natural(name: str) -> tuple[str, int]:
    word, _, count = name.partition(' ')
    return word, int(count or 0)
