"""The finished runs that workdirs and globs name, and the classes that they share."""

import glob
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from input_pipeline.class_names import nfc
from input_pipeline.sources import missing_path
from train_lib.predictions.run_folders import folds_of, missing_folds, natural
from train_lib.predictions.store import members_of
from train_lib.run_dir.workdirs import start_facts
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)
_SHOWN = 5


def finished_runs(patterns: Sequence[str], flag: str) -> list[Path]:
    """The runs that workdirs and globs name, each once; matches of a glob in natural order, without
    other folders.

    Args:
        patterns: at least one.
        flag: that gave them, for errors.

    Raises:
        ConfigError: a pattern names no run (the message has those near it), or a run or one of its
            folds is not finished.
    """
    found = [path for pattern in patterns for path in _runs(os.path.expanduser(pattern), flag)]
    unique = list({path.resolve(): path for path in reversed(found)}.values())[::-1]
    open_runs = {str(path): why for path in unique if (why := _unfinished(path))}
    if open_runs:
        shown = '; '.join(f'{name} {why}' for name, why in list(open_runs.items())[:_SHOWN])
        more = f'; and {len(open_runs) - _SHOWN} more' if len(open_runs) > _SHOWN else ''
        raise ConfigError(f'{len(open_runs)} of {len(unique)} runs of {flag} are not finished '
                          f'({shown}{more}): finish them, or name the others only (a fold by its '
                          f'own folder, as in {next(iter(open_runs))}/fold_0).')
    return unique


def _is_run(path: Path) -> bool:
    return path.is_dir() and ((path / 'config.json').is_file() or bool(folds_of(path)))


def _runs(pattern: str, flag: str) -> list[Path]:
    magic = glob.has_magic(pattern) and not os.path.isdir(pattern)
    paths = ([Path(path) for path in sorted(glob.glob(pattern, recursive=True), key=natural)]
             if magic else [Path(pattern)])
    found = [path for path in paths if _is_run(path)]
    if magic and found:
        others = [path for path in paths if path.is_dir() and path not in found]
        if others:
            log.info('runs     left out %d folders of %s that hold none', len(others), pattern)
        return found
    if found:
        return found
    below = _near(Path(pattern)) if os.path.isdir(pattern) else []
    if below:
        raise ConfigError(f'{flag}: {pattern!r} is not the workdir of a run, but holds '
                          f'{_listed(below)}: give {flag}={pattern.rstrip("/")}/{below[0]}, or '
                          f"'{pattern.rstrip('/')}/*'.")
    if os.path.isdir(pattern):
        raise ConfigError(f'{flag}: {pattern!r} is not the workdir of a run (config.json is '
                          f'missing): give that of a trained run.')
    above = Path(pattern).parent
    while magic and glob.has_magic(str(above)):
        above = above.parent
    near = _near(above) if above.is_dir() else []
    there = f' (the runs in {str(above)!r} are {_listed(near)})' if near else ''
    if not above.is_dir():
        there = f': {str(above)!r} {missing_path(str(above))}'
    what = f'matches no run{there}' if magic else f'{missing_path(pattern)}{there if near else ""}'
    raise ConfigError(f'{flag}: {pattern!r} {what}: give the workdirs of trained runs.')


def _near(folder: Path) -> list[str]:
    return sorted((path.name for path in folder.glob('*') if _is_run(path)), key=natural)


def _listed(names: Sequence[str]) -> str:
    return ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')


def _unfinished(run: Path) -> str:
    """What a run lacks, in words; '' if it is finished."""
    missing = missing_folds(run) if folds_of(run) else ''
    if missing:
        return f'has {missing}'
    started = [path.name for path in folds_of(run) if not (path / 'result.json').is_file()]
    if started:
        return f'has the unfinished folds {_listed(started)}'
    if folds_of(run) or (run / 'result.json').is_file():
        return ''
    return 'has no result.json'


def shared_classes(runs: Sequence[Path], heads: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """{head: classes} of all runs.

    Args:
        runs: at least one.
        heads: those wanted, in this order; () for all.

    Raises:
        ConfigError: they differ, or lack a head.
    """
    found = {run: classes_of(run) for run in runs}
    first = found[runs[0]]
    for run, classes in found.items():
        if set(classes) != set(first):
            raise ConfigError(f'{run} has the heads {_listed(list(classes))}, and {runs[0]} '
                              f'{_listed(list(first))}: submit runs of the same heads.')
        for head, names in first.items():
            if classes[head] != names:
                raise ConfigError(_difference(runs[0], run, head, names, classes[head]))
    unknown = [head for head in heads if head not in first]
    if unknown:
        raise ConfigError(f'config.heads names {unknown[0]!r}, and the runs have the heads '
                          f'{_listed(list(first))}: name some of these.')
    return {head: first[head] for head in heads or first}


def _difference(one: Path, other: Path, head: str, names: Sequence[str], others: Sequence[str]
                ) -> str:
    lacking = [f'{name!r}' for name in names if name not in set(others)]
    more = [f'{name!r}' for name in others if name not in set(names)]
    clauses = [f'{verb} {len(few)} classes ({_listed(few)})'
               for verb, few in (('lacks', lacking), ('adds', more)) if few]
    what = ' and '.join(clauses) or 'has them in another order'
    return (f'{other} has other classes of {head!r} than {one}: it {what}: submit runs of the same '
            f'config.data.classes.')


def multi_label_of(run: Path) -> tuple[str, ...]:
    """The heads with several labels per picture of a run or of its first fold.

    Raises:
        ConfigError: its predictions are missing.
    """
    first = (folds_of(run) or [run])[0]
    source = next((name for name in ('val', 'test', 'train', 'out_of_fold')
                   if (first / 'predictions' / f'{name}.npz').exists()), 'test')
    return members_of(first, source)[0].multi_label


def classes_of(run: Path) -> Mapping[str, tuple[str, ...]]:
    """{head: classes} of a run or of its first fold.

    Raises:
        ConfigError: it says so nowhere.
    """
    first = (folds_of(run) or [run])[0]
    known = start_facts(first).get('classes')
    if known is None:  # an older run
        source = next((name for name in ('train', 'val', 'test', 'out_of_fold')
                       if (first / 'predictions' / f'{name}.npz').exists()), 'test')
        known = members_of(first, source)[0].classes
    return {head: tuple(map(nfc, names)) for head, names in known.items()}
