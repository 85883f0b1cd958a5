"""What a study consists of: arms x seeds x folds, read from its config file.

The file has `get_config(arg)`, the config of an ordinary run, and `study()`, `study(config)` or
`study(config, arg)`, which gives the arms in one of three forms:

    {name: {dotted.path: value}}     a mapping
    (name, {dotted.path: value})     one after another
    {dotted.path: value}             one after another; the changes are the arm's name

A cell is one run: an arm with a seed and perhaps a fold.
"""

import copy
import dataclasses
import importlib.util
import inspect
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from input_pipeline.errors import did_you_mean
from train_lib.run_dir.overrides import apply_values
from train_lib.runtime.errors import ConfigError
from train_lib.studies.identity import identity_of
from train_lib.studies.naming import describe_changes, folder_name
from train_lib.studies.settings import StudySettings, read_settings

NOT_IN_ARMS = ('study', 'seed', 'distributed', 'plan', 'plan_only', 'compile_cache')
RESULTS = ('test', 'val', 'train', 'out_of_fold', 'test_accuracy_mean')  # of result.json


@dataclasses.dataclass(frozen=True)
class Arm:
    """One variant of the run.

    Attributes:
        name: as the tables show it.
        folder: of the arm, in the study's workdir.
        changes: {dotted.path: value}, as the study's file gives them.
        config: the base config with these changes, and with the base's seed and fold.
    """

    name: str
    folder: str
    changes: dict
    config: ConfigDict


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of an arm. `fold` is None in a study without folds."""

    arm: Arm
    seed: int
    fold: int | None

    @property
    def folder(self) -> str:
        """The run's workdir, relative to that of the study."""
        fold = '' if self.fold is None else f'_fold_{self.fold}'
        return f'{self.arm.folder}/seed_{self.seed}{fold}'

    def config(self) -> ConfigDict:
        """A new config for this run."""
        config = self.arm.config.copy_and_resolve_references()
        with config.unlocked(), config.ignore_type():
            config.seed = self.seed
            if self.fold is not None:
                config.split.fold = self.fold
        return config


@dataclasses.dataclass(frozen=True)
class Study:
    """All cells of a study, and how they are judged and run.

    Attributes:
        arms: in the order of the file.
        seeds: every arm runs with each.
        folds: every arm and seed runs with each; (None,) without folds.
        baseline: name of the arm that the others are compared with.
        metric: dotted path of a number in result.json.
        settings: how the study is run.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    folds: tuple[int | None, ...]
    baseline: str
    metric: str
    settings: StudySettings

    def cells(self) -> list[Cell]:
        """Every run: all arms with a seed before any arm with the next seed."""
        return [Cell(arm, seed, fold) for seed, fold, arm in
                itertools.product(self.seeds, self.folds, self.arms)]

    def arm(self, name: str) -> Arm:
        """The arm with that name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def runs_per_arm(self) -> int:
        """Seeds times folds."""
        return len(self.seeds) * len(self.folds)

    @property
    def total_folds(self) -> int:
        """config.split.folds, some of which `folds` may leave out; 1 without folds."""
        return 1 if self.folds[0] is None else self.arm(self.baseline).config.split.folds

    @property
    def less_is_better(self) -> bool:
        """Whether the metric is an error."""
        return self.metric.rpartition('.')[2] in ('loss', 'nll', 'ece', 'brier', 'mae',
                                                  'mae_median')


def read_study(config: ConfigDict, path: str | os.PathLike, arg: str | None = None) -> Study:
    """The study in a config file.

    Args:
        config: of `get_config` there, with the overrides of this start.
        path: the file, whose `study` is called.
        arg: the text after the colon of --config=FILE:..., which `get_config` was called with.

    Raises:
        ConfigError: study() is missing, an arm is wrong (the message names it), or a value of
            config.study is.
    """
    path = os.fspath(path)
    arms = _make_arms(_named_arms(_call_study(path, config, arg), path), config, path)
    section = config.study
    baseline = section.baseline or arms[0].name
    names = [arm.name for arm in arms]
    if baseline not in names:
        raise ConfigError(f'config.study.baseline = {baseline!r} is not the name of an arm: '
                          f'{did_you_mean(baseline, names)}')
    if section.metric.partition('.')[0] not in RESULTS:
        raise ConfigError(f'config.study.metric = {section.metric!r} is not a number in '
                          f'result.json: give one such as test.accuracy; it begins with one of '
                          f'{", ".join(RESULTS)}.')
    return Study(tuple(arms), _whole_numbers('seeds', section.seeds), _folds(config), baseline,
                 section.metric, read_settings(section))


def _call_study(path: str, config: ConfigDict, arg: str | None) -> Mapping | list:
    """What study(), study(config) or study(config, arg) in the file returns."""
    spec = importlib.util.spec_from_file_location('study_config', path)
    if spec is None or spec.loader is None:
        raise ConfigError(f'{path} is not a Python file: give one whose name ends in .py.')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    study = getattr(module, 'study', None)
    if not callable(study):
        raise ConfigError(f'{path} has no function study() that gives the arms: write one as in '
                          f'configs/studies/digits.py.')
    arguments = [config.copy_and_resolve_references(), arg]
    try:
        found = study(*arguments[:len(inspect.signature(study).parameters)])
        return found if isinstance(found, Mapping) else list(found)
    except Exception as error:
        raise ConfigError(f'{path}: study() fails with {type(error).__name__}: '
                          f'{" ".join(str(error).split())}; correct it.') from error


class _Named(NamedTuple):
    """An arm before its config is made. `automatic`: its name was made from its changes."""

    name: str
    changes: dict
    automatic: bool


def _named_arms(found: Mapping | list, path: str) -> list[_Named]:
    """The arms that study() returned, each with a name."""
    arms: list[_Named] = []
    items: Iterable = found.items() if isinstance(found, Mapping) else found
    for item in items:
        named = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
        changes = item[1] if named else item
        if not isinstance(changes, Mapping) or not all(isinstance(key, str) for key in changes):
            raise ConfigError(f'{path}: study() gives {item!r:.80}, which is not a valid arm; give '
                              f'{{dotted.path: value}} or (name, {{dotted.path: value}}).')
        changes = {key.removeprefix('config.'): value for key, value in changes.items()}
        name = item[0] if named else describe_changes(changes) or 'base'
        if not name or name in {other.name for other in arms}:
            raise ConfigError(f'{path}: two arms are called {name!r}; give each a name of its own, '
                              f'as in (name, {{dotted.path: value}}).')
        arms.append(_Named(name, changes, not named))
    return arms


def _make_arms(named: Iterable[_Named], base: ConfigDict, path: str) -> list[Arm]:
    """The arms with their configs; all of them differ, and so do their folders."""
    arms: list[Arm] = []
    by_identity: dict[str, str] = {}
    by_folder: dict[str, str] = {}
    for name, changes, automatic in named:
        arm = Arm(name, folder_name(name), changes, _configured(name, changes, base))
        identity = json.dumps(identity_of(arm.config), sort_keys=True, default=str)
        if identity in by_identity:
            if automatic:  # a factor's value that the base has anyway
                continue
            raise ConfigError(f'The arm {name!r} is the same as the arm {by_identity[identity]!r}: '
                              f'leave one of them out of {path}.')
        folder = arm.folder.casefold()  # some file systems do not tell 'a' from 'A'
        if folder in by_folder:
            raise ConfigError(f'The arms {by_folder[folder]!r} and {name!r} would '
                              f'share a folder: rename one of them in {path}.')
        by_identity[identity] = by_folder[folder] = name
        arms.append(arm)
    if not arms:
        raise ConfigError(f'{path}: study() gives no arms; give at least one.')
    return arms


def _configured(name: str, changes: dict, base: ConfigDict) -> ConfigDict:
    """The base config with the changes of an arm."""
    config = copy.deepcopy(base)  # keeps the references that allow a value to be of any type
    for path in changes:
        if path.partition('.')[0] in NOT_IN_ARMS:
            raise ConfigError(f'The arm {name!r} sets config.{path}, which belongs to the whole '
                              f'study: leave it out; seeds are set by config.study.seeds.')
        if path == 'split.fold' and base.study.folds:
            raise ConfigError(f'The arm {name!r} sets config.split.fold, and so does '
                              f'config.study.folds: keep one of them.')
    try:
        return apply_values(config, changes)
    except ConfigError as error:
        raise ConfigError(f'The arm {name!r}: {error}') from None


def _whole_numbers(key: str, values: Iterable) -> tuple[int, ...]:
    """The seeds or folds. The command line gives strings where the tuple was empty before."""
    values = tuple(int(value) if str(value).isdecimal() else value for value in values)
    if not values or len(set(values)) < len(values) or not all(
            isinstance(value, int) and value >= 0 for value in values):
        raise ConfigError(f'config.study.{key} = {values}: give different whole numbers.')
    return values


def _folds(config: ConfigDict) -> tuple[int | None, ...]:
    if not config.study.folds:
        return (None,)
    folds = _whole_numbers('folds', config.study.folds)
    if config.split.kind != 'kfold' or max(folds) >= config.split.folds:
        raise ConfigError(f"config.study.folds = {folds} needs config.split.kind = 'kfold' and "
                          f'config.split.folds above {max(folds)}: set both.')
    return folds
