"""gallery.html, the page of the verb curate: what it would drop, most confident first, and why.

Its buttons change the actions, and it saves them as a decisions.csv of its own: it holds the rows
that say anything, in the text of a hidden element.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline.curation.decisions import ACTIONS, Finding
from input_pipeline.manifest import Manifest
from train_lib.reporting.page import write_page
from train_lib.reporting.thumbnails import thumbnailer

_SHOWN = 48  # per detector and action
_EXAMPLES = 3
_NEXT = 12
_PAIRS = 20
_BUDGET = 4_200_000  # characters of rows and pictures; the page stays under 5 MB
_PICTURES = 1_000_000  # of it, for the pictures at least
_WORDS = {'duplicates': 'Duplicates', 'quality': 'Quality', 'photographs': 'Photographs',
          'labels': 'Labels', 'borders': 'Borders'}


def write_decisions_page(path: Path, manifest: Manifest, findings: Sequence[Finding],
                         table: pd.DataFrame, *, head: str, overlaps: pd.DataFrame | None,
                         read_image: Callable) -> Path:
    """Writes the page, and returns its path.

    Args:
        path: of the page.
        manifest: N rows.
        findings: of the detectors.
        table: of `decisions.decide`.
        head: whose labels are shown.
        overlaps: of `label_errors.overlapping_classes`, or None.
        read_image: location -> uint8 [H, W, 3].
    """
    held = _held(table).copy()
    for found in findings:
        held[_next(found)] = True
    rows = _as_text(table[held])
    budget = max(_PICTURES, _BUDGET - len(rows))
    budget //= max(1, len(findings))  # so that every detector gets its share
    table = table.assign(row=np.where(held, np.cumsum(held) - 1, -1))
    sections = [_section(manifest, found, table, head, thumbnailer(read_image, budget))
                for found in findings]
    counts, other = (part['action'].value_counts() for part in (table, table[~held]))
    write_page(
        path, 'decisions.html.jinja', n=len(table), sections=sections, head=head,
        counts={name: int(counts.get(name, 0)) for name in ACTIONS}, rows=rows,
        other={name: int(other.get(name, 0)) for name in ACTIONS},
        overlaps=[] if overlaps is None else overlaps.head(_PAIRS).to_dict('records'))
    return path


def _held(table: pd.DataFrame) -> np.ndarray:
    """Which rows say more than to keep a picture as it is, bool [N]."""
    said = table['action'] != 'keep'
    for name in table:
        if name in ('duplicate_group', 'suggested_label', 'label') or name.startswith('label/'):
            said |= table[name] != ''
    return (said | table['weight'].notna()).to_numpy()


def _as_text(table: pd.DataFrame) -> str:
    """The header and the rows but for the scores, one per line, with tabs between the cells; line
    ends, tabs and backslashes of a cell are written with a backslash."""
    columns = [name for name in table if not name.startswith('score/')]
    texts = table[columns].assign(weight=[f'{weight:.4g}' if weight == weight else ''
                                          for weight in table['weight']])
    escape = str.maketrans({'\\': r'\\', '\t': r'\t', '\n': r'\n', '\r': r'\r'})
    return '\n'.join('\t'.join(str(cell).translate(escape) for cell in row)
                     for row in [columns, *texts.itertuples(index=False)])


def _section(manifest: Manifest, found: Finding, table: pd.DataFrame, head: str,
             thumbnail: Callable) -> dict:
    parts = []
    lists = [(heading, np.flatnonzero(found.action == action)) for action, heading in
             (('drop', 'to drop'), ('review', 'for review'))]
    following = _next(found)
    if len(following):
        lists.append(('kept, nearest to review', following))
    for heading, rows in lists:
        order = np.argsort(-np.nan_to_num(found.score[rows], nan=-np.inf), kind='stable')
        cards = []
        for row in rows[order[:_SHOWN]]:
            card = _card(manifest, found, table, head, int(row), thumbnail)
            if card is None:
                break
            cards.append(card)
        parts.append(dict(heading=heading, n=len(rows), cards=cards))
    return dict(name=found.detector, title=_WORDS.get(found.detector, found.detector), parts=parts,
                note=found.note, dropped=parts[0]['n'], review=parts[1]['n'])


def _next(found: Finding) -> np.ndarray:
    """Rows that are kept and nearest to being flagged, the nearest first, of a detector that ranks
    all pictures alike."""
    kept = np.flatnonzero(found.action == 'keep')
    if found.detector != 'photographs':
        return kept[:0]
    return kept[np.argsort(-found.score[kept], kind='stable')[:_NEXT]]


def _card(manifest: Manifest, found: Finding, table: pd.DataFrame, head: str, row: int,
          thumbnail: Callable) -> dict | None:
    """One picture with its reason and the pictures to compare it with; None once the page is
    full."""
    locations = manifest.table['location']
    shown = thumbnail(locations[row])
    if shown is None:
        return None
    entry = table.iloc[row]
    label = found.label[row] if found.label is not None else ''
    beside = []
    twin = -1 if found.beside is None else int(found.beside[row])
    if twin >= 0:
        what = 'kept' if found.action[row] == 'drop' else 'beside it'
        beside = [(what, table['id'][twin], [twin])]
    elif found.group is not None and found.group[row] and entry['twin'] == '':
        others = np.flatnonzero((found.group == found.group[row])
                                & (np.arange(len(table)) != row))[:_EXAMPLES]
        beside = [('copies', ', '.join(table['given_label'].iloc[others].unique()), others)]
    elif label:
        names = manifest.classes[head]
        given = manifest.labels(head)[row]
        beside = [('given', entry['given_label'], _examples(manifest, head, given, found)),
                  ('suggested', label, _examples(manifest, head, names.index(label), found))]
    return dict(
        shown, id=entry['id'], row=int(entry['row']), action=entry['action'], twin=twin >= 0,
        chips=() if found.chips is None else found.chips[row], reason=found.reason[row],
        given=entry['given_label'],
        score=float(found.score[row]), suggested=label,
        beside=[dict(what=what, name=name,
                     pictures=[one for other in rows
                               if (one := thumbnail(locations[int(other)])) is not None])
                for what, name, rows in beside])


def _examples(manifest: Manifest, head: str, label: int, found: Finding) -> np.ndarray:
    """A few rows of a class, at even distances among the less suspicious half."""
    rows = np.flatnonzero((manifest.labels(head) == label) & (found.action == 'keep'))
    order = np.argsort(np.nan_to_num(found.score[rows], nan=np.inf), kind='stable')
    rows = np.sort(rows[order[:max(_EXAMPLES, len(rows) // 2)]])
    return rows[np.linspace(0, len(rows) - 1, min(_EXAMPLES, len(rows))).astype(int)]
