"""The verb export: a trained run as files that work without this project, with a model card."""

import contextlib
import importlib
import inspect
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from input_pipeline.atomic_files import write_json, write_text
from input_pipeline.errors import did_you_mean, listed
from train_lib.commands.command import Command
from train_lib.run_dir import lock, made_folders
from train_lib.run_dir.json_files import read_json
from train_lib.runtime.errors import ConfigError
from train_lib.serving import exported_answers, model_card
from train_lib.serving.trained_models import TrainedModel, read_models

log = logging.getLogger(__name__)

# 'module:function' of each format, loaded only when it is asked for. The function takes a
# TrainedModel and an empty folder, writes its files there, and returns {file name: what it is},
# where the name of a folder ends with '/'. LOADING of its module says in the model card how the
# files are loaded; of models with a multi-label head LOADING_SETS goes on, if there is one.
FORMATS = {'stablehlo': 'train_lib.serving.export_stablehlo:write',
           'timm': 'train_lib.serving.export_timm:write',
           'onnx': 'train_lib.serving.export_onnx:write'}
RECORD = 'export.json'  # what a folder of ours holds, by which it is known again


def export(command: Command) -> int:
    """Writes --out, by default <workdir>/export/<format>. Returns the exit code.

    Raises:
        ConfigError, ModelError: a flag is wrong, the run cannot be read, or the format cannot hold
            its model.
    """
    form = _format(command.flags.get('format', ''))
    given = command.flags.get('out') or command.workdir / 'export' / form
    out = Path(os.path.realpath(given))  # not a link to it, whose place the folder would take
    _earlier(out)
    trained = read_models(command.workdir)
    unfinished = out.with_name(f'{out.name}.tmp')
    made = _make(out.parent)
    try:
        with _held(unfinished):  # a killed export leaves only this folder
            new, old = unfinished / 'new', unfinished / 'old'
            _remove(new)
            if old.exists() and not out.exists():  # killed between the two renames
                os.rename(old, out)
            earlier = _earlier(out)
            try:
                new.mkdir()
                _fill(new, command.workdir, form, trained)
                _replace(out, new, old, earlier)
            finally:
                _remove(new)
    finally:
        made_folders.remove_empty(made)  # of an export that was refused
    log.info('export   %s%s', given, ' (replaced)' if earlier else '')
    for path in sorted(out.iterdir()):
        log.info('         %-24s %12s', f'{path.name}{"/" if path.is_dir() else ""}', _size(path))
    return 0


def _format(given: str) -> str:
    if not given:
        raise ConfigError(f'--format is missing: give one of {", ".join(FORMATS)}.')
    if given not in FORMATS:
        raise ConfigError(f'--format={given}: there is no such format; '
                          f'{did_you_mean(given, FORMATS, show=str)}')
    return given


def _load(target: str) -> Callable[[TrainedModel, Path], dict[str, str]]:
    module, _, name = target.partition(':')
    return getattr(importlib.import_module(module), name)


def _earlier(out: Path) -> bool:
    """Whether there is an earlier export, which is going to be replaced.

    Raises:
        ConfigError: there is something else.
    """
    if not out.exists() and not out.is_symlink():
        return False
    if not out.is_dir():
        raise ConfigError(f'--out={out} is a file: give a folder, which is made.')
    if next(out.iterdir(), None) is None:
        return False
    try:
        known = {str(name) for name in read_json(out / RECORD)['files']}
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f'--out={out} is neither empty nor an export: give another folder, which '
                          f'is made.') from None
    found = _files(out)
    if found - known:
        raise ConfigError(f'--out={out} holds {listed(sorted(found - known))}, which the export '
                          f'there did not write: move it away, or give another folder.')
    return True


def _make(folder: Path) -> list[Path]:
    """As `made_folders.make`."""
    try:
        made = made_folders.make(folder)
    except OSError as error:
        raise ConfigError(f'{folder} cannot be made ({error.strerror}): give another --out.'
                          ) from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f'{folder} cannot be written to: give another --out.')
    return made


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    _make(folder)
    try:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock.held(folder))
            except ConfigError as error:
                raise ConfigError(str(error).replace('--workdir', '--out')) from None
            yield
    finally:
        with contextlib.suppress(OSError):  # a killed export made it, or another one holds it
            folder.rmdir()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _replace(out: Path, new: Path, old: Path, earlier: bool) -> None:
    """Puts the new folder in the place of the earlier export, which stays if that fails."""
    _remove(old)
    if earlier:
        os.rename(out, old)
    try:
        os.rename(new, out)
    except BaseException:
        if earlier:
            os.rename(old, out)
        raise
    _remove(old)


def _fill(folder: Path, workdir: Path, form: str, trained: list[TrainedModel]) -> None:
    """Writes everything. Each fold of a k-fold run has a folder of its own."""
    write = _load(FORMATS[form])
    files: dict[str, str] = {}
    for one in trained:
        own = folder / one.workdir.name if len(trained) > 1 else folder
        own.mkdir(exist_ok=True)
        files |= write(one, own)
    if len(trained) > 1 and (answers := exported_answers.answers_of(workdir, trained[0])):
        write_json(folder / exported_answers.NAME, answers)  # of all folds together
    loading = '\n\n'.join(filter(None, (getattr(inspect.getmodule(write), name, '') for name in (
        'LOADING', *(('LOADING_SETS',) if trained[0].multi_label else ())))))
    write_text(folder / model_card.NAME, model_card.card(workdir, trained, files, loading))
    write_json(folder / RECORD, dict(
        format=form, run=workdir.absolute().name, checkpoints=[one.digest for one in trained],
        files=sorted([*_files(folder), RECORD])))


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*')
            if not path.is_dir() and path.suffix != '.pyc'}


def _size(path: Path) -> str:
    size = sum(one.stat().st_size for one in ([path] if path.is_file() else path.rglob('*'))
               if one.is_file())
    return f'{size / 1e6:,.1f} MB' if size >= 1e5 else f'{size / 1e3:,.1f} kB'
