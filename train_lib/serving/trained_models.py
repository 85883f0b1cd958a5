"""The trained models of a workdir, with all that is needed to answer: classes and preparation."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import models
from input_pipeline.pictures import PreprocessSpec
from train_lib.predictions import store
from train_lib.predictions.run_folders import folds_of
from train_lib.run_dir.digests import identity
from train_lib.run_dir.run_config import config_of_run
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharding import make_layout, make_mesh
from train_lib.training import init
from train_lib.training.inference import adjustment, shapes_of
from train_lib.training.inference_rows import trained_predictions
from train_lib.training.network import make_network
from train_lib.training.preprocess_spec import preprocess_spec


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """The best checkpoint of a run without folds, or of one fold.

    Attributes:
        workdir: of the run or the fold.
        config: of the run.
        classes: {head: names}, in the order of the logits.
        preprocess: how pictures are prepared.
        model: in evaluation mode, with the averaged weights where the run has them; adapters are
            not merged. It takes normalised pictures, see `step.make_normalise`.
        offsets: {head: float32 [C]}, to be added to the logits as in the run's own scores (post-hoc
            logit adjustment); zeros for none.
        step: of the checkpoint.
        digest: of the checkpoint.
        multi_label: the heads with several labels per picture.
    """

    workdir: Path
    config: ConfigDict
    classes: Mapping[str, tuple[str, ...]]
    preprocess: PreprocessSpec
    model: nnx.Module
    offsets: Mapping[str, np.ndarray]
    step: int
    digest: str
    multi_label: tuple[str, ...] = ()


def read_models(workdir: Path) -> list[TrainedModel]:
    """The models of a run: one, or one per fold.

    Raises:
        ConfigError: it is no finished run, or has no checkpoint. CheckpointError: it is damaged.
    """
    runs = folds_of(workdir) or [workdir]
    config = config_of_run(runs[0])
    if config.probe.heads:
        raise ConfigError(f'{workdir} is a probing run, whose heads stand apart from their '
                          f'backbone: use `main.py predict` for it.')
    member = store.open_member(trained_predictions(runs[0]))
    return [dataclasses.replace(_read(run, config, dict(member.classes)),
                                multi_label=member.multi_label) for run in runs]


def _read(run: Path, config: ConfigDict, classes: Mapping[str, tuple[str, ...]]) -> TrainedModel:
    checkpoint = init.best_checkpoint(run)
    if checkpoint is None:
        raise ConfigError(f'{run} has no checkpoints: give the workdir of a trained run.')
    layout = make_layout(config.sharding, make_mesh(config.mesh))
    network = make_network(config, classes, layout, pretrained=False, abstract=True)
    weights = init.weights_for_inference(checkpoint, shapes_of(network, layout))
    model = models.eval_view(nnx.merge(network.graphdef, weights.params, weights.frozen,
                                       weights.batch_stats))
    adjust = adjustment(config.eval.adjust_tau, run, classes)
    zeros = {head: np.zeros((1, len(names)), np.float32) for head, names in classes.items()}
    offsets = {head: values[0] for head, values in adjust(zeros).items()}
    return TrainedModel(run, config, classes, preprocess_spec(config, run), model, offsets,
                        int(checkpoint.name), identity(checkpoint))
