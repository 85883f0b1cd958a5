"""The config of a run that exists, as a later verb uses it."""

import importlib
import logging
from collections.abc import Collection
from pathlib import Path

from ml_collections import ConfigDict

from train_lib.run_dir.before import BEFORE
from train_lib.run_dir.dotted_keys import parent_of
from train_lib.run_dir.json_files import read_json
from train_lib.run_dir.overrides import overlay
from train_lib.run_dir.workdirs import saved_config
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)
# The run may have been made on another machine.
_OF_A_MACHINE = ('mesh', 'distributed')
# Keys of config.data: where the pictures are, and what was decided about the rows of a data set.
_PLACES = ('source', 'folder', 'csv', 'images', 'tfds', 'tfds_splits', 'packed')
_ABOUT_ROWS = ('decisions', 'group_regex', 'long_tail')


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


def keep_rules(config: ConfigDict, workdir: Path | None, given: Collection[str] = ()) -> None:
    """Sets the keys of `before.BEFORE` to their older values, if the run or study that goes on
    has those.

    A run that goes on does so as it began: it reads its data and trains in the same way. The config
    is changed in place. A workdir that cannot be read is left to those who read it next.

    Args:
        config: of this start.
        workdir: of this start, which need not exist; None for none.
        given: dotted keys that the user set, which stay.
    """
    places = [workdir, Path(config.init.resume_from) if config.init.resume_from else None]
    place = next((path for path in places if path and any(
        (path / name).is_file() for name in ('config.json', 'study.json'))), None)
    if place is None:
        return
    for name, older in BEFORE.items():
        section = name.rpartition('.')[0]
        if not {name, section} & set(given):
            value = _value_of(place, name, older)
            part, key = parent_of(config, name)
            if value == older != part[key]:
                part[key] = value
                log.info('rules    config.%s = %r, as in %s', name, value, place)


def _value_of(workdir: Path, name: str, older):
    """The value of a key in a run, or in all arms of a study; `older` where it lacks the key,
    None where the arms differ or it is damaged."""
    try:
        if (workdir / 'config.json').is_file():
            section, key = parent_of(saved_config(workdir), name)
            value = section[key]
        else:
            arms = read_json(workdir / 'study.json')['arms'].values()
            value = older if arms and all(arm.get(name, older) == older for arm in arms) else None
    except (ConfigError, OSError, ValueError, KeyError, AttributeError):
        return None
    return value if type(value) is type(older) else None


def reset_row_settings(config: ConfigDict, workdir: Path, given: Collection[str]) -> None:
    """Undoes data.decisions, data.group_regex and data.long_tail of a run where config.data points
    to other pictures than those of the run: they are about its own rows.

    Args:
        config: of `take_over`, with the user's overrides; changed in place.
        workdir: of the run.
        given: the keys that the user gave, such as 'data.decisions'; these stay.

    Raises:
        ConfigError: the folder holds no run.
    """
    own = saved_config(workdir).data
    if all(_plain(config.data[key]) == _plain(own.get(key, config.data[key])) for key in _PLACES):
        return
    defaults = importlib.import_module('configs.common').get_config().data
    for key in _ABOUT_ROWS:
        if not any(f'{name}.'.startswith(f'data.{key}.') for name in given):
            config.data[key] = defaults[key]


def _plain(value):
    """A tuple as the list that JSON makes of it."""
    return list(value) if isinstance(value, tuple) else value
