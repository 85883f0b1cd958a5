"""Whose features of which pictures the verb features writes: a backbone, and rows with what is
known of them."""

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import train_lib
from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest, digest
from input_pipeline.readable import check_readable
from input_pipeline.sources.array_records import packed_as
from input_pipeline.splits import several_folds
from train_lib.ensembles.wanted_pictures import list_pictures
from train_lib.predictions.run_folders import splits_of
from train_lib.probing.backbone import Backbone, make_backbone
from train_lib.probing.feature_cache import digest_weights
from train_lib.probing.probe_inference import open_probe
from train_lib.run_dir import ancestors, seen_rows, workdirs
from train_lib.run_dir.digests import identity
from train_lib.run_dir.json_files import read_json
from train_lib.run_dir.overrides import overlay
from train_lib.runtime.cache_folder import cache_folder
from train_lib.runtime.errors import ConfigError
from train_lib.training import init
from train_lib.training.data import load_data
from train_lib.training.preprocess_spec import preprocess_spec
from train_lib.training.row_splits import split_rows

log = logging.getLogger(__name__)
# Keys of config.data that say how broken or changed pictures are treated, not which they are.
_TREATMENT = ('unreadable', 'changed', 'allow_outside')


@dataclasses.dataclass(frozen=True)
class Source:
    """A backbone and where it is from.

    Attributes:
        backbone: with its weights.
        config: that of the run, or of this start without one.
        run: the workdir of the run or of a fold; None without one.
        checkpoint: digest of the checkpoint of the run, '' without one.
    """

    backbone: Backbone
    config: ConfigDict
    run: Path | None
    checkpoint: str

    @property
    def about(self) -> dict[str, Any]:
        """What the features depend on besides the pictures; JSON values."""
        prepared = self.backbone.preprocess
        names = ('size', 'channels', 'resize', 'border', 'interpolation', 'crop_pct', 'mean',
                 'std', 'reduced_decode')
        return dict(
            model=self.config.model.name, settings=self.backbone.key['settings'],
            tag=self.config.init.pretrained,
            run='' if self.run is None else os.path.abspath(self.run),
            checkpoint=self.checkpoint, weights=digest_weights(self.backbone.weights),
            prepared={name: getattr(prepared, name) for name in names},
            precision=self.config.precision, version=train_lib.__version__)


def open_source(config: ConfigDict, run: Path | None) -> Source:
    """The backbone of a trained run with its best weights (averaged where the run averages,
    adapters added to their kernels), or without a run that of config.model and config.init.

    Args:
        config: of this start.
        run: a workdir, or one fold of it; None for none.

    Raises:
        ConfigError: the workdir holds several folds, whose features mean different things; or it
            has no checkpoint; or its probing backbone is another one today.
    """
    if run is None:
        preprocess_spec(config, say=True)
        return Source(make_backbone(config), config, None, '')
    own = overlay(config.copy_and_resolve_references(),
                  workdirs.saved_config(run).to_dict())
    with own.ignore_type():
        own.mesh = config.mesh
    if own.probe.heads:
        return Source(open_probe(own, run).backbone, own, run, '')
    if ancestors.is_kfold(run):
        raise ConfigError(f'{run} has a model per fold, whose features mean different things and '
                          f'cannot stand in one table: give one fold, as in '
                          f'--workdir={run / "fold_0"}.')
    checkpoint = init.best_checkpoint(run)
    if checkpoint is None:
        raise ConfigError(f'{run} has no checkpoints: give the workdir of a trained run.')
    with own.unlocked(), own.ignore_type():
        own.init.update({'from': str(run), 'pretrained': '', 'resume_from': '', 'head': 'auto'})
    preprocess_spec(own, run, say=True)
    return Source(make_backbone(own, run), own, run, identity(checkpoint))


def given_pictures(path: str, config: ConfigDict, run: Path | None) -> Manifest:
    """The pictures of --images: ids and places, without labels.

    Raises:
        DataError: there are none, or one cannot be read and config.data.unreadable is not 'drop'.
    """
    found = list_pictures(path, '--images', allow_outside=config.data.allow_outside,
                          zip_encoding=config.data.zip_encoding)
    range16 = workdirs.range16_of(run) if run else None
    if run and _packed_otherwise(run, found):
        log.warning('pictures the training saw what `pack` had changed (size, faces, ...): pack')
        log.warning('         these with the same config.pack, and give that folder')
    return check_readable(dataclasses.replace(found, classes={}), policy=config.data.unreadable,
                          cache_dir=cache_folder(), range16=range16 or config.image.range16)


def _packed_otherwise(run: Path, given: Manifest) -> bool:
    """Whether the pictures of the training were changed in packing, and these were not so."""
    try:
        trained = read_json(run / 'result.json').get('packed_as')
    except (OSError, ValueError):
        return False
    return bool(trained) and trained != packed_as(given)


def rows_of(config: ConfigDict, source: Source, *, scored: bool) -> Manifest:
    """The rows of config.data, in their splits.

    If they are those of the run, they have the splits that it was trained with. Other data are
    split by config.split; of several folds, by the first.

    Args:
        config: of this start.
        source: the backbone.
        scored: whether validation and test rows are to be scored.

    Raises:
        ConfigError: the data of the run have changed, or rows that would be scored were trained on
            by the run or its ancestors (config.init.seen).
        DataError: see `load_data`; with `scored`, also that the rows cannot be split.
    """
    manifest = load_data(config, source.run)
    # The backbone of a probing run is frozen: it has not seen the rows of the run.
    run = None if source.config.probe.heads else source.run
    if run:
        roles = splits_of(run).roles
        own = manifest.select(manifest.table['id'].isin(roles.keys()).to_numpy())
        if len(own) and digest(own) == workdirs.data_digest(run):
            own = own.with_column('split', own.table['id'].map(roles).to_numpy(object))
            if scored:
                seen_rows.check(source.config, ancestors.ancestry_of(run), own, goes_on=True)
            return _readable(config, own)
        if _same_data(config, run):
            raise ConfigError(f'The data have changed since {run} was trained (ids, labels, '
                              f'groups or classes differ): put them back, or write the features '
                              f'of the pictures alone by --images=PATH.')
    placed = _split(config, _readable(config, manifest), scored)
    if scored:
        start = source.config.copy_and_resolve_references()
        with start.unlocked(), start.ignore_type():
            start.split, start.init.seen = config.split.to_dict(), config.init.seen
        seen_rows.check(start, ancestors.of_start(start, init.digest_of_best), placed)
    return placed


def _readable(config: ConfigDict, manifest: Manifest) -> Manifest:
    """Without the pictures of the run that broke since, which `load_data` keeps for a run that goes
    on."""
    return check_readable(manifest, policy=config.data.unreadable, cache_dir=cache_folder(),
                          range16=manifest.range16)


def _same_data(config: ConfigDict, run: Path) -> bool:
    ours, theirs = (json.loads(one.data.to_json()) for one in (config, workdirs.saved_config(run)))
    return all(value == theirs.get(key, value) for key, value in ours.items()
               if key not in _TREATMENT)


def _split(config: ConfigDict, manifest: Manifest, scored: bool) -> Manifest:
    folds = several_folds(config.split)
    if folds is not None:
        log.info('split    that of fold %d; choose another by config.split.fold', folds[0])
        config = config.copy_and_resolve_references()
        with config.ignore_type():
            config.split.fold = folds[0]
    try:
        return split_rows(config, manifest, None)
    except DataError as error:
        if scored:
            raise
        log.warning('split    none is written: %s', error)
        return manifest


def columns_of(manifest: Manifest) -> dict[str, np.ndarray]:
    """The columns of the file besides the features: {name: object [N]}, texts or None."""
    table = manifest.table
    found = {name: table[name].astype(str).to_numpy(object)
             for name in ('id', 'split', 'group') if name in table}
    for head in manifest.heads:
        found[f'label/{head}'] = np.array([text or None for text in manifest.texts(head)], object)
    return found
