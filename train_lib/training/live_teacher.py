"""A trained run that teaches another one, config.teacher: its answers to the training pictures of a
step, computed in that step.

The student learns from labels and from the teacher (Hinton et al. 2015, arXiv 1503.02531); the
teacher sees the pictures as the student does, augmented and mixed (Beyer et al. 2022, arXiv
2106.05237). Its weights are in the state of the training, but in no checkpoint.
"""

import dataclasses
import logging
import numbers
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from input_pipeline.pictures import PreprocessSpec
from train_lib.run_dir import ancestors, workdirs
from train_lib.run_dir.run_config import config_of_run
from train_lib.run_dir.unknown_workdir import neighbours
from train_lib.runtime.config_section import read_section
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharding import Layout
from train_lib.training.beside_labels import FEATURES, Teacher
from train_lib.training.init import best_checkpoint, weights_for_inference
from train_lib.training.network import make_network
from train_lib.training.preprocess_spec import DTYPES, preprocess_spec
from train_lib.training.state import Weights
from train_lib.training.step import make_eval_step, make_normalise

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TeacherSpec:
    """config.teacher as it stands there; see the comments in configs/."""

    workdir: str
    weight: float
    temperature: float
    features: float


def load_teacher(config: ConfigDict, classes: Mapping[str, tuple], layout: Layout,
                 prepared: PreprocessSpec, *, abstract: bool) -> tuple[Teacher, Weights] | None:
    """The teacher of config.teacher and its weights; None without one.

    Args:
        config: of the student.
        classes: of the student, {head: names}.
        layout: where the weights lie.
        prepared: how the student's pictures are prepared.
        abstract: give the shapes of the weights only.

    Raises:
        ConfigError: there is no such run, or it cannot teach this one.
        CheckpointError: its checkpoint is damaged.
    """
    given = read_section(TeacherSpec, config.teacher.to_dict(), 'teacher')
    _check_numbers(given)
    workdir = ancestors.teacher_of(config)
    if workdir is None:
        if given.features:
            raise ConfigError(f'config.teacher.features = {given.features} needs '
                              f'config.teacher.workdir: give the workdir of a trained run.')
        return None
    checkpoint = None if not workdir.exists() else best_checkpoint(workdir)
    if checkpoint is None:
        hint = 'give the workdir of a trained run.'
        raise ConfigError(f'config.teacher.workdir = {str(workdir)!r} has no checkpoints: '
                          f'{hint if workdir.exists() else neighbours(workdir, hint)}')
    theirs = config_of_run(workdir)
    spec = preprocess_spec(theirs, workdir)
    _check_pictures(workdir, spec, prepared)
    known = workdirs.start_facts(workdir).get('classes')
    if known is None:
        raise ConfigError(f'config.teacher.workdir = {str(workdir)!r} is of an older version that '
                          f'did not record its classes: train it again.')
    columns = _columns(workdir, known, classes)
    network = make_network(theirs, {head: tuple(names) for head, names in known.items()}, layout,
                           pretrained=False, abstract=True)
    weights = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        network.weights, layout.of_state(network.weights))
    if not abstract:
        weights = weights_for_inference(checkpoint, weights)
        log.info('teacher  %s, %s', theirs.model.name, checkpoint)
    answer = _answer(make_eval_step(
        network.graphdef, make_normalise(spec.mean, spec.std, DTYPES[theirs.precision]),
        tuple(known), features=given.features > 0), columns)
    return Teacher(answer, float(given.weight), float(given.temperature),
                   float(given.features)), weights


def check_goes_on(config: ConfigDict, ancestry: ancestors.Ancestry, best: Callable[[Path], str]
                  ) -> None:
    """A run that goes on keeps its teacher.

    Args:
        config: of the run.
        ancestry: of the run, as it was recorded.
        best: workdir -> digest of the checkpoint whose weights teach.

    Raises:
        ConfigError: the teacher's best weights are others than when the run began.
    """
    workdir = ancestors.teacher_of(config)
    if workdir is None or not workdir.exists():
        return
    known = {run['checkpoint'] for run in ancestry.runs
             if Path(run['workdir']) == Path(workdir).absolute()} - {''}
    if known and best(workdir) not in known:
        raise ConfigError(f'config.teacher.workdir = {str(workdir)!r} has other best weights than '
                          f'when this run began: put them back, or give a new --workdir.')


def _answer(eval_step: Callable, columns: Mapping[str, tuple[int, ...]]) -> Callable:
    """(weights, images [B, H, W, C] with values of uint8) -> {head: float32 logits [B, C]} of the
    student's heads and classes; FEATURES [B, D] as they are."""
    def answer(weights: Weights, images: jax.Array) -> dict[str, jax.Array]:
        logits = eval_step(weights, images)
        found = {head: logits[head][:, jnp.array(chosen)] for head, chosen in columns.items()}
        return found | {name: logits[name] for name in (FEATURES,) if name in logits}

    return answer


def _columns(workdir: Path, theirs: Mapping, ours: Mapping) -> dict[str, tuple[int, ...]]:
    """{head: for each class of the student, its number in the teacher} of the heads of both."""
    found = {}
    for head, names in ours.items():
        if head not in theirs:
            continue
        missing = [name for name in names if name not in theirs[head]]
        if missing:
            raise ConfigError(f'config.teacher.workdir = {str(workdir)!r} does not know '
                              f'{len(missing)} of the {len(names)} classes of the head {head!r} '
                              f'(such as {missing[0]!r}): give a teacher of the same classes.')
        found[head] = tuple(theirs[head].index(name) for name in names)
    if not found:
        raise ConfigError(f'config.teacher.workdir = {str(workdir)!r} has none of the heads '
                          f'{", ".join(ours)}: give a teacher of the same labels.')
    return found


def _check_pictures(workdir: Path, theirs: PreprocessSpec, ours: PreprocessSpec) -> None:
    """Both see one picture; only mean and std may differ."""
    for key, a, b in (('image.size', theirs.frame, ours.frame),
                      ('model.in_channels', theirs.channels, ours.channels)):
        if a != b:
            raise ConfigError(f'config.teacher.workdir = {str(workdir)!r} has config.{key} = {a} '
                              f'and this run {b}, and both see the same pictures: give both the '
                              f'same.')
    differing = [key for key in ('resize', 'interpolation', 'crop_pct')
                 if getattr(theirs, key) != getattr(ours, key)]
    if differing:
        log.warning('teacher  sees pictures prepared otherwise than in its training: %s',
                    ', '.join(f'image.{key}' for key in differing))


def _check_numbers(given: TeacherSpec) -> None:
    for key, least, most in (('weight', 0, 1), ('temperature', 1e-3, 1e3), ('features', 0, 1e6)):
        value = getattr(given, key)
        if isinstance(value, bool) or not isinstance(value, numbers.Real) \
                or not least <= float(value) <= most:
            raise ConfigError(f'config.teacher.{key} = {value!r}: give a number from {least:g} to '
                              f'{most:g}.')
