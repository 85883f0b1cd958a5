"""Checkpoints: Orbax writes them, a digest of every file commits them.

    checkpoints/<step>/             committed
        state/  data/  host/        Orbax: arrays, the data iterator, the host state
        metrics.jsonl               the rows until then
        digests.json                size and SHA-256 of every file (digests.py)
    checkpoints/frozen/             weights that do not train (frozen_weights.py)
    checkpoints/writing-<step>/     being written; never read, removed at the next start
    checkpoints/damaged-<step>-<k>/ set aside because its digests did not match

A step is written under its `writing-` name, the digests come last, and one rename commits
it: a process killed at any moment leaves either a whole checkpoint or a `writing-` folder. A step
that is saved again, after its evaluation, replaces the first save. If that takes two renames and a
kill comes between them, `latest_good` restores the first save.
So a committed folder whose digests are missing or wrong was damaged later, and is never
mistaken for an interrupted save.
"""

import ctypes
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from grain import checkpoint as grain_checkpoint

from train_lib.run_dir.digests import damage, write_digests
from train_lib.run_dir.frozen_weights import FROZEN, place_frozen, write_frozen
from train_lib.runtime import distributed
from train_lib.runtime.errors import CheckpointError
from train_lib.runtime.trees import by_path

REPLACED = 'writing-replaced-'
# Parts of a stored state. The format keeps the name 'rest' that batch_stats had in its first
# version, so that older runs can be resumed.
PARAMS, BATCH_STATS, EMA = 'params', 'rest', 'ema'
log = logging.getLogger(__name__)
Tree = Any  # a nested dict of arrays


def committed_steps(folder: Path) -> list[int]:
    """The steps with a committed checkpoint, ascending; their digests are not checked."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir()
                  if path.is_dir() and path.name.isdigit())


def latest_good(folder: Path) -> Path | None:
    """The newest checkpoint whose digests match. Damaged ones that are newer, and a damaged best
    one of the run, are set aside with a warning.

    With several processes the first one looks, and sends its answer to the others.

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
    """The newest checkpoint up to this step whose digests match; None if there is none."""
    return next((folder / str(found) for found in reversed(committed_steps(folder))
                 if found <= step and not damage(folder / str(found))), None)


def use(folder: Path, step: int) -> bool:
    """Whether this step has a checkpoint whose digests match; a damaged one is set aside."""
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
    """Saves in the background, keeps the newest few and the pinned, removes the others.

    Args:
        folder: `checkpoints` of a workdir; it is created.
        keep: how many of the newest are kept, at least 1.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = Path(folder).absolute()
        self._keep = max(keep, 1)
        self._primary = distributed.is_first()
        _stop_counting_bytes()
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._executor = ThreadPoolExecutor(1, thread_name_prefix='checkpoint')
        self._pending: Future | None = None
        if self._primary:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob('writing-*'):
                shutil.rmtree(leftover)

    def save(self, step: int, state: Mapping[str, Any], iterator: grain.DatasetIterator,
             host: Mapping[str, Any], pinned: Collection[int | None] = (),
             files: Mapping[str, bytes] | None = None) -> None:
        """Copies the state, then writes and commits it in the background. A checkpoint of the same
        step is replaced.

        Args:
            step: of the state.
            state: trees of arrays, by the names of the format.
            iterator: of the training batches.
            host: the host state, as JSON.
            pinned: steps whose checkpoints are kept, besides the newest.
            files: further files of the checkpoint, {name: content}.

        Raises:
            Exception: an earlier save failed; `wait` raises it too. It ends the run.
        """
        self.wait()
        target = self.folder / str(step)
        arrays = dict(state)
        frozen = arrays.pop('frozen', {})
        if frozen and not distributed.on_first((self.folder / FROZEN).exists):
            write_frozen(self.folder, frozen)
        writing = self.folder / f'writing-{step}'
        self._orbax.save(writing, args=ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            data=grain_checkpoint.CheckpointSave(iterator),
            host=ocp.args.JsonSave(dict(host))))
        self._pending = self._executor.submit(self._commit, writing, target, pinned, files or {})

    def _commit(self, writing: Path, target: Path, pinned: Collection[int | None],
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
        _make_durable(self.folder)  # before the older ones are removed
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
        """Removes every checkpoint of a later step: those steps will be done again."""
        self.wait()
        if self._primary:
            self._remove([later for later in reversed(committed_steps(self.folder))
                          if later > step])
        distributed.barrier('forgotten')

    def wait(self) -> None:
        """Returns when the last save is committed; raises the error if it failed."""
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


def _stop_counting_bytes() -> None:
    """Makes TensorStore answer at once that it has no metrics.

    Orbax asks for the bytes written so far twice per save, for a log line that is not shown here.
    TensorStore 0.1.86 never frees its answer: a run of 2,000 saves grew by 50 MiB. Nothing else in
    this process asks for these metrics.
    """
    tensorstore.experimental_collect_matching_metrics = lambda *args, **kwargs: []


def _exchange(left: Path, right: Path) -> bool:
    """Swaps two names in one step, as Linux can on most file systems; False if it cannot."""
    try:
        call = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call(here, os.fsencode(left), here, os.fsencode(right), exchange) == 0


def _make_durable(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def restore(folder: Path, state: Mapping[str, Any], iterator: grain.DatasetIterator
            ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a checkpoint, whose digests the caller has checked, and sets the iterator.

    Args:
        folder: of the checkpoint.
        state: trees of arrays by the names of the format, with the wanted shapes and shardings.
        iterator: of the training batches; it continues where the checkpoint was.

    Returns:
        (state, host state as JSON).

    Raises:
        CheckpointError: the frozen weights are damaged or missing, or something has another shape.
    """
    arrays = dict(state)
    frozen = place_frozen(folder.parent, arrays.pop('frozen', {}))
    _refuse_other_shapes(folder, arrays)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype,
                                          sharding=getattr(leaf, 'sharding', None)), arrays)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        loaded = reader.restore(folder.absolute(), args=ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), host=ocp.args.JsonRestore()))
    # Every process writes the same state of its iterator, so any number of processes may read it.
    written = min((folder / 'data').glob('process_*.json'))
    iterator.set_state(json.loads(written.read_text()))
    iterator.start_prefetch()
    return loaded.state | dict(frozen=frozen), loaded.host


def _stored_tree(folder: Path) -> Tree:
    """A checkpoint's arrays as Orbax describes them, {part: tree}; their leaves have a shape."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.metadata(folder.absolute() / 'state').item_metadata.tree


def _refuse_other_shapes(folder: Path, wanted: Tree, stored: Tree | None = None) -> None:
    """Orbax 0.12.8 compares shapes with those of arrays on devices only; into NumPy arrays and
    abstract ones of another shape or rank it reads whatever is stored."""
    there = by_path(_stored_tree(folder) if stored is None else stored)
    for name, leaf in by_path(wanted).items():
        shape = getattr(there.get(name), 'shape', None)
        if shape is not None and tuple(shape) != np.shape(leaf):
            raise CheckpointError(f'{folder} holds {name} of shape {tuple(shape)}, and '
                                  f'{np.shape(leaf)} is wanted: choose the config that it was '
                                  f'trained with.')


def read_host(folder: Path) -> dict[str, Any]:
    """The host state of a checkpoint, as JSON.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    _refuse_damaged(folder)
    return _read_host(folder)


def _read_host(folder: Path) -> dict[str, Any]:
    # The handler alone: a Checkpointer waits after reading until all processes of a pod have read,
    # and here it may be the first one that looks for the others.
    return dict(ocp.JsonCheckpointHandler().restore(folder / 'host'))


def _refuse_damaged(folder: Path) -> None:
    reason = damage(folder)
    if reason:
        raise CheckpointError(f'{folder} is damaged ({reason}): restore it from a backup, or start '
                              f'the training in its workdir again, which does not need it.')


def read_weights(folder: Path, like: Mapping[str, Tree] | None = None) -> dict[str, Tree]:
    """The weights of a checkpoint for inference: their moving average if it has one (config.ema),
    else those after its step. `read_frozen` reads those that do not train.

    Args:
        folder: a committed checkpoint, whose digests are checked.
        like: {PARAMS: tree, BATCH_STATS: tree} of arrays with the wanted shapes and shardings;
            None takes what is stored, as NumPy arrays.

    Returns:
        {PARAMS: tree, BATCH_STATS: tree}, the latter missing if it is empty and `like` is None.

    Raises:
        CheckpointError: the checkpoint is damaged, or holds another shape than `like`.
    """
    _refuse_damaged(folder)
    stored = _stored_tree(folder)
    averaged = EMA in stored
    if averaged:
        stored = stored[EMA]
    if like is not None:
        _refuse_other_shapes(folder, dict(like), stored)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        if like is None:
            wanted = {key: jax.tree.map(lambda leaf: 0, stored[key])
                      for key in (PARAMS, BATCH_STATS) if key in stored}
            arguments = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        else:
            wanted = dict(like)
            arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
        if averaged:
            wanted, arguments = {EMA: wanted}, {EMA: arguments}
        found = reader.restore(folder.absolute() / 'state', args=ocp.args.PyTreeRestore(
            item=wanted, restore_args=arguments, partial_restore=True))
        return found[EMA] if averaged else found
