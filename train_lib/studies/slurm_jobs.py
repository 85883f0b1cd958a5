"""The worker processes of a study as jobs of Slurm: `study --launcher=slurm`.

A job is the same command with one local worker. It takes cells of the study's folder as long as
some are free, then leaves; when it is told that its time is over it saves, and Slurm starts it
again. The command that submitted the jobs only watches: it shows what is done, submits a job again
where one has ended and cells are free, and cancels them when it is stopped. What is in the queue
is known by the name of the jobs, so that the next start counts jobs that a killed one left there.
"""

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from input_pipeline.errors import counted
from train_lib.runtime.errors import ConfigError
from train_lib.studies import ledger
from train_lib.studies.definition import Study
from train_lib.studies.screen import Screen
from train_lib.studies.search import current
from train_lib.studies.settings import SlurmSettings
from train_lib.studies.stopping import open_cells, unfinished
from train_lib.studies.supervisor import DEATHS, LOGS, Deaths, reopen_failed
from train_lib.studies.tables import write_tables

log = logging.getLogger(__name__)
JOB = 'STUDY_JOB'  # in the environment of a job: the folder of the jobs' files
POLL = 5.0  # seconds between two questions to Slurm
AGAIN = 60.0  # seconds after which a job that Slurm refused is tried again
SAVING = 120  # seconds before the end of its time at which a job is told to save
_ENDED = '.end'  # what a job ended with, in a file behind its number


class Queue(Protocol):
    """Where jobs wait and run."""

    folder: Path

    def submit(self) -> str:
        """Submits one job. Returns its number. Raises ConfigError: it was refused."""

    def jobs(self) -> dict[str, str] | None:
        """{number: state} of the jobs of this study; None if nobody answers just now."""

    def cancel(self, jobs: Iterable[str]) -> None:
        """Ends these jobs; those that run are told to save."""


class SlurmQueue:
    """The jobs of one study in Slurm, submitted by submitit."""

    def __init__(self, settings: SlurmSettings, workdir: Path, command: Sequence[str]):
        """
        Args:
            settings: what a job asks for.
            workdir: of the study, on a disk that the nodes share. The files of the jobs go to
                logs/slurm there.
            command: program and arguments of a job.

        Raises:
            ConfigError: a setting is wrong, or the folder belongs to somebody else or has a name
                that Slurm reads otherwise.
        """
        import submitit

        self.folder = (workdir / LOGS / 'slurm').absolute()
        if '%' in str(self.folder):  # submitit and Slurm put numbers of jobs there
            raise ConfigError(f'--workdir={workdir}: Slurm reads a % in the names of logs as a '
                              f'field: give a path without one.')
        self.folder.mkdir(parents=True, exist_ok=True)
        # submitit hands the function to the job as a pickle in this folder, and whoever may write
        # there decides what the job runs. What we hand over is only a list of words, and the folder
        # is that of this user and of nobody else, as the scripts are that Slurm runs anyway. We
        # never read the pickles that come back: a job says how it ended in a file of text.
        if self.folder.stat().st_uid != os.getuid():
            raise ConfigError(f'{self.folder} belongs to somebody else: give another --workdir.')
        self.folder.chmod(0o700)
        self._name = job_name(workdir)
        self._command = submitit.helpers.CommandFunction(
            ['env', f'{JOB}={self.folder}', *command], verbose=True, cwd=os.getcwd())
        self._executor = submitit.SlurmExecutor(folder=self.folder)
        # Without "B:" Slurm tells the processes of the step. submitit's own signal, USR2, would
        # end our processes at once.
        more = dict(option.partition('=')[::2] for option in settings.extra)
        more = {key: value or True for key, value in more.items()}
        try:
            self._executor.update_parameters(
                job_name=self._name, partition=settings.partition or None, time=settings.minutes,
                nodes=1, ntasks_per_node=1, gpus_per_node=settings.gpus or None,
                cpus_per_task=settings.cpus, account=settings.account or None,
                mem=f'{settings.memory_gb}G' if settings.memory_gb else None,
                # From Slurm 22.05 on, srun does not take the cores from the job.
                srun_args=[f'--cpus-per-task={settings.cpus}'],
                additional_parameters=dict(signal=f'TERM@{SAVING}', requeue=True) | more)
        except ValueError as error:
            raise ConfigError(f'config.study.slurm: {error}') from None

    def submit(self) -> str:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # our sentence is enough
                return str(self._executor.submit(self._command).job_id)
        except Exception as error:  # of submitit, with what sbatch printed
            reason = ' '.join(str(error).split()).removeprefix('sbatch: error: ')
            raise ConfigError(f'sbatch refuses the job ({reason[:300]}): correct '
                              f'config.study.slurm.') from None

    def jobs(self) -> dict[str, str] | None:
        # Not submitit's `state`, which asks sacct: clusters without a database of accounts have
        # none, and the state is UNKNOWN there for ever.
        done = _slurm('squeue', '--noheader', f'--name={self._name}', '--format=%A %T',
                      f'--user={os.getuid()}')
        if done is None:
            return None
        return dict(line.split() for line in done.splitlines() if line.strip())

    def cancel(self, jobs: Iterable[str]) -> None:
        _slurm('scancel', *jobs)


def check_launcher() -> None:
    """Refuses `--launcher=slurm` where there is no Slurm or no submitit.

    Raises:
        ConfigError: one is missing.
    """
    if importlib.util.find_spec('submitit') is None:
        raise ConfigError("config.study.launcher = 'slurm' needs submitit, which is not installed: "
                          'run `pip install -r requirements-slurm.txt`.')
    missing = [name for name in ('sbatch', 'srun', 'squeue', 'scancel') if not shutil.which(name)]
    if missing:
        raise ConfigError(f"config.study.launcher = 'slurm' needs {missing[0]}, which is not "
                          f'installed here: start it on a node where jobs are submitted, or leave '
                          f'out --launcher.')


def job_name(workdir: Path) -> str:
    """The name of a study's jobs: the same for every start with this workdir."""
    digest = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()
    return f'study-{digest[:10]}'


def supervise_jobs(study: Study, workdir: Path, queue: Queue, stop: Callable[[], bool],
                   poll: float = POLL) -> int:
    """Keeps config.study.workers jobs in the queue until every cell is over or `stop()` is true.

    Args:
        study, workdir: see `read_study`.
        queue: of its jobs.
        stop: asked about once per second.
        poll: seconds between two questions to the queue.

    Returns:
        0, or 2 if a job found a mistake of the user.

    Raises:
        ConfigError: the first job was refused. A later one, as at a limit of jobs or while Slurm
            restarts, is tried again.
        RuntimeError: jobs end again and again without getting on.
    """
    if study.settings.retry:
        reopen_failed(study, workdir)
    screen, known_cells = Screen(study, workdir), None
    jobs: dict[str, str] = {}
    deaths, refusal, again = Deaths(), '', 0.0
    found = queue.jobs()
    taken = bool(found)  # whether Slurm has taken jobs of this study
    if found:
        log.info('slurm    %s of this study in the queue already', counted(len(found), 'job'))
    try:
        while True:
            found = queue.jobs()
            if found is not None:
                for job in jobs.keys() - found.keys():
                    code = _end_of(queue.folder, job)
                    if code == 2:
                        print(_sentence(queue.folder, job), file=sys.stderr)
                        return 2
                    if code is None:
                        deaths = _note_death(study, workdir, queue.folder, job, deaths)
                        screen.begin_below()
                jobs = found
            study = current(study, workdir)  # a search goes on to other cells
            left = unfinished(study, workdir)
            if len(left) != known_cells:
                known_cells = len(left)
                write_tables(study, workdir, page=False)
            screen.show()
            if not left or stop():
                break
            held = [cell for cell in left if ledger.is_running(workdir / cell.folder)]
            free = len([cell for cell in open_cells(study, workdir) if cell not in held])
            starting = max(len(jobs) - len(held), 0)
            wanted = min(study.settings.workers - len(jobs), free - starting)
            for _ in range(wanted if found is not None and time.monotonic() >= again else 0):
                try:
                    job = queue.submit()
                except ConfigError as error:
                    if not taken:
                        raise
                    again = time.monotonic() + AGAIN
                    if str(error) != refusal:
                        refusal = str(error)
                        log.warning('%s It is tried again.', refusal)
                        screen.begin_below()
                    break
                taken = True
                log.info('slurm    job %s is submitted', job)
                jobs[job] = 'PENDING'
            end = time.monotonic() + poll
            while time.monotonic() < end and not stop():
                time.sleep(min(1.0, poll))
    finally:
        _end_all(queue, jobs, done=not unfinished(study, workdir))
        screen.show()
    return 0


def _end_all(queue: Queue, jobs: Mapping[str, str], done: bool) -> None:
    """Cancels what is in the queue, and waits until the jobs have saved. If all cells are over,
    those that run leave by themselves."""
    found = queue.jobs()
    left = dict(jobs) if found is None else found
    cancelled = [job for job, state in left.items() if not done or state == 'PENDING']
    if cancelled:
        if not done:
            log.info('slurm    %s cancelled; those that run save first',
                     counted(len(cancelled), 'job is', 'jobs are'))
        queue.cancel(cancelled)
    end = time.monotonic() + SAVING
    while queue.jobs() and time.monotonic() < end:
        time.sleep(1)


def _end_of(folder: Path, job: str) -> int | None:
    """The exit code that a job noted; None if it was killed before."""
    try:
        return int((folder / f'{job}{_ENDED}').read_text())
    except (FileNotFoundError, ValueError):
        return None


def _sentence(folder: Path, job: str) -> str:
    """What a job said last about a mistake of the user."""
    lines = [line for path in sorted(folder.glob(f'{job}_*_log.*'))
             for line in path.read_text(errors='replace').splitlines()
             if line.startswith('main.py: ')]
    return lines[-1] if lines else f'main.py: the job {job} was refused: see its log in {folder}.'


def _note_death(study: Study, workdir: Path, folder: Path, job: str, deaths: Deaths) -> Deaths:
    """Counts jobs that ended without a word, one after another, without getting on."""
    from train_lib.run_dir import checkpoints  # slow to import, and rarely needed

    progress = (len(unfinished(study, workdir)), tuple(
        tuple(checkpoints.committed_steps(workdir / cell.folder / 'checkpoints'))
        for cell in study.cells()))
    deaths = deaths.once_more(progress)
    log.warning('Job %s was killed; another one goes on. Its log is in %s', job, folder)
    if deaths.count >= DEATHS:
        raise RuntimeError(f'Jobs are killed again and again before they get on; see the logs in '
                           f'{folder}')
    return deaths


def _note() -> Path:
    return Path(os.environ[JOB]) / f'{os.environ.get("SLURM_JOB_ID", "")}{_ENDED}'


def note_begin() -> None:
    """In a job: takes back how an earlier start of it ended."""
    _note().unlink(missing_ok=True)


def note_end(code: int) -> None:
    """In a job: writes down how it ends, for the command that submitted it."""
    _note().write_text(str(code))


def requeue() -> None:
    """In a job that Slurm told to stop, because its time is over or others go first: puts it into
    the queue again. A cancelled one stays so."""
    job = os.environ.get('SLURM_JOB_ID', '')
    state = _slurm('squeue', '--noheader', f'--job={job}', '--format=%T')
    if state is not None and state.strip() == 'RUNNING':
        _slurm('scontrol', 'requeue', job)


def _slurm(*command: str) -> str | None:
    """The output of a command of Slurm; None if it fails, as while its controller restarts."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning('%s: %s', command[0], error)
        return None
    if done.returncode:
        log.warning('%s: %s', command[0], ' '.join(done.stderr.split())[:200])
        return None
    return done.stdout
