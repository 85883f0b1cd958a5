"""The verb study: arms x seeds x folds -> a ledger of runs -> tables and report.html.

    python main.py study --config=configs/studies/digits.py --workdir=DIR --workers=2

The same command goes on where it was stopped or killed, and may be started on other machines at
the same time, as the jobs of a Slurm array for instance, if they share DIR. Worker processes run
the cells (worker.py); this one starts them anew when they die, shows what is done and writes the
tables. Exit codes: 0 all cells done, 1 some failed, 75 stopped, 2 a mistake of the user.
"""

import logging
import os
from pathlib import Path

from train_lib.commands.command_line import Command
from train_lib.run_dir import workdirs
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.signals import StopSignal
from train_lib.studies import definition, supervisor
from train_lib.studies.cell_results import read_cells
from train_lib.studies.stopping import unfinished
from train_lib.studies.tables import write_tables

log = logging.getLogger(__name__)
STOPPED = 75


def study_command(command: Command) -> int:
    """The verb study. Returns the exit code."""
    study = definition.read_study(command)
    if study.settings.workers < 1:
        raise ConfigError(f'config.study.workers = {study.settings.workers}: give 1 or more.')
    parent = os.environ.get(supervisor.PARENT)
    if parent:
        from train_lib.studies.worker import work

        definition.claim(study, command.workdir)
        return work(study, command.workdir, int(parent))
    workdir = command.workdir or workdirs.new(command.config_file, 'study')
    definition.claim(study, workdir)
    log.info('workdir  %s', workdir)
    log.info('study    %d arms x %d seeds%s: %d cells; metric %s', len(study.arms),
             len(study.seeds), f' x {len(study.folds)} folds' if study.folds[0] is not None else '',
             len(study.cells()), study.metric)
    with StopSignal() as stop:
        code = supervisor.supervise(study, workdir, command, stop)
    if code:
        return code
    write_tables(study, workdir)
    failed = int((read_cells(study, workdir)['status'] == 'failed').sum())
    if unfinished(study, workdir):
        log.info('Stopped. The same command with --workdir=%s goes on.', workdir)
        return STOPPED
    log.info('report   %s', Path(workdir) / 'report.html')
    return 1 if failed else 0
