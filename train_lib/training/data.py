"""The data of a run: its manifest, cut into splits."""

import dataclasses
import logging
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline import sources
from input_pipeline.curation.decisions import apply_decisions
from input_pipeline.descriptors import with_clusters
from input_pipeline.manifest import CONTENT, Manifest, digest
from input_pipeline.products import combine_heads, separate_head
from input_pipeline.readable import check_readable
from input_pipeline.same_files import join_same_files
from input_pipeline.sixteen_bits import FULL, Range
from input_pipeline.splits import parts_of
from train_lib.run_dir import workdirs
from train_lib.runtime.cache_folder import cache_folder
from train_lib.runtime.errors import ConfigError
from train_lib.training.row_splits import split_rows
from train_lib.training.teaching import Teaching, read_teaching
from train_lib.training.unlabelled_rows import Unlabelled, find_unlabelled, is_labelled

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Data:
    """The rows of a run.

    Attributes:
        manifest: all rows, each with its split.
        parts: the rows of 'train', 'val' and 'test'.
        digest: of ids, labels, groups, splits and class names; see `manifest.digest`.
        unlabelled: with config.unlabelled; rows of the run among them are not in `parts`.
        taught: what is learnt from other runs; None for nothing.
    """

    manifest: Manifest
    parts: dict[str, Manifest]
    digest: str
    unlabelled: Unlabelled | None = None
    taught: Teaching | None = None


def load_manifest(config: ConfigDict) -> Manifest:
    """The manifest of config.data, with data.decisions applied; no picture is opened."""
    data = config.data.to_dict()
    for key in ('separate', 'combine', 'decisions', 'tfds_splits'):
        if not all(isinstance(name, str) for name in data[key]):
            raise ConfigError(f'config.data.{key} = {data[key]!r}: give names between commas.')
    manifest = sources.load_source(data, seed=config.seed)
    if data['separate']:
        manifest = separate_head(manifest, manifest.heads[0], data['separate'], data['rules'])
    if data['combine']:
        manifest = combine_heads(manifest, data['combine'])
    if data['decisions']:
        manifest = apply_decisions(manifest, data['decisions'], data['rules'])
    return _with_separator(manifest, data['label_separator'])


def _with_separator(manifest: Manifest, separator: str) -> Manifest:
    """The manifest whose multi-label heads are written with this separator, as config.data has it;
    a saved manifest or packed data may have been read with another."""
    for head in manifest.label_sets:
        inside = [name for name in manifest.classes[head] if separator in name]
        if inside or not separator:
            raise ConfigError(f'config.data.label_separator = {separator!r} is empty or part of '
                              f'the class {(inside or [""])[0]!r} of the head {head!r}: choose '
                              f'another.')
    return dataclasses.replace(manifest, label_sets={
        head: dataclasses.replace(sets, separator=separator)
        for head, sets in manifest.label_sets.items()})


def load_data(config: ConfigDict, workdir: Path | None = None, *,
              range16: Range | None = None, refuse: bool = True) -> Manifest:
    """The manifest of config.data, after every picture was checked to be readable. The rows of a
    table that show the same picture are one group.

    Pictures that the run in `workdir` was started with stay in it even if they broke since: the
    loader replaces them, and a run that goes on keeps its data.

    Args:
        config: of this start.
        workdir: of the run that goes on, if it is one.
        range16: which values of 16-bit pictures are black and white (None: as the run that goes
            on has it, else as config.image.range16 says).
        refuse: a picture that is in several rows with different labels; False only warns of it.
    """
    manifest, begun = load_manifest(config), _range16_of_run(config, workdir)
    readable = check_readable(manifest, policy=config.data.unreadable, cache_dir=cache_folder(),
                              range16=range16 or begun or config.image.range16)
    if not range16 and not begun and config.init['from']:
        _compare_range16(Path(config.init['from']), readable.range16)
    if len(readable) < len(manifest) and workdir:
        ids = manifest.table['id']
        whole = dataclasses.replace(manifest, range16=readable.range16)
        if CONTENT in readable.table:
            known = dict(zip(readable.table['id'], readable.table[CONTENT]))
            whole = whole.with_column(CONTENT, [known.get(name, '') for name in ids])
        readable = whole.select(ids.isin(readable.table['id']) | ids.isin(workdirs.ids(workdir)))
    return join_same_files(readable, refuse=refuse) if CONTENT in readable.table else readable


def _range16_of_run(config: ConfigDict, workdir: Path | None) -> Range | None:
    found = workdirs.range16_of(workdir) if workdir else None
    if found is None and config.init.resume_from:
        found = workdirs.range16_of(Path(config.init.resume_from))
    return found


def _compare_range16(source: Path, ours: Range) -> None:
    """Warns if 16-bit pictures look otherwise here than to the run that the weights are from. The
    full range says nothing: a run without such pictures has it as well."""
    theirs = workdirs.range16_of(source)
    if theirs and ours != theirs and FULL not in (ours, theirs):
        log.warning('input    16-bit values: %d to %d here, %d to %d in the run of init.from',
                    *ours, *theirs)
        log.warning('         (the same by --config.image.range16="%s")', theirs)


def split_data(config: ConfigDict, manifest: Manifest, run: Path | None = None) -> Data:
    """Splits the rows, cuts the long tail, and finds the clusters that the resampling asks for.

    Args:
        config, manifest: of this start.
        run: see `row_splits.split_rows`.
    """
    whole, manifest = manifest, split_rows(config, manifest, run)
    parts = parts_of(manifest, config.split)
    unlabelled = find_unlabelled(config, whole, manifest)
    if unlabelled is not None:
        parts['train'] = _labelled(parts['train'], hidden=not unlabelled.external)
    if config.resample.kind == 'cluster' and not config.resample.column:
        parts['train'] = with_clusters(parts['train'], config.resample.head, config.resample.k,
                                       config.seed)
    return Data(manifest, parts, digest(manifest), unlabelled,
                read_teaching(config, manifest, parts['train'], run))


def _labelled(train: Manifest, *, hidden: bool) -> Manifest:
    """The training rows without those that are learned unlabelled, the hidden ones."""
    labelled = is_labelled(train)
    kept = train.select(labelled) if hidden else train
    if not labelled.any():
        raise ConfigError('config.unlabelled: no training row has a label, and somebody has to '
                          'say what is what: label a few per class.')
    return kept
