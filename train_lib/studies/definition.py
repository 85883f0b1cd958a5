"""What a study consists of: arms x seeds x folds, read from its config file.

The file has `get_config(arg)`, the config of an ordinary run, and `study()`, `study(config)` or
`study(config, arg)`, which gives the arms in one of three forms, or `search()` instead, which gives
a space of settings (search_space.py):

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
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from input_pipeline.errors import did_you_mean
from train_lib.metrics.directions import more_is_better
from train_lib.run_dir.overrides import apply_values
from train_lib.runtime.errors import ConfigError
from train_lib.studies.identity import identity_of
from train_lib.studies.naming import describe_changes, folder_name
from train_lib.studies.search_space import Search, read_search
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
    """One run of an arm. `fold` is None in a study without folds. A trial of a search has `rungs`,
    where it pauses, percent of the run, and a `metric` other than the study's."""

    arm: Arm
    seed: int
    fold: int | None
    rungs: tuple[float, ...] = ()
    metric: str = ''

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
        search: of a search, which has the reference as its only arm until its trials are over;
            see `search.current`.
        base: of a search: the config that is the reference, and to which trials apply changes.
        listed: its cells, where they are not all arms x seeds x folds.
        about: what the caption of the table says besides.
        made: of a search: the arms of its trials, each made once, by name and changes.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    folds: tuple[int | None, ...]
    baseline: str
    metric: str
    settings: StudySettings
    search: Search | None = None
    base: ConfigDict | None = None
    listed: tuple[Cell, ...] | None = None
    about: str = ''
    made: dict = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def cells(self) -> list[Cell]:
        """Every run: all arms with a seed before any arm with the next seed."""
        if self.listed is not None:
            return list(self.listed)
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
        return not more_is_better(self.metric)


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
    path, section = os.fspath(path), config.study
    function = _function(path)
    found = _call(function, path, config, arg)
    if function.__name__ == 'search':
        return _read_search(found, config, path)
    arms = _make_arms(_named_arms(found, path), config, path)
    baseline = section.baseline or arms[0].name
    names = [arm.name for arm in arms]
    if baseline not in names:
        raise ConfigError(f'config.study.baseline = {baseline!r} is not the name of an arm: '
                          f'{did_you_mean(baseline, names)}')
    _check_metric(section.metric)
    return Study(tuple(arms), _whole_numbers('seeds', section.seeds), _folds(config), baseline,
                 section.metric, read_settings(section))


def _check_metric(metric: str) -> None:
    if metric.partition('.')[0] not in RESULTS:
        raise ConfigError(f'config.study.metric = {metric!r} is not a number in '
                          f'result.json: give one such as test.accuracy; it begins with one of '
                          f'{", ".join(RESULTS)}.')


def _read_search(found: Any, config: ConfigDict, path: str) -> Study:
    """The search in a config file; the reference is its only arm for the time being."""
    section, split = config.study, config.split
    search, settings = read_search(found, section, path), read_settings(section)
    _check_metric(section.metric)
    side, _, name = section.metric.partition('.')
    if side != 'test':
        raise ConfigError(f'config.study.metric = {section.metric!r}: a search chooses on the '
                          f'validation rows, so its result is a score of the test, such as '
                          f'test.accuracy.')
    if name not in ('accuracy', 'f1_macro', 'loss', config.eval.metric) \
            and name.rpartition('.')[2] != 'accuracy':
        raise ConfigError(f'config.study.metric = {section.metric!r}: validations during a run '
                          f'score accuracy, f1_macro, loss and config.eval.metric '
                          f'({config.eval.metric!r}): choose one of them.')
    for key, wrong in (('study.folds', section.folds), ('study.stop.after', section.stop.after),
                       ('study.baseline', section.baseline), ('probe.heads', config.probe.heads)):
        if wrong:
            raise ConfigError(f'config.{key} = {wrong!r} is not for a search: leave it out.')
    if split.kind == 'kfold' and not isinstance(split.fold, int):
        raise ConfigError(f'config.split.fold = {split.fold!r}: a trial of a search is one run: '
                          f'give one fold.')
    base = copy.deepcopy(config)  # keeps the references that allow a value to be of any type
    if base.split.seed is None:  # one split for all seeds, so that no test row has chosen anything
        base.split.seed = search.seed
    for key, one in search.space.items():
        for value in one.ends():
            configured(f'{key}={value}', {key: value}, base)
    reference = Arm('reference', 'reference', {}, base)
    return Study((reference,), _whole_numbers('seeds', section.seeds), (None,), 'reference',
                 section.metric, settings, search=search, base=base)


def _function(path: str) -> Callable:
    """study() or search() of a config file."""
    spec = importlib.util.spec_from_file_location('study_config', path)
    if spec is None or spec.loader is None:
        raise ConfigError(f'{path} is not a Python file: give one whose name ends in .py.')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    study, search = getattr(module, 'study', None), getattr(module, 'search', None)
    # The file's own: `search` may be an imported design.
    searches = callable(search) and getattr(search, '__module__', '') == module.__name__
    if callable(study) and searches:
        raise ConfigError(f'{path} has study() and search(): keep one of them.')
    if not callable(study) and not searches:
        raise ConfigError(f'{path} has no function study() that gives the arms: write one as in '
                          f'configs/studies/digits.py.')
    return study if callable(study) else search


def _call(function: Callable, path: str, config: ConfigDict, arg: str | None) -> Mapping | list:
    """What study() or search() returns; it may take (config) or (config, arg)."""
    arguments = [config.copy_and_resolve_references(), arg]
    try:
        found = function(*arguments[:len(inspect.signature(function).parameters)])
        return found if isinstance(found, Mapping) else list(found)
    except Exception as error:
        raise ConfigError(f'{path}: {function.__name__}() fails with {type(error).__name__}: '
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
        arm = Arm(name, folder_name(name), changes, configured(name, changes, base))
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


def configured(name: str, changes: Mapping, base: ConfigDict) -> ConfigDict:
    """The base config with the changes of an arm.

    Raises:
        ConfigError: a change is wrong; the message names the arm.
    """
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
