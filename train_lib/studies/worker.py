"""A process that runs cells, one after another, as long as there are any that nobody has.

What a cell says goes to log.txt in its folder. An exception is the end of the cell and not of the
worker: error.txt holds it, and cell.json one line of it.
"""

import contextlib
import gc
import logging
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

import jax

from input_pipeline.errors import DataError
from models.errors import ModelError
from train_lib.probing.run_probe import head_kinds
from train_lib.run_dir import lock
from train_lib.run_dir.code_digest import code_digest
from train_lib.run_dir.metrics_log import write_text
from train_lib.runtime.errors import ConfigError, disk_trouble, no_room
from train_lib.runtime.sharding import make_mesh
from train_lib.runtime.signals import Left, StopSignal, leaving_at_once
from train_lib.studies import ledger
from train_lib.studies.definition import Cell, Study
from train_lib.studies.stopping import open_cells
from train_lib.training import run
from train_lib.training.evaluate import Interrupted
from train_lib.training.loop import Stopped
from train_lib.training.setup import arrange, assemble, check_values

STOPPED = 75


def work(study: Study, workdir: Path, parent: int | None = None) -> int:
    """Runs cells until nobody is left to take.

    Args:
        study: see `read_study`.
        workdir: of the study.
        parent: pid of the process that started us; when it is gone, we stop and save.

    Returns:
        The exit code: 0, or 75 if told to stop.

    Raises:
        ConfigError, DataError, ModelError: an arm that cannot run, before any cell is begun; or
            the disk is full.
    """
    check_arms(study, workdir)
    try:
        return _work(study, workdir, parent)
    except Exception as error:
        if no_room(error):  # no fault of a cell, and the next ones would fail of it too
            raise ConfigError(disk_trouble(error)) from error
        raise


def _work(study: Study, workdir: Path, parent: int | None) -> int:
    code = code_digest()
    with StopSignal() as stop:
        while not stop():
            for cell in open_cells(study, workdir):
                lease = ledger.take(workdir / cell.folder, code)
                if lease:
                    break
            else:
                return 0
            try:
                with ledger.Heart(lease, lambda: _stop_if_orphaned(parent)):
                    outcome = _run(cell, lease.folder)
            except Exception:  # a disk that is full, for one
                with contextlib.suppress(OSError):
                    lease.give_back()
                raise
            if outcome is None:
                lease.give_back()
                return STOPPED
            ledger.finish(lease, **outcome)
            if outcome['status'] == 'done':
                ledger.tidy(lease.folder, study.settings.keep_checkpoints)
    return STOPPED


def _stop_if_orphaned(parent: int | None) -> None:
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _run(cell: Cell, folder: Path) -> dict | None:
    """Facts for cell.json, or None if the run was told to stop."""
    before = _peak_memory()
    (folder / 'error.txt').unlink(missing_ok=True)
    with _log_to(folder / 'log.txt'):
        try:
            with leaving_at_once(), lock.held(folder):
                config = cell.config()
                run.run_any(config, run.load_data(config, folder), folder)
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
            gc.collect()  # the arrays of this cell, before the next one asks for memory
    after = _peak_memory()
    return dict(status='done', memory_bytes=after, memory_is_of_this_cell=after > before)


@contextlib.contextmanager
def _log_to(path: Path):
    """What is logged in the block is appended to a file, and nowhere else."""
    root = logging.getLogger()
    before, handler = root.handlers[:], logging.FileHandler(path, encoding='utf-8')
    handler.setFormatter(logging.Formatter('%(message)s'))
    handler.handleError = lambda record: None  # a full disk will be said otherwise
    root.handlers[:] = [handler]
    try:
        yield
    finally:
        root.handlers[:] = before
        with contextlib.suppress(OSError):
            handler.close()


def _peak_memory() -> int:
    """The most bytes so far: of the fullest device, or of this process where devices don't tell."""
    peaks = [(device.memory_stats() or {}).get('peak_bytes_in_use', 0)
             for device in jax.local_devices()]
    unit = 1 if sys.platform == 'darwin' else 1024
    return max(peaks) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def check_arms(study: Study, workdir: Path) -> None:
    """Puts every arm together that no run has ended of, without weights, and lets it go again.

    Raises:
        ConfigError: an arm cannot run; it is named.
    """
    cells = {cell.arm.name: cell for cell in reversed(study.cells())}
    for name, cell in cells.items():
        if list((workdir / cell.arm.folder).glob('*/result.json')):
            continue
        config = cell.config()
        try:
            manifest = run.load_manifest(config)
            if config.probe.heads:
                head_kinds(config)
                continue
            mesh = make_mesh(config.mesh)
            check_values(config, mesh.size)
            every = config.split.kind == 'kfold' and str(config.split.fold) == 'all'
            if every:
                with config.unlocked(), config.ignore_type():
                    config.split.fold = 0
            assemble(config, arrange(config, manifest), mesh, None, workdir,
                     abstract=True).iterator.close()
        except (ConfigError, DataError, ModelError) as error:
            raise ConfigError(f'The arm {name!r} cannot run: {error}') from None


