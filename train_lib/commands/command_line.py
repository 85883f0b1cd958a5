"""`main.py [VERB] --config=FILE[:args] [--workdir=DIR] [--config.key=value ...]` as a Command."""

import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

import train_lib
from input_pipeline.errors import did_you_mean
from train_lib.commands import verb_help
from train_lib.commands.command import Command
from train_lib.commands.misplaced_words import meant
from train_lib.commands.verb_help import USAGE
from train_lib.commands.verbs import VERBS, Verb
from train_lib.run_dir.overrides import apply_overrides, shown
from train_lib.run_dir.run_config import keep_rules, reset_row_settings, take_over
from train_lib.runtime.errors import ConfigError

HELP = 'help'  # not one of VERBS: it needs neither a config nor a function
# Flags that some verbs alone have.
_OWN = tuple(dict.fromkeys(flag for verb in VERBS.values() for flag in verb.flags))
_FLAGS = ('config', 'workdir', *_OWN)
_WRAPPED = 'Error whilst parsing config file'  # and a traceback, in the text of an error


def parse(argv: Sequence[str]) -> Command:
    """Reads the command line (without the program's name).

    Raises:
        ConfigError: a wrong verb, flag, file, key or value; the message names the nearest right
            one.
        SystemExit: --help or --version was printed.
    """
    words, overrides, plain = _sort(list(argv))
    given = [flag.partition('=')[2] for flag in plain if flag.startswith('--config=')]
    spec = given[-1] if given else None
    asked = bool({'--help', '-h'} & set(plain)) or words[:1] == [HELP]
    while words[:1] == [HELP]:
        words = words[1:]
    if asked and not words:
        _exit_with(verb_help.general())
    name, words = (words[0], words[1:]) if words else ('train', [])
    if name not in VERBS:
        raise ConfigError(meant([name, *words], 'train', VERBS['train'], spec) or
                          f'There is no verb {name!r}; {did_you_mean(name, [*VERBS, HELP])}')
    verb = VERBS[name]
    if asked:
        _exit_with(verb_help.of_verb(name))
    if '--version' in plain:
        _exit_with(train_lib.__version__)
    if verb.words is not None and len(words) > verb.words:
        raise ConfigError(meant(words, name, verb, spec) or
                          f'{words[-1]!r} is one word too many: {USAGE}.')
    own, plain = _own_flags(name, verb, plain)
    config, found, values = _read_flags(verb, plain, spec)
    workdir = Path(values.workdir) if values.workdir else None
    _check(name, verb, config, spec, workdir)
    of_run = verb.config == 'of the run' and spec is None and workdir is not None
    if of_run:
        take_over(config, workdir)
    if overrides and verb.config == 'refused':
        raise ConfigError(f'--config.{overrides[0][0]}: the verb {name} takes no config: leave it '
                          f'out.')
    if overrides and config is None:
        raise ConfigError(f'--config.{overrides[0][0]} needs a config: give --config=FILE too.')
    overrides += [(key, own[flag]) for flag, key in verb.keys.items() if flag in own]
    if config is not None:
        apply_overrides(config, overrides)
        if not verb.votes:
            keep_rules(config, workdir, [path for path, _ in overrides])
    if of_run:
        reset_row_settings(config, workdir, [key for key, _ in overrides])
    return Command(name, config, spec or '', workdir, tuple(words), tuple(argv),
                   config_path=found.partition(':')[0] if spec else '', flags=own)


def _exit_with(text: str) -> NoReturn:
    print(text)
    raise SystemExit(0)


def _own_flags(name: str, verb: Verb, plain: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The values of the flags that only some verbs have, and the other flags.

    Raises:
        ConfigError: another verb has the flag, or one that the verb needs is missing.
    """
    own, rest = {}, []
    for item in plain:
        flag, _, value = item.removeprefix('--').partition('=')
        if flag not in _OWN:
            rest.append(item)
        elif flag in verb.flags:
            own[flag] = value
        else:
            whose = ' and '.join(one for one, other in VERBS.items() if flag in other.flags)
            raise ConfigError(f'--{flag} belongs to the verb {whose}, not to {name}: leave it out.')
    return own, rest


def _read_flags(verb: Verb, plain: Sequence[str], spec: str | None
                ) -> tuple[ConfigDict | None, str, flags.FlagValues]:
    """The config, `FILE:args` with the file found, and the values of the other flags."""
    argv = [flag for flag in plain if not flag.startswith('--config=')]
    found = ''
    if spec is not None or verb.default_config:
        found = find_config(verb.default_config if spec is None else spec)
        argv.insert(0, f'--config={found}')
    argv.insert(0, sys.argv[0])
    values = flags.FlagValues()
    flags.DEFINE_string('workdir', '', 'where the run lives', flag_values=values)
    config_flags.DEFINE_config_file('config', flag_values=values, lock_config=True, sys_argv=argv)
    try:
        values(argv)
        return values.config, found, values
    except flags.UnrecognizedFlagError as error:
        hint = did_you_mean(error.flagname, _FLAGS, show='--{}'.format,
                            otherwise=f'usage: {USAGE}.')
        raise ConfigError(f'There is no flag --{error.flagname}; {hint}') from None
    except Exception as error:  # a config is a program of the user's, and may raise anything
        raise ConfigError(_first_sentence(spec or '', error)) from error


def _check(name: str, verb: Verb, config: ConfigDict | None, spec: str | None, workdir: Path | None
           ) -> None:
    """Refuses a verb without the config or the workdir that it needs."""
    if verb.config == 'refused' and spec is not None:
        raise ConfigError(f'--config={shown(spec)}: the verb {name} takes what it needs from '
                          f'workdirs: leave out --config.')
    if verb.config == 'required' and config is None:
        raise ConfigError(f'--config is missing: {USAGE}, e.g. --config=configs/{verb.example}; '
                          f'`python main.py help` shows the verbs.')
    if config is not None and ('members' in config) != verb.votes:
        raise ConfigError(f'--config={shown(spec or "")}: the verb {name} takes '
                          f'{"a config of a vote, as in" if verb.votes else "no config from"} '
                          f'configs/vote/.')
    if verb.workdir and workdir is None:
        raise ConfigError(f'--workdir is missing: {name} needs the workdir of {verb.workdir}.')


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
        takes_value = (re.fullmatch(r'--?(config(\..+)?|workdir)', name)
                       or name.lstrip('-') in _OWN)
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
        ConfigError: there is no such file; the message names the nearest one.
    """
    path, colon, args = spec.partition(':')
    home = Path(__file__).parents[2]
    for candidate in (Path(path), home / path):
        if candidate.is_file():
            return f'{candidate}{colon}{args}'
    known = [file.relative_to(home).as_posix() for file in (home / 'configs').rglob('*.py')
             if file.name != 'common.py' and 'def get_config(' in file.read_text(encoding='utf-8')]
    raise ConfigError(f'--config={shown(path)}: there is no such file; '
                      f'{did_you_mean(path, known, cutoff=0.4, show=str)}')


def _first_sentence(spec: str, error: BaseException) -> str:
    """What a config file raised, as one line."""
    while _WRAPPED in str(error) and error.__context__ is not None:  # by ml_collections and absl
        error = error.__context__
    if isinstance(error, AttributeError) and 'does not exist' in str(error):
        key = re.search(r'Key "(.*?)"', str(error))
        return (f'{shown(spec)}: it sets the key {key[1] if key else "?"!r}, which '
                f'configs/common.py does not have; check the spelling.')
    text = ' '.join(str(error).split())
    if isinstance(error, AttributeError) and text.endswith("has no attribute 'get_config'"):
        text = 'it has no function get_config, so it is not a config: give another file.'
    elif isinstance(error, TypeError) and 'get_config() takes 0 positional' in text:
        text = f'this config takes nothing after its colon: leave out {spec.partition(":")[2]!r}.'
    elif not isinstance(error, (ValueError, flags.Error)):
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if Path(frame.filename).name == Path(spec.partition(':')[0]).name]
        text = f'{type(error).__name__}: {text}' + (f' (line {lines[-1]})' if lines else '')
    return f'--config={shown(os.fspath(spec))}: {shown(text, 1000)}'
