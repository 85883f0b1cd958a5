"""One picture in several rows of a table: under another id, by another path or link, or as a copy.

Such rows are one group, so that no split separates them, and must agree on the label.
"""

import dataclasses
import logging

import numpy as np
import pandas as pd

from input_pipeline.errors import DataError, counted
from input_pipeline.groups import join_groups
from input_pipeline.manifest import CONTENT, Manifest

_SHOWN = 5

_log = logging.getLogger(__name__)


def join_same_files(manifest: Manifest, *, refuse: bool = True) -> Manifest:
    """The manifest in which the rows of one picture are one group.

    Args:
        manifest: with the column `content`, which is left out of the result.
        refuse: False only warns of pictures with several labels, for curation, which settles it.

    Raises:
        DataError: a picture has two labels of one head; up to five are listed.
    """
    table = manifest.table
    key = table[CONTENT].where(table[CONTENT] != '', table['location'])
    manifest = dataclasses.replace(manifest, table=table.drop(columns=CONTENT))
    again = key.duplicated(keep=False).to_numpy()
    if not again.any():
        return manifest
    for head in manifest.heads:
        text = _conflicts(manifest, head, key, again)
        if text and refuse:
            raise DataError(f'{text}: correct the table, or drop or relabel rows by a file of '
                            f'data.decisions.')
        if text:
            _log.warning('%s: correct the table, or drop or relabel rows.', text)
    before = manifest.table.get('group')
    manifest = manifest.with_column('group', join_groups(manifest,
                                                         key.where(again, '').to_numpy(object)))
    first = manifest.table['id'][again].iloc[0]
    twin = manifest.table['id'][(key == key[again].iloc[0]).to_numpy()].iloc[1]
    _log.warning('%s rows show %s (%r and %r are the same one, such as by another path or '
                 'as a copy): the rows of a picture are one group%s.', f'{again.sum():,}',
                 counted(key[again].nunique(), 'picture'), first, twin,
                 '' if before is None else ', joined with the groups that the rows have')
    return manifest


def _conflicts(manifest: Manifest, head: str, key: pd.Series, again: np.ndarray) -> str:
    """The pictures with several labels, as the beginning of a sentence; '' if there are none."""
    labels = manifest.numbers(head)
    rows = np.flatnonzero(again & (labels >= 0))
    of_picture = pd.Series(labels[rows]).groupby(key.to_numpy(object)[rows])
    several = of_picture.nunique()
    several = several[several > 1]
    if several.empty:
        return ''
    names, ids = manifest.texts(head), manifest.table['id']
    shown = []
    for picture in list(dict.fromkeys(key.iloc[rows][key.iloc[rows].isin(several.index)]))[:_SHOWN]:
        mine = rows[(key.iloc[rows] == picture).to_numpy()]
        firsts = sorted({labels[row]: row for row in reversed(mine)}.values())  # one per label
        shown.append(' and '.join(f'{ids[row]!r} is {names[row]!r}' for row in firsts[:3]))
    more = f'; and {len(several) - _SHOWN} more' if len(several) > _SHOWN else ''
    return (f'{counted(len(several), "picture is", "pictures are")} in several rows with different '
            f'labels of the head {head!r} ({"; ".join(shown)}{more})')
