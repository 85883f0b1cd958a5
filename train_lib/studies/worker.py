"""A process that runs cells one after another, as long as there are any that nobody holds.

What a cell logs goes to log.txt in its folder. An exception ends the cell, not the worker:
error.txt holds its traceback, and cell.json one line of it.
"""

import contextlib
import gc
import logging
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from input_pipeline.atomic_files import write_text
from input_pipeline.errors import DataError
from input_pipeline.manifest import CONTENT
from input_pipeline.splits import several_folds
from models.errors import ModelError
from train_lib.probing.probe_losses import check_losses
from train_lib.probing.probe_spec import read_probe_spec
from train_lib.run_dir import ancestors, lock, seen_rows
from train_lib.run_dir.code_digest import code_digest
from train_lib.runtime.errors import ConfigError, disk_trouble, no_room
from train_lib.runtime.sharding import make_mesh
from train_lib.runtime.signals import (
    STOPPED,
    Interrupted,
    Left,
    Paused,
    Stopped,
    StopSignal,
    leaving_at_once,
)
from train_lib.studies import ledger
from train_lib.studies.definition import Cell, Study
from train_lib.studies.heartbeat import Heartbeat
from train_lib.studies.search import next_rung, note_rung, stop_hopeless
from train_lib.studies.stopping import open_cells
from train_lib.training.checks import check_values
from train_lib.training.data import load_data, load_manifest, split_data
from train_lib.training.row_splits import split_rows
from train_lib.training.setup import assemble

RunCell = Callable[..., object]  # (config, manifest, workdir), of trials also pause=


def work(study: Study, workdir: Path, run_cell: RunCell, parent: int | None = None) -> int:
    """Runs cells until there is none left to take.

    Args:
        study: see `read_study`.
        workdir: of the study.
        run_cell: trains and evaluates one run in its workdir, whose lock is held.
        parent: pid of the process that started this one; once it is dead, the worker saves and
            stops.

    Returns:
        The exit code: 0, or STOPPED if the worker was told to stop.

    Raises:
        ConfigError, DataError, ModelError: an arm that cannot run, before any cell begins; or
            the disk is full.
    """
    check_arms(study, workdir)
    try:
        return _work(study, workdir, run_cell, parent)
    except Exception as error:
        if no_room(error):  # not the fault of a cell, and the next ones would fail too
            raise ConfigError(disk_trouble(error)) from error
        raise


def _work(study: Study, workdir: Path, run_cell: RunCell, parent: int | None) -> int:
    code = code_digest()
    with StopSignal() as stop:
        while not stop():
            taken = _take_first(study, workdir, code)
            if taken is None:
                return 0
            cell, lease = taken
            try:
                with Heartbeat(lease, lambda: _stop_if_orphaned(parent)):
                    outcome = _run(cell, lease.folder, run_cell)
            except Exception:  # such as a full disk
                with contextlib.suppress(OSError):
                    lease.give_back()
                raise
            if outcome is None:
                lease.give_back()
                return STOPPED
            if outcome['status'] == 'paused':
                lease.give_back()
                continue
            ledger.finish(lease, **outcome)
            if outcome['status'] == 'done':
                ledger.tidy(lease.folder, study.settings.keep_checkpoints)
    return STOPPED


def _take_first(study: Study, workdir: Path, code: str) -> tuple[Cell, ledger.Lease] | None:
    """The first open cell that nobody holds; this process holds it now."""
    stop_hopeless(study, workdir, code)
    for cell in open_cells(study, workdir):
        lease = ledger.take(workdir / cell.folder, code)
        if lease:
            return cell, lease
    return None


def _stop_if_orphaned(parent: int | None) -> None:
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _run(cell: Cell, folder: Path, run_cell: RunCell) -> dict | None:
    """Runs a cell, or a trial to its next rung. Returns the facts for cell.json, with the status
    'paused' at a rung, or None if the run was told to stop."""
    before = _peak_memory()
    (folder / 'error.txt').unlink(missing_ok=True)
    with _log_to(folder / 'log.txt'):
        try:
            with leaving_at_once(), lock.held(folder):
                config, rung = cell.config(), next_rung(cell, folder)
                pause = dict(pause=cell.rungs[rung - 1]) if rung else {}
                try:
                    run_cell(config, load_data(config, folder), folder, **pause)
                except Paused as paused:
                    note_rung(cell, folder, rung, paused.step, paused.steps)
                    return dict(status='paused')
        except (Stopped, Interrupted, Left):
            return None
        except Exception as error:
            if no_room(error):
                raise
            text = ''.join(traceback.format_exception(error))
            write_text(folder / 'error.txt', text)
            line = ' '.join(str(error).split())
            return dict(status='failed', error=f'{type(error).__name__}: {line}'[:500])
        finally:
            gc.collect()  # frees the arrays of this cell before the next one needs memory
    after = _peak_memory()
    return dict(status='done', memory_bytes=after, memory_is_of_this_cell=after > before)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: a full disk is reported by the run."""


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """In the block, everything that is logged is appended to this file and goes nowhere else."""
    root = logging.getLogger()
    before, handler = root.handlers[:], _LogFile(path, encoding='utf-8')
    handler.setFormatter(logging.Formatter('%(message)s'))
    root.handlers[:] = [handler]
    try:
        yield
    finally:
        root.handlers[:] = before
        with contextlib.suppress(OSError):
            handler.close()


def _peak_memory() -> int:
    """The most bytes used so far: on the fullest device, or by this process if the devices do not
    tell."""
    peaks = [(device.memory_stats() or {}).get('peak_bytes_in_use', 0)
             for device in jax.local_devices()]
    unit = 1 if sys.platform == 'darwin' else 1024
    return max(peaks) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def check_arms(study: Study, workdir: Path) -> None:
    """Assembles every arm none of whose runs has finished, without weights, and discards it.

    Raises:
        ConfigError: an arm cannot run; the message names it.
    """
    cells = {cell.arm.name: cell for cell in reversed(study.cells())}
    for name, cell in cells.items():
        if list((workdir / cell.arm.folder).glob('*/result.json')):
            continue
        try:
            _check(cell.config(), workdir)
            _check_ancestors([one for one in study.cells() if one.arm.name == name])
        except (ConfigError, DataError, ModelError) as error:
            raise ConfigError(f'The arm {name!r} cannot run: {error}') from None


def _check(config: ConfigDict, workdir: Path) -> None:
    """Prepares a run as far as it needs neither weights nor images."""
    manifest = load_manifest(config)
    if config.probe.heads:
        check_values(config, 1)
        check_losses(config, read_probe_spec(config), manifest)
        return
    mesh = make_mesh(config.mesh)
    check_values(config, mesh.size)
    folds = several_folds(config.split)
    if folds is not None:
        with config.unlocked(), config.ignore_type():
            config.split.fold = folds[0]
    assemble(config, split_data(config, manifest), mesh, None, workdir,
             abstract=True).iterator.close()


def _check_ancestors(cells: Sequence[Cell]) -> None:
    """Refuses an arm that one of its seeds or folds would refuse: rows that an ancestor trained
    on."""
    manifest = None
    for cell in cells:
        config = cell.config()
        if config.init.seen == 'accept' or (
                config.split.kind == 'kfold' and not isinstance(config.split.fold, int)):
            return  # said, or refused, when the cell begins
        found = ancestors.of_start(config, lambda workdir: '')
        if not found.rows:
            continue
        manifest = manifest or load_manifest(config)
        if CONTENT in manifest.table:
            return  # only the contents of the pictures say what is split
        try:
            seen_rows.check(config, found, split_rows(config, manifest, None))
        except ConfigError as error:
            fold = '' if cell.fold is None else f', fold {cell.fold}'
            raise ConfigError(f'seed {cell.seed}{fold}: {error}') from None
