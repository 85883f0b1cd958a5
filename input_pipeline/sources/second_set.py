"""A second set of pictures without labels, beside the data: a folder, a zip archive or a table."""

import dataclasses
import os
from collections.abc import Mapping

from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest
from input_pipeline.sources import csv_file, folder, missing_path, zip_archive
from input_pipeline.table_file import is_parquet

_TABLES = ('.csv', '.tsv', '.txt', '.parquet')
# What the sources say of the data, in the words of the second set.
_WORDS = (('set data.columns.image to one of ', 'rename that of the paths, which is among '),
          ('set data.images to a folder that contains all images, or set', 'set'),
          ('correct data.images or the paths in the table',
           'correct the paths in the table of explore.beside'),
          ('data.folder', 'explore.beside'), ('data.csv', 'explore.beside'))


def load(path: str, data: Mapping) -> Manifest:
    """The manifest of a second set: ids and locations, without heads.

    Args:
        path: config.explore.beside. In a folder or archive, pictures may lie anywhere; of a table,
            the column of paths, relative to its own folder, is found by its name.
        data: config.data, whose allow_outside, zip_encoding and rules hold here too.

    Raises:
        DataError: there is nothing at the path, or it holds no pictures.
    """
    full = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(full) and not zip_archive.split_path(path)[0]:
        raise DataError(f'config.explore.beside = {path!r} {missing_path(full)}: give a folder, a '
                        f'zip archive, or a CSV or Parquet table of pictures.')
    try:
        if os.path.isfile(full) and (full.lower().endswith(_TABLES) or is_parquet(full)):
            images = csv_file.Images(allow_outside=data['allow_outside'])
            found = csv_file.load(path, images=images, labelled=False, rules=data['rules'])
        else:
            found = folder.load(path, labelled=False, **{
                key: data[key] for key in ('allow_outside', 'zip_encoding', 'rules')})
    except DataError as error:
        raise in_its_words(error) from None
    return dataclasses.replace(found, table=found.table[['id', 'location']], classes={})


def in_its_words(error: DataError) -> DataError:
    """What a source says of the data, said of the second set."""
    text = str(error)
    for said, meant in _WORDS:
        text = text.replace(said, meant)
    return DataError(text)
