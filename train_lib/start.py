"""How a run begins. The first of these that applies, and the log says which:

    resume      a checkpoint of its own in the workdir: everything as it was
    init        config.init.from, another workdir: its best weights, step 0
    pretrained  published weights; comes with models/pretrained.py
    scratch     random weights from the seed
"""

import dataclasses
import logging
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from train_lib import checkpoints
from train_lib.errors import ConfigError
from train_lib.loop import new_host_state

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Begun:
    """State and host state at the first step of this start."""

    state: dict
    host: dict
    step: int


def begin(config: ConfigDict, folder: Path, state: dict, iterator, total: int) -> Begun:
    """Applies the rules above to a freshly initialised state; `total` is the length of the run.

    Raises:
        CheckpointError: the workdir has checkpoints, and none is good.
        ConfigError: config.init.from is no run, or its weights don't fit.
    """
    found = checkpoints.latest_good(folder)
    if found:
        state, host = checkpoints.restore(found, state, iterator)
        step = int(found.name)
        if step > total:
            raise ConfigError(f'{found} is beyond the end of this run ({total} steps): give a '
                              f'longer config.duration, or a new --workdir.')
        log.info('start    resume: from step %d of %d (%s)%s', step, total, found,
                 '; already finished, only evaluating' if step == total else '')
        return Begun(state, host, step)
    if config.init['from']:
        source = _best_of(Path(config.init['from']))
        state = state | _adopt(state, checkpoints.read_weights(source), source)
        log.info('start    init: weights of %s', source)
    else:
        log.info('start    scratch: random weights, seed %d', config.seed)
    return Begun(state, new_host_state(), 0)


def best_weights(folder: Path, host: dict, state: dict) -> dict:
    """params and rest of the best checkpoint of this run, laid out like `state`."""
    like = {key: state[key] for key in ('params', 'rest')}
    return checkpoints.read_weights(folder / str(host['best_step']), like)


def _best_of(workdir: Path) -> Path:
    folder = workdir / 'checkpoints'
    steps = checkpoints.committed_steps(folder)
    if not steps:
        raise ConfigError(f'config.init.from = {str(workdir)!r} has no checkpoints: '
                          f'give the workdir of a trained run.')
    best = checkpoints.read_host(folder / str(steps[-1]))['best_step']
    return folder / str(best if best in steps else steps[-1])


def _adopt(state: dict, stored: dict, source: Path) -> dict:
    """The stored weights in the layout of `state`; heads of another size stay as initialised."""
    adopted, problems = {}, []
    for key in ('params', 'rest'):
        ours = jax.tree_util.tree_flatten_with_path(state[key])[0]
        theirs = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf
                  in jax.tree_util.tree_flatten_with_path(stored.get(key, {}))[0]}
        leaves = []
        for path, leaf in ours:
            name = jax.tree_util.keystr(path, simple=True, separator='/')
            value = theirs.pop(name, None)
            if value is not None and value.shape == leaf.shape:
                value = jax.device_put(np.asarray(value, leaf.dtype), leaf.sharding)
                leaves.append(value)
                continue
            leaves.append(leaf)
            if not name.startswith(('head/', 'heads/')):
                problems.append(f'{name} is missing' if value is None else
                                f'{name} is {value.shape} there and {leaf.shape} here')
            else:
                log.info('init     %s starts anew', name)
        problems += [f'{name} is unknown here' for name in theirs
                     if not name.startswith(('head/', 'heads/'))]
        adopted[key] = jax.tree.unflatten(jax.tree.structure(state[key]), leaves)
    if problems:
        raise ConfigError(f'The weights of {source} do not fit this model: '
                          f'{"; ".join(problems[:20])} ({len(problems)} in all); choose the same '
                          f'config.model.')
    return adopted
