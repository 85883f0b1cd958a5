"""`main.py [VERB] --config=FILE[:args] [--workdir=DIR] [--config.key=value ...]` as data."""

import dataclasses
import difflib
import importlib
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from train_lib.run_dir.overrides import apply_overrides, overlay, shown
from train_lib.run_dir.workdirs import saved_config
from train_lib.runtime.errors import ConfigError

# verb: what it does. Those of NOT_BUILT answer so until they are.
VERBS = {
    'train': 'train, evaluate, report (the default verb)',
    'report': 'write report.html of a workdir anew',
    'predict': 'write the logits of a trained workdir',
    'vote': 'let folds and models vote',
    'explore': 'look at a data set',
    'curate': 'find duplicates, wrong labels, photographs',
    'pack': 'pack a data set into ArrayRecord files',
    'lr_find': 'sweep the learning rate',
    'study': 'run an ablation study',
    'models': 'list the models; a word after it filters',
}
OF_A_RUN = ('predict',)  # without --config they take the config of the run in --workdir
_OF_A_MACHINE = ('mesh', 'distributed')  # but for these, for the run may have been elsewhere

WORDS = {'models': 1}  # words that a verb takes: models FILTER

USAGE = ('python main.py [VERB] --config=FILE[:key=value,...] [--workdir=DIR] '
         '[--config.key=value ...]')


@dataclasses.dataclass(frozen=True)
class Command:
    """What the user asked for."""

    verb: str
    config: ConfigDict | None
    config_file: str
    workdir: Path | None
    words: tuple[str, ...] = ()  # after the verb
    argv: tuple[str, ...] = ()  # all of it, as it was given
    # time.perf_counter() from which on its time counts
    began: float = dataclasses.field(default_factory=time.perf_counter)


def parse(argv: Sequence[str]) -> Command:
    """Reads the command line (without the program's name).

    Raises:
        ConfigError: a wrong verb, flag, file, key or value, with the nearest right one.
    """
    words, overrides, plain = _sort(list(argv))
    verb, words = (words[0], words[1:]) if words else ('train', [])
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1) or list(VERBS)
        raise ConfigError(f'There is no verb {verb!r}; did you mean {" or ".join(near)}?')
    if len(words) > WORDS.get(verb, 0):
        raise ConfigError(f'{words[-1]!r} is one word too many: {USAGE}.')
    if '--help' in plain or '-h' in plain:
        verbs = '\n'.join(f'  {name:9}{text}' for name, text in VERBS.items())
        print(f'{USAGE}\n\nVerbs:\n{verbs}\n\nEvery key of the config stands in configs/common.py.')
        raise SystemExit(0)

    values = flags.FlagValues()
    flags.DEFINE_string('workdir', '', 'where the run lives', flag_values=values)
    flags.DEFINE_integer('workers', None, 'processes of a study', flag_values=values)
    wanted = [flag.partition('=')[2] for flag in plain if flag.startswith('--config=')]
    rewritten = [f'--config={find_config(wanted[-1])}' if flag.startswith('--config=') else flag
                 for flag in plain]
    of_run = verb in OF_A_RUN and not wanted
    if of_run:
        rewritten.append(f'--config={find_config("configs/common.py")}')
    config_flags.DEFINE_config_file('config', flag_values=values, lock_config=True,
                                    sys_argv=[sys.argv[0], *rewritten])
    try:
        values([sys.argv[0], *rewritten])
        config = values.config
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, ['config', 'workdir', 'workers'], n=1)
        hint = f'did you mean --{near[0]}?' if near else f'usage: {USAGE}.'
        raise ConfigError(f'There is no flag --{error.flagname}; {hint}') from None
    except Exception as error:  # a config is a program of the user's, and may raise anything
        raise ConfigError(_first_sentence(wanted[-1] if wanted else '', error)) from error
    if verb not in ('report', 'models', *OF_A_RUN) and config is None:
        example = {'vote': 'vote/digits.py',
                   'study': 'studies/digits.py'}.get(verb, 'sketch_vit.py')
        raise ConfigError(f'--config is missing: {USAGE}, e.g. --config=configs/{example}.')
    if config is not None and ('members' in config) != (verb == 'vote'):
        raise ConfigError(f'--config={shown(wanted[-1])}: the verb {verb} takes '
                          f'{"a config of a vote, as in" if verb == "vote" else "no config of"} '
                          f'configs/vote/.')
    if verb in OF_A_RUN and not values.workdir:
        raise ConfigError(f'--workdir is missing: {verb} needs the workdir of a trained run.')
    if of_run:
        _take_over(config, Path(values.workdir))
    if overrides and config is None:
        raise ConfigError(f'--config.{overrides[0][0]} needs a config: give --config=FILE too.')
    if values.workers is not None:
        if verb != 'study':
            raise ConfigError(f'--workers belongs to the verb study, not to {verb}: leave it out.')
        overrides = [*overrides, ('study.workers', str(values.workers))]
    if config is not None:
        apply_overrides(config, overrides)
    if verb == 'report' and not values.workdir:
        raise ConfigError('--workdir is missing: report needs the workdir of a finished run.')
    return Command(verb, config, wanted[-1] if wanted else '',
                   Path(values.workdir) if values.workdir else None, tuple(words), tuple(argv))


def config_of_run(workdir: Path) -> ConfigDict:
    """The config of a run, with the defaults of what is newer than it; unlocked.

    Raises:
        ConfigError: the folder holds no run.
    """
    return _take_over(importlib.import_module('configs.common').get_config(), workdir)


def _take_over(config: ConfigDict, workdir: Path) -> ConfigDict:
    saved = saved_config(workdir).to_dict()
    return overlay(config, {key: saved[key] for key in saved if key not in _OF_A_MACHINE},
                   strict=True)


def _sort(argv: list[str]) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """Words, overrides (path, text) and other flags; `--flag value` becomes `--flag=value`."""
    words, overrides, plain = [], [], []
    queue = list(argv)
    while queue:
        item = queue.pop(0)
        if not item.startswith('-'):
            words.append(item)
            continue
        name, equals, value = item.partition('=')
        takes_value = re.fullmatch(r'--?(config(\..+)?|workdir|workers)', name)
        if takes_value and not equals:
            if not queue:
                raise ConfigError(f'{name} has no value: write {name}=VALUE.')
            value = queue.pop(0)
        override = re.fullmatch(r'--?config\.(.+)', name)
        if override:
            overrides.append((override[1], value))
        elif takes_value:
            plain.append(f'--{name.lstrip("-")}={value}')
        else:
            plain.append(item)
    return words, overrides, plain


def find_config(spec: str) -> str:
    """`FILE:args` with the file found, from here or from the folder of main.py.

    Raises:
        ConfigError: there is no such file; the nearest one is named.
    """
    path, colon, args = spec.partition(':')
    home = Path(__file__).parents[2]
    for candidate in (Path(path), home / path):
        if candidate.is_file():
            return f'{candidate}{colon}{args}'
    known = [file.relative_to(home).as_posix() for file in (home / 'configs').rglob('*.py')
             if file.name not in ('__init__.py', 'common.py')]
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.4) or known
    raise ConfigError(f'--config={shown(path)}: there is no such file; did you mean '
                      f'{" or ".join(near)}?')


def _first_sentence(spec: str, error: Exception) -> str:
    """What a config file raised, as one line."""
    if isinstance(error, AttributeError) and 'does not exist' in str(error):
        key = re.search(r'Key "(.*?)"', str(error))
        return (f'{shown(spec)}: it sets the key {key[1] if key else "?"!r}, which '
                f'configs/common.py does not have; check the spelling.')
    text = ' '.join(str(error).split())
    if isinstance(error, AttributeError) and text.endswith("has no attribute 'get_config'"):
        text = 'it has no function get_config, so it is no config: give another file.'
    elif not isinstance(error, (ValueError, flags.Error)):
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if Path(frame.filename).name == Path(spec.partition(':')[0]).name]
        text = f'{type(error).__name__}: {text}' + (f' (line {lines[-1]})' if lines else '')
    return f'--config={shown(os.fspath(spec))}: {shown(text, 1000)}'
