"""The verb compare: workdirs beside each other.

    python main.py compare runs/*
    python main.py compare --workdirs='runs/a*,runs/b' --against=runs/b

    report.html    scores with intervals, paired differences, settings that differ, curves, time
    compare.csv    one row per run

No run is changed.
"""

import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from input_pipeline.atomic_files import write_text
from input_pipeline.errors import did_you_mean
from train_lib.commands.command import Command
from train_lib.run_dir import lock, workdirs
from train_lib.runtime.errors import ConfigError
from train_lib.studies.compare_table import Differences, as_csv, terminal_table
from train_lib.studies.compared_runs import (
    SPLITS,
    ComparedRun,
    Difference,
    differences,
    differing_knobs,
    find_runs,
    heads_of,
    read_runs,
    shortened,
)
from train_lib.studies.study_file import STUDY

_VALUE = 80  # characters of a setting on the page
log = logging.getLogger(__name__)


def compare(command: Command) -> int:
    """Prints a table, and writes the page and the CSV. Returns the exit code.

    Raises:
        ConfigError: a path does not exist, fewer than two of them hold a run, or --workdir holds
            another report.
    """
    if command.workdir and not _is_ours(command.workdir):
        raise ConfigError(f'--workdir={command.workdir} holds the report of something else: give '
                          f'a new folder for the comparison, or leave --workdir out.')
    paths = _paths(command)
    found, others = find_runs(paths)
    if len(found) < 2:
        raise ConfigError(f'compare needs the workdirs of two runs or more, and '
                          f'{_counted(len(found))} of {len(paths)} paths '
                          f'holds one: give more, as in `main.py compare runs/a runs/b`.')
    runs = read_runs(found)
    reference = _reference(runs, command.flags.get('against', ''))
    pairs = differences(runs, reference)
    for other in others:
        log.warning('%s holds no run (config.json is missing) and is left out', other)
    for line in terminal_table(runs, reference, pairs):
        print(line)
    for run in runs:
        if not run.done:
            log.warning('%s is not finished: only its curves are compared', run.name)
    workdir = command.workdir or workdirs.new('compare')
    with lock.held(workdir):
        write_text(workdir / 'compare.csv', as_csv(runs, reference, pairs))
        page = _write_page(workdir, runs, reference, pairs, others)
    log.info('report   %s', page)
    return 0


def _is_ours(workdir: Path) -> bool:
    """Whether a comparison may be written there: into an earlier one, or where no report is."""
    return (workdir / 'compare.csv').exists() or not any(
        (workdir / name).exists() for name in ('report.html', 'config.json', STUDY))


def _counted(number: int) -> str:
    return 'none' if number == 0 else str(number)


def _paths(command: Command) -> list[Path]:
    """Those behind the verb and those of --workdirs, each once."""
    found = []
    for word in command.words:
        path = Path(word)
        if not path.exists():
            near = sorted(str(one) for one in path.parent.glob('*')) if path.parent.is_dir() else ()
            raise ConfigError(f'There is no {word}; '
                              f'{did_you_mean(word, near, otherwise="check the path.")}')
        found.append(path)
    for pattern in filter(None, command.flags.get('workdirs', '').split(',')):
        matching = sorted(map(Path, glob.glob(os.path.expanduser(pattern.strip()))))
        if not matching:
            raise ConfigError(f'--workdirs: nothing matches {pattern.strip()!r}: check the path.')
        found += matching
    if not found:
        raise ConfigError('compare needs workdirs: give them as in `main.py compare runs/*`.')
    return list(dict.fromkeys(found))


def _reference(runs: Sequence[ComparedRun], against: str) -> ComparedRun:
    """The run that the others are compared with: the given one, else the first that is finished."""
    if not against:
        return next((run for run in runs if run.done), runs[0])
    wanted = Path(against).resolve()
    for run in runs:
        if against == run.name or run.workdir.resolve() == wanted:
            return run
    names = [run.name for run in runs]
    raise ConfigError(f'--against={against} is none of the runs that are compared; '
                      f'{did_you_mean(against, names, otherwise="give one of them.")}')


def _write_page(workdir: Path, runs: Sequence[ComparedRun], reference: ComparedRun,
                pairs: Differences, others: Sequence[Path]) -> Path:
    from train_lib.reporting.compare_page import write_compare_page  # loads matplotlib

    tables = []
    for head in heads_of(runs):
        splits = [split for split in SPLITS if (split, head) in pairs]
        rows = []
        for run in runs:
            of_run = {split: pairs[split, head].get(run.name, '') for split in splits}
            rows.append({split: dict(
                score=run.scores.get((split, head)),
                pair=one if isinstance(one, Difference) else None,
                why=one if isinstance(one, str) else '') for split, one in of_run.items()})
        tables.append(dict(head=head, splits=splits, rows=rows))
    return write_compare_page(
        workdir / 'report.html', tables=tables,
        knobs={key: shortened(values, _VALUE) for key, values in differing_knobs(runs).items()},
        runs=[dict(name=run.name, href=_report(run, workdir), done=run.done, notes=run.notes,
                   reference=run is reference, facts=run.facts) for run in runs],
        metrics=[run.metrics for run in runs], others=[str(path) for path in others])


def _report(run: ComparedRun, workdir: Path) -> str:
    """The address of its report from the page, '' without one."""
    page = run.workdir / 'report.html'
    return quote(os.path.relpath(page, workdir)) if page.is_file() else ''
