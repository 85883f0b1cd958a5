"""Unlabelled pictures that trained runs are asked about, without those that they know."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.errors import DataError, counted
from input_pipeline.manifest import Manifest
from input_pipeline.readable import check_files
from input_pipeline.sources import csv_file, zip_archive
from input_pipeline.table_file import is_parquet
from train_lib.ensembles.wanted_pictures import list_pictures
from train_lib.run_dir.run_config import config_of_run
from train_lib.runtime.cache_folder import cache_folder
from train_lib.training.data import load_manifest

log = logging.getLogger(__name__)
_TABLES = ('.csv', '.tsv', '.txt', '.parquet')


@dataclasses.dataclass(frozen=True, eq=False)
class Unlabelled:
    """Pictures to be labelled.

    Attributes:
        manifest: ids, locations and no labels.
        contents: the digest of the bytes of each.
    """

    manifest: Manifest
    contents: Sequence[str]

    @property
    def digest(self) -> str:
        """Of the ids and the bytes."""
        hasher = hashlib.sha256()
        for name, content in sorted(zip(self.manifest.table['id'], self.contents)):
            hasher.update(f'{name}\0{content}\n'.encode('utf-8', 'surrogateescape'))
        return hasher.hexdigest()


def unlabelled_pictures(path: str, runs: Sequence[Path]
                        ) -> tuple[Unlabelled, dict[str, int], list[str]]:
    """(the pictures, how many were left out and why, what could not be checked)

    Left out are pictures that cannot be read, whose file is a labelled row of one of the runs, or
    that are copies of an earlier one.

    Args:
        path: a folder, a zip archive or a packed folder, at any depth; or a table with a column of
            paths.
        runs: those who are asked.

    Raises:
        ConfigError or DataError: there are no pictures, or none is left.
    """
    data = config_of_run(runs[0]).data
    found = _listed(path, data)
    checked = check_files(found, cache_dir=cache_folder())
    contents = np.array([checked.contents.get(row, '') for row in range(len(found))], object)
    own, doubts = _own_pictures(runs)
    bad = np.isin(np.arange(len(found)), list(checked.bad))
    labelled = np.array([content in own for content in contents]) & ~bad
    _, first = np.unique(contents.astype(str), return_index=True)
    again = ~np.isin(np.arange(len(found)), first) & ~bad & ~labelled & (contents != '')
    left = dict(unreadable=int(bad.sum()), own=int(labelled.sum()), copies=int(again.sum()))
    keep = np.flatnonzero(~(bad | labelled | again))
    said = [f'{count:,} {what}' for count, what in (
        (left['unreadable'], 'that cannot be read'),
        (left['own'], 'that members have with a label'), (left['copies'], 'that are copies'))
            if count]
    log.info('images   %s%s', counted(len(keep), 'picture'),
             f'; left out {", ".join(said)}' if said else '')
    if not len(keep):
        raise DataError(f'--images={path!r}: no picture is left to be labelled (left out '
                        f'{", ".join(said)}): give unlabelled pictures.')
    return Unlabelled(found.select(keep), contents[keep].tolist()), left, doubts


def _listed(path: str, data: ConfigDict) -> Manifest:
    full = os.path.expanduser(path)
    if os.path.isfile(full) and not zip_archive.split_path(full)[0] and (
            full.lower().endswith(_TABLES) or is_parquet(full)):
        try:
            table = csv_file.load(full, images=csv_file.Images(allow_outside=data.allow_outside),
                                  labelled=False).table
        except DataError as error:
            raise DataError(str(error).replace('data.csv', '--images')) from None
        root = os.path.dirname(os.path.abspath(full))
        return Manifest(table[['id', 'location']].assign(**{'label/class': np.int32(-1)}),
                        {'class': ()}, root)
    return list_pictures(path, '--images', allow_outside=data.allow_outside,
                         zip_encoding=data.zip_encoding)


def _own_pictures(runs: Sequence[Path]) -> tuple[set[str], list[str]]:
    """(digests of the pictures that members have with a label, what could not be checked)"""
    own: set[str] = set()
    doubts, known = [], set()
    for run in runs:
        config = config_of_run(run)
        key = config.data.to_json()
        if key in known:
            continue
        known.add(key)
        try:
            manifest = load_manifest(config)
            rows = np.any([manifest.numbers(head) >= 0 for head in manifest.heads], axis=0)
            own |= set(check_files(manifest.select(rows), cache_dir=cache_folder()
                                   ).contents.values())
        except DataError:
            doubts.append(f'whether pictures are labelled rows of {run} (its data are not there)')
    return own, doubts
