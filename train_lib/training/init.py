"""How a run begins. The first of these that applies, and the log says which:

    resume      a checkpoint of its own in the workdir: everything as it was
    resume_from config.init.resume_from, another workdir: its checkpoints are copied into this one,
                and become its own
    init        config.init.from, another workdir: its best weights, step 0
    pretrained  config.init.pretrained: published weights, or a file of them
    scratch     random weights from the seed

Of the three that are asked for, one may be. Pretrained weights are a file or a tag and never a
workdir, so they cannot be mistaken for a run that goes on.
"""

import dataclasses
import logging
import os
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from models.heads import Classifier
from models.pretrained import load_timm
from models.tags import find_tag, tags_of
from models.weight_files import FILES
from train_lib.run_dir import checkpoints, workdirs
from train_lib.run_dir.metrics_log import METRICS
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharding import path_name, place
from train_lib.training.loop import new_host_state
from train_lib.training.step import split_model, start_of_ema

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Begun:
    """State and host state at the first step of this start."""

    state: dict
    host: dict
    step: int


def check_sources(config: ConfigDict) -> None:
    """Refuses two of resume_from, from and pretrained.

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
    pretrained weights also say how pictures are prepared.

    Raises:
        ConfigError: there is no such run, or more than one source is given.
    """
    if not config.init.resume_from:
        check_sources(config)
        return config
    known = workdir if (workdir / 'config.json').exists() else Path(config.init.resume_from)
    if not (known / 'config.json').exists():
        raise ConfigError(f'config.init.resume_from = {str(known)!r} holds no run (config.json is '
                          f'missing): give the workdir of a run.')
    theirs = workdirs.saved_config(known).init
    for key in ('from', 'pretrained'):
        # The same command with resume_from added is no contradiction.
        if config.init[key] and config.init[key] != theirs[key]:
            raise ConfigError(f'config.init.resume_from = {config.init.resume_from!r} and '
                              f'config.init.{key} = {config.init[key]!r} exclude each other: keep '
                              f'one of them.')
    config = config.copy_and_resolve_references()
    config.init.update({key: value for key, value in theirs.items() if key != 'resume_from'})
    return config


def source_checkpoint(config: ConfigDict, data_digest: str) -> Path:
    """The newest good checkpoint of the run that config.init.resume_from names.

    Raises:
        ConfigError: it has other settings, other data, or no checkpoint.
    """
    source = Path(config.init.resume_from)
    workdirs.check_same(source, config, data_digest,
                        remedy='take only its weights, by config.init.from')
    found = checkpoints.newest_good_until(source / 'checkpoints', sys.maxsize)
    if found is None:
        raise ConfigError(f'config.init.resume_from = {str(source)!r} has no good checkpoint: '
                          f'give the workdir of a run that saved one.')
    return found


def copy_run(config: ConfigDict, workdir: Path, data_digest: str) -> None:
    """Copies checkpoints and metrics of config.init.resume_from into a workdir without any.

    The checkpoints appear there all at once, so a start that is killed here is none.

    Raises:
        ConfigError: see `source_checkpoint`.
    """
    newest = source_checkpoint(config, data_digest)
    source, target = newest.parent, workdir / 'checkpoints'
    copied = workdir / 'writing-checkpoints'
    shutil.rmtree(copied, ignore_errors=True)
    copied.mkdir()
    steps = [str(step) for step in checkpoints.committed_steps(source) if step <= int(newest.name)]
    try:
        for name in (*steps, checkpoints.FROZEN):
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


def load_pretrained(config: ConfigDict, model: Classifier) -> bool:
    """Fills the model from config.init.pretrained, if that is what this run starts from.

    The classifier is left as it is (config.init.head='reset'), kept, or cut to size.

    Raises:
        ModelError: there are no such weights, or they don't fit; ConfigError: a wrong value.
    """
    init, name = config.init, config.model.name
    if not init.pretrained:
        return False
    tag = find_tag(name, init.pretrained)
    source = init.pretrained
    is_file = source.endswith(FILES) or Path(source).exists()
    if tag and not is_file:
        source = tag.repository
    elif not tag and not is_file and '/' not in source:
        known = [tag.tag for tag in tags_of(name)]
        raise ConfigError(f'config.init.pretrained = {source!r} is no file, no repository '
                          f'(owner/name) and no tag of {name}: '
                          f'{"choose one of " + ", ".join(known) if known else "it has no tags"}.')
    head = 'reset' if init.head == 'auto' else init.head
    for note in load_timm(model, source, head=head):
        log.info('init     %s', note)
    log.info('start    pretrained: %s, head %s', source, head)
    return True


def load_backbone(config: ConfigDict, model: Classifier) -> None:
    """Fills a model without a head by the rules above, but for those of a run that goes on."""
    check_sources(config)
    if config.init.resume_from:
        raise ConfigError(f'config.init.resume_from = {config.init.resume_from!r}: heads on frozen '
                          f'features have no run to go on with; give config.init.from.')
    if load_pretrained(config, model):
        return
    if not config.init['from']:
        log.info('start    scratch: random features, seed %d; give config.init.pretrained',
                 config.seed)
        return
    source = _best_of(Path(config.init['from']))
    graphdef, params, rest = split_model(model)
    adopted = _adopt(dict(params=params, frozen={}, rest=rest), _all_weights(source), source,
                     config.init.head)
    nnx.update(model, nnx.state(nnx.merge(graphdef, adopted['params'], adopted['rest'])))
    log.info('start    init: weights of %s', source)


def begin(config: ConfigDict, found: Path | None, state: dict, iterator, total: int) -> Begun:
    """Applies the rules above to a freshly initialised state.

    Args:
        config: of the run.
        found: the newest good checkpoint of its own, or None.
        state: freshly initialised, or filled by `load_pretrained`.
        iterator: of the training batches; set to where the checkpoint was.
        total: length of the run in steps.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ConfigError: config.init.from is no run, or its weights don't fit.
    """
    if found:
        state, host = checkpoints.restore(found, state, iterator)
        host = new_host_state() | host  # an older one knew less
        if host['best_step'] not in (None, *checkpoints.committed_steps(found.parent)):
            log.warning('start    the best checkpoint so far, step %d, is gone: the best of what '
                        'follows will count.', host['best_step'])
            host |= dict(best_step=None, best_value=None)
        step = int(found.name)
        if step > total:
            raise ConfigError(f'{found} is beyond the end of this run ({total} steps): give a '
                              f'longer config.duration, or a new --workdir.')
        log.info('start    resume: from step %d of %d (%s)%s', step, total, found,
                 '; already finished, only evaluating' if step == total else '')
        return Begun(state, host, step)
    if config.init['from']:
        source = _best_of(Path(config.init['from']))
        state = state | _adopt(state, _all_weights(source), source, config.init.head)
        if 'ema' in state:
            state['ema'] = start_of_ema(state)
        log.info('start    init: weights of %s', source)
    elif not config.init.pretrained:
        log.info('start    scratch: random weights, seed %d', config.seed)
    return Begun(state, new_host_state(), 0)


def best_weights(folder: Path, host: dict, weights: dict) -> tuple[dict, dict]:
    """(weights, host) with params and rest of the best checkpoint of this run, laid out like those
    given, which stay if it is gone or damaged: then the last step counts."""
    step = host['best_step']
    if not checkpoints.use(folder, step):
        log.warning('The best checkpoint, of step %d, is lost: the weights of the last step count.',
                    step)
        return weights, host | dict(best_step=None)
    like = {key: weights[key] for key in ('params', 'rest')}
    return weights | checkpoints.read_weights(folder / str(step), like), host


def weights_for_inference(folder: Path, like: dict) -> dict:
    """params, frozen and rest of a checkpoint, of the shapes and shardings of `like`.

    Raises:
        CheckpointError: it is damaged, or holds other frozen weights.
    """
    found = checkpoints.read_weights(folder, {key: like[key] for key in ('params', 'rest')})
    return found | dict(frozen=checkpoints.place_frozen(folder.parent, like['frozen']))


def _all_weights(folder: Path) -> dict[str, np.ndarray]:
    """Every weight of a checkpoint by path, trained there or not."""
    stored = checkpoints.read_weights(folder)
    return {**checkpoints.read_frozen(folder.parent), **checkpoints.flat(stored.get('params', {})),
            **checkpoints.flat(stored.get('rest', {}))}


def _best_of(workdir: Path) -> Path:
    best = best_checkpoint(workdir)
    if best is None:
        raise ConfigError(f'config.init.from = {str(workdir)!r} has no checkpoints: '
                          f'give the workdir of a trained run.')
    return best


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


def _adopt(state: dict, stored: dict[str, np.ndarray], source: Path,
           head: str = 'auto') -> dict:
    """The stored weights in the layout of `state`; heads of another size and new adapters stay
    as initialised, and with head='reset' all heads. What trained there may be frozen here, and
    the other way round."""
    ours = {key: state[key] for key in ('params', 'frozen', 'rest')}
    theirs, problems, new = dict(stored), [], []

    def adopt(path, leaf):
        name = path_name(path[1:])
        value = theirs.pop(name, None)
        anew = head == 'reset' and name.startswith(('head/', 'heads/'))
        if value is not None and value.shape == leaf.shape and not anew:
            return place(np.asarray(value, leaf.dtype), leaf.sharding)
        if _is_new(name) and not (head == 'keep' and value is not None):
            new.append(name)
        else:
            problems.append(f'{name} is missing' if value is None else
                            f'{name} is {value.shape} there and {leaf.shape} here')
        return leaf

    adopted = jax.tree_util.tree_map_with_path(adopt, ours)
    problems += [f'{name} is unknown here' for name in theirs if not _is_new(name)]
    if problems:
        raise ConfigError(f'The weights of {source} do not fit this model: '
                          f'{"; ".join(problems[:20])} ({len(problems)} in all); choose the same '
                          f'config.model.')
    if new:
        log.info('init     %s start%s anew', ', '.join(new) if len(new) < 3 else
                 f'{new[0]} and {len(new) - 1} more', 's' * (len(new) == 1))
    return adopted


def _is_new(name: str) -> bool:
    return name.startswith(('head/', 'heads/')) or name.endswith(('/lora_a', '/lora_b'))
