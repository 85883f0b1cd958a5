"""Groups of pictures that share something are joined into one: a split then keeps them together."""

import logging

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from input_pipeline.manifest import Manifest

_log = logging.getLogger(__name__)


def join_groups(manifest: Manifest, shared: np.ndarray) -> list[str]:
    """The group of each row, after groups that share something are joined.

    Args:
        manifest: N rows, with or without groups.
        shared: str [N]: rows with the same text belong together; '' for nothing shared.

    Returns:
        N names: the least one of the joined groups, 'copies of <id>' where none of them had a
        group, and '' for a row that is a group of its own.
    """
    count, ids = len(manifest), manifest.table['id'].to_numpy()
    given = manifest.table.get('group', pd.Series('', manifest.table.index)).astype(str).to_numpy()
    first, second = [], []
    for names in (given, shared):
        codes, _ = pd.factorize(names)
        starts = np.unique(codes, return_index=True)[1]
        rows = np.flatnonzero(names != '')
        first.append(rows)
        second.append(starts[codes[rows]])
    first, second = np.concatenate(first), np.concatenate(second)
    links = coo_matrix((np.ones(len(first)), (first, second)), (count, count))
    component = connected_components(links, directed=False)[1]
    several = np.bincount(component)[component] > 1
    named = given != ''
    names = pd.Series(given[named]).groupby(component[named]).min().to_dict()
    alone = pd.Series(ids[several]).groupby(component[several]).min().to_dict()
    before, after = len(set(given[named])), len(names)
    if after < before:
        _log.info('groups   %s became %s, because they share copies', f'{before:,}', f'{after:,}')
    return [names.get(c) or (f'copies of {alone[c]}' if c in alone else '') for c in component]
