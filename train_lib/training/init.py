"""How a run begins. The first of these that applies; the log says which one it was:

    resume      a checkpoint of its own in the workdir: everything as it was
    resume_from config.init.resume_from, another workdir: its checkpoints are copied into this one,
                and become its own
    init        config.init.from, another workdir: its best weights, step 0
    pretrained  config.init.pretrained: published weights, or a file of them; with 'if_installed',
                if this machine has them
    scratch     random weights from the seed

Only one of resume_from, from and pretrained may be given. Pretrained weights are a file or a tag,
never a workdir, so they cannot be mistaken for a run that goes on.
"""

import dataclasses
import logging
import os
import shutil
import sys
from pathlib import Path

from flax import nnx
from ml_collections import ConfigDict

from models.heads import Classifier
from train_lib.run_dir import ancestors, checkpoints, seen_rows, starting_weights, workdirs
from train_lib.run_dir.checkpoints import BATCH_STATS, PARAMS
from train_lib.run_dir.digests import identity
from train_lib.run_dir.frozen_weights import FROZEN, place_frozen
from train_lib.run_dir.metrics_log import METRICS
from train_lib.run_dir.unknown_workdir import neighbours
from train_lib.runtime.errors import ConfigError
from train_lib.training.data import Data
from train_lib.training.head_classes import Classes
from train_lib.training.init_from import Target, adopt
from train_lib.training.init_pretrained import (
    load_pretrained,
    warn_of_licences,
    with_found_weights,
)
from train_lib.training.state import (
    HostState,
    TrainState,
    Weights,
    from_stored,
    start_of_ema,
    to_stored,
)
from train_lib.training.step import split_model

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Begun:
    """State and host state at the first step of this start."""

    state: TrainState
    host: HostState
    step: int


@dataclasses.dataclass(frozen=True)
class InitSpec:
    """What a run starts from; see the head of this file.

    Attributes:
        seed: of the run, for the log.
        resume_from, source, pretrained: config.init.resume_from, .from, .pretrained; '' for none.
        target: what the weights of `source` go into.
    """

    seed: int
    resume_from: str
    source: str
    pretrained: str
    target: Target


def init_spec(config: ConfigDict, classes: Classes | None = None) -> InitSpec:
    """config.init, read once; `classes` of the run, {head: class names}, None for no head."""
    given = config.init
    seen_rows.accepts(given.seen)  # refuses a wrong value
    source = ancestors.source_of(config)  # of a k-fold workdir, one fold
    return InitSpec(config.seed, given.resume_from, '' if source is None else str(source),
                    given.pretrained, Target(config, classes or {}, given.head))


def check_sources(config: ConfigDict) -> None:
    """Refuses more than one of resume_from, from and pretrained.

    Raises:
        ConfigError: with their names.
    """
    given = [key for key in ('resume_from', 'from', 'pretrained') if config.init[key]]
    if len(given) > 1:
        raise ConfigError(f'config.init.{given[0]} = {config.init[given[0]]!r} and config.init.'
                          f'{given[1]} = {config.init[given[1]]!r} exclude each other: keep one '
                          f'of them.')
    heads = ('auto', 'reset', 'keep', 'resize')
    if config.init.head not in heads:
        raise ConfigError(f'config.init.head = {config.init.head!r}: choose one of '
                          f'{", ".join(heads)}.')
    if config.init['from'] and config.init.head == 'resize':
        raise ConfigError("config.init.head = 'resize' is for config.init.pretrained: with "
                          "config.init.from choose auto, reset or keep.")


def inherit(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The config, with the other keys of config.init from the run that resume_from names, because
    pretrained weights also say how pictures are prepared, and with `with_found_weights`.

    Raises:
        ConfigError: there is no such run, or more than one source is given.
        ModelError: see `with_found_weights`.
    """
    if not config.init.resume_from:
        check_sources(config)
        return with_found_weights(config, workdir)
    known = workdir if (workdir / 'config.json').exists() else Path(config.init.resume_from)
    if not (known / 'config.json').exists():
        raise ConfigError(f'config.init.resume_from = {str(known)!r} holds no run (config.json is '
                          f'missing): {neighbours(known)}')
    config = with_found_weights(config, known)
    theirs = workdirs.saved_config(known).init
    for key in ('from', 'pretrained'):
        # The same command with resume_from added does not contradict itself.
        if config.init[key] and config.init[key] != theirs[key]:
            raise ConfigError(f'config.init.resume_from = {config.init.resume_from!r} and '
                              f'config.init.{key} = {config.init[key]!r} exclude each other: keep '
                              f'one of them.')
    config = config.copy_and_resolve_references()
    config.init.update({key: value for key, value in theirs.items()
                        if key not in ('resume_from', 'seen', 'folder')})
    return config


def source_checkpoint(config: ConfigDict, data: Data) -> Path:
    """The newest good checkpoint of the run that config.init.resume_from names.

    Raises:
        ConfigError: it has other settings, other data, or no checkpoint.
    """
    source = Path(config.init.resume_from)
    workdirs.check_same(source, config, data.digest, rows=data.manifest,
                        remedy='take only its weights, by config.init.from')
    found = checkpoints.newest_good_until(source / 'checkpoints', sys.maxsize)
    if found is None:
        raise ConfigError(f'config.init.resume_from = {str(source)!r} has no good checkpoint: '
                          f'give the workdir of a run that saved one.')
    return found


def copy_run(newest: Path, workdir: Path) -> None:
    """Copies checkpoints and metrics of config.init.resume_from into a workdir without any.

    The checkpoints appear there all at once: a start that is killed here leaves nothing behind.

    Args:
        newest: the last checkpoint to copy, of `source_checkpoint`.
        workdir: the new one.

    Raises:
        ConfigError: they cannot be copied.
    """
    source, target = newest.parent, workdir / 'checkpoints'
    copied = workdir / 'writing-checkpoints'
    shutil.rmtree(copied, ignore_errors=True)
    copied.mkdir()
    steps = [str(step) for step in checkpoints.committed_steps(source) if step <= int(newest.name)]
    try:
        for name in (*steps, FROZEN):
            if (source / name).exists():
                shutil.copytree(source / name, copied / name)
        metrics = newest / METRICS
        shutil.copyfile(metrics if metrics.exists() else source.parent / METRICS,
                        workdir / METRICS)
    except OSError as error:  # shutil.Error too
        raise ConfigError(f'config.init.resume_from = {str(source.parent)!r} cannot be copied '
                          f'({" ".join(str(error).split())}): let that run end first, and see that '
                          f'its files are whole.') from None
    if target.exists():
        shutil.rmtree(target)  # it holds nothing that was finished
    os.rename(copied, target)
    log.info('start    resume_from: goes on with the run in %s', source.parent)


def load_backbone(config: ConfigDict, model: Classifier) -> list[dict]:
    """Fills a model without a head by the rules above, except those of a run that goes on; returns
    the published weights that it goes back to, see `starting_weights`."""
    check_sources(config)
    spec = init_spec(config)
    if spec.resume_from:
        raise ConfigError(f'config.init.resume_from = {spec.resume_from!r}: heads on frozen '
                          f'features have no run to go on with; give config.init.from.')
    loaded = load_pretrained(config, model)
    if loaded:
        return [loaded]
    if not spec.source:
        log.info('start    scratch: random features, seed %d; give config.init.pretrained',
                 spec.seed)
        return []
    source = best_of(Path(spec.source))
    graphdef, params, batch_stats = split_model(model)
    adopted = adopt(Weights(params, {}, batch_stats), spec.target, source)
    nnx.update(model, nnx.state(nnx.merge(graphdef, adopted.params, adopted.batch_stats)))
    log.info('start    init: weights of %s', source)
    published = starting_weights.of_run(Path(spec.source))
    warn_of_licences(published)
    return published


def begin(spec: InitSpec, found: Path | None, state: TrainState, iterator, total: int
          ) -> Begun:
    """Applies the rules above to a freshly initialised state.

    Args:
        spec: what the run starts from.
        found: the newest good checkpoint of its own, or None.
        state: freshly initialised, or filled by `load_pretrained`.
        iterator: of the training batches; set to where the checkpoint was.
        total: length of the run in steps.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ConfigError: config.init.from does not hold a run, or its weights don't fit.
    """
    if found:
        state, host = restore(found, state, iterator)
        if host.best_step not in (None, *checkpoints.committed_steps(found.parent)):
            log.warning('start    the best checkpoint so far, step %d, is gone: the best of the '
                        'following ones will count.', host.best_step)
            host = host.replace(best_step=None, best_value=None)
        step = int(found.name)
        if step > total:
            raise ConfigError(f'{found} is beyond the end of this run ({total} steps): give a '
                              f'longer config.duration, or a new --workdir.')
        log.info('start    resume: from step %d of %d%s', step, total,
                 '; already finished, only evaluating' if step == total else '')
        log.info('         %s', found)
        return Begun(state, host, step)
    if spec.source:
        source = best_of(Path(spec.source))
        adopted = adopt(Weights(state.params, state.frozen, state.batch_stats), spec.target,
                        source)
        state = state.replace(params=adopted.params, frozen=adopted.frozen,
                              batch_stats=adopted.batch_stats)
        if state.ema is not None:
            state = state.replace(ema=dataclasses.replace(start_of_ema(state),
                                                          total=state.ema.total))
        log.info('start    init: weights of %s', source)
        warn_of_licences(starting_weights.of_run(Path(spec.source)))
    elif not spec.pretrained:
        log.info('start    scratch: random weights, seed %d', spec.seed)
    return Begun(state, HostState(), 0)


def restore(folder: Path, state: TrainState, iterator) -> tuple[TrainState, HostState]:
    """Reads a checkpoint into the shapes and shardings of `state`, and sets the iterator.

    Raises:
        CheckpointError: the frozen weights are damaged, missing, or not those of `state`.
    """
    stored, host = checkpoints.restore(folder, to_stored(state), iterator)
    return from_stored(stored).replace(teacher=state.teacher), HostState.from_json(host)


def best_weights(folder: Path, host: HostState, weights: Weights) -> tuple[Weights, HostState]:
    """The weights of the best checkpoint of this run, laid out like those given, and the host
    state. If that checkpoint is gone or damaged the given weights stay: the last step counts."""
    step = host.best_step
    assert step is not None  # else there is nothing to ask for
    if not checkpoints.use(folder, step):
        log.warning('The best checkpoint, of step %d, is lost: the weights of the last step count.',
                    step)
        return weights, host.replace(best_step=None)
    params, batch_stats = _read_learnt(folder / str(step), weights)
    return Weights(params, weights.frozen, batch_stats), host


def weights_for_inference(folder: Path, like: Weights) -> Weights:
    """The weights of a checkpoint, of the shapes and shardings of `like`.

    Raises:
        CheckpointError: it is damaged, or holds other frozen weights.
    """
    params, batch_stats = _read_learnt(folder, like)
    return Weights(params, place_frozen(folder.parent, like.frozen), batch_stats)


def _read_learnt(folder: Path, like: Weights) -> tuple[dict, dict]:
    """(params, batch_stats), averaged where the run has an average."""
    found = checkpoints.read_weights(folder, {PARAMS: like.params, BATCH_STATS: like.batch_stats})
    return found[PARAMS], found[BATCH_STATS]


def best_of(workdir: Path) -> Path:
    """The checkpoint whose weights `config.init.from` takes of a run.

    Raises:
        ConfigError: it has none. CheckpointError: see `best_checkpoint`.
    """
    best = best_checkpoint(workdir)
    if best is None:
        hint = 'give the workdir of a trained run.'
        if not workdir.exists():
            hint = neighbours(workdir, hint)
        raise ConfigError(f'config.init.from = {str(workdir)!r} has no checkpoints: {hint}')
    return best


def digest_of_best(workdir: Path) -> str:
    """The digest of the weights that `config.init.from` takes of a run, '' without any.

    Raises:
        CheckpointError, ConfigError: see `best_checkpoint`.
    """
    best = best_checkpoint(workdir)
    return '' if best is None else identity(best)


def best_checkpoint(workdir: Path) -> Path | None:
    """The best committed checkpoint of a run, the newest if none was scored; None without any.

    Raises:
        CheckpointError: the newest one, which would know, is damaged.
        ConfigError: result.json is damaged.
    """
    folder = workdir.absolute() / 'checkpoints'  # Orbax finds no relative paths
    steps = checkpoints.committed_steps(folder)
    if not steps:
        return None
    # An older run that was stopped in its last evaluation knows the best step only at its end.
    best = workdirs.best_step(workdir, steps[-1])
    if best is None:
        best = checkpoints.read_host(folder / str(steps[-1]))['best_step']
    if best not in (None, *steps):
        log.warning('%s has lost its best checkpoint, of step %d: the newest, of step %d, is '
                    'taken.', workdir, best, steps[-1])
    return folder / str(best if best in steps else steps[-1])
