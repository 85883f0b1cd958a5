"""config.study, read once: how a study is run, whatever its arms are."""

import dataclasses

from ml_collections import ConfigDict

from train_lib.runtime.errors import ConfigError


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
class StudySettings:
    """How a study is run.

    Attributes:
        workers: worker processes that this command starts, 1 or more.
        retry: whether failed cells run again.
        keep_checkpoints: whether finished cells keep their checkpoints.
        stop: when an arm is given up.
    """

    workers: int = 1
    retry: bool = False
    keep_checkpoints: bool = False
    stop: StopRule = StopRule()


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
    return StudySettings(section.workers, section.retry, section.keep_checkpoints, stop)
