"""The config of a run that exists, as a later verb uses it."""

import importlib
from pathlib import Path

from ml_collections import ConfigDict

from train_lib.run_dir.overrides import overlay
from train_lib.run_dir.workdirs import saved_config

# The run may have been made on another machine.
_OF_A_MACHINE = ('mesh', 'distributed')


def config_of_run(workdir: Path) -> ConfigDict:
    """The config of a run, unlocked. Keys that are newer than the run have their defaults.

    Raises:
        ConfigError: the folder holds no run.
    """
    return take_over(importlib.import_module('configs.common').get_config(), workdir)


def take_over(config: ConfigDict, workdir: Path) -> ConfigDict:
    """Sets everything that the config of a run holds, except what belongs to its machine.

    Args:
        config: the defaults; it is changed in place and returned.
        workdir: of the run.

    Raises:
        ConfigError: the folder holds no run, or a value has another type than its default.
    """
    saved = saved_config(workdir).to_dict()
    return overlay(config, {key: saved[key] for key in saved if key not in _OF_A_MACHINE},
                   strict=True)
