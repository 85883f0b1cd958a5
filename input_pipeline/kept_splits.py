"""A run that goes on keeps its split: what it has trained on, it never tests.

The data may have changed since, and so may the libraries that cut them: the same seed gives
another split then.
"""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest
from input_pipeline.splits import assert_disjoint


def split_digest(ids: Iterable[str], sides: Iterable[str]) -> str:
    """SHA-256 over which id is on which side, in any order of the rows."""
    hasher = hashlib.sha256()
    for pair in sorted(zip(ids, sides)):
        for part in pair:
            data = part.encode('utf-8', 'surrogateescape')
            hasher.update(len(data).to_bytes(8, 'little') + data)
    return hasher.hexdigest()


def keep_split(manifest: Manifest, known: Mapping[str, str], *, given: bool, grouped: bool
               ) -> Manifest:
    """The manifest with the rows that are known on the side where they were.

    New ones go where their group is, else they train.

    Args:
        manifest: with the column split, as it is cut today.
        known: {id: side}.
        given: the split is the user's own, so a new row stays where it is.
        grouped: whether a group must be on one side.

    Raises:
        DataError: a known row is given on another side now, or a group is on two sides.
    """
    table = manifest.table
    today = table['split'].to_numpy(object)
    side = table['id'].map(known).to_numpy(object)
    new = table['id'].map(known).isna().to_numpy()
    moved = np.flatnonzero(~new & (side != today))
    if given and len(moved):
        first = moved[0]
        raise DataError(f'{len(moved)} pictures are on another side than when the run was started '
                        f'({table["id"][first]!r} was in {side[first]}, and is now in '
                        f'{today[first]}): put them back, or start anew.')
    side[new] = today[new] if given else 'train'
    if grouped and not given and 'group' in table:
        group = table['group'].to_numpy(object)
        of_group = {name: where for name, where in zip(group[~new], side[~new]) if name}
        side[new] = [of_group.get(name, 'train') for name in group[new]]
    found = manifest.with_column('split', side)
    assert_disjoint(found, grouped=grouped)
    return found
