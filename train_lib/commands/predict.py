"""The verb predict: the logits of a trained run, or of every fold of one, in the store."""

import dataclasses
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from flax import nnx
from ml_collections import ConfigDict

from input_pipeline import loader
from input_pipeline.curriculum import Stage
from input_pipeline.manifest import SPLITS, Manifest, digest
from train_lib.commands.command_line import Command
from train_lib.losses.objectives import adjust
from train_lib.metrics.scores import log_softmax
from train_lib.optim import param_groups
from train_lib.predictions import store
from train_lib.predictions.members import folds_of, out_of_fold
from train_lib.predictions.views import make_views
from train_lib.run_dir import checkpoints, lock, workdirs
from train_lib.run_dir.overrides import overlay
from train_lib.runtime import distributed
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.progress import bar
from train_lib.runtime.sharding import Layout, make_layout, make_mesh
from train_lib.training import init
from train_lib.training.evaluate import Interrupted, logits_of, save_predictions, score_split
from train_lib.training.loop import StopSignal
from train_lib.training.preprocess_spec import DTYPES, Prepared, image_spec, prepared_for
from train_lib.training.run import STOPPED, load_data
from train_lib.training.setup import make_model
from train_lib.training.step import make_eval_step, make_normalise

log = logging.getLogger(__name__)
FLUSH_SECONDS = 10  # what a kill may cost


def predict_command(command: Command) -> int:
    """The verb predict. Returns the exit code."""
    distributed.start(command.config.distributed)
    try:
        with (distributed.StopTogether() if distributed.several() else StopSignal() as stop,
              lock.held(command.workdir)):
            predict_runs(command.config, command.workdir, stop)
    except Interrupted:
        log.info('Stopped. The same command goes on.')
        return STOPPED
    return 0


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is to be predicted: the rows, with the classes of the run."""

    manifest: Manifest
    digest: str
    pictures: loader.Pictures


def predict_runs(config: ConfigDict, workdir: Path, stop: Callable[[], bool]) -> None:
    """Predicts with one run, or with every fold of a k-fold run, one after another.

    Args:
        config: predict, data (for predict.source=data), loader, mesh and eval.batch_size count;
            the model and the preparation of the pictures are the run's own.
        workdir: of the run.
        stop: true ends the work; what is finished is kept.

    Raises:
        ConfigError: no run, no checkpoint, a wrong value. Interrupted: told to stop.
    """
    settings = config.predict
    stages = make_views(settings.views)
    source = _source_name(settings)
    runs = folds_of(workdir) or [workdir]
    own = overlay(config.copy_and_resolve_references(), workdirs.saved_config(runs[0]).to_dict())
    mesh, prepared = make_mesh(config.mesh), prepared_for(own)
    layout = make_layout(config.sharding, mesh)
    rows_of = _rows_of(config, own, image_spec(own, prepared), workdir)
    inference, every = None, []
    for run in runs:
        rows = rows_of(run)
        if inference is None:  # the folds differ in nothing but their weights
            inference = _make_inference(own, prepared, rows.manifest.classes, layout)
        logits = _predict_run(config, own, run, source, rows, stages, inference, mesh, stop)
        if source == 'val':
            every.append((rows.manifest, logits))
        _log_scores(f'{run.name} {source}', rows.manifest, logits)
    if len(every) > 1:
        whole = dataclasses.replace(rows.manifest, table=pd.concat(
            [manifest.table for manifest, _ in every], ignore_index=True))
        pooled = {head: np.concatenate([logits[head] for _, logits in every])
                  for head in whole.heads}
        if distributed.is_first():
            out_of_fold(workdir, next(iter(stages)))  # complete, and nobody saw what it scores
            save_predictions(workdir / 'predictions/out_of_fold.npz', whole, pooled)
        _log_scores(f'{workdir.name} out of fold', whole, pooled)


def _source_name(settings: ConfigDict) -> str:
    """The folder in predictions/."""
    if settings.dtype not in store.DTYPES:
        raise ConfigError(f'config.predict.dtype = {settings.dtype!r}: choose one of '
                          f'{", ".join(store.DTYPES)}.')
    if settings.batch_size < 0:
        raise ConfigError(f'config.predict.batch_size = {settings.batch_size}: give 1 or more, or '
                          f'0 for eval.batch_size.')
    if settings.source in SPLITS:
        return settings.source
    if settings.source != 'data':
        raise ConfigError(f'config.predict.source = {settings.source!r}: choose one of '
                          f'{", ".join(SPLITS)}, or data for what config.data says.')
    name = settings.name or 'data'
    if not re.fullmatch(r'\w[\w.-]*', name) or name in (*SPLITS, store.OUT_OF_FOLD):
        raise ConfigError(f'config.predict.name = {name!r}: give a plain name that is not '
                          f'{", ".join(SPLITS)} or {store.OUT_OF_FOLD}.')
    return name


def _rows_of(config: ConfigDict, own: ConfigDict, spec: loader.ImageSpec, workdir: Path
             ) -> Callable[[Path], Rows]:
    """A function from the workdir of a run or a fold to its rows. The data are loaded once, and
    folds with the same rows share the decoded pictures."""
    last: list[Rows] = []

    def make(manifest: Manifest) -> Rows:
        name = digest(manifest)
        if not last or last[0].digest != name:
            last[:] = [Rows(manifest, name, loader.Pictures(manifest, spec, config.image.cache_mb))]
        return last[0]

    if config.predict.source == 'data':
        manifest = _other_data(config, folds_of(workdir)[:1] or [workdir])
        return lambda run: make(manifest)
    with own.ignore_type():
        own.data.unreadable = config.data.unreadable
    manifest = load_data(own, workdir)

    def of(run: Path) -> Rows:
        roles = store.splits_of(run).roles
        mine = manifest.select(manifest.table['id'].isin(roles.keys()).to_numpy())
        if digest(mine) != workdirs.data_digest(run):
            raise ConfigError(f'The data have changed since {run} was trained (ids, labels, groups '
                              f'or classes differ): put them back, or predict them as other data '
                              f'by --config.predict.source=data.')
        part = mine.select((mine.table['id'].map(roles) == config.predict.source).to_numpy())
        if not len(part):
            raise ConfigError(f'config.predict.source = {config.predict.source!r}: {run} has no '
                              f'rows in that split; choose another.')
        return make(part)

    return of


def _other_data(config: ConfigDict, runs: Sequence[Path]) -> Manifest:
    """The rows of config.data, with the classes of the run and its labels by class name."""
    classes = store.open_member(_trained_predictions(runs[0])).classes
    if not config.predict.labelled:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.data.update(labelled=False, separate=(), combine=())
    found = load_data(config)
    table = found.table.drop(columns=[f'label/{head}' for head in found.heads])
    if not config.predict.labelled:
        table = table.assign(**{f'label/{head}': np.int32(-1) for head in classes})
        return Manifest(table, classes, found.root)
    if set(found.heads) != set(classes):
        raise ConfigError(f'The data have the heads {", ".join(found.heads)}, and the run '
                          f'{", ".join(classes)}: set config.data.columns.labels, or '
                          f'config.predict.labelled=False to do without their labels.')
    for head, names in classes.items():
        number = {name: k for k, name in enumerate(names)}
        known = np.array([number.get(name, -2) for name in found.classes[head]] + [-1], np.int32)
        labels = known[found.labels(head)]
        if (labels == -2).any():
            name = found.classes[head][found.labels(head)[np.argmin(labels)]]
            raise ConfigError(f'The data have the class {name!r}, which the run does not know '
                              f'(it knows {len(names)}, such as {names[0]!r}): rename it, or set '
                              f'config.predict.labelled=False to do without labels.')
        table = table.assign(**{f'label/{head}': labels})
    return Manifest(table, classes, found.root)


def _trained_predictions(run: Path) -> Path:
    """What training wrote of its own rows: it names the classes in their order."""
    path = run / 'predictions' / 'train.npz'
    if not path.exists():
        raise ConfigError(f'{run} is not finished ({path.name} is missing): finish the training '
                          f'first.')
    return path


@dataclasses.dataclass(frozen=True)
class _Inference:
    """A compiled model without its weights."""

    step: Callable
    like: dict  # shapes and shardings of params, frozen, rest
    spec: loader.ImageSpec
    about: dict  # what the logits depend on besides weights, rows and view


def _make_inference(config: ConfigDict, prepared: Prepared, classes: Mapping[str, tuple],
                    layout: Layout) -> _Inference:
    spec = image_spec(config, prepared)
    rules = {}

    def build():
        model = make_model(config, classes)
        rules.update(param_groups.prepare(model, config.finetune.to_dict(), config.seed))
        return model

    graphdef, params, frozen, rest = param_groups.split(nnx.eval_shape(build), rules)
    like = dict(params=params, frozen=frozen, rest=rest)
    like = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        like, layout.of_state(like))
    normalise = make_normalise(prepared.mean, prepared.std, DTYPES[config.precision])
    about = dict(model=config.model.name, precision=config.precision,
                 adjust_tau=config.eval.adjust_tau,
                 input=dataclasses.asdict(spec) | dict(mean=prepared.mean, std=prepared.std))
    return _Inference(make_eval_step(graphdef, normalise, tuple(classes)), like, spec, about)


def _predict_run(config: ConfigDict, own: ConfigDict, run: Path, source: str, rows: Rows,
                 stages: Mapping[str, Stage], inference: _Inference, mesh,
                 stop: Callable[[], bool]) -> dict[str, np.ndarray]:
    """Writes every view of one run, then predictions/<source>.npz of them together.

    Returns:
        What that file holds, float32 [N, C] by head.
    """
    checkpoint = init.best_checkpoint(run)
    if checkpoint is None:
        raise ConfigError(f'{run} has no checkpoints: give the workdir of a trained run.')
    manifest = rows.manifest
    largest = config.predict.batch_size or config.eval.batch_size
    batch_size = -(-min(largest, len(manifest)) // mesh.size) * mesh.size
    about = dict(inference.about, fold=store.fold_of(run), step=int(checkpoint.name),
                 data=rows.digest, batch_size=batch_size,
                 digest=checkpoints.identity(checkpoint))
    adjusted = _adjustment(own, run, manifest.classes)
    folder = run / 'predictions' / source
    weights = None
    for view, stage in stages.items():
        of_view = about | dict(view=view, transforms=[dataclasses.asdict(one)
                                                      for one in stage.transforms])
        stored = store.make_about(of_view, manifest.table['id'], manifest.classes,
                                  config.predict.dtype)
        if distributed.on_first(lambda path=folder / view, stored=stored:
                                store.is_stored(path, stored)):
            log.info('reused   %s', folder / view)
            continue
        if weights is None:  # the last ones are let go before these come
            weights = init.weights_for_inference(checkpoint, inference.like)
        batches = loader.eval_dataset(
            manifest, inference.spec, batch_size=batch_size,
            shard=(jax.process_index(), jax.process_count()), threads=config.loader.threads,
            unreadable=config.data.unreadable, view=stage, pictures=rows.pictures)
        log.info('predict  %s: %s pictures, step %s', folder / view, f'{len(manifest):,}',
                 checkpoint.name)
        _write_view(folder / view, of_view, manifest, config.predict.dtype, batches, batch_size,
                    lambda iterator, weights=weights: logits_of(inference.step, weights, iterator,
                                                                mesh, stop), adjusted)
    del weights
    logits = _mean([store.open_member(folder / view) for view in stages])
    if distributed.is_first():
        save_predictions(folder.with_name(f'{source}.npz'), manifest, logits)
    return logits


def _write_view(folder: Path, about: dict, manifest: Manifest, dtype: str, batches: Callable,
                batch_size: int, run: Callable, adjusted: Callable) -> None:
    """Writes one view, or the rest of it; only the first process touches the files."""
    writer = None
    if distributed.is_first():
        writer = store.Writer(folder, about, manifest.table['id'].to_numpy(np.str_),
                              {head: manifest.labels(head) for head in manifest.heads},
                              manifest.classes, dtype)
    done, total = distributed.on_first(lambda: writer.rows_done), len(manifest)
    if done:
        log.info('goes on  after %s of %s pictures', f'{done:,}', f'{total:,}')
    flushed = time.monotonic()
    try:
        if done < total:
            with bar(total=total, initial=done, unit='img') as progress:
                for rows, logits in run(batches(done // batch_size)):
                    if writer:
                        writer.write(rows, adjusted(logits))
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


def _adjustment(config: ConfigDict, run: Path, classes: Mapping[str, tuple]) -> Callable:
    """The post-hoc adjustment that the run's own scores have, by its training labels."""
    if not config.eval.adjust_tau:
        return lambda logits: logits
    splits = store.splits_of(run)
    counts = {}
    for head, names in classes.items():
        count = Counter(splits.training_labels(head))
        counts[head] = np.array([count[name] for name in names])
    return lambda logits: adjust(logits, counts, config.eval.adjust_tau)


def _mean(members: Sequence[store.Member]) -> dict[str, np.ndarray]:
    """Logits of one view, or the log of the mean probability of several: float32 [N, C]."""
    heads = members[0].logits
    if len(members) == 1:
        return {head: np.asarray(values, np.float32) for head, values in heads.items()}
    found = {}
    for head, values in heads.items():
        found[head] = np.empty(values.shape, np.float32)
        for first in range(0, len(values), 4096):
            block = slice(first, first + 4096)
            logs = np.stack([log_softmax(member.logits[head][block]) for member in members])
            found[head][block] = np.logaddexp.reduce(logs, axis=0) - np.log(len(members))
    return found


def _log_scores(name: str, manifest: Manifest, logits: Mapping[str, np.ndarray]) -> None:
    if any((manifest.labels(head) >= 0).any() for head in manifest.heads):
        found = score_split(logits, manifest)
        log.info('%s  accuracy %.4f  f1 %.4f  (n %d)', name, found['accuracy'],
                 found['f1_macro'], found['n'])
