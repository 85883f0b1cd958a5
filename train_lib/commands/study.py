"""The verb study: arms x seeds x folds -> a ledger of runs -> tables and report.html.

    python main.py study --config=configs/studies/digits.py --workdir=DIR --workers=2

The same command resumes a study that was stopped or killed. It may be started on several machines
at the same time, for instance as the jobs of a Slurm array, if they share DIR. Worker processes run
the cells (studies/worker.py); this process replaces workers that die, shows what is done and writes
the tables. With --launcher=slurm the workers are jobs (studies/slurm_jobs.py). Exit codes: 0 all
cells done, 1 some failed, 75 stopped, 2 a mistake of the user.
"""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from input_pipeline.errors import counted
from train_lib.commands.command import Command
from train_lib.run_dir import made_folders, workdirs
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.signals import STOPPED, StopSignal
from train_lib.studies import slurm_jobs
from train_lib.studies.cell_results import read_cells
from train_lib.studies.definition import Study, read_study
from train_lib.studies.search import current, score_name
from train_lib.studies.search_table import SEARCH_TABLES
from train_lib.studies.stopping import unfinished
from train_lib.studies.study_file import STUDY, claim
from train_lib.studies.supervisor import LOGS, PARENT, of_this_process, supervise
from train_lib.studies.tables import TABLES, write_tables

log = logging.getLogger(__name__)


def study_command(command: Command) -> int:
    """The verb study. Returns the exit code."""
    study = study_of(command)
    on_slurm = study.settings.launcher == 'slurm'
    if on_slurm:
        slurm_jobs.check_launcher()
    workdir = command.workdir or workdirs.new(command.config_file, 'study')
    begun = (workdir / STUDY).exists()
    made = claim(study, workdir)
    parent = os.environ.get(PARENT)
    if parent:
        return _work(study, workdir, int(parent))
    log.info('workdir  %s', workdir)
    _announce(study)
    in_job = slurm_jobs.JOB in os.environ
    if in_job:
        slurm_jobs.note_begin()
    with StopSignal() as stop:
        code = (_supervise_jobs(study, command, workdir, stop) if on_slurm else
                supervise(study, workdir, worker_command(command, workdir), stop, leave=in_job))
        stopped = stop()
    if in_job:
        return _leave_job(study, workdir, code, stopped)
    if code == 2 and not begun and not any((workdir / arm.folder).exists() for arm in study.arms):
        _withdraw(workdir, made)
    if code:
        return code
    write_tables(study, workdir)
    cells = read_cells(current(study, workdir), workdir)
    # That some settings of a space fail is a finding; search.md has them.
    trials = sum(bool(cell.rungs) or bool(cell.metric) for cell in current(study, workdir).cells())
    failed = int((cells['status'] == 'failed')[trials:].sum())
    if unfinished(study, workdir):
        log.info('Stopped. The same command with --workdir=%s goes on.', workdir)
        return STOPPED
    log.info('report   %s', Path(workdir) / 'report.html')
    return 1 if failed else 0


def _announce(study: Study) -> None:
    search, seeds = study.search, counted(len(study.seeds), 'seed')
    if search is None:
        folds = f' x {counted(len(study.folds), "fold")}' if study.folds[0] is not None else ''
        log.info('study    %s x %s%s: %s; metric %s', counted(len(study.arms), 'arm'), seeds, folds,
                 counted(len(study.cells()), 'cell'), study.metric)
        return
    shares = ', '.join(f'{share:g}' for share in search.rungs)
    log.info('search   %s, %s; %s', counted(search.trials, 'trial'), search.proposer,
             f'judged at {shares} % by {score_name(study)}' if shares else 'none is stopped')
    log.info('study    then the winner and the reference x %s; metric %s', seeds, study.metric)


def _supervise_jobs(study: Study, command: Command, workdir: Path, stop: Callable[[], bool]) -> int:
    try:
        queue = slurm_jobs.SlurmQueue(study.settings.slurm, workdir, [
            *worker_command(command, workdir.absolute()), '--workers=1', '--launcher=local'])
        return slurm_jobs.supervise_jobs(study, workdir, queue, stop)
    except ConfigError as error:  # returned as a code, so that a refused start is withdrawn
        print(f'main.py: {error}', file=sys.stderr)
        return 2


def _leave_job(study: Study, workdir: Path, code: int, stopped: bool) -> int:
    """The end of a job: what is left is done by others, or by this one after another start."""
    if not code and stopped and unfinished(study, workdir):
        code = STOPPED
    slurm_jobs.note_end(code)
    if code == STOPPED:
        slurm_jobs.requeue()
    return code


def _withdraw(workdir: Path, made: Sequence[Path]) -> None:
    """Takes away what a refused start wrote, so that the corrected command may use the workdir."""
    logs = workdir / LOGS
    shutil.rmtree(logs / 'slurm', ignore_errors=True)
    for path in (workdir / STUDY, *(workdir / name for name in (*TABLES, *SEARCH_TABLES)),
                 *logs.glob(f'{of_this_process()}-*.log')):
        path.unlink(missing_ok=True)
    made_folders.remove_empty([*([logs] if logs.exists() else []), *made])


def study_of(command: Command) -> Study:
    """The study of a command line. Raises ConfigError as `read_study`."""
    arg = command.config_file.partition(':')[2] or None
    return read_study(command.config, command.config_path, arg)


def worker_command(command: Command, workdir: Path) -> list[str]:
    """Program and arguments that start one worker of the study in this workdir."""
    program = Path(__file__).parents[2] / 'main.py'
    return [sys.executable, str(program), *command.argv, f'--workdir={workdir}']


def _work(study: Study, workdir: Path, parent: int) -> int:
    """What a worker process does."""
    from train_lib.commands.train import run_any
    from train_lib.studies.worker import work  # both load all of training

    return work(study, workdir, run_any, parent)
