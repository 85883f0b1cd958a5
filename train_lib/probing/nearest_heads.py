"""Heads of `probe.heads` that are fitted, not trained: neighbours and class means of the features.

A fold's head is made from its training rows alone, so the rows that it validates never vote for
themselves.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors import safe_open

from input_pipeline.errors import did_you_mean
from models.nearest import MeanHead, NearestClassifier, NeighbourHead
from train_lib.metrics.set_scores import is_labelled
from train_lib.probing.stacked_heads import HeadKind, new_head
from train_lib.runtime.errors import ConfigError
from train_lib.training.step import split_model

_COSINES = 2**24  # computed at once
# kind: its settings and their defaults
KINDS: dict[str, dict[str, Any]] = {
    'knn': dict(k=20, temperature=0.07, center=False),
    'prototypes': dict(temperature=0.1, center=False, shrinkage=0.0),
}


@dataclasses.dataclass(frozen=True)
class NearestKind:
    """One such head.

    Attributes:
        name: in the config.
        kind: a key of `KINDS`.
        k: of knn: neighbours, 1 or more.
        temperature: by which cosines are divided, above 0.
        center: the mean of the training rows is subtracted from all features first, as SimpleShot
            does (Wang et al. 2019, arXiv 1911.04623).
        shrinkage: of prototypes: as many rows as this, at the mean of all training rows, are added
            to each class, 0 or more.
    """

    name: str
    kind: str
    temperature: float
    center: bool
    k: int = 0
    shrinkage: float = 0.0


def read_nearest(name: str, settings: Mapping[str, Any], where: str) -> NearestKind:
    """A head of the config that has a `kind`, checked.

    Raises:
        ConfigError: an unknown kind or setting, or a value out of its range.
    """
    given = dict(settings)
    kind = given.pop('kind')
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f'{where}.kind = {kind!r}: {did_you_mean(kind, KINDS)}')
    for key, value in given.items():
        if key not in KINDS[kind]:
            raise ConfigError(f'{where}: {kind} has no setting {key!r}; '
                              f'{did_you_mean(key, KINDS[kind])}')
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        right, what = {
            'k': (number and value >= 1 and value == int(value), 'a whole number of 1 or more'),
            'temperature': (number and 0 < value < 1e6, 'a number above 0'),
            'center': (isinstance(value, bool), 'True or False'),
            'shrinkage': (number and 0 <= value < 1e12, 'a number of 0 or more'),
        }[key]
        if not right:
            raise ConfigError(f'{where}.{key} = {value!r}: give {what}.')
    return NearestKind(name, kind, **{**KINDS[kind], **given})


def fit(kind: NearestKind, features: np.ndarray, labels: Mapping[str, np.ndarray],
        classes: Mapping[str, int]) -> tuple[nnx.GraphDef, dict]:
    """(definition, parameters) of a head, from training rows.

    Args:
        kind: what is fitted.
        features: float [n, D].
        labels: {label head: int [n], rows of -1 are left out; of a multi-label head uint8 [n, C],
            see `LabelSets.targets`}.
        classes: {label head: number of classes}.

    Raises:
        ConfigError: a label head has no labelled rows.
    """
    features, values, rows = np.asarray(features, np.float32), {}, {}
    for head, of_head in labels.items():
        known = np.flatnonzero(is_labelled(of_head))
        if not len(known):
            raise ConfigError(f'config.probe.heads: {kind.name!r} needs labelled training rows of '
                              f'the head {head!r}, and there are none.')
        rows[head] = len(known)
        values[head] = _fitted(kind, features[known], of_head[known], classes[head])
    several = [head for head, of_head in labels.items() if of_head.ndim == 2]
    graphdef, like, _ = split_model(_new(kind, features.shape[1], classes, rows, several))
    return graphdef, {'heads': dict(zip(like['heads'], values.values()))}


def _fitted(kind: NearestKind, features: np.ndarray, labels: np.ndarray, classes: int
            ) -> dict[str, np.ndarray]:
    """The arrays of one label's head."""
    center = features.mean(0, dtype=np.float64) if kind.center else np.zeros(features.shape[1])
    rows = _unit(features - center)
    if kind.kind == 'knn':
        return dict(center=center.astype(np.float32), rows=rows.astype(np.float32),
                    labels=labels.astype(np.int32 if labels.ndim == 1 else np.float32))
    counts = np.bincount(labels, minlength=classes)
    sums = np.zeros((classes, rows.shape[1]))
    np.add.at(sums, labels, rows)
    means = _unit((sums + kind.shrinkage * rows.mean(0)) / np.maximum(
        counts + kind.shrinkage, 1e-12)[:, None])
    return dict(center=center.astype(np.float32), means=means.astype(np.float32),
                absent=(counts == 0).astype(np.float32))


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _new(kind: NearestKind, features: int, classes: Mapping[str, int], rows: Mapping[str, int],
         several: Collection[str] = ()) -> NearestClassifier:
    if kind.kind == 'knn':
        return NearestClassifier({head: NeighbourHead(
            features, size, rows[head], k=kind.k, temperature=kind.temperature,
            several=head in several) for head, size in classes.items()})
    return NearestClassifier({head: MeanHead(features, size, temperature=kind.temperature)
                              for head, size in classes.items()})


def rows_at_once(params: Mapping[str, Any]) -> int:
    """How many rows a head may classify at a time: cosines to all training rows take memory."""
    rows = [len(leaves['labels']) for leaves in dict(params.get('heads', {})).values()
            if isinstance(leaves, Mapping) and 'labels' in leaves]
    return int(np.clip(_COSINES // max(rows, default=1), 16, 4096)) if rows else 4096


def head_of_file(kind: HeadKind | NearestKind, file: Path, features: int,
                 classes: Mapping[str, int], seed: int) -> nnx.Module:
    """A head of a probing run as it was before it was filled; of neighbours the number of rows is
    read from the file.

    Args:
        kind: of the head.
        file: its head.safetensors.
        features: D.
        classes: {label head: number of classes}.
        seed: of the run.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    if isinstance(kind, HeadKind):
        return new_head(kind, features, classes, seed)
    rows: dict[str, int] = {}
    several: list[str] = []
    try:
        if kind.kind == 'knn':
            with safe_open(file, 'numpy') as stored:
                shapes = {head: stored.get_slice(f'heads/{place}/labels').get_shape()
                          for place, head in enumerate(classes)}
            rows = {head: shape[0] for head, shape in shapes.items()}
            several = [head for head, shape in shapes.items() if len(shape) == 2]
    except Exception as error:  # of safetensors, whose errors have no common base
        raise ConfigError(f'{file} cannot be read ({" ".join(str(error).split())}): restore it, '
                          f'or train the heads again.') from None
    return _new(kind, features, classes, rows, several)
