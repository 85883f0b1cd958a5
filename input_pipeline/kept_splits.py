"""A resumed run keeps its split: it never tests on what it has trained on.

The data may have changed since the start, and so may the libraries that split them. The same
seed then gives another split.
"""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from input_pipeline.errors import DataError, counted
from input_pipeline.manifest import Manifest


def split_digest(ids: Iterable[str], sides: Iterable[str]) -> str:
    """SHA-256 over which id is on which side; the order of the rows does not matter."""
    hasher = hashlib.sha256()
    for pair in sorted(zip(ids, sides)):
        for part in pair:
            data = part.encode('utf-8', 'surrogateescape')
            hasher.update(len(data).to_bytes(8, 'little') + data)
    return hasher.hexdigest()


def keep_sides(manifest: Manifest, given: np.ndarray, known: Mapping[str, str], *, grouped: bool
               ) -> np.ndarray:
    """The side of each row of a resumed run, where nothing is drawn again.

    Known rows stay on their side. A new row goes to the side that the user gives, else to the
    side of its group, else to train.

    Args:
        manifest: N rows, those of today.
        given: [N], the side that the user gives a row; '' for none.
        known: {id: side} as the run was started.
        grouped: whether all rows of a group must be on one side.

    Raises:
        DataError: a known row is now given on another side, or a group is on two sides.
    """
    table = manifest.table
    before = np.array([known.get(name, '') for name in table['id']], object)
    moved = np.flatnonzero((before != '') & (given != '') & (before != given))
    if len(moved):
        first = moved[0]
        raise DataError(f'{counted(len(moved), "picture is", "pictures are")} on another side '
                        f'than when the run was started '
                        f'({table["id"].iloc[first]!r} was in {before[first]}, and is now in '
                        f'{given[first]}): put them back, or start a new run.')
    side = np.where(before != '', before, given)
    if grouped and 'group' in table:
        group = table['group'].to_numpy(object)
        of_group: dict[str, str] = {}
        for name, where in zip(group, side):
            if name and where and of_group.setdefault(name, where) != where:
                raise DataError(f'The group {name!r} has pictures in {of_group[name]} and in '
                                f'{where} since the run was started: put the groups back, or '
                                f'start a new run.')
        side = np.array([where or of_group.get(name, '') for name, where in zip(group, side)],
                        object)
    side[side == ''] = 'train'
    return side
