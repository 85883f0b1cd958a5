"""config.study, read once: how a study is run, whatever its arms are."""

import dataclasses
import re

from ml_collections import ConfigDict

from input_pipeline.errors import did_you_mean
from train_lib.runtime.errors import ConfigError

LAUNCHERS = ('local', 'slurm')
# The least value of each number in config.study.slurm. Two minutes before its end a job saves.
LEAST = dict(minutes=3, gpus=0, cpus=1, memory_gb=0)
# Options of sbatch that may not be in config.study.slurm.extra, and what sets them.
OURS = {'job-name': '', 'signal': '', 'requeue': '', 'no-requeue': '', 'output': '', 'error': '',
        'open-mode': '', 'array': '', 'nodes': '', 'ntasks': '', 'ntasks-per-node': '',
        'partition': ' and set config.study.slurm.partition',
        'account': ' and set config.study.slurm.account',
        'time': ' and set config.study.slurm.minutes',
        'gpus-per-node': ' and set config.study.slurm.gpus',
        'cpus-per-task': ' and set config.study.slurm.cpus',
        'mem': ' and set config.study.slurm.memory_gb'}


@dataclasses.dataclass(frozen=True)
class StopRule:
    """When an arm is given up (see stopping.py).

    Attributes:
        after: seeds after which the arms are judged for the first time, 2 or more; 0: never.
        margin: an arm that may be within this much of the best one goes on; in units of the
            metric, 0 or more.
    """

    after: int = 0
    margin: float = 0.0


@dataclasses.dataclass(frozen=True)
class SlurmSettings:
    """What a job of `--launcher=slurm` asks Slurm for.

    Attributes:
        partition, account: names; '' for those that the cluster has by default.
        minutes: limit of its time, 3 or more.
        gpus: 0 or more.
        cpus: cores, 1 or more.
        memory_gb: GB; 0 for what the partition gives.
        extra: further options of sbatch, 'NAME=VALUE' or 'NAME'.
    """

    partition: str = ''
    account: str = ''
    minutes: int = 1440
    gpus: int = 1
    cpus: int = 4
    memory_gb: int = 0
    extra: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """How a study is run.

    Attributes:
        workers: worker processes that this command starts, or jobs that it submits, 1 or more.
        retry: whether failed cells run again.
        keep_checkpoints: whether finished cells keep their checkpoints.
        stop: when an arm is given up.
        launcher: where the workers run, one of LAUNCHERS.
        slurm: for launcher='slurm'.
    """

    workers: int = 1
    retry: bool = False
    keep_checkpoints: bool = False
    stop: StopRule = StopRule()
    launcher: str = 'local'
    slurm: SlurmSettings = SlurmSettings()


def read_settings(section: ConfigDict) -> StudySettings:
    """The settings of a config's section `study`.

    Raises:
        ConfigError: a value is out of range.
    """
    stop = StopRule(section.stop.after, section.stop.margin)
    if stop.after and (stop.after < 2 or stop.margin < 0):
        raise ConfigError(f'config.study.stop = dict(after={stop.after}, margin={stop.margin}): '
                          f'give two seeds or more, and a margin of 0 or more.')
    if section.workers < 1:
        raise ConfigError(f'config.study.workers = {section.workers}: give 1 or more.')
    if section.launcher not in LAUNCHERS:
        raise ConfigError(f'config.study.launcher = {section.launcher!r} is unknown: '
                          f'{did_you_mean(section.launcher, LAUNCHERS)}')
    return StudySettings(section.workers, section.retry, section.keep_checkpoints, stop,
                         section.launcher, _read_slurm(section.slurm))


def _read_slurm(section: ConfigDict) -> SlurmSettings:
    for key, least in LEAST.items():
        if section[key] < least:
            raise ConfigError(f'config.study.slurm.{key} = {section[key]}: give {least} or more.')
    for option in section.extra:
        name = str(option).partition('=')[0]
        if not re.fullmatch('[a-z][a-z-]*', name):
            raise ConfigError(f'config.study.slurm.extra: {option!r} is not an option of sbatch: '
                              f"give 'NAME=VALUE' or 'NAME', without dashes before it.")
        if name in OURS:
            raise ConfigError(f'config.study.slurm.extra: {option!r} belongs to the study itself: '
                              f'leave it out{OURS[name]}.')
    return SlurmSettings(section.partition, section.account, section.minutes, section.gpus,
                         section.cpus, section.memory_gb, tuple(section.extra))
