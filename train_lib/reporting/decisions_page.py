"""gallery.html, the page of the verb curate: what it would drop, most confident first, and why."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline.curation.decisions import Finding
from input_pipeline.manifest import Manifest
from train_lib.reporting.page import write_page
from train_lib.reporting.thumbnails import thumbnailer

_SHOWN = 48  # per detector and action
_EXAMPLES = 3
_PAIRS = 20
_BUDGET = 3_600_000  # characters of pictures; the page stays under 5 MB
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
    budget = _BUDGET // max(1, len(findings))  # so that every detector gets its share
    sections = [_section(manifest, found, table, head, thumbnailer(read_image, budget))
                for found in findings]
    counts = table['action'].value_counts()
    write_page(
        path, 'decisions.html.jinja', n=len(table), sections=sections, head=head,
        counts={name: int(counts.get(name, 0)) for name in ('drop', 'review', 'keep')},
        overlaps=[] if overlaps is None else overlaps.head(_PAIRS).to_dict('records'))
    return path


def _section(manifest: Manifest, found: Finding, table: pd.DataFrame, head: str,
             thumbnail: Callable) -> dict:
    parts = []
    for action, heading in (('drop', 'to drop'), ('review', 'for review')):
        rows = np.flatnonzero(found.action == action)
        order = np.argsort(-np.nan_to_num(found.score[rows], nan=-np.inf), kind='stable')
        cards = []
        for row in rows[order[:_SHOWN]]:
            card = _card(manifest, found, table, head, int(row), thumbnail)
            if card is None:
                break
            cards.append(card)
        parts.append(dict(heading=heading, n=len(rows), cards=cards))
    return dict(name=found.detector, title=_WORDS.get(found.detector, found.detector), parts=parts,
                dropped=parts[0]['n'], review=parts[1]['n'])


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
    if found.twin is not None and found.twin[row] >= 0:
        twin = int(found.twin[row])
        beside = [('kept', table['id'][twin], [twin])]
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
        shown, id=entry['id'], reason=found.reason[row], given=entry['given_label'],
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
