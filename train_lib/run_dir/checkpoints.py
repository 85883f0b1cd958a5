"""Checkpoints: Orbax writes them, a digest of every file commits them.

    checkpoints/<step>/             committed
        state/  data/  host/        Orbax: arrays, the data iterator, what the host knows
        metrics.jsonl               the rows until then
        digests.json                size and SHA-256 of every file (digests.py)
    checkpoints/frozen/             weights that don't train: written once, at the first save
        weights.safetensors  digests.json
    checkpoints/writing-<step>/     being written; never read, removed at the next start
    checkpoints/damaged-<step>-<k>/ set aside because its digests did not hold

A step is written under its `writing-` name, the digests come last, and one rename commits
it: a process killed at any moment leaves either a whole checkpoint or a `writing-` folder. A step
that is saved once more, with its evaluation, takes the place of the first. Where that takes two
renames and a kill comes between them, `latest_good` puts the first one back.
So a committed folder whose digests are missing or wrong was damaged later, and is never
mistaken for an interrupted save.
"""

import ctypes
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from grain import checkpoint as grain_checkpoint
from safetensors.numpy import load_file, save_file

from train_lib.run_dir import digests
from train_lib.run_dir.digests import damage, write_digests
from train_lib.runtime import distributed
from train_lib.runtime.errors import CheckpointError
from train_lib.runtime.sharding import gather, path_name, place

FROZEN = 'frozen'
REPLACED = 'writing-replaced-'
log = logging.getLogger(__name__)


def identity(folder: Path) -> str:
    """The digest of a committed checkpoint and of the frozen weights beside it."""
    hasher = hashlib.sha256()
    for path in (folder / digests.NAME, folder.parent / FROZEN / digests.NAME):
        if path.exists():
            hasher.update(path.read_bytes())
    return hasher.hexdigest()


def committed_steps(folder: Path) -> list[int]:
    """The steps with a committed checkpoint, ascending; their digests are not checked."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir()
                  if path.is_dir() and path.name.isdigit())


def latest_good(folder: Path) -> Path | None:
    """The newest checkpoint whose digests hold; damaged ones that are newer, and the best one of
    the run if that is damaged, are set aside, and said aloud.

    Of several processes the first one looks, and tells the others.

    Returns:
        None if none was ever committed.

    Raises:
        CheckpointError: there were checkpoints, and none of them is good.
    """
    name = distributed.on_first(lambda: _latest_good(folder))
    return None if name is None else folder / name


def _latest_good(folder: Path) -> str | None:
    for replaced in folder.glob(f'{REPLACED}*'):
        target = folder / replaced.name.removeprefix(REPLACED)
        if not target.exists():
            os.rename(replaced, target)
    steps = committed_steps(folder)
    aside = sorted(path.name for path in folder.glob('damaged-*')) if folder.is_dir() else []
    for step in reversed(steps):
        reason = damage(folder / str(step))
        if not reason:
            best = _read_host(folder / str(step)).get('best_step')
            if best not in (None, step):
                _use(folder, best)
            return str(step)
        aside.append(_set_aside(folder, step, reason))
    if aside:
        raise CheckpointError(f'{folder} holds no good checkpoint (damaged: {", ".join(aside)}): '
                              f'restore one from a backup, or start in a new workdir.')
    return None


def newest_good_until(folder: Path, step: int) -> Path | None:
    """The newest checkpoint of this step or before whose digests hold; None if there is none."""
    return next((folder / str(found) for found in reversed(committed_steps(folder))
                 if found <= step and not damage(folder / str(found))), None)


def use(folder: Path, step: int) -> bool:
    """Whether there is a checkpoint of this step whose digests hold; a damaged one is set aside."""
    return distributed.on_first(lambda: _use(folder, step))


def _use(folder: Path, step: int) -> bool:
    if not (folder / str(step)).is_dir():
        return False
    reason = damage(folder / str(step))
    if reason:
        _set_aside(folder, step, reason)
    return not reason


def _set_aside(folder: Path, step: int, reason: str) -> str:
    number = 1
    while (folder / f'damaged-{step}-{number}').exists():
        number += 1
    name = f'damaged-{step}-{number}'
    os.rename(folder / str(step), folder / name)
    log.warning('The checkpoint of step %d is damaged (%s); it is set aside as %s.',
                step, reason, folder / name)
    return name


class Checkpointer:
    """Saves in the background, keeps the newest few and the pinned, removes the rest."""

    def __init__(self, folder: Path, keep: int):
        self.folder = Path(folder).absolute()
        self._keep = max(keep, 1)
        self._primary = distributed.is_first()
        _count_no_bytes()
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._executor = ThreadPoolExecutor(1, thread_name_prefix='checkpoint')
        self._pending: Future | None = None
        if self._primary:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob('writing-*'):
                shutil.rmtree(leftover)

    def save(self, step: int, state: dict, iterator: grain.DatasetIterator, host: dict,
             pinned: Collection[int] = (), files: Mapping[str, bytes] | None = None) -> None:
        """Copies the state, and writes and commits it in the background, `files` with it. A
        checkpoint of the same step is replaced.

        Of the steps before, the newest and the `pinned` are kept. An error of an earlier save is
        raised here, or by `wait`: it ends the run.
        """
        self.wait()
        target = self.folder / str(step)
        state = dict(state)
        frozen = state.pop('frozen', {})
        if frozen and not distributed.on_first((self.folder / FROZEN).exists):
            write_frozen(self.folder, frozen)
        writing = self.folder / f'writing-{step}'
        self._orbax.save(writing, args=ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=grain_checkpoint.CheckpointSave(iterator),
            host=ocp.args.JsonSave(host)))
        self._pending = self._executor.submit(self._commit, writing, target, pinned, files or {})

    def _commit(self, writing: Path, target: Path, pinned: Collection[int],
                files: Mapping[str, bytes]) -> None:
        self._orbax.wait_until_finished()
        if not self._primary:
            return
        for name, content in files.items():
            (writing / name).write_bytes(content)
        write_digests(writing)
        replaced = self.folder / f'{REPLACED}{target.name}'
        if target.exists() and _exchange(writing, target):
            replaced = writing
        else:
            if target.exists():
                os.rename(target, replaced)
            os.rename(writing, target)
        _make_durable(self.folder)  # before the older ones go
        shutil.rmtree(replaced, ignore_errors=True)
        newest = committed_steps(self.folder)[-self._keep:]
        self._remove(step for step in committed_steps(self.folder)
                     if step not in newest and step not in pinned)

    def _remove(self, steps: Iterable[int]) -> None:
        for step in steps:
            # Renamed first: a half-removed folder must not look like a damaged checkpoint.
            doomed = self.folder / f'writing-removed-{step}'
            os.rename(self.folder / str(step), doomed)
            shutil.rmtree(doomed)

    def forget_after(self, step: int) -> None:
        """Removes every checkpoint of a later step: what they hold will be done anew."""
        self.wait()
        if self._primary:
            self._remove(reversed([later for later in committed_steps(self.folder)
                                   if later > step]))
        distributed.barrier('forgotten')

    def wait(self) -> None:
        """Returns when the last save is committed; raises what went wrong with it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
            distributed.barrier('checkpoint')  # the first process has committed it

    def close(self) -> None:
        """Waits, and ends the background thread."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            self._orbax.close()


def _count_no_bytes() -> None:
    """TensorStore (0.1.86) never frees its answer to what it has written so far. Orbax asks twice
    a save, for a line of a log that is not shown, and a run of 2,000 saves grew by 50 MiB."""
    tensorstore.experimental_collect_matching_metrics = lambda *args, **kwargs: []


def _exchange(left: Path, right: Path) -> bool:
    """Whether two names could be swapped in one go, which Linux can on most disks."""
    try:
        call = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call(here, os.fsencode(left), here, os.fsencode(right), exchange) == 0


def _make_durable(folder: Path) -> None:
    """The names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_frozen(folder: Path, frozen: dict) -> None:
    """Writes the weights that don't train, by path, once for all steps."""
    weights = {}
    for name, leaf in flat(frozen).items():
        value = gather(leaf)
        if distributed.is_first():
            weights[name] = value
    if not distributed.is_first():
        return
    writing = folder / f'writing-{FROZEN}'
    writing.mkdir(parents=True)
    save_file(weights, writing / 'weights.safetensors')
    write_digests(writing)
    os.rename(writing, folder / FROZEN)


def read_frozen(folder: Path) -> dict[str, np.ndarray]:
    """The weights of `write_frozen` by path, {} if all trained.

    Raises:
        CheckpointError: they are damaged.
    """
    if not (folder / FROZEN).exists():
        return {}
    reason = damage(folder / FROZEN)
    if reason:
        raise CheckpointError(f'{folder / FROZEN} is damaged ({reason}), and every checkpoint '
                              f'there needs it: restore it from a backup, or start anew.')
    return load_file(folder / FROZEN / 'weights.safetensors')


def place_frozen(folder: Path, like: dict) -> dict:
    """The weights of `write_frozen` with the shapes and shardings of the tree `like`; {} for {}.

    Raises:
        CheckpointError: they are damaged, missing, or not those of `like`.
    """
    stored = read_frozen(folder) if like else {}
    if {name: leaf.shape for name, leaf in flat(like).items()} != {
            name: leaf.shape for name, leaf in stored.items()}:
        raise CheckpointError(f'{folder / FROZEN} does not hold the frozen weights of this model: '
                              f'restore it, or start in a new workdir.')
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: place(stored[path_name(path)], leaf.sharding), like)


def flat(tree: dict) -> dict[str, jax.Array]:
    """A nested dict as one by path, such as 'blocks/0/attn/qkv/kernel'."""
    return {path_name(path): leaf
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def restore(folder: Path, state: dict, iterator: grain.DatasetIterator) -> tuple[dict, dict]:
    """Reads a checkpoint into the shapes and shardings of `state`, and sets the iterator.

    Returns:
        (state, what the host knew).

    Raises:
        CheckpointError: the frozen weights are damaged, missing, or not those of `state`.
    """
    state = dict(state)
    frozen = place_frozen(folder.parent, state.pop('frozen', {}))
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        loaded = reader.restore(folder, args=ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), host=ocp.args.JsonRestore()))
    # Every process writes the same state of its iterator, and any number of them may read it.
    written = min((folder / 'data').glob('process_*.json'))
    iterator.set_state(json.loads(written.read_text()))
    iterator.start_prefetch()
    return loaded.state | dict(frozen=frozen), loaded.host


def read_host(folder: Path) -> dict:
    """What the host knew when the checkpoint was written.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    _refuse_damaged(folder)
    return _read_host(folder)


def _read_host(folder: Path) -> dict:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        return reader.restore(folder, args=ocp.args.Composite(host=ocp.args.JsonRestore())).host


def _refuse_damaged(folder: Path) -> None:
    reason = damage(folder)
    if reason:
        raise CheckpointError(f'{folder} is damaged ({reason}): restore it from a backup, or start '
                              f'the training in its workdir again, which does without it.')


def read_weights(folder: Path, like: dict | None = None) -> dict:
    """The weights of a checkpoint for inference, dict(params, rest): their moving average if it
    has one (config.ema), else those that the last step left. Frozen ones: `read_frozen`.

    Args:
        folder: a committed checkpoint, whose digests are checked.
        like: dict(params, rest) of arrays with the wanted shapes and shardings; None takes what
            is stored, as NumPy arrays.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    _refuse_damaged(folder)
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as reader:
        stored = reader.metadata(folder / 'state').item_metadata.tree
        averaged = 'ema' in stored
        if averaged:
            stored = stored['ema']
        if like is None:
            wanted = {key: jax.tree.map(lambda leaf: 0, stored[key]) for key in ('params', 'rest')
                      if key in stored}
            arguments = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        else:
            wanted = like
            arguments = ocp.checkpoint_utils.construct_restore_args(like)
        if averaged:
            wanted, arguments = {'ema': wanted}, {'ema': arguments}
        found = reader.restore(folder / 'state', args=ocp.args.PyTreeRestore(
            item=wanted, restore_args=arguments, partial_restore=True))
        return found['ema'] if averaged else found
