"""The part of explore.html about a second set of pictures: copies, and how the two sets differ."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from input_pipeline.curation.beside import Beside
from input_pipeline.curation.duplicates import KINDS
from input_pipeline.curation.exploration import Exploration, common_defects
from input_pipeline.curation.two_samples import rank_area
from train_lib.reporting import figures
from train_lib.reporting.thumbnails import thumbnailer

BUDGET = 900_000  # characters of pictures; the page stays under 5 MB
_PAIRS, _TELLING = 24, 12  # shown at most
_ROWS = 1000  # of a table
_STORED = 6  # sizes, types and modes each


def beside_values(first: Exploration, beside: Beside, title: str,
                  readers: tuple[Callable, Callable], panels: Mapping[str, tuple]) -> dict:
    """What the template shows of a second set.

    Args:
        first: the data.
        beside: the second set beside them.
        title: the name of the second set.
        readers: location -> uint8 [H, W, 3], of the data and of the second set.
        panels: measure -> (heading, logarithmic axis, ...).
    """
    second = beside.second
    thumbnails = [thumbnailer(read, BUDGET // 2) for read in readers]
    picture = lambda side, row: _picture((first, second)[side], row, thumbnails[side])
    tables = [one.measures.table[one.problems == ''] for one in (first, second)]
    unreadable = np.flatnonzero(second.problems != '')
    told = beside.told
    return dict(
        title=title, n=len(second.manifest), copied=int((beside.copies.of >= 0).sum()),
        unreadable=[dict(id=second.manifest.table['id'][row], reason=second.problems[row])
                    for row in unreadable[:_ROWS]], unreadable_count=len(unreadable),
        range_note=second.range_note, common=common_defects(second),
        kinds=_kinds(beside), pairs=_pairs(first, beside, picture), known=told.auc == told.auc,
        by_model=second.by_model, auc=told.auc, low=told.low, high=told.high, differ=told.differ,
        telling=[_telling(beside.probabilities[side], side, picture) for side in (1, 0)],
        panels=_panels(*tables, panels),
        stored=[(name, _stored(*tables, column)) for name, column in
                (('size', 'size'), ('file type', 'file_type'), ('mode as stored', 'mode'))])


def _picture(found: Exploration, row: int, thumbnail: Callable) -> dict:
    entry = found.manifest.table.iloc[row]
    labels = [names[label] if label >= 0 else 'unlabelled' for label, names in
              ((entry[f'label/{head}'], names) for head, names in found.manifest.classes.items())]
    return dict(thumbnail(entry['location']) or dict(uri='', small=False), id=entry['id'],
                label=' · '.join(labels), split=entry.get('split', ''))


def _kinds(beside: Beside) -> list[dict]:
    """One row per kind: pictures of the second set that are copies; how many of them differ, such
    as mirrored ones."""
    kind = beside.copies.kind
    differ = np.array([bool(words) for words in beside.copies.chips], bool)
    return [dict(kind=name, pictures=int((kind == name).sum()),
                 differ=int((differ & (kind == name)).sum())) for name in KINDS]


def _pairs(first: Exploration, beside: Beside, picture: Callable) -> list[dict]:
    """Copies to look at: the same file first, then by how alike they are."""
    copies = beside.copies
    rows = np.flatnonzero(copies.of >= 0)
    order = np.lexsort((-copies.correlation[rows],
                        [KINDS.index(copies.kind[row]) for row in rows]))
    return [dict(pictures=[picture(0, int(copies.of[row])), picture(1, int(row))],
                 kind=copies.kind[row], chips=copies.chips[row],
                 correlation=float(copies.correlation[row])) for row in rows[order[:_PAIRS]]]


def _telling(probability: np.ndarray, side: int, picture: Callable) -> list[dict]:
    """The pictures of one set that are told apart most surely."""
    rows = np.flatnonzero(~np.isnan(probability))
    sure = probability[rows] if side else 1 - probability[rows]
    return [dict(picture(side, int(rows[k])), why=f'{probability[rows[k]]:.3f}')
            for k in np.argsort(-sure, kind='stable')[:_TELLING]]


def _panels(first: pd.DataFrame, second: pd.DataFrame, panels: Mapping[str, tuple]) -> list[dict]:
    shown = []
    for name, (heading, log, *_) in panels.items():
        values = [table[name].dropna().to_numpy(float) for table in (first, second)]
        if not all(map(len, values)) or np.ptp(np.concatenate(values)) == 0:
            continue
        shown.append(dict(
            heading=heading, middle=[_short(np.median(one)) for one in values],
            area=rank_area(np.concatenate(values), np.arange(sum(map(len, values)))
                           >= len(values[0])),
            svg=figures.two_histograms(*values, log=log)))
    return shown


def _short(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.2g}'


def _stored(first: pd.DataFrame, second: pd.DataFrame, column: str) -> list[tuple]:
    """(value, share of the data, share of the second set) of the values that are most frequent in
    either set."""
    values = [table[column] if column != 'size' else pd.Series(
        [f'{width:.0f} × {height:.0f}' for width, height in zip(table['width'], table['height'])],
        dtype=object) for table in (first, second)]
    shares = pd.DataFrame({side: one.value_counts(normalize=True)
                           for side, one in enumerate(values)}).fillna(0.0)
    order = np.argsort(-shares.max(axis=1).to_numpy(), kind='stable')[:_STORED]
    return [(str(shares.index[k]), float(shares[0].iloc[k]), float(shares[1].iloc[k]))
            for k in order]
