"""The pictures without labels that a run learns from, config.unlabelled: which they are, and that
none of them validates or tests.

    unlabelled.csv   id and group of each, written when the training starts: a later run that starts
                     from this one must not score them unawares (ancestors.py)
"""

import csv
import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from input_pipeline import sources
from input_pipeline.atomic_files import atomic_open
from input_pipeline.errors import counted
from input_pipeline.manifest import CONTENT, Manifest
from input_pipeline.readable import check_files, check_readable
from train_lib.losses.consistency import MEAN_TEACHER, UnlabelledSpec, read_unlabelled
from train_lib.run_dir import ancestors, workdirs
from train_lib.runtime import distributed
from train_lib.runtime.cache_folder import cache_folder
from train_lib.runtime.errors import ConfigError

SOURCES = ('hidden', 'folder', 'csv')
# Losses whose answer is the softmax of the logits, which the unlabelled pictures go by.
_SOFTMAX = ('cross_entropy', 'focal', 'balanced_softmax', 'logit_adjustment')

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Unlabelled:
    """The unlabelled pictures of a run.

    Attributes:
        rows: they, sorted by id; their labels are those of rows whose label was hidden, else -1.
        truth: whether some of those labels are known.
        held_out: how many are the same files as validation or test pictures, or of their groups:
            left out, or kept with config.unlabelled.transductive.
        kept: whether they were kept.
        digest: of ids and, where they are not rows of the run, of files.
        external: they are not rows of the run.
    """

    rows: Manifest
    truth: bool
    held_out: int
    kept: bool
    digest: str
    external: bool = False

    def facts(self) -> dict:
        """What result.json says of them, under `unlabelled`."""
        return dict(rows=len(self.rows), held_out=self.held_out, held_out_kept=self.kept,
                    digest=self.digest)


def read_spec(config: ConfigDict) -> UnlabelledSpec:
    """config.unlabelled, read once.

    Raises:
        ConfigError: see `consistency.read_unlabelled`.
    """
    return read_unlabelled(config.unlabelled.to_dict())


def batch_size_of(config: ConfigDict) -> int:
    """Unlabelled pictures per step; 0 for none."""
    spec = read_spec(config)
    if spec.kind == 'none':
        return 0
    return config.batch_size if spec.batch_size is None else spec.batch_size


def check_unlabelled(config: ConfigDict, devices: int) -> None:
    """Refuses what does not go together.

    Raises:
        ConfigError: with the first of it.
    """
    spec = read_spec(config)
    if spec.kind == 'none':
        if spec.folder or spec.csv:
            raise ConfigError(f'config.unlabelled.{"folder" if spec.folder else "csv"} is given, '
                              f'but nothing learns from it: choose config.unlabelled.kind, or '
                              f'leave it out.')
        return
    if spec.source not in SOURCES:
        raise ConfigError(f'config.unlabelled.source = {spec.source!r}: choose one of '
                          f'{", ".join(SOURCES)}.')
    for key in SOURCES[1:]:
        if spec.source == key and not getattr(spec, key):
            raise ConfigError(f'config.unlabelled.source = {key!r} needs '
                              f'config.unlabelled.{key}: give its path.')
        if spec.source != key and getattr(spec, key):
            raise ConfigError(f'config.unlabelled.{key} = {getattr(spec, key)!r} has no meaning '
                              f'with config.unlabelled.source = {spec.source!r}: remove one of '
                              f'the two.')
    if spec.source == 'hidden' and spec.transductive:
        raise ConfigError("config.unlabelled.transductive = True has no meaning with "
                          "config.unlabelled.source = 'hidden', whose rows all train: remove one "
                          "of the two.")
    if spec.kind == MEAN_TEACHER and not config.ema.decay:
        raise ConfigError("config.unlabelled.kind = 'mean_teacher' learns from the moving average "
                          "of the weights, and there is none: set config.ema.decay, e.g. to "
                          "0.999.")
    named = config.loss.name
    for name in named.values() if isinstance(named, Mapping | ConfigDict) else [named]:
        if name not in _SOFTMAX:
            raise ConfigError(f'config.unlabelled.kind = {spec.kind!r} goes by the softmax of the '
                              f'logits, and config.loss.name = {name!r} trains other '
                              f'probabilities: choose one of {", ".join(_SOFTMAX)}.')
    size, parts = batch_size_of(config), devices * config.accumulate
    if not isinstance(size, int) or size < 1 or size % parts:
        raise ConfigError(f'config.unlabelled.batch_size = {size!r}: give a positive multiple of '
                          f'{parts}, for {counted(devices, "device")} x config.accumulate = '
                          f'{config.accumulate}.')


def find_unlabelled(config: ConfigDict, manifest: Manifest, split: Manifest) -> Unlabelled | None:
    """The unlabelled pictures of a run; None without config.unlabelled.kind.

    Args:
        config: of the run.
        manifest: all its rows, before any was left out by data.long_tail.
        split: the rows of the run, each with its split.

    Raises:
        ConfigError, DataError: there are none, or they cannot be read.
    """
    spec = read_spec(config)
    if spec.kind == 'none':
        return None
    files: list[str] = []  # digests of them, where they are no rows of the run
    if spec.source == 'hidden':
        rows, held_out = _hidden(manifest, split), 0
        if not len(rows):
            raise ConfigError("config.unlabelled.source = 'hidden': every training row has a "
                              "label: give pictures by source=folder or csv, or hide labels by "
                              "config.data.long_tail.per_class.")
        truth = any((rows.labels(head) >= 0).any() for head in rows.heads)
    else:
        rows, held_out, files = _external(config, spec, split)
        truth = False
    order = np.argsort(rows.table['id'].to_numpy(str), kind='stable')
    hasher = hashlib.sha256()
    for row in order:
        for part in (rows.table['id'].iloc[row], files[row] if files else ''):
            hasher.update(part.encode('utf-8', 'surrogateescape') + b'\0')
    return Unlabelled(rows.select(order), truth, held_out, spec.transductive, hasher.hexdigest(),
                      external=spec.source != 'hidden')


def is_labelled(manifest: Manifest) -> np.ndarray:
    """Whether a row has a label of any head, bool [N]."""
    return np.any([manifest.labels(head) >= 0 for head in manifest.heads], axis=0)


def _hidden(manifest: Manifest, split: Manifest) -> Manifest:
    """Rows that only the long tail left out, which takes training rows alone, and training rows
    without any label."""
    table = split.table
    without = table['id'][(table['split'] == 'train').to_numpy() & ~is_labelled(split)]
    ids = manifest.table['id']
    return manifest.select((~ids.isin(table['id']) | ids.isin(without)).to_numpy())


def _external(config: ConfigDict, spec: UnlabelledSpec, split: Manifest
              ) -> tuple[Manifest, int, list[str]]:
    """(rows, how many belong to held-out pictures, digest of each file)"""
    data = config.data.to_dict()
    found = sources.load_source(dict(
        source=spec.source, folder=spec.folder, csv=spec.csv, images=spec.images, labelled=False,
        rules=2, columns=dict(data['columns'], labels='', weight='', split=''),
        allow_outside=data['allow_outside'], zip_encoding=data['zip_encoding']))
    found = check_readable(found.with_column(CONTENT, ''), policy=config.data.unreadable,
                           cache_dir=cache_folder(), range16=split.range16)
    held = split.select((split.table['split'] != 'train').to_numpy())
    theirs = set(check_files(held, cache_dir=cache_folder()).contents.values()) \
        if len(held) else set()
    hit = found.table[CONTENT].isin(theirs).to_numpy()
    if config.split.grouped and 'group' in found.table and 'group' in held.table:
        groups = set(held.table['group'].astype(str)) - {''}
        hit = hit | found.table['group'].astype(str).isin(groups).to_numpy()
    count = int(hit.sum())
    if count:
        log.warning('unlabelled  %s validation or test pictures: %s',
                    'one is of' if count == 1 else f'{count:,} are of',
                    'kept (transductive)' if spec.transductive else 'left out')
    if not spec.transductive:
        found = found.select(~hit)
    if not len(found):
        key = getattr(spec, spec.source)
        raise ConfigError(f'config.unlabelled.{spec.source} = {key!r}: all {count} pictures are '
                          f'validation or test pictures of this run, so none is left: give others, '
                          f'or keep them by config.unlabelled.transductive=True.')
    files = found.table[CONTENT].tolist()
    table = found.table.drop(columns=[*(name for name in found.table if name.startswith('label/')),
                                      CONTENT])
    table = table.assign(**{f'label/{head}': np.int32(-1) for head in split.heads})
    return dataclasses.replace(found, table=table, classes=split.classes), count, files


def check_goes_on(config: ConfigDict, run: Path, unlabelled: Unlabelled | None) -> None:
    """A run that goes on keeps its unlabelled pictures.

    Raises:
        ConfigError: they have changed, and config.data.changed is not 'accept'.
    """
    ours = '' if unlabelled is None else unlabelled.digest
    distributed.check_same(ours, 'The unlabelled pictures')
    before = workdirs.start_facts(run).get('unlabelled_digest', ours)
    if before == ours:
        return
    if config.data.changed != 'accept':
        raise ConfigError(f'The unlabelled pictures have changed since {run} was started: put '
                          f'them back, go on with these by --config.data.changed=accept, or give '
                          f'a new --workdir.')
    log.info('changed  the unlabelled pictures (config.data.changed=accept)')


def start_facts(unlabelled: Unlabelled | None) -> Mapping[str, str]:
    """What config.json records of them."""
    return {} if unlabelled is None else dict(unlabelled_digest=unlabelled.digest)


def save(workdir: Path, unlabelled: Unlabelled | None) -> None:
    """Writes unlabelled.csv; nothing without such pictures."""
    if unlabelled is None:
        return
    table = unlabelled.rows.table
    groups = table['group'].astype(str) if 'group' in table else [''] * len(table)
    with atomic_open(workdir / ancestors.UNLABELLED, shared=True, durable=True) as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator='\n')
        writer.writerow(('id', 'group'))
        writer.writerows(zip(table['id'], groups))
