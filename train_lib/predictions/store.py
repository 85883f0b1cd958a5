"""Stored logits: what a model answered for each example, found again by id.

    <workdir>/predictions/<source>/<view>/
        ids.npy     str [N]
        labels.npy  int32 [N], -1: unlabelled; several heads: labels.<head>.npy; of a multi-label
                    head uint8 [N, C], see `label_sets.LabelSets.targets`
        logits.npy  float16 or float32 [N, C], likewise
        meta.json   what they were made from, how many rows are finished, digests of the files
    <workdir>/predictions/<source>/writing-<view>/   unfinished; never read
    <workdir>/predictions/<source>.npz               what training writes

<source> is 'val', 'test', 'train', or the name of other data; <view> is how the pictures were
shown. Arrays are memory-mapped, so members larger than memory can be read in blocks.

float16 rounds a logit below 16 by at most 0.004, which changes a probability by less than 1 % of
itself. That is far less than two folds differ, at half the disk space and half the reading.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence, Sized
from pathlib import Path
from urllib.parse import quote

import numpy as np

from input_pipeline.atomic_files import write_json
from input_pipeline.class_names import nfc
from input_pipeline.label_sets import UNLABELLED
from train_lib.predictions.provenance import doubt_of_digest, doubt_of_file
from train_lib.predictions.run_folders import config_json, fold_of, natural, run_of, splits_of
from train_lib.predictions.stacked_arrays import StackedArrays
from train_lib.run_dir.ancestors import NO_ANCESTRY, Ancestry, ancestry_of, trained_by_folds
from train_lib.run_dir.json_files import json_digest, read_json
from train_lib.run_dir.npz import read_npz
from train_lib.runtime.errors import ConfigError

FORMAT = 1
DTYPES = ('float16', 'float32')
OUT_OF_FOLD = 'out_of_fold'
IDENTITY = 'identity'
# Keys of meta.json that do not say what the logits were made from.
_PROGRESS_KEYS = ('rows_done', 'files', 'sha256')
OTHER_DATA = 'other_data'  # in meta.json: where pictures are that are not those of the run
# What may differ between two equal sets of logits, but not while one set is being written.
_FREE = ('batch_size', OTHER_DATA)


@dataclasses.dataclass(frozen=True)
class Member:
    """Logits of one model, fold and view for the rows of one source.

    Attributes:
        name: unique among the members of a vote, as in 'run/fold_0:hflip'.
        model: of the run; all its folds have the same.
        architecture: the name of the model's config, '' if not known.
        fold: None outside a k-fold run.
        workdir: of the run or the fold.
        source: which rows, see the head of this file.
        view: how the pictures were shown.
        ids: str [N].
        labels: {head: int32 [N]}, -1 for none; of a multi-label head uint8 [N, C], see
            `LabelSets.targets`.
        logits: {head: float [N, C]}, mostly memory-mapped.
        classes: {head: C names}.
        digest: of the checkpoint, '' if not known.
        roles, groups: of the run's split.csv, see `Splits`; {} if not known.
        ancestry: which rows the runs before this one trained on.
        doubt: why the predictions may not be those of the run, '' if they are its own.
    """

    name: str
    model: str
    architecture: str
    fold: int | None
    workdir: Path
    source: str
    view: str
    ids: np.ndarray
    labels: Mapping[str, np.ndarray]
    logits: Mapping[str, np.ndarray | StackedArrays]
    classes: Mapping[str, tuple[str, ...]]
    digest: str
    roles: Mapping[str, str]
    groups: Mapping[str, str]
    ancestry: Ancestry = NO_ANCESTRY
    doubt: str = ''

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def multi_label(self) -> tuple[str, ...]:
        """The heads with several labels per picture."""
        return tuple(head for head, labels in self.labels.items() if labels.ndim == 2)


class Writer:
    """Writes one folder of the store, or completes one that was left unfinished.

    Call `write` in the order of the rows, `flush(rows)` now and then, `commit()` at the end. An
    unfinished folder is continued if it was made from the same things, and replaced otherwise.

    Attributes:
        rows_done: how many rows are finished; writing continues there.

    Args:
        folder: <workdir>/predictions/<source>/<view>.
        about: what the logits are made from: model, step, digest, data, view, ... (JSON).
        ids: str [N].
        labels: {head: int [N]}, -1 for none; or uint8 [N, C] as in `Member`.
        classes: {head: names}.
        dtype: of DTYPES.
    """

    def __init__(self, folder: Path, about: Mapping, ids: np.ndarray,
                 labels: Mapping[str, np.ndarray], classes: Mapping[str, Sequence[str]],
                 dtype: str):
        self.folder = folder
        self._about = make_about(about, ids, classes, dtype)
        self._writing = folder.with_name(f'writing-{folder.name}')
        meta = _meta(self._writing)
        if _made_from(meta) == self._about:
            self.rows_done = meta['rows_done']
        else:
            self.rows_done = 0
            shutil.rmtree(self._writing, ignore_errors=True)
            self._writing.mkdir(parents=True)
            np.save(self._writing / 'ids.npy', ids.astype(np.str_), allow_pickle=False)
            for head, values in labels.items():
                kind = np.uint8 if values.ndim == 2 else np.int32
                np.save(self._writing / _file('labels', head, labels), values.astype(kind))
        self._logits = {}
        for head, names in classes.items():
            path = self._writing / _file('logits', head, classes)
            self._logits[head] = np.lib.format.open_memmap(
                path, 'r+' if self.rows_done else 'w+', dtype, (len(ids), len(names)))
        if not self.rows_done:
            self.flush(0)

    def write(self, rows: np.ndarray, logits: Mapping[str, np.ndarray]) -> None:
        """Stores the logits float32 [n, C] of each head at these rows.

        Raises:
            ConfigError: a logit is not finite, or too large for the stored type.
        """
        for head, values in logits.items():
            target = self._logits[head]
            if not np.isfinite(values).all():
                raise ConfigError(f'{self.folder}: the model gives logits that are not finite '
                                  f'(NaN or infinite) because of its weights or its precision: '
                                  f'try config.precision=float32 in training.')
            largest = np.abs(values).max(initial=0)
            if largest > np.finfo(target.dtype).max:
                raise ConfigError(f'config.predict.dtype = {target.dtype.name!r} holds numbers up '
                                  f'to {np.finfo(target.dtype).max:.0f}, and a logit of '
                                  f'{self.folder} is {largest:.4g}: use float32.')
            target[rows] = values

    def flush(self, rows_done: int) -> None:
        """Makes what was written durable, and records how many rows are finished."""
        for values in self._logits.values():
            values.flush()
        write_json(self._writing / 'meta.json', self._about | dict(rows_done=rows_done))
        self.rows_done = rows_done

    def commit(self) -> None:
        """Moves the finished folder to its place, where it replaces an older one."""
        self.flush(self._about['rows'])
        self._logits = {}
        meta = self._about | dict(rows_done=self.rows_done, files=_digests(self._writing))
        write_json(self._writing / 'meta.json', meta | dict(sha256=json_digest(meta)))
        old = self.folder.with_name(f'writing-removed-{self.folder.name}')
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            os.rename(self.folder, old)
        os.rename(self._writing, self.folder)
        shutil.rmtree(old, ignore_errors=True)


def make_about(about: Mapping, ids: Sized, classes: Mapping[str, Sequence[str]],
               dtype: str) -> dict:
    """The content of meta.json without the progress, as JSON reads it back.

    Args:
        about, ids, classes, dtype: as in `Writer`.
    """
    content = dict(format=FORMAT, rows=len(ids), dtype=dtype,
                   classes=[[head, list(names)] for head, names in classes.items()], **about)
    return json.loads(json.dumps(content))


def is_stored(folder: Path, about: Mapping) -> bool:
    """Whether a finished folder was made from the same things (`about` of `make_about`) and is
    undamaged."""
    def essential(content):
        return content and {key: value for key, value in content.items() if key not in _FREE}

    meta = _meta(folder)
    return essential(_made_from(meta)) == essential(about) and _is_whole(folder, meta)


def _meta(folder: Path) -> dict:
    """meta.json; {} if it is missing or cannot be read."""
    try:
        return read_json(folder / 'meta.json')
    except (OSError, ValueError):
        return {}


def other_data(member: Member) -> dict:
    """{'data': config.data, 'seed': config.seed} of the pictures of a member that are not those of
    its run; {} if they are, or where older predictions do not say."""
    found = _meta(member.workdir / 'predictions' / member.source / member.view).get(OTHER_DATA)
    return found if isinstance(found, dict) else {}


def _made_from(meta: dict) -> dict:
    return {key: value for key, value in meta.items() if key not in _PROGRESS_KEYS}


def _is_whole(folder: Path, meta: Mapping) -> bool:
    """Whether the digests match; older folders have none."""
    return 'sha256' not in meta or (
        meta['sha256'] == json_digest(meta) and meta.get('files') == _digests(folder))


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.glob('*.npy')):
        with open(path, 'rb') as file:
            found[path.name] = hashlib.file_digest(file, 'sha256').hexdigest()
    return found


def _file(what: str, head: str, heads: Collection[str]) -> str:
    return f'{what}.{quote(head, safe="")}.npy' if len(heads) > 1 else f'{what}.npy'


def open_member(path: Path) -> Member:
    """A member from a folder of the store, or from a predictions/<split>.npz.

    Raises:
        ConfigError: it is missing, unfinished, damaged, or not of the run's best checkpoint.
    """
    path = Path(path)
    workdir = path.parents[1] if path.suffix == '.npz' else path.parents[2]
    fold, root = fold_of(workdir), run_of(workdir)
    splits = splits_of(workdir)
    read = _read_npz if path.suffix == '.npz' else _read_folder
    try:
        content = read(path, tuple(splits.labels))
        _check(**content)
    except Exception as error:  # NumPy and zipfile raise nearly every type on damaged files
        detail = ' '.join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f'The predictions {path} cannot be read ({detail}): run `main.py '
                          f'predict --workdir={root}`.') from None
    content['classes'] = {head: tuple(map(nfc, names))  # older runs kept them as written
                          for head, names in content['classes'].items()}
    roles = dict(splits.roles) | dict.fromkeys(trained_by_folds(workdir), 'train')
    if content['source'] == OUT_OF_FOLD:  # each row was validated by one of the folds
        roles |= dict.fromkeys(content['ids'].tolist(), 'val')
    model = root.name
    name = model if fold is None else f'{model}/fold_{fold}'
    if content['view'] != IDENTITY:
        name = f'{name}:{content["view"]}'
    architecture = content.pop('architecture') or config_json(workdir).get(
        'model', {}).get('name', '')
    return Member(name=name, model=model, architecture=architecture, fold=fold, workdir=workdir,
                  roles=roles, groups=splits.groups, ancestry=ancestry_of(workdir), **content)


def _check(ids: np.ndarray, labels: Mapping, logits: Mapping, classes: Mapping, **_) -> None:
    """Raises ValueError for arrays whose types, shapes or values this store never writes."""
    if ids.ndim != 1 or ids.dtype.kind != 'U':
        raise ValueError(f'the ids are {ids.dtype} of shape {ids.shape}')
    for head, names in classes.items():
        wanted = (len(ids), len(names))
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f'the classes of the head {head!r} are not names')
        several = labels[head].ndim == 2
        if logits[head].shape != wanted or labels[head].shape != (
                wanted if several else wanted[:1]):
            raise ValueError(f'it holds {logits[head].shape} logits for {wanted} rows and classes '
                             f'of the head {head!r}')
        if logits[head].dtype.kind != 'f' or labels[head].dtype.kind not in 'iu':
            raise ValueError(f'the logits of the head {head!r} are {logits[head].dtype}, and the '
                             f'labels {labels[head].dtype}')
        if several:
            if not np.isin(labels[head], (0, 1, UNLABELLED)).all():
                raise ValueError(f'a target of the head {head!r} is not 0 or 1')
        elif len(ids) and not -1 <= labels[head].min() <= labels[head].max() < len(names):
            raise ValueError(f'a label of the head {head!r} is outside its {len(names)} classes')


def _read_folder(path: Path, heads: Sequence[str]) -> dict:
    meta = read_json(path / 'meta.json')
    if meta['format'] > FORMAT:
        raise ValueError(f'it has format {meta["format"]}, and this version of the code reads '
                         f'up to {FORMAT}')
    if meta['rows_done'] != meta['rows']:
        raise ValueError(f'{meta["rows_done"]} of {meta["rows"]} rows are finished')
    if not _is_whole(path, meta):
        raise ValueError('its files have changed since they were written')
    workdir = path.parents[2]
    result = workdir / 'result.json'
    best = read_json(result).get('best_step') if result.exists() else None
    if best is not None and best != meta['step']:
        raise ValueError(f'it is of step {meta["step"]}, and the best step of the run is {best}')
    classes = {head: tuple(names) for head, names in meta['classes']}

    def load(what):
        return {head: np.load(path / _file(what, head, classes), mmap_mode='r', allow_pickle=False)
                for head in classes}

    doubt = doubt_of_digest(meta['digest'], meta['step'], workdir)
    return dict(source=path.parent.name, view=path.name, classes=classes, labels=load('labels'),
                doubt=doubt,
                logits=load('logits'), digest=meta['digest'], architecture=meta['model'],
                ids=np.load(path / 'ids.npy', mmap_mode='r', allow_pickle=False))


def _read_npz(path: Path, heads: Sequence[str]) -> dict:
    content = read_npz(path)
    several = [name.partition('/')[2] for name in content if name.startswith('logits/')]
    # The file of a run with one head does not name the head.
    named = {head: f'/{head}' for head in several} or {heads[0] if heads else 'class': ''}
    for head, key in named.items():
        if not np.isfinite(content[f'logits{key}']).all():
            raise ValueError(f'logits of the head {head!r} are not finite')
    return dict(source=path.stem, view=IDENTITY, digest='', architecture='', ids=content['ids'],
                doubt=doubt_of_file(path, path.parents[1]),
                labels={head: content[f'labels{key}'] for head, key in named.items()},
                logits={head: content[f'logits{key}'] for head, key in named.items()},
                classes={head: tuple(content[f'classes{key}'].tolist())
                         for head, key in named.items()})


def members_of(workdir: Path, source: str, views: Sequence[str] = ()) -> list[Member]:
    """The members of one run without folds, or of one fold: one per view.

    Args:
        workdir: of the run or the fold.
        source: see the head of this file.
        views: those wanted, in this order; (): all there are.

    Raises:
        ConfigError: there are none, or one of `views` is missing.
    """
    folder = workdir / 'predictions' / source
    found = {path.name: path for path in sorted(folder.glob('*'), key=lambda p: natural(p.name))
             if path.is_dir() and not path.name.startswith('writing-')}
    if not found and folder.with_name(f'{source}.npz').exists():
        found = {IDENTITY: folder.with_name(f'{source}.npz')}
    missing = [view for view in views if view not in found]
    if missing or not found:
        what = f'the view {missing[0]!r} of {source!r}' if missing else repr(source)
        raise ConfigError(f'{workdir} has no predictions of {what}: run `main.py predict '
                          f'--workdir={workdir}` for them.')
    return [open_member(found[view]) for view in views or found]
