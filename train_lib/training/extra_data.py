"""config.data.extra: pseudo-labelled pictures that a run trains on beside its own rows."""

import dataclasses
import logging
import math
import numbers
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.class_names import place_of
from input_pipeline.errors import DataError, counted, did_you_mean, listed
from input_pipeline.extra_rows import Extra, SoftRows
from input_pipeline.manifest import CONTENT, Manifest, make_manifest
from input_pipeline.readable import check_files, check_readable
from input_pipeline.sources import zip_archive
from train_lib.predictions import pseudo_file
from train_lib.predictions.pseudo_file import ALL, PseudoFile, column, soft_row
from train_lib.run_dir.ancestors import Ancestry
from train_lib.runtime.cache_folder import cache_folder
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)
KEY = 'data.extra.file'


class Found(NamedTuple):
    """Extra rows, what those who labelled them trained on, and what the run notes of them."""

    extra: Extra
    ancestry: Ancestry
    facts: dict[str, Any]


def file_of(config: ConfigDict) -> PseudoFile:
    """The file of config.data.extra.

    Raises:
        ConfigError: see `pseudo_file.read`.
    """
    return pseudo_file.read(Path(config.data.extra.file).expanduser(), KEY)


def fold_for(config: ConfigDict, file: PseudoFile) -> str:
    """The fold of the file whose labels a run may learn from.

    Raises:
        ConfigError: it has none for this run.
    """
    where, own = f'config.{KEY} = {str(file.path)!r}', config.split.fold
    if file.folds == [ALL]:
        return ALL
    if config.split.kind != 'kfold':
        raise ConfigError(f'{where} has labels for the folds {", ".join(file.folds)}, and this run '
                          f'has no folds: set config.split as in the runs that made them, or make '
                          f'labels by all of them with `main.py pseudo --folds=all`.')
    if str(own) not in file.folds:
        raise ConfigError(f'{where} has labels for the folds {", ".join(file.folds)}, and none for '
                          f'fold {own}: set config.split as in the runs that made them.')
    return str(own)


def read_extra(config: ConfigDict, manifest: Manifest) -> Found:
    """The rows of config.data.extra for a run, or for the fold that trains.

    Args:
        config: of the run; config.split.fold is a number in a k-fold run.
        manifest: of its own rows, whose classes count.

    Raises:
        ConfigError: a wrong value, file or class. DataError: pictures that cannot be read.
    """
    spec, file = config.data.extra, file_of(config)
    where = f'config.{KEY} = {str(file.path)!r}'
    fold = fold_for(config, file)
    lines = [line for line, of in enumerate(file.columns['fold']) if of == fold]
    if not lines:
        raise ConfigError(f'{where} has no label{f" for fold {fold}" if fold else ""}: lower the '
                          f'threshold of `main.py pseudo`.')
    places = _places(file, manifest, where)
    heads, cell = list(file.classes), {name: [cells[line] for line in lines]
                                       for name, cells in file.columns.items()}
    labels = {f'label/{head}': np.full(len(lines), -1) for head in manifest.heads}
    soft = {}
    for head in heads:
        numbers_of = dict(zip(file.classes[head], places[head]))
        labels[f'label/{head}'] = np.array([numbers_of[name] if name else -1 for name in
                                            cell[column('label', head, heads)]])
        texts = cell.get(column('soft', head, heads))
        if texts is not None:
            soft[head] = _soft(texts, places[head], len(manifest.classes[head]), where)
    rows = make_manifest(dict(id=cell['id'], location=cell['image'], **labels), manifest.classes,
                         root=_root(spec.images or file.about['images']))
    try:
        readable = check_readable(
            rows.with_column(CONTENT, ''), policy=config.data.unreadable, cache_dir=cache_folder(),
            range16=manifest.range16)
    except DataError as error:
        raise DataError(f'{where}: {error}') from None
    readable, copies = _without_held_out(readable, manifest, where)
    kept = rows.table['id'].isin(readable.table['id']).to_numpy()
    soft = {head: SoftRows(values.values, values.places[kept]) for head, values in soft.items()}
    extra = Extra(dataclasses.replace(readable, range16=manifest.range16), soft,
                  _weight(spec.weight), _share(spec.share, len(manifest), len(readable)))
    facts = dict(file=str(file.path), digest=file.digest, fold=fold, rows=len(readable),
                 copies=copies, round=file.about['round'], earlier=[*file.about['earlier']])
    return Found(extra, ancestry_of_file(file, fold), facts)


def _without_held_out(rows: Manifest, manifest: Manifest, where: str) -> tuple[Manifest, int]:
    """(the rows whose files are none of those that the run validates or tests, how many are)

    The members that made the labels have their own pictures left out; these are other ones.
    """
    held = manifest.select((manifest.table['split'] != 'train').to_numpy())
    theirs = set(check_files(held, cache_dir=cache_folder()).contents.values()) if len(held) \
        else set()
    copies = rows.table[CONTENT].isin(theirs).to_numpy()
    if copies.all():
        raise ConfigError(f'{where}: all {len(rows)} pictures are validation or test pictures of '
                          f'this run: let `main.py pseudo` label others.')
    if copies.any():
        log.warning('extra    %s of validation or test pictures: left out',
                    counted(int(copies.sum()), 'is a copy', 'are copies'))
    kept = rows.select(~copies)
    return dataclasses.replace(kept, table=kept.table.drop(columns=CONTENT)), int(copies.sum())


def ancestry_of_file(file: PseudoFile, fold: str) -> Ancestry:
    """What those who labelled the lines of a fold trained on."""
    makers = [maker for maker in (*file.about['members'], *file.about['ancestors'])
              if maker['fold'] == fold]
    keys = ('workdir', 'data_digest', 'split_digest', 'checkpoint', 'rows')
    return Ancestry(tuple({key: maker[key] for key in keys} for maker in makers), file.seen[fold],
                    tuple(file.about['not_checked']))


def _places(file: PseudoFile, manifest: Manifest, where: str) -> dict[str, list[int]]:
    """{head: the number that each class of the file has in this run}."""
    found: dict[str, list[int]] = {}
    for head, names in file.classes.items():
        if head not in manifest.classes:
            raise ConfigError(f'{where} labels the head {head!r}, which this run does not have: '
                              f'{did_you_mean(head, manifest.heads)}')
        ours = manifest.classes[head]
        unknown = [name for name in names if place_of(name, ours) is None]
        if unknown:
            raise ConfigError(f'{where} has classes of {head!r} that this run does not have '
                              f'({listed(unknown)}): let runs of the same config.data.classes '
                              f'make the labels.')
        found[head] = [place_of(name, ours) for name in names]  # type: ignore[misc]
    return found


def _soft(texts: list[str], places: list[int], size: int, where: str) -> SoftRows:
    given = [row for row, text in enumerate(texts) if text]
    values = np.zeros((len(given), size), np.float32)
    try:
        for number, row in enumerate(given):
            values[number, places] = soft_row(texts[row], len(places))
    except (ValueError, IndexError) as error:
        raise ConfigError(f'{where} is damaged ({error}): write it again.') from None
    rows = np.full(len(texts), -1)
    rows[given] = np.arange(len(given))
    return SoftRows(values, rows)


def _root(images: str) -> str:
    """What locations are relative to: a folder, or a zip archive without the folder in it."""
    return zip_archive.split_path(images)[0] or str(Path(images).expanduser())


def _weight(value) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not (
            0 < float(value) < math.inf):
        raise ConfigError(f'config.data.extra.weight = {value!r}: give a number above 0; without '
                          f'data.extra.file no extra row is shown.')
    return float(value)


def _share(value, rows: int, extra: int) -> Fraction:
    if value is None:
        return Fraction(extra, rows + extra)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < 1:
        raise ConfigError(f'config.data.extra.share = {value!r}: give a number above 0 and below '
                          f'1, or None for as many as there are.')
    found = Fraction(float(value)).limit_denominator(1000)
    return min(max(found, Fraction(1, 1000)), Fraction(999, 1000))


def check_unused(section: Mapping) -> None:
    """Refuses settings of config.data.extra that mean nothing without a file, or nothing at all.

    Raises:
        ConfigError: such a setting.
    """
    _weight(section['weight'])
    for key, default in (('images', ''), ('share', None)):
        if section[key] != default:
            raise ConfigError(f'config.data.extra.{key} = {section[key]!r} needs '
                              f'config.data.extra.file: give a file of `main.py pseudo`.')
