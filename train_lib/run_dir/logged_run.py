"""What a logger is told of a run, and what it has to be able to do.

A logger shows the rows of a run at a place outside its workdir. To add one, write a class with the
methods of `Logger` in a file here, and its line in `LOGGERS` of loggers.py.
"""

import dataclasses
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from train_lib.run_dir import workdirs
from train_lib.runtime.errors import ConfigError

STUDY = 'study.json'
_LEVELS = 3  # folders between a run and the study or k-fold run that it is a part of


@dataclasses.dataclass(frozen=True)
class LoggedRun:
    """A run, as it is shown by a logger.

    Attributes:
        workdir: where it lives.
        name: that of its workdir, below that of its group.
        group: the k-fold run or study that it is a part of, '' for a run by itself.
        settings: its config as nested dicts.
    """

    workdir: Path
    name: str
    group: str
    settings: Mapping[str, Any]


class Logger(Protocol):
    """A run at one place. Every method may raise; the training does not notice.

    Attributes:
        WHERE: what the knob takes, for errors.
        run: the place's name of the run, by which a later start finds it again.
        shown: the last step that the place has, -1 if there is none.
    """

    WHERE: str
    run: str
    shown: int

    def __init__(self, where: str, place: str, run: str, about: LoggedRun):
        """Begins a run there, or goes on with it.

        Args:
            where: the value of the knob.
            place: what `check` returned.
            run: of an earlier start; '' begins a new one.
            about: the run here.
        """

    @staticmethod
    def check(where: str) -> str:
        """Says whether the logger can be used, without asking the network.

        Args:
            where: the value of config.log.<name>, not empty.

        Returns:
            The place. If it is another than that of an earlier start, a new run begins there.

        Raises:
            ConfigError: it cannot, and what to do.
        """

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the values of a step, such as 'train/loss'; steps come once, in order."""

    def result(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the scores of the finished run, such as 'result/val/accuracy'."""

    def close(self, status: str) -> None:
        """Ends the start: 'done', 'stopped' or 'failed'."""


def describe_run(workdir: Path) -> LoggedRun:
    """The run in a workdir whose config.json is written."""
    path = workdir.resolve()
    whole = [folder for folder in path.parents[:_LEVELS]
             if (folder / 'config.json').exists() or (folder / STUDY).exists()]
    settings = {key: value for key, value in workdirs.read_config(workdir).items()
                if key not in workdirs.START_FACTS}
    if not whole:
        return LoggedRun(workdir, path.name, '', settings)
    return LoggedRun(workdir, path.relative_to(whole[-1].parent).as_posix(), whole[-1].name,
                     settings)


def need_package(knob: str, *packages: str) -> None:
    """Refuses a knob whose packages are not installed.

    Raises:
        ConfigError: the first that is missing.
    """
    for name in packages:
        found = find_spec(name)
        # A folder of that name, such as wandb's own ./wandb, is found too.
        if found is None or found.origin is None:
            raise ConfigError(f'config.log.{knob} needs the package {name}: '
                              f'pip install {name}, or leave config.log.{knob} empty.')
