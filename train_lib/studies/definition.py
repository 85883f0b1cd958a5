"""What a study consists of: arms x seeds x folds, read from its config file.

The file has `get_config(arg)`, an ordinary run's config, and `study()` or `study(config)`, which
gives the arms: `{name: {dotted.path: value}}`, or one after another `{dotted.path: value}`, named
by what it says, or `(name, {dotted.path: value})`. A cell is one run, an arm with a seed and
perhaps a fold.
"""

import copy
import dataclasses
import importlib.util
import inspect
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline.durations import UNITS
from train_lib.commands.command_line import Command, find_config
from train_lib.run_dir.overrides import apply_values
from train_lib.runtime.errors import ConfigError
from train_lib.studies.ledger import write_shared

# Keys of which a study is no other study: they change no number, or are set for each cell.
FREE = ('study', 'seed', 'log', 'loader', 'mesh', 'sharding', 'image.cache_mb', 'compile_cache',
        'distributed', 'plan_only', 'plan_memory_gb', 'predict', 'curate', 'pack', 'lr_find',
        'profile', 'checkpoint')
NOT_IN_ARMS = ('study', 'seed', 'distributed', 'plan_only', 'compile_cache')
RESULTS = ('test', 'val', 'train', 'out_of_fold', 'test_accuracy_mean')  # of result.json
_RESERVED = ('logs',)  # folders of a study that are no arm's


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of doing it; its config has the base's seed and fold."""

    name: str
    folder: str
    changes: dict  # {dotted.path: value}
    config: ConfigDict


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of an arm."""

    arm: Arm
    seed: int
    fold: int | None

    @property
    def folder(self) -> str:
        """Below the study's workdir."""
        fold = '' if self.fold is None else f'_fold_{self.fold}'
        return f'{self.arm.folder}/seed_{self.seed}{fold}'

    def config(self) -> ConfigDict:
        """Of the run."""
        config = self.arm.config.copy_and_resolve_references()
        with config.unlocked(), config.ignore_type():
            config.seed = self.seed
            if self.fold is not None:
                config.split.fold = self.fold
        return config


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms in their order, the baseline first among equals."""

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    folds: tuple[int | None, ...]  # (None,) without folds
    baseline: str
    metric: str
    settings: ConfigDict  # config.study

    def cells(self) -> list[Cell]:
        """Every run, all arms of a seed before the next seed."""
        return [Cell(arm, seed, fold) for seed, fold, arm in
                itertools.product(self.seeds, self.folds, self.arms)]

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def repeats(self) -> int:
        """Runs of an arm."""
        return len(self.seeds) * len(self.folds)

    @property
    def parts(self) -> int:
        """Into how many the pictures are cut, of which `folds` are some; 1 without folds."""
        return 1 if self.folds[0] is None else self.arm(self.baseline).config.split.folds

    @property
    def less_is_better(self) -> bool:
        """Whether the metric is an error."""
        return self.metric.rpartition('.')[2] in ('loss', 'nll', 'ece', 'brier')


def read_study(command: Command) -> Study:
    """The study of a command line.

    Raises:
        ConfigError: no study(), a wrong arm (named), or a wrong value of config.study.
    """
    config, path = command.config, find_config(command.config_file).partition(':')[0]
    settings = config.study
    named = _named_arms(_call(path, config), path)
    arms, seen = [], {}
    for name, changes, automatic in named:
        arm = Arm(name, folder_name(name), changes, _configured(name, changes, config))
        identity = json.dumps(identity_of(arm.config), sort_keys=True, default=str)
        if identity in seen:
            if automatic:  # a factor's value that the base has anyway
                continue
            raise ConfigError(f'The arm {name!r} is the same as the arm {seen[identity]!r}: '
                              f'leave one of them out of {path}.')
        seen[identity] = name
        arms.append(arm)
    taken = {}
    for arm in arms:
        if arm.folder.casefold() in taken:
            raise ConfigError(f'The arms {taken[arm.folder.casefold()]!r} and {arm.name!r} would '
                              f'share a folder: rename one of them in {path}.')
        taken[arm.folder.casefold()] = arm.name
    if not arms:
        raise ConfigError(f'{path}: study() gives no arm; give at least one.')
    baseline = settings.baseline or arms[0].name
    if baseline not in {arm.name for arm in arms}:
        raise ConfigError(f'config.study.baseline = {baseline!r} is no arm: choose one of '
                          f'{", ".join(arm.name for arm in arms)}.')
    if settings.metric.partition('.')[0] not in RESULTS:
        raise ConfigError(f'config.study.metric = {settings.metric!r} is no number of result.json: '
                          f'give one like test.accuracy; it begins with one of '
                          f'{", ".join(RESULTS)}.')
    return Study(tuple(arms), _numbers('seeds', settings.seeds), _folds(config), baseline,
                 settings.metric, settings)


def _call(path: str, config: ConfigDict):
    """What study() of the file gives."""
    spec = importlib.util.spec_from_file_location('study_config', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    study = getattr(module, 'study', None)
    if not callable(study):
        raise ConfigError(f'{path} has no function study() that gives the arms: write one as in '
                          f'configs/studies/digits.py.')
    arguments = [config.copy_and_resolve_references()][:len(inspect.signature(study).parameters)]
    try:
        found = study(*arguments)
        return found if isinstance(found, Mapping) else list(found)
    except Exception as error:
        raise ConfigError(f'{path}: study() fails with {type(error).__name__}: '
                          f'{" ".join(str(error).split())}; correct it.') from error


def _named_arms(found, path: str) -> list[tuple[str, dict, bool]]:
    """(name, changes, whether we chose the name) of every arm."""
    arms: list[tuple[str, dict, bool]] = []
    items: Iterable = found.items() if isinstance(found, Mapping) else found
    for item in items:
        named = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
        changes = item[1] if named else item
        if not isinstance(changes, Mapping) or not all(isinstance(key, str) for key in changes):
            raise ConfigError(f'{path}: study() gives {item!r:.80}, which is no arm; give '
                              f'{{dotted.path: value}} or (name, {{dotted.path: value}}).')
        changes = {key.removeprefix('config.'): value for key, value in changes.items()}
        name = item[0] if named else words_of(changes) or 'base'
        if not name or name in {other for other, _, _ in arms}:
            raise ConfigError(f'{path}: two arms are called {name!r}; give each a name of its own, '
                              f'as in (name, {{dotted.path: value}}).')
        arms.append((name, changes, not named))
    return arms


def _configured(name: str, changes: dict, base: ConfigDict) -> ConfigDict:
    config = copy.deepcopy(base)  # with its references, which say that a value may be of any type
    for path in changes:
        if path.partition('.')[0] in NOT_IN_ARMS:
            raise ConfigError(f'The arm {name!r} sets config.{path}, which belongs to the whole '
                              f'study: leave it out, seeds are config.study.seeds.')
        if path == 'split.fold' and base.study.folds:
            raise ConfigError(f'The arm {name!r} sets config.split.fold, and so does '
                              f'config.study.folds: keep one of them.')
    try:
        return apply_values(config, changes)
    except ConfigError as error:
        raise ConfigError(f'The arm {name!r}: {error}') from None


def _numbers(key: str, values) -> tuple[int, ...]:
    # On the command line the numbers of a tuple that was empty are words.
    values = tuple(int(value) if str(value).isdecimal() else value for value in values)
    if not values or len(set(values)) < len(values) or not all(
            isinstance(value, int) and value >= 0 for value in values):
        raise ConfigError(f'config.study.{key} = {values}: give different whole numbers.')
    return values


def _folds(config: ConfigDict) -> tuple[int | None, ...]:
    if not config.study.folds:
        return (None,)
    folds = _numbers('folds', config.study.folds)
    if config.split.kind != 'kfold' or max(folds) >= config.split.folds:
        raise ConfigError(f"config.study.folds = {folds} needs config.split.kind = 'kfold' and "
                          f'config.split.folds above {max(folds)}: set both.')
    return folds


def folder_name(name: str) -> str:
    """A file name for an arm: the same for the same name, different for different ones."""
    safe = re.sub(r'[^\w.,=+-]+', '_', name, flags=re.ASCII)[:80].strip('._') or 'arm'
    return safe if safe == name and name not in _RESERVED else \
        f'{safe}-{zlib.crc32(name.encode()):08x}'


def words_of(changes: Mapping, most: int = 40) -> str:
    """Changes in one line, long values shortened."""
    return ', '.join(f'{path}={word(value, most)}' for path, value in changes.items())


def word(value, most: int = 40) -> str:
    """A value in short, cut off with … if need be."""
    text = _words(value.to_dict() if isinstance(value, ConfigDict) else value)
    return text if len(text) <= most else f'{text[:most - 1]}…'


def _words(value) -> str:
    """5 epochs; [hflip, rotate(degrees=10)]"""
    if isinstance(value, float):
        return f'{value:.6g}'
    if isinstance(value, (tuple, list)):
        return f'[{", ".join(map(_words, value))}]'
    if isinstance(value, Mapping):
        if len(value) == 1 and set(value) <= set(UNITS):
            (unit, number), = value.items()
            return f'{_words(number)} {unit}'
        rest = ', '.join(f'{key}={_words(item)}' for key, item in value.items() if key != 'kind')
        return f'{value["kind"]}({rest})' if 'kind' in value else f'({rest})'
    return str(value)


def identity_of(config: ConfigDict) -> dict:
    """{dotted.path: value} of everything that makes it another arm, as JSON has it."""
    flat = _flat(json.loads(config.to_json()))
    return {key: value for key, value in flat.items()
            if not any(key == name or key.startswith(f'{name}.') for name in FREE)}


def differences(config: ConfigDict, other: ConfigDict) -> dict:
    """{dotted.path: value} of what the first has otherwise than the second, '–' where it lacks."""
    first, second = identity_of(config), identity_of(other)
    return {key: first.get(key, '–') for key in dict.fromkeys((*first, *second))
            if first.get(key, '–') != second.get(key, '–')}


def _flat(node, prefix: str = '') -> dict:
    """A duration is one value: its unit may differ."""
    if not isinstance(node, dict) or not node or (len(node) == 1 and set(node) <= set(UNITS)):
        return {prefix: node}
    found = {}
    for key, value in node.items():
        found |= _flat(value, f'{prefix}.{key}' if prefix else key)
    return found


def claim(study: Study, workdir: Path) -> None:
    """Writes study.json; on a later start, or of another process, compares with the one there.
    Arms, seeds and folds may be added.

    Raises:
        ConfigError: an arm has changed or is gone.
    """
    path = workdir / 'study.json'
    now = {arm.name: identity_of(arm.config) for arm in study.arms}
    if path.exists():
        before = json.loads(path.read_text())['arms']
        for name, old in before.items():
            if name not in now:
                raise ConfigError(f'The arm {name!r} of {workdir} is gone from the study: put it '
                                  f'back, or give a new --workdir.')
            new = now[name]
            # A key that the code did not have then changes nothing; model's keys are arguments.
            keys = {key for key in (*old, *new) if key in old or key.startswith('model.')}
            for key in sorted(keys):
                if old.get(key) != new.get(key):
                    raise ConfigError(
                        f'The arm {name!r} of {workdir} was started with config.{key} = '
                        f'{old.get(key)!r}, and now has {new.get(key)!r}: put it back, give the '
                        f'arm another name, or give a new --workdir.')
    else:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f'The workdir {workdir} cannot be made ({error.strerror}): give '
                              f'another --workdir.') from None
        if (workdir / 'config.json').exists():
            raise ConfigError(f'{workdir} holds a run, and no study: give another --workdir.')
    content = dict(metric=study.metric, baseline=study.baseline, seeds=study.seeds,
                   folds=[fold for fold in study.folds if fold is not None], arms=now,
                   folders={arm.name: arm.folder for arm in study.arms})
    if not path.exists() or json.loads(path.read_text()) != json.loads(json.dumps(content)):
        write_shared(path, json.dumps(content, indent=2, ensure_ascii=False) + '\n')


def result_value(result: Mapping, metric: str):
    """The number at a dotted path of result.json, None where there is none."""
    for key in metric.split('.'):
        result = result.get(key) if isinstance(result, Mapping) else None
    return None if isinstance(result, bool) or not isinstance(result, (int, float)) else result


