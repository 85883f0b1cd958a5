"""A trained run in a program of one's own: `run = train_lib.load('runs/a')`.

    run.predict(['cat.jpg', picture, array])   a table with id, prediction and probability
    run.features(paths)                        pooled features of the backbone, float32 [N, D]
    run.classes, run.config, run.model         what it knows

Pictures pass in blocks of one size, which threads read while the device computes, so memory does
not grow with their number, and nothing is compiled anew for the last block.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import nnx
from ml_collections import ConfigDict

import models
from input_pipeline.curriculum import Stage
from input_pipeline.errors import DataError
from input_pipeline.given_batches import given_batches
from input_pipeline.given_pictures import Given, Reading, each_given
from input_pipeline.packing import repack_like
from input_pipeline.sixteen_bits import FULL
from input_pipeline.sources.array_records import load as load_packed
from input_pipeline.sources.array_records import packed_as
from train_lib.predictions.answers import (
    MEDIAN,
    Deciding,
    answers,
    class_probabilities,
    columns_of,
    log_mean,
)
from train_lib.predictions.class_order import medians_of
from train_lib.predictions.run_folders import thresholds_of
from train_lib.predictions.views import in_class_order, make_views, say_unswapped, view_swaps
from train_lib.run_dir import workdirs
from train_lib.run_dir.json_files import read_json
from train_lib.run_dir.run_config import config_of_run
from train_lib.runtime.compile_cache import use_compile_cache
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharding import make_mesh
from train_lib.serving.probed_models import JointModel, ProbedModel, read_probe
from train_lib.serving.trained_models import TrainedModel, read_models
from train_lib.training.evaluate import logits_of
from train_lib.training.preprocess_spec import DTYPES
from train_lib.training.state import Weights
from train_lib.training.step import make_eval_step, make_normalise, split_model

log = logging.getLogger(__name__)


class LoadedRun:
    """A finished run, or all folds of one, ready to answer.

    Attributes:
        workdir: where it was read from; nothing else is needed, so it may have been copied.
        classes: their names, in the order of the probabilities: a tuple, or of a run with several
            heads {head: tuple}.
        models: the models of the folds, or one; see `model`.
    """

    def __init__(self, workdir: Path, trained: Sequence[TrainedModel], reading: Reading):
        first = trained[0]
        self.workdir = workdir
        self._config = first.config
        self.models: tuple[nnx.Module, ...] = tuple(one.model for one in trained)
        self._heads = {head: tuple(names) for head, names in first.classes.items()}
        self.classes: tuple[str, ...] | dict[str, tuple[str, ...]] = (
            dict(self._heads) if len(self._heads) > 1 else next(iter(self._heads.values())))
        self._offsets = [one.offsets for one in trained]
        thresholds = thresholds_of(workdir, self._heads) if first.multi_label else {}
        self._deciding: dict[str, Deciding | str] = {
            head: Deciding(first.config.data.label_separator, thresholds.get(head))
            for head in first.multi_label}
        self._multi_label = tuple(first.multi_label)
        self._deciding |= dict.fromkeys(medians_of(first.config.to_dict(), self._heads), MEDIAN)
        self._spec = first.preprocess
        self._reading = reading
        self._mesh = make_mesh(first.config.mesh)
        split = [split_model(one.model) for one in trained]
        self._weights = [Weights(params, {}, others) for _, params, others in split]
        normalise = make_normalise(self._spec.mean, self._spec.std, DTYPES[first.config.precision])
        self._embed = _make_embed(split[0][0], normalise)
        probed = [one.model for one in trained if isinstance(one.model, ProbedModel)]
        self._one_backbone = bool(probed)
        if probed:
            joint = models.eval_view(JointModel(probed, tuple(self._heads)))
            graphdef, params, others = split_model(joint)
            self._joint_weights = Weights(params, {}, others)
            self._eval_step = make_eval_step(graphdef, normalise, tuple(
                f'{fold}/{head}' for fold in range(len(probed)) for head in self._heads))
        else:  # one program for all folds, which differ only in their weights
            self._eval_step = make_eval_step(split[0][0], normalise, tuple(self._heads))

    def __repr__(self) -> str:
        heads = ', '.join(f'{head}: {len(names)} classes' for head, names in self._heads.items())
        folds = f'{len(self.models)} folds, ' if len(self.models) > 1 else ''
        return f'<{self._config.model.name} of {self.workdir} ({folds}{heads})>'

    @property
    def config(self) -> ConfigDict:
        """The config of the run: a copy, so that changes of it change nothing here."""
        return self._config.copy_and_resolve_references()

    @property
    def model(self) -> nnx.Module:
        """The NNX model in evaluation mode: normalised pictures [B, H, W, C] -> logits [B, classes]
        or {head: logits}. `predict` is more: it reads, resizes and normalises pictures, and adds
        the run's logit adjustment.

        Raises:
            ConfigError: there are several, one of each fold: use `models`.
        """
        if len(self.models) > 1:
            raise ConfigError(f'{self.workdir} has {len(self.models)} models, one per fold: use '
                              f'run.models' + ('.' if self._one_backbone else
                                             f', or load one fold, such as {self._one_fold()}.'))
        return self.models[0]

    def predict(self, images: Any, views: str | Sequence[str] = ('identity',),
                batch_size: int | None = None, probabilities: bool = False) -> pd.DataFrame:
        """The class of each picture.

        Args:
            images: paths, bytes of files, Pillow pictures or uint8 arrays [H, W, 3], also mixed;
                a list, a generator, an array [N, H, W, 3], or a single one. They are read and
                prepared as those of the training.
            views: how each picture is shown, as in config.predict.views; the probabilities of
                several views are averaged. So are those of the folds. A view that mirrors swaps
                the classes that config.predict.swap or the curriculum of the run names.
            batch_size: pictures computed at once at most (None: config.eval.batch_size).
            probabilities: one more column per class.

        Returns:
            One row per picture, in order: `id` (the path as it was given; else the number of the
            picture), `prediction` (the name of the class) and `probability` of that class, float32;
            with `probabilities` a float32 column per class, called like the class. With several
            heads the columns are `prediction/<head>`, `probability/<head>` and `<head>/<class>`.
            Of a multi-label head the prediction is the names of all classes that reach their
            thresholds (those that the run fitted, else 0.5), between separators, and the
            probability that of exactly this set, the classes taken as independent. A head of
            ordered classes answers their median if the run has config.eval.answer='median'.

        Raises:
            DataError: a picture cannot be read, or is of another type or shape. ConfigError: a view
                is unknown, the batch size is not positive, or a class is called like a column.
        """
        several = isinstance(views, Iterable) and not isinstance(views, str)
        names: Any = views if several else (views,)
        stages = make_views(tuple(names), 'views', view_swaps(self._config.predict.swap,
                                                              self._config.curriculum))
        say_unswapped(stages, self._heads)
        per_class = self._class_columns() if probabilities else {}
        ids: list[str | int] = []
        outputs = self._outputs(_noting(each_given(images), ids), list(stages.values()),
                                batch_size, self._logits_step)
        nothing = {head: np.zeros((0, len(names)), np.float32)
                   for head, names in self._heads.items()}
        parts = [self._columns(nothing, per_class)]
        # The views of a batch come one after another.
        while of_views := list(itertools.islice(outputs, len(stages))):
            parts.append(self._columns(self._together(of_views, stages.values()), per_class))
        table = {'id': _column(ids)}
        frame = pd.DataFrame(table | {name: np.concatenate([part[name] for part in parts])
                                      for name in parts[0]})
        return frame.astype({name: 'str' for _, name in columns_of('prediction', self._heads)})

    def features(self, images: Any, batch_size: int | None = None) -> np.ndarray:
        """The pooled features of the backbone, before any head: float32 [N, D].

        Args:
            images, batch_size: as in `predict`.

        Raises:
            ConfigError: the run has folds, whose features are not comparable. DataError: as in
                `predict`.
        """
        if len(self.models) > 1 and not self._one_backbone:
            raise ConfigError(f'{self.workdir} has {len(self.models)} models, one per fold, whose '
                              f'features mean different things and cannot be averaged: load one '
                              f'fold, such as {self._one_fold()}.')
        one = jax.ShapeDtypeStruct((1, *self._spec.frame, self._spec.channels), np.uint8)
        width = jax.eval_shape(self._embed, self._weights[0], one).shape[1]
        outputs = self._outputs(each_given(images), list(make_views(('identity',)).values()),
                                batch_size, self._features_step)
        return np.concatenate([np.zeros((0, width), np.float32),
                               *(found['features'] for found in outputs)])

    def _one_fold(self) -> str:
        return f"train_lib.load('{self.workdir}/fold_0')"

    def _logits_step(self, _, images: jax.Array) -> dict[str, jax.Array]:
        """{'<fold>/<head>': logits [B, C]}"""
        if self._one_backbone:
            return self._eval_step(self._joint_weights, images)
        return {f'{fold}/{head}': logits for fold, weights in enumerate(self._weights)
                for head, logits in self._eval_step(weights, images).items()}

    def _features_step(self, _, images: jax.Array) -> dict[str, jax.Array]:
        return {'features': self._embed(self._weights[0], images)}

    def _outputs(self, given: Iterator[Given], views: Sequence[Stage], batch_size: int | None,
                 step: Callable) -> Iterator[dict[str, np.ndarray]]:
        """What a step gives for each batch, without what the last one is filled up with."""
        size = self._config.eval.batch_size if batch_size is None else batch_size
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise ConfigError(f'batch_size = {size!r}: give a whole number above 0, or None.')
        batches = given_batches(given, self._spec, views, batch_size=int(size),
                                multiple=self._mesh.size, reading=self._reading)
        for _, found in logits_of(step, self._weights[0], batches, self._mesh):
            yield found

    def _together(self, found: Sequence[Mapping[str, np.ndarray]], views: Iterable[Stage]
                  ) -> dict[str, np.ndarray]:
        """{head: logits, or the log of the mean probability of views and folds}"""
        said = [in_class_order({head: logits[f'{fold}/{head}'] + offsets[head]
                                for head in self._heads}, view, self._heads)
                for logits, view in zip(found, views)
                for fold, offsets in enumerate(self._offsets)]
        return {head: log_mean([one[head] for one in said], head in self._multi_label)
                for head in self._heads}

    def _class_columns(self) -> dict[str, list[str]]:
        several = len(self._heads) > 1
        named = {head: [f'{head}/{name}' if several else name for name in names]
                 for head, names in self._heads.items()}
        others = ['id', *(column for what in ('prediction', 'probability')
                          for _, column in columns_of(what, self._heads))]
        every = [*others, *itertools.chain(*named.values())]
        if len(set(every)) < len(every):
            double = next(name for name in every if every.count(name) > 1)
            raise ConfigError(f'probabilities=True: there would be two columns {double!r}, one of '
                              f'them of a class: take run.predict without it, or rename the class '
                              f'before training.')
        return named

    def _columns(self, logits: Mapping[str, np.ndarray], per_class: Mapping[str, Sequence[str]]
                 ) -> dict[str, Any]:
        """The columns of some rows, besides their ids."""
        said = {head: answers(values, self._heads[head], self._deciding.get(head))
                for head, values in logits.items()}
        found: dict[str, Any] = {}
        for head, name in columns_of('prediction', self._heads):
            found[name] = said[head].names
        for head, name in columns_of('probability', self._heads):
            found[name] = said[head].probability
        for head, names in per_class.items():
            found |= dict(zip(names, class_probabilities(logits[head],
                                                         head in self._multi_label).T))
        return found


def load(workdir: str | os.PathLike) -> LoadedRun:
    """See `train_lib.load`."""
    folder = Path(workdir)
    absl = logging.getLogger('absl')
    level = absl.level
    absl.setLevel(logging.CRITICAL)  # Orbax warns of files that these checkpoints never have
    try:
        probes = (folder / 'config.json').exists() and config_of_run(folder).probe.heads
        trained = (read_probe(folder, config_of_run(folder)) if probes else read_models(folder))
    finally:
        absl.setLevel(level)
    # A program may have chosen a place of its own.
    if jax.config.values['jax_compilation_cache_dir'] is None:
        use_compile_cache(trained[0].config.compile_cache)
    run = folder if probes else trained[0].workdir
    return LoadedRun(folder, trained, reading_of(run, trained[0].config))


def reading_of(workdir: Path, config: ConfigDict) -> Reading:
    """What a run, or a fold, knows about its pictures; says so where that is not known."""
    try:
        result = read_json(workdir / 'result.json')
    except (OSError, ValueError):
        result = {}
    about = result.get('packed_as')
    if about is None and config.data.source == 'packed':  # an older run, which did not record it
        try:
            about = packed_as(load_packed(config.data.packed))
        except DataError:
            log.warning('pictures the training saw packed ones, which are gone; if they were')
            log.warning('         preprocessed, give pictures that were prepared in the same way')
    return Reading(workdirs.range16_of(workdir) or FULL, repack_like(about) if about else None)


def _noting(given: Iterator[Given], ids: list) -> Iterator[Given]:
    for one in given:
        ids.append(one.id)
        yield one


def _column(ids: list[str | int]) -> pd.Series:
    if not ids:
        return pd.Series(ids, dtype='str')
    try:
        return pd.Series(ids)
    except UnicodeEncodeError:  # a file name that is not valid UTF-8
        return pd.Series(ids, dtype=object)


def _make_embed(graphdef: nnx.GraphDef, normalise: Callable) -> Callable:
    """The jitted function (weights, uint8 images) -> float32 features [B, D]."""

    @jax.jit
    def embed(weights: Weights, images: jax.Array) -> jax.Array:
        model = models.eval_view(nnx.merge(graphdef, weights.params, weights.frozen,
                                           weights.batch_stats))
        pooled = model.forward_head(model.forward_features(normalise(images)), pre_logits=True)
        return pooled.astype(jnp.float32)

    return embed
