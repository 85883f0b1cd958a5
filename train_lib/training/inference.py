"""Computes and stores the logits of a trained run, or of every fold of one.

predictions/<source>/<view> holds those of one view (see predictions/store.py), and
predictions/<source>.npz those of all views together.
"""

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from input_pipeline import loader
from input_pipeline.errors import counted
from input_pipeline.manifest import Manifest
from input_pipeline.pictures import PreprocessSpec
from train_lib.losses.objectives import adjust
from train_lib.predictions import store
from train_lib.predictions.answers import log_mean
from train_lib.predictions.class_order import medians_of, ordered_of
from train_lib.predictions.members import out_of_fold
from train_lib.predictions.run_folders import fold_of, folds_of, splits_of, thresholds_of
from train_lib.predictions.views import in_class_order, say_unswapped
from train_lib.run_dir import workdirs
from train_lib.run_dir.digests import identity
from train_lib.run_dir.overrides import overlay
from train_lib.runtime import distributed
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.progress import bar
from train_lib.runtime.sharding import Layout, make_layout, make_mesh
from train_lib.runtime.signals import Interrupted
from train_lib.training import init
from train_lib.training.class_structure import say_structure, with_structure
from train_lib.training.evaluate import logits_of, save_predictions, say_set_scores, score_split
from train_lib.training.inference_rows import Rows, rows_of_runs
from train_lib.training.network import Network, make_network
from train_lib.training.predict_spec import PredictSpec, predict_spec
from train_lib.training.preprocess_spec import DTYPES, loader_spec, preprocess_spec
from train_lib.training.state import Weights
from train_lib.training.step import make_eval_step, make_normalise

log = logging.getLogger(__name__)
FLUSH_SECONDS = 10  # what a kill may cost


@dataclasses.dataclass(frozen=True)
class _Inference:
    """A compiled model without its weights, which all folds of a run share.

    Attributes:
        step: (weights, uint8 images [B, H, W, 3]) -> {head: float32 [B, C]}.
        like: shapes and shardings of the weights.
        spec: how pictures are prepared.
        mesh: of the devices.
        about: what the logits depend on besides weights, rows and view.
    """

    step: Callable
    like: Weights
    spec: PreprocessSpec
    mesh: jax.sharding.Mesh
    about: dict


@dataclasses.dataclass(frozen=True)
class _Request:
    """What is asked of every run or fold.

    Attributes:
        spec: what is asked for.
        loading: how batches are made.
        adjust_tau: strength of the post-hoc adjustment of the run's own scores, 0 for none.
        stop: true ends the work.
        saved: the config of the run.
    """

    spec: PredictSpec
    loading: loader.LoaderSpec
    adjust_tau: float
    stop: Callable[[], bool]
    saved: Mapping


def predict_runs(config: ConfigDict, workdir: Path, stop: Callable[[], bool],
                 replace: bool = True) -> None:
    """Predicts with one run, or with every fold of a k-fold run, one after another.

    Args:
        config: predict, data (for predict.source=data), loader, mesh and eval.batch_size count;
            the model and the preparation of the pictures are the run's own.
        workdir: of the run.
        stop: true ends the work; what is finished is kept.
        replace: see `PredictSpec`.

    Raises:
        ConfigError: there is no run or no checkpoint, or a value is wrong. Interrupted: told to
            stop.
    """
    runs = folds_of(workdir) or [workdir]
    saved = workdirs.saved_config(runs[0]).to_dict() | dict(predict={})  # which this start says
    own = overlay(config.copy_and_resolve_references(), saved)
    asked = dataclasses.replace(predict_spec(config, own.curriculum), replace=replace)
    mesh, spec = make_mesh(config.mesh), preprocess_spec(own, runs[0], say=True)
    rows_of = rows_of_runs(asked, config, own, spec, workdir)
    request = _Request(asked, loader_spec(config), own.eval.adjust_tau, stop, saved)
    model, validation = None, []
    for run in runs:
        rows = rows_of(run)
        if model is None:  # folds differ only in their weights
            say_unswapped(asked.views, rows.manifest.classes)
            model = _make_inference(own, spec, rows.manifest.classes,
                                    make_layout(config.sharding, mesh))
        logits = _predict_run(request, model, run, rows)
        if asked.source == 'val':
            validation.append((rows.manifest, logits))
        log_scores(f'{run.name} {asked.folder}', rows.manifest, logits,
                   ordered_of(saved, rows.manifest.heads))
    if len(validation) > 1:
        _save_out_of_fold(asked, workdir, validation, saved)


def _make_inference(own: ConfigDict, spec: PreprocessSpec, classes: Mapping[str, tuple],
                    layout: Layout) -> _Inference:
    network = make_network(own, classes, layout, pretrained=False, abstract=True)
    like = shapes_of(network, layout)
    normalise = make_normalise(spec.mean, spec.std, DTYPES[own.precision])
    about = dict(model=own.model.name, precision=own.precision, adjust_tau=own.eval.adjust_tau,
                 input=dataclasses.asdict(spec))
    step = make_eval_step(network.graphdef, normalise, tuple(classes))
    return _Inference(step, like, spec, layout.mesh, about)


def shapes_of(network: Network, layout: Layout) -> Weights:
    """Shapes and shardings of the weights of an abstract network, as a checkpoint is read."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        network.weights, layout.of_state(network.weights))


def _predict_run(request: _Request, model: _Inference, run: Path, rows: Rows
                 ) -> dict[str, np.ndarray]:
    """Writes every view of one run, then predictions/<source>.npz of them together.

    Returns:
        What that file holds, float32 [N, C] by head.
    """
    asked, manifest = request.spec, rows.manifest
    checkpoint = init.best_checkpoint(run)
    if checkpoint is None:
        raise ConfigError(f'{run} has no checkpoints: give the workdir of a trained run.')
    devices = model.mesh.size
    batch_size = -(-min(asked.batch_size, len(manifest)) // devices) * devices
    about = dict(model.about, fold=fold_of(run), step=int(checkpoint.name),
                 data=rows.digest, batch_size=batch_size,
                 digest=identity(checkpoint), **rows.place)
    adjusted = adjustment(request.adjust_tau, run, manifest.classes)
    folder = run / 'predictions' / asked.folder
    weights = None
    for view, stage in asked.views.items():
        of_view = about | dict(view=view, transforms=[one.facts() for one in stage.transforms])
        if _is_stored(folder / view, of_view, manifest, asked.dtype):
            log.info('reused   %s', folder / view)
            continue
        if weights is None:  # only read where a view is missing
            weights = init.weights_for_inference(checkpoint, model.like)
        log.info('predict  %s, step %s', counted(len(manifest), 'picture'), checkpoint.name)
        log.info('         %s', folder / view)
        batches = loader.eval_dataset(
            manifest, model.spec, batch_size=batch_size,
            shard=loader.Shard(jax.process_index(), jax.process_count()),
            loading=request.loading, view=stage, pictures=rows.pictures)

        def logits_from(batch, batches=batches, weights=weights, stage=stage):
            for numbers, logits in logits_of(model.step, weights, batches(batch), model.mesh,
                                             request.stop):
                yield numbers, in_class_order(adjusted(logits), stage, manifest.classes)

        _write_view(_writer(folder / view, of_view, manifest, asked.dtype), folder / view,
                    len(manifest), batch_size, logits_from)
    logits = mean_of_views([store.open_member(folder / view) for view in asked.views])
    if distributed.is_first():
        save_together(asked, folder.with_name(f'{asked.folder}.npz'), manifest, logits,
                      about['digest'], thresholds_of(run, manifest.classes),
                      medians_of(request.saved, manifest.heads))
    return logits


def _is_stored(folder: Path, about: Mapping, manifest: Manifest, dtype: str) -> bool:
    stored = store.make_about(about, manifest.table['id'], manifest.classes, dtype)
    return distributed.on_first(lambda: store.is_stored(folder, stored))


def _writer(folder: Path, about: Mapping, manifest: Manifest, dtype: str) -> store.Writer | None:
    """On the first process, which alone touches the files; None on the others."""
    if not distributed.is_first():
        return None
    return store.Writer(folder, about, manifest.table['id'].to_numpy(np.str_),
                        {head: manifest.truth(head) for head in manifest.heads},
                        manifest.classes, dtype)


def _write_view(writer: store.Writer | None, folder: Path, total: int, batch_size: int,
                logits_from: Callable[[int], Iterator]) -> None:
    """Writes one view, or the rest of it.

    Args:
        writer: see `_writer`.
        folder: of the view.
        total: how many rows it has.
        batch_size: rows per batch.
        logits_from: number of the first batch -> (rows, logits) of one batch after another.

    Raises:
        Interrupted: told to stop; what is done was flushed.
    """
    # Process 0 has a writer.
    done = distributed.on_first(lambda: writer.rows_done)  # type: ignore[union-attr]
    if done:
        log.info('resumed  after %s of %s pictures', f'{done:,}', f'{total:,}')
    flushed = time.monotonic()
    try:
        if done < total:
            with bar(total=total, initial=done, unit='img') as progress:
                for rows, logits in logits_from(done // batch_size):
                    if writer:
                        writer.write(rows, logits)
                    progress.update(min(done + batch_size, total) - done)
                    done = min(done + batch_size, total)
                    if writer and time.monotonic() - flushed >= FLUSH_SECONDS:
                        writer.flush(done)
                        flushed = time.monotonic()
    except Interrupted:
        if writer:
            writer.flush(done)
        raise
    if writer:
        writer.commit()
    distributed.barrier(str(folder))  # nobody reads before it is in its place


def adjustment(tau: float, run: Path, classes: Mapping[str, tuple]) -> Callable:
    """The post-hoc adjustment by the training labels, as in the run's own scores."""
    if not tau:
        return lambda logits: logits
    splits = splits_of(run)
    counts = {}
    for head, names in classes.items():
        count = Counter(splits.training_labels(head))
        counts[head] = np.array([count[name] for name in names])
    return lambda logits: adjust(logits, counts, tau)


def mean_of_views(members: Sequence[store.Member]) -> dict[str, np.ndarray]:
    """Logits of one view, or the log of the mean probability of several (of a multi-label head its
    logit): float32 [N, C]."""
    heads = members[0].logits
    if len(members) == 1:
        return {head: np.asarray(values, np.float32) for head, values in heads.items()}
    found = {}
    for head, values in heads.items():
        found[head] = np.empty(values.shape, np.float32)
        for first in range(0, len(values), 4096):
            block = slice(first, first + 4096)
            found[head][block] = log_mean([member.logits[head][block] for member in members],
                                          head in members[0].multi_label)
    return found


def save_together(asked: PredictSpec, path: Path, manifest: Manifest,
                  logits: Mapping[str, np.ndarray], digest: str = '',
                  thresholds: Mapping[str, np.ndarray] | None = None,
                  medians: Sequence[str] = ()) -> None:
    """`save_predictions` of all views together, unless a file that is there has to stay."""
    if asked.replace or not path.exists():
        save_predictions(path, manifest, logits, digest, thresholds, medians)


def _save_out_of_fold(asked: PredictSpec, workdir: Path,
                      folds: Sequence[tuple[Manifest, dict[str, np.ndarray]]], saved: Mapping
                      ) -> None:
    """Writes predictions/out_of_fold.npz: the validation rows of all folds, with their logits.
    `saved` is the config of the run."""
    whole = dataclasses.replace(folds[-1][0], table=pd.concat(
        [manifest.table for manifest, _ in folds], ignore_index=True))
    pooled = {head: np.concatenate([logits[head] for _, logits in folds]) for head in whole.heads}
    if distributed.is_first():
        # Complete, and no fold scores rows that it trained on.
        out_of_fold(workdir, next(iter(asked.views)))
        save_together(asked, workdir / 'predictions/out_of_fold.npz', whole, pooled,
                      thresholds=thresholds_of(workdir, whole.classes),
                      medians=medians_of(saved, whole.heads))
    log_scores(f'{workdir.name} out of fold', whole, pooled, ordered_of(saved, whole.heads))


def log_scores(name: str, manifest: Manifest, logits: Mapping[str, np.ndarray],
               ordered: Sequence[str] = ()) -> None:
    """Logs the scores of labelled rows under a name; logits are float32 [N, C] by head, and the
    classes of the heads `ordered` have an order."""
    if any((manifest.numbers(head) >= 0).any() for head in manifest.heads):
        found = with_structure(score_split(logits, manifest), logits, manifest, ordered)
        log.info('%s  accuracy %.4f  f1 %.4f  (n %d)', name, found['accuracy'],
                 found['f1_macro'], found['n'])
        say_set_scores('', found)
        say_structure('', found)
