"""Workdirs beside each other: what differs in their configs, their scores, and differences.

The runs need not belong to a study. Scores are those of result.json, with intervals from the
predictions; two runs are paired on the pictures that both held out, by id, if the labels agree.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from input_pipeline.errors import DataError
from train_lib.metrics.intervals import accuracy_interval, difference_interval
from train_lib.metrics.scores import wilson_interval
from train_lib.metrics.statistics import holm, paired_test
from train_lib.predictions.run_folders import folds_of, splits_of
from train_lib.reporting.inputs import as_dict, read_json, read_metrics
from train_lib.reporting.page import number
from train_lib.run_dir import workdirs
from train_lib.run_dir.seen_rows import marks
from train_lib.runtime.errors import ConfigError
from train_lib.studies.cell_rows import CellRows, read_cell_rows
from train_lib.studies.identity import identity_of
from train_lib.studies.naming import short
from train_lib.studies.study_file import STUDY

SPLITS = ('val', 'test')
_HIDDEN = ('report', 'explore')  # sections that change no result, besides those of identity_of
_MISSING = '–'


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """The accuracy of one head on one split.

    Attributes:
        accuracy, f1, nll: as in result.json; None for none.
        n: labelled pictures; None if unknown.
        interval: of the accuracy, 95 %; None if nothing says how much it varies.
        rows: what each picture adds to it; None where predictions and result.json do not agree.
        about: 'out of fold' (also of a probing run) or 'mean of 5 folds' of a k-fold run, else ''.
    """

    accuracy: float
    f1: float | None
    nll: float | None
    n: int | None
    interval: tuple[float, float] | None
    rows: CellRows | None
    about: str = ''


@dataclasses.dataclass(frozen=True, eq=False)
class ComparedRun:
    """A workdir.

    Attributes:
        name: its path below the folder that all of them share.
        workdir: the path.
        done: whether it has a result.
        notes: what one has to know about it, as sentences.
        knobs: {dotted.key: value} of what can change a result; {} if config.json says nothing.
        scores: {(split, head): score}; the head is '' where there is one.
        metrics: of metrics.jsonl, of folds their mean; empty for none.
        facts: parameters, trained_parameters, seconds, images_per_second, memory_mb, epochs,
            device; None where unknown.
    """

    name: str
    workdir: Path
    done: bool
    notes: tuple[str, ...]
    knobs: Mapping[str, Any]
    scores: Mapping[tuple[str, str], Score]
    metrics: pd.DataFrame
    facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A run against the reference, on the pictures that both held out.

    Attributes:
        value, low, high: of the accuracy, with the 95 % interval; NaN and infinite without one.
        p: two-sided, after Holm for the comparisons of this split and head; None for one group.
        n: pictures; of: those of the run and of the reference.
        grouped: whether pictures of one group count together.
    """

    value: float
    low: float
    high: float
    p: float | None
    n: int
    of: tuple[int, int]
    grouped: bool


def find_runs(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(workdirs of runs, in order; the other paths). A study stands for its cells.

    A k-fold run is one run; its folds are not looked for.
    """
    runs: dict[Path, Path] = {}
    others = []
    for path in paths:
        found = _runs_in(path)
        runs |= {run.resolve(): run for run in found if run.resolve() not in runs}
        if not found:
            others.append(path)
    return list(runs.values()), others


def _runs_in(path: Path) -> list[Path]:
    if (path / 'config.json').is_file():
        return [path]
    if not (path / STUDY).is_file():
        return []
    return [cell for arm in sorted(path.iterdir()) if arm.is_dir()
            for cell in sorted(arm.iterdir()) if (cell / 'config.json').is_file()]


def read_runs(paths: Sequence[Path]) -> list[ComparedRun]:
    """The runs in these workdirs. A file that is missing or damaged becomes a note."""
    whole = [path.resolve() for path in paths]
    shared = Path(os.path.commonpath([path.parent for path in whole])) if whole else Path()
    return [_read_run(path, full.relative_to(shared).as_posix())
            for path, full in zip(paths, whole)]


def _read_run(path: Path, name: str) -> ComparedRun:
    notes, knobs = [], {}
    try:
        config = workdirs.saved_config(path)
        knobs = identity_of(config) | dict(seed=config.seed)
        knobs = {key: value for key, value in knobs.items() if key.split('.')[0] not in _HIDDEN}
    except ConfigError as error:
        notes.append(str(error))
    result, note = read_json(path / 'result.json')
    done = result.get('status') == 'done'
    notes += [note] if note and (path / 'result.json').exists() else []
    folds = folds_of(path)
    tables = []
    for folder in folds or [path]:
        table, note = read_metrics(folder / 'metrics.jsonl')
        tables.append(table)
        notes += [f'{folder.name}: {note}'] if note and not note.endswith('is missing.') else []
    metrics = _mean_of_folds(tables)
    if not done:
        steps = f'its last line is of step {int(metrics["step"].max())}' if len(metrics) else \
            'it has not begun'
        notes.append(f'Not finished ({steps}): only its curves are compared.')
    notes += marks(result)
    scores = _scores(path, result, folds, notes) if done else {}
    return ComparedRun(name, path, done, tuple(notes), knobs, scores, metrics,
                       _facts(path, result, knobs))


def _mean_of_folds(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    tables = [table for table in tables if len(table)]
    if len(tables) < 2:
        return tables[0] if tables else pd.DataFrame()
    whole = pd.concat(tables, ignore_index=True)
    return (whole.groupby(['split', 'step'], as_index=False).mean(numeric_only=True)
            .sort_values('step', kind='stable').reset_index(drop=True))


def _scores(path: Path, result: Mapping, folds: Sequence[Path], notes: list[str]
            ) -> dict[tuple[str, str], Score]:
    found, has_groups = {}, _has_groups((*folds, path)[0])
    for split in SPLITS:
        stored, about = split, ''
        if split == 'val' and (folds or ('val' not in result and 'out_of_fold' in result)):
            stored, about = 'out_of_fold', 'out of fold'
        of_split = [as_dict(result.get(stored))]
        if folds and split == 'test':
            of_split = [as_dict(as_dict(one).get('test')) for one in result.get('folds', ())]
            about = f'mean of {len(of_split)} folds'
        heads = [head for head, values in of_split[0].items() if isinstance(values, dict)] \
            if of_split else []
        for head in heads or ['']:
            parts = [as_dict(one.get(head)) if head else one for one in of_split]
            mean = lambda key, parts=parts: _mean([number(part.get(key)) for part in parts])
            accuracy = mean('accuracy')
            if accuracy is None:
                continue
            n = number(parts[0].get('n', of_split[0].get('n')))
            rows = read_cell_rows(path, f'{stored}.{f"{head}." if head else ""}accuracy') \
                if len(of_split) == 1 else None
            if rows is not None and abs(rows.values.mean() - accuracy) > 1e-6:
                rows = None
                notes.append(f'predictions/{stored}.npz is not what result.json scores (other '
                             f'views, or older): its {split} pictures are not paired.')
            found[split, head] = Score(
                accuracy, mean('f1_macro'), mean('nll'), None if n is None else int(n),
                _interval(accuracy, n, rows, has_groups) if len(of_split) == 1 else None, rows,
                about)
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _has_groups(workdir: Path) -> bool:
    """Whether pictures of a run may share a group."""
    try:
        return bool(splits_of(workdir).known_groups)
    except (ConfigError, DataError):
        return True


def _interval(accuracy: float, n: float | None, rows: CellRows | None, has_groups: bool
              ) -> tuple[float, float] | None:
    """By the predictions; without them only where no picture shares a group."""
    if rows is not None:
        if rows.groups is not None and len(np.unique(rows.groups)) < 2:
            return None
        return accuracy_interval(rows.values > 0.5, rows.groups)
    return wilson_interval(accuracy, int(n)) if n and not has_groups else None


def _facts(path: Path, result: Mapping, knobs: Mapping) -> dict[str, Any]:
    parts = [as_dict(one) for one in result.get('folds', ())] or [result]
    seconds = as_dict(result.get('seconds'))
    steps, batch = [number(one.get('steps')) for one in parts], number(knobs.get('batch_size'))
    training = number(seconds.get('step'))
    known = batch and training and all(step is not None for step in steps)
    cell = read_json(path / 'cell.json')[0]
    memory = number(cell.get('memory_bytes'))
    return dict(
        parameters=number(parts[0].get('parameters')),
        trained_parameters=number(parts[0].get('trained_parameters')),
        epochs=_mean([number(one.get('epochs')) for one in parts]),
        seconds=number(seconds.get('total')),
        images_per_second=batch * sum(steps) / training if known else None,
        memory_mb=None if memory is None else memory / 2 ** 20,
        device=parts[0].get('device') or None)


def differing_knobs(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """{dotted.key: its value in each run, as text} of the knobs that are not the same in all."""
    known = [run.knobs for run in runs if run.knobs]
    keys = dict.fromkeys(key for knobs in known for key in knobs)
    as_text = lambda value: json.dumps(value, sort_keys=True)
    differing = [key for key in keys
                 if len({as_text(knobs.get(key, _MISSING)) for knobs in known}) > 1]
    return {key: [short(run.knobs.get(key, _MISSING), 10 ** 6) or "''" for run in runs]
            for key in sorted(differing, key=_order)}


def shortened(values: Sequence[str], most: int) -> list[str]:
    """The texts cut to so many characters, long ones from where they differ on."""
    if max(map(len, values)) <= most:
        return list(values)
    same = next((k for k, letters in enumerate(zip(*values)) if len(set(letters)) > 1),
                min(map(len, values)))
    start = max(same - 8, 0)
    tails = [f'…{value[start:]}' if start > 1 else value for value in values]
    return [text if len(text) <= most else f'{text[:most - 1]}…' for text in tails]


def _order(key: str) -> tuple[bool, str]:
    """The settings of models, which other models lack, come last."""
    return key.startswith('model.') and key != 'model.name', key


def heads_of(runs: Sequence[ComparedRun]) -> list[str]:
    """The heads that any run has scores of."""
    return list(dict.fromkeys(head for run in runs for _, head in run.scores))


def differences(runs: Sequence[ComparedRun], reference: ComparedRun
                ) -> dict[tuple[str, str], dict[str, Difference | str]]:
    """{(split, head): {name of a run: its difference to the reference, or why there is none}}."""
    return {(split, head): _family(runs, reference, split, head)
            for split in SPLITS for head in heads_of(runs)
            if any((split, head) in run.scores for run in runs)}


def _family(runs: Sequence[ComparedRun], reference: ComparedRun, split: str, head: str
            ) -> dict[str, Difference | str]:
    base = reference.scores.get((split, head))
    found: dict[str, Difference | str] = {}
    for run in runs:
        own = run.scores.get((split, head))
        if run is not reference and own is not None:
            found[run.name] = _compare(own, base)
    tested = [name for name, one in found.items()
              if isinstance(one, Difference) and one.p is not None]
    for name, p in zip(tested, holm([found[name].p for name in tested])):
        found[name] = dataclasses.replace(found[name], p=float(p))
    return found


def _compare(own: Score, base: Score | None) -> Difference | str:
    if base is None or own.rows is None or base.rows is None:
        return 'no predictions to pair'
    shared, mine, theirs = np.intersect1d(own.rows.ids, base.rows.ids, assume_unique=True,
                                          return_indices=True)
    if not len(shared):
        return 'no pictures in common'
    if not np.array_equal(own.rows.labels[mine], base.rows.labels[theirs]):
        return 'other labels'
    right, other = own.rows.values[mine] > 0.5, base.rows.values[theirs] > 0.5
    groups = next((rows.groups[at] for rows, at in ((base.rows, theirs), (own.rows, mine))
                   if rows.groups is not None), None)
    low, high = difference_interval(right.astype(float) - other, groups, share=True)
    return Difference(
        float(right.mean() - other.mean()), low, high, paired_test(right, other, groups)['p'],
        len(shared), (len(own.rows.ids), len(base.rows.ids)), groups is not None)
