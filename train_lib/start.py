"""How a run begins. The first of these that applies, and the log says which:

    resume      a checkpoint of its own in the workdir: everything as it was
    init        config.init.from, another workdir: its best weights, step 0
    pretrained  config.init.pretrained: published weights, or a file of them
    scratch     random weights from the seed

Pretrained weights are a file or a tag and never a workdir, so they cannot be mistaken for a run
that goes on.
"""

import dataclasses
import logging
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from models.heads import Classifier
from models.pretrained import load_timm
from models.tags import find_tag, tags_of
from models.weight_files import FILES
from train_lib import checkpoints
from train_lib.errors import ConfigError
from train_lib.loop import new_host_state
from train_lib.step import split_model

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Begun:
    """State and host state at the first step of this start."""

    state: dict
    host: dict
    step: int


def load_pretrained(config: ConfigDict, model: Classifier) -> bool:
    """Fills the model from config.init.pretrained, if that is what this run starts from.

    The classifier is left as it is (config.init.head='reset'), kept, or cut to size.

    Raises:
        ModelError: there are no such weights, or they don't fit; ConfigError: a wrong value, or
            two sources of weights.
    """
    init, name = config.init, config.model.name
    if not init.pretrained:
        return False
    if init['from']:
        raise ConfigError(f'config.init.from = {init["from"]!r} and config.init.pretrained = '
                          f'{init.pretrained!r} exclude each other: keep one of them.')
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
    """Fills a model without a head by the rules above, but for a checkpoint of its own."""
    if load_pretrained(config, model):
        return
    if not config.init['from']:
        log.info('start    scratch: random features, seed %d; give config.init.pretrained',
                 config.seed)
        return
    source = _best_of(Path(config.init['from']))
    graphdef, params, rest = split_model(model)
    adopted = _adopt(dict(params=params, frozen={}, rest=rest), _all_weights(source), source)
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
        log.info('start    init: weights of %s', source)
    elif not config.init.pretrained:
        log.info('start    scratch: random weights, seed %d', config.seed)
    return Begun(state, new_host_state(), 0)


def best_weights(folder: Path, host: dict, state: dict) -> dict:
    """params and rest of the best checkpoint of this run, laid out like `state`."""
    like = {key: state[key] for key in ('params', 'rest')}
    return checkpoints.read_weights(folder / str(host['best_step']), like)


def _all_weights(folder: Path) -> dict[str, np.ndarray]:
    """Every weight of a checkpoint by path, trained there or not."""
    stored = checkpoints.read_weights(folder)
    return {**checkpoints.read_frozen(folder.parent), **checkpoints.flat(stored.get('params', {})),
            **checkpoints.flat(stored.get('rest', {}))}


def _best_of(workdir: Path) -> Path:
    folder = workdir.absolute() / 'checkpoints'  # Orbax finds no relative paths
    steps = checkpoints.committed_steps(folder)
    if not steps:
        raise ConfigError(f'config.init.from = {str(workdir)!r} has no checkpoints: '
                          f'give the workdir of a trained run.')
    best = checkpoints.read_host(folder / str(steps[-1]))['best_step']
    return folder / str(best if best in steps else steps[-1])


def _adopt(state: dict, stored: dict[str, np.ndarray], source: Path,
           head: str = 'auto') -> dict:
    """The stored weights in the layout of `state`; heads of another size and new adapters stay
    as initialised, and with head='reset' all heads. What trained there may be frozen here, and
    the other way round."""
    ours = {key: state[key] for key in ('params', 'frozen', 'rest')}
    theirs, problems, new = dict(stored), [], []

    def adopt(path, leaf):
        name = jax.tree_util.keystr(path[1:], simple=True, separator='/')
        value = theirs.pop(name, None)
        anew = head == 'reset' and name.startswith(('head/', 'heads/'))
        if value is not None and value.shape == leaf.shape and not anew:
            return jax.device_put(np.asarray(value, leaf.dtype), leaf.sharding)
        if _is_new(name):
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
