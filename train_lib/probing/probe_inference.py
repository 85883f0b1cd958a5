"""The verb predict for a probing run: the chosen setting on other rows, in any view.

<head>-lr<rate>/fold_<k>/predictions/<source>   of the head of each fold, as a fold of a k-fold run
predictions/<source>                            the mean probability of the folds
predictions/out_of_fold.npz                     source 'val' of several folds, joined

The backbone runs once for all folds that share their rows.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from input_pipeline import loader
from input_pipeline.curriculum import Stage
from input_pipeline.errors import counted
from input_pipeline.manifest import Manifest
from train_lib.predictions import store
from train_lib.predictions.answers import log_mean
from train_lib.predictions.class_order import medians_of, ordered_of
from train_lib.predictions.members import out_of_fold
from train_lib.predictions.provenance import digest_of_heads
from train_lib.predictions.run_folders import fold_of, folds_of, thresholds_of
from train_lib.predictions.views import in_class_order, say_unswapped
from train_lib.probing.backbone import Backbone, make_backbone
from train_lib.probing.feature_cache import digest_weights
from train_lib.probing.nearest_heads import NearestKind, head_of_file, rows_at_once
from train_lib.probing.probe_spec import read_probe_spec
from train_lib.probing.stacked_heads import HeadKind, predict_heads
from train_lib.run_dir import workdirs
from train_lib.run_dir.json_files import read_json
from train_lib.run_dir.overrides import overlay
from train_lib.runtime import distributed
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.trees import path_name
from train_lib.training.evaluate import logits_of
from train_lib.training.inference import log_scores, mean_of_views, predict_runs, save_together
from train_lib.training.inference_rows import Rows, rows_of_runs
from train_lib.training.predict_spec import PredictSpec, predict_spec
from train_lib.training.preprocess_spec import loader_spec, preprocess_spec
from train_lib.training.step import split_model

log = logging.getLogger(__name__)
Logits = dict[str, np.ndarray]  # by label head, float32 [N, C]


@dataclasses.dataclass(frozen=True)
class Probe:
    """A finished probing run.

    Attributes:
        workdir, folds: of the run, and the folders of the folds of its chosen setting.
        kind: of the chosen head.
        backbone, dtype: what its features come from, and how they were stored.
        seed: of the run.
        weights: a digest of those of the backbone.
        config: of the run.
    """

    workdir: Path
    folds: Sequence[Path]
    kind: HeadKind | NearestKind
    backbone: Backbone
    dtype: str
    seed: int
    weights: str
    config: Mapping

    def ordered(self, rows: Manifest) -> tuple[str, ...]:
        """The heads whose classes have an order."""
        return ordered_of(self.config, rows.heads)

    def medians(self, rows: Manifest) -> tuple[str, ...]:
        """The heads that answer the median of their classes."""
        return medians_of(self.config, rows.heads)


def predict_any(config: ConfigDict, workdir: Path, stop: Callable[[], bool],
                replace: bool = True) -> None:
    """Predicts with a run, every fold of one, or the heads of a probing run; see `predict_runs`."""
    known = (workdir / 'config.json').exists()
    if known and workdirs.saved_config(workdir).probe.heads:
        predict_probe(config, workdir, stop, replace)
    else:
        predict_runs(config, workdir, stop, replace)


def predict_probe(config: ConfigDict, workdir: Path, stop: Callable[[], bool],
                  replace: bool = True) -> None:
    """Predicts with the setting that a probing run has chosen.

    Args:
        config: as in `predict_runs`.
        workdir: of the probing run.
        stop: true ends the work; what is finished is kept.
        replace: see `PredictSpec`.

    Raises:
        ConfigError: the run is not finished, its backbone is another one today, or a value is
            wrong. Interrupted: told to stop.
    """
    if distributed.several():
        raise ConfigError(f'{workdir} is a probing run, which {jax.process_count()} processes '
                          f'cannot share: start one.')
    saved = workdirs.saved_config(workdir).to_dict() | dict(predict={})  # which this start says
    own = overlay(config.copy_and_resolve_references(), saved)
    with own.ignore_type():
        own.mesh = config.mesh
    asked = dataclasses.replace(predict_spec(config, own.curriculum), replace=replace)
    probe = open_probe(own, workdir)
    if isinstance(probe.kind, NearestKind) and asked.source == 'train':
        raise ConfigError(f"config.predict.source = 'train': the head {probe.kind.name!r} of "
                          f'{workdir} is made of its training rows, each of which would vote for '
                          f'itself: predict val or test.')
    rows_of = rows_of_runs(asked, config, own, probe.backbone.preprocess, probe.folds[0].parent,
                           whole=workdir)
    loading = loader_spec(config)
    features: dict[tuple[str, str], np.ndarray] = {}
    done: list[tuple[Rows, dict[str, Logits]]] = []
    for fold in probe.folds:
        rows = rows_of(fold)
        if not done:
            say_unswapped(asked.views, rows.manifest.classes)
        for view, stage in asked.views.items():
            if (rows.digest, view) not in features:
                if any(name != rows.digest for name, _ in features):
                    features.clear()
                features[rows.digest, view] = _features(probe, asked, rows, stage, loading, stop)
        done.append((rows, _predict_fold(probe, asked, fold, rows, features)))
        log_scores(f'{fold.name} {asked.folder}', rows.manifest,
                   _read(fold / 'predictions' / asked.folder, asked), probe.ordered(rows.manifest))
    _save_whole(probe, asked, done)


def open_probe(own: ConfigDict, workdir: Path) -> Probe:
    """The chosen setting of a finished probing run, with its backbone.

    Args:
        own: the config of the run.
        workdir: of the run.

    Raises:
        ConfigError: the run is not finished, or its backbone is another one today.
    """
    try:
        result = read_json(workdir / 'result.json')
        name = result['chosen']
        kind = next(row['head'] for row in result['heads'] if row['name'] == name)
    except (OSError, ValueError, KeyError, StopIteration, TypeError):
        raise ConfigError(f'{workdir} is not a finished probing run (result.json does not say '
                          f'which head was chosen): finish the training first.') from None
    folds = folds_of(workdir / name)
    spec = read_probe_spec(own)
    kinds = {one.name: one for one in (*spec.heads, *spec.nearest)}
    if not folds or kind not in kinds:
        raise ConfigError(f'{workdir / name} has no folds with heads: restore it.')
    preprocess_spec(own, workdir, say=True)
    backbone = make_backbone(own, workdir)
    weights = digest_weights(backbone.weights)
    if 'backbone' not in result:  # of an older run
        log.warning('predict  not checked: that the backbone has the weights of the training')
    if result.get('backbone', weights) != weights:
        raise ConfigError(f'The backbone of {workdir} has other weights than when its heads were '
                          f'trained: restore what config.init names.')
    return Probe(workdir, folds, kinds[kind], backbone, own.probe.dtype, own.seed, weights,
                 own.to_dict())


def _features(probe: Probe, asked: PredictSpec, rows: Rows, stage: Stage,
              loading: loader.LoaderSpec, stop: Callable[[], bool]) -> np.ndarray:
    """The features of the rows in one view, float32 [N, D], rounded as the heads were trained."""
    backbone, count = probe.backbone, len(rows.manifest)
    batch_size = -(-min(asked.batch_size, count) // backbone.mesh.size) * backbone.mesh.size
    batches = loader.eval_dataset(rows.manifest, backbone.preprocess, batch_size=batch_size,
                                  shard=loader.Shard(), loading=loading, view=stage,
                                  pictures=rows.pictures)

    def embed(weights, images):
        return dict(features=backbone.embed(weights, images))

    log.info('predict  features of %s', counted(count, 'picture'))
    found = None
    for places, of_batch in logits_of(embed, backbone.weights, batches(), backbone.mesh, stop):
        values = of_batch['features']
        if found is None:
            found = np.zeros((count, values.shape[1]), np.float32)
        found[places] = values.astype(probe.dtype)
    assert found is not None  # there is at least one row
    return found


def _predict_fold(probe: Probe, asked: PredictSpec, fold: Path, rows: Rows,
                  features: Mapping[tuple[str, str], np.ndarray]) -> dict[str, Logits]:
    """Writes the logits of the head of one fold, {view: logits}."""
    file = fold / 'head.safetensors'
    classes = rows.manifest.classes
    sizes = {head: len(names) for head, names in classes.items()}
    one = next(iter(features.values()))
    graphdef, like, _ = split_model(head_of_file(probe.kind, file, one.shape[1], sizes,
                                                 probe.seed))
    params = read_head(file, like)
    digest = hashlib.sha256(file.read_bytes() + probe.weights.encode()).hexdigest()
    found = {}
    for view, stage in asked.views.items():
        found[view] = in_class_order(
            predict_heads(graphdef, params, features[rows.digest, view], rows.manifest.heads,
                          rows_at_once(params)), stage, classes)
        _write(fold / 'predictions' / asked.folder / view,
               _about(probe, rows, view, stage, digest, fold_of(fold)), rows, found[view], asked)
    logits = _read(fold / 'predictions' / asked.folder, asked)
    save_together(asked, fold / 'predictions' / f'{asked.folder}.npz', rows.manifest, logits,
                  thresholds=thresholds_of(fold, rows.manifest.classes),
                  medians=probe.medians(rows.manifest))
    return found


def read_head(file: Path, like: dict) -> dict:
    """The parameters of a head, of the names and shapes of `like`.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        stored = load_file(file)
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: stored[path_name(path)].reshape(leaf.shape), like)
    except Exception as error:  # of safetensors, whose errors have no common base
        raise ConfigError(f'{file} cannot be read ({" ".join(str(error).split())}): restore it, '
                          f'or train the heads again.') from None
    return params


def _about(probe: Probe, rows: Rows, view: str, stage: Stage, digest: str, fold: int | None
           ) -> dict:
    """What logits are made from, for meta.json."""
    return dict(probe.backbone.key, head=probe.kind.name, fold=fold, step=None, data=rows.digest,
                digest=digest, view=view,
                transforms=[one.facts() for one in stage.transforms], **rows.place)


def _write(folder: Path, about: dict, rows: Rows, logits: Logits, asked: PredictSpec) -> None:
    manifest = rows.manifest
    writer = store.Writer(folder, about, manifest.table['id'].to_numpy(np.str_),
                          {head: manifest.truth(head) for head in manifest.heads},
                          manifest.classes, asked.dtype)
    writer.write(np.arange(len(manifest)), logits)
    writer.commit()


def _read(folder: Path, asked: PredictSpec) -> Logits:
    """The stored logits of all views together."""
    return mean_of_views([store.open_member(folder / view) for view in asked.views])


def _save_whole(probe: Probe, asked: PredictSpec,
                done: Sequence[tuple[Rows, dict[str, Logits]]]) -> None:
    """Writes what all folds say together: the mean of their probabilities where they share their
    rows, and for the validation the rows of one after another."""
    rows, folder = done[0][0], probe.workdir / 'predictions'
    several = len(done) > 1
    if several and asked.source == 'val':
        whole = dataclasses.replace(rows.manifest, table=pd.concat(
            [of_fold.manifest.table for of_fold, _ in done], ignore_index=True))
        view = next(iter(asked.views))
        out_of_fold(probe.folds[0].parent, view)  # no fold scores rows that it trained on
        pooled = {head: np.concatenate([logits[view][head] for _, logits in done])
                  for head in whole.heads}
        save_together(asked, folder / f'{store.OUT_OF_FOLD}.npz', whole, pooled,
                      thresholds=thresholds_of(probe.workdir, whole.classes),
                      medians=probe.medians(whole))
        log_scores(f'{probe.workdir.name} out of fold', whole, pooled, probe.ordered(whole))
        return
    if any(of_fold.digest != rows.digest for of_fold, _ in done):
        return  # each fold trained on other rows
    digest = digest_of_heads([fold / 'head.safetensors' for fold in probe.folds], probe.weights)
    for view, stage in asked.views.items():
        mean = {head: log_mean([logits[view][head] for _, logits in done],
                               head in rows.manifest.label_sets)
                for head in rows.manifest.heads}
        _write(folder / asked.folder / view, _about(probe, rows, view, stage, digest, None), rows,
               mean, asked)
    logits = _read(folder / asked.folder, asked)
    save_together(asked, folder / f'{asked.folder}.npz', rows.manifest, logits,
                  thresholds=thresholds_of(probe.workdir, rows.manifest.classes),
                  medians=probe.medians(rows.manifest))
    log_scores(f'{probe.workdir.name} {asked.folder}', rows.manifest, logits,
               probe.ordered(rows.manifest))
