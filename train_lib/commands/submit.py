"""The verb submit: trained runs, a sample submission and pictures -> submission.csv.

Runs predict what they have not predicted yet, then their folds and views vote, and then the runs.
Everything that can be refused is refused before the first prediction.
"""

import glob
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from input_pipeline import manifest_files
from input_pipeline.sixteen_bits import FULL
from train_lib.commands.command import Command
from train_lib.commands.new_pictures import predict_pictures
from train_lib.commands.vote import run_vote
from train_lib.ensembles.answer_columns import (
    PROBABILITY,
    Decided,
    decide_columns,
    question_of,
)
from train_lib.ensembles.chosen_runs import finished_runs, multi_label_of, shared_classes
from train_lib.ensembles.read_specs import check_rules
from train_lib.ensembles.rules import RULES
from train_lib.ensembles.sample_file import read_sample
from train_lib.ensembles.set_columns import set_contents
from train_lib.ensembles.structured_votes import refuse_shares
from train_lib.ensembles.voters import split_words, views_of
from train_lib.ensembles.wanted_pictures import find_wanted, list_pictures
from train_lib.predictions.class_order import medians_of_members
from train_lib.predictions.store import IDENTITY
from train_lib.run_dir import lock, workdirs
from train_lib.run_dir.run_config import config_of_run
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.signals import STOPPED, Interrupted

log = logging.getLogger(__name__)
NEEDED = ('workdirs', 'sample', 'images')
_USUAL_COLUMNS = ('ID', 'image_path', 'target')  # the default of config.columns, which says nothing


def submit(command: Command) -> int:
    """Writes submission.csv as the flags and the config say. Returns the exit code."""
    flags, out = _flags(command), _out(command)
    config = command.config.to_dict()
    if (config['members'] and not command.config_file) or config['sample']:
        key = 'sample' if config['sample'] else 'members'
        raise ConfigError(f'config.{key} is set, and submit takes '
                          f'--{"sample" if key == "sample" else "workdirs"}: leave it out.')
    views = views_of(config['views'])
    told = _told(config['columns'])
    check_rules(config)
    out = out or workdirs.choose(None, command.config_file or 'submit')
    log.info('workdir  %s', out)
    runs = finished_runs(split_words(flags['workdirs']), '--workdirs')
    sample = read_sample(flags['sample'])
    heads = shared_classes(runs, tuple(config['heads']))
    several = [head for head in multi_label_of(runs[0]) if head in heads]
    if several and len(heads) > 1:
        raise ConfigError(f'The head {several[0]!r} has several labels per picture: submit it '
                          f'alone by --config.heads={several[0]}, or name the other heads.')
    question = question_of(heads)
    data = config_of_run(runs[0]).data
    pictures = list_pictures(flags['images'], '--images', allow_outside=data.allow_outside,
                             zip_encoding=data.zip_encoding)
    wanted = find_wanted(sample, pictures, told, config['extra'])
    if several:
        contents = set_contents(told or (), heads[several[0]], sample, {wanted.key: True})
        decided = Decided(contents, tuple(f'{name}: {what or "copy"}'
                                          for name, what in contents.items()))
    else:
        decided = decide_columns(sample.columns, wanted.key, question, told, sample.path)
    for line in decided.why:
        log.info('column   %s', line)
    config |= dict(members=tuple(map(_escaped, runs)), source=f'submit-{wanted.digest[:12]}',
                   sample=flags['sample'], columns=dict(decided.contents), views=views,
                   rule=_rule(command, config['rule'], runs))
    config['temperature'] = _temperature(config, views)
    answering = medians_of_members({str(run): run for run in runs}, heads)
    if not config['ensembles']:
        refuse_shares(split_words(config['rule'])[-1], answering)
    _warn_of_shares(config)
    try:
        with lock.held(out):
            file = out.absolute() / 'pictures.csv'
            manifest_files.save(wanted.manifest, str(file))
            for run in runs:
                predict_pictures(run, config['source'], views, file, wanted.manifest.root)
            run_vote(config, out, wanted.shown(workdirs.range16_of(runs[0]) or FULL))
    except Interrupted:
        log.info('Stopped. The same command with --out=%s continues.', out)
        return STOPPED
    return 0


def _flags(command: Command) -> Mapping[str, str]:
    """The values of the flags.

    Raises:
        ConfigError: one that is needed was not given.
    """
    missing = [name for name in NEEDED if not command.flags.get(name)]
    if missing:
        raise ConfigError(f'--{missing[0]} is missing: write python main.py submit '
                          f"--workdirs='runs/a*' --sample=sample_submission.csv --images=PATH "
                          f'[--out=DIR].')
    return command.flags


def _out(command: Command) -> Path | None:
    """--out, or --workdir, which means the same.

    Raises:
        ConfigError: both are given, or it is the workdir of a run.
    """
    given = command.flags.get('out')
    if given and command.workdir:
        raise ConfigError('--out and --workdir both name the folder of submission.csv: give one.')
    out = Path(given) if given else command.workdir
    if out and (out / 'config.json').exists():
        raise ConfigError(f'--out={out} is the workdir of a run, whose files would be replaced: '
                          f'give another folder.')
    return out


def _told(columns: Any) -> dict[str, str]:
    """{column: content} of config.columns.

    Raises:
        ConfigError: it does not say what they hold.
    """
    if isinstance(columns, Mapping):
        return {str(name): str(what) for name, what in columns.items()}
    if split_words(columns) != _USUAL_COLUMNS:
        raise ConfigError(f'config.columns = {columns!r}: submit takes the columns of the sample; '
                          f"say what one of them holds as in dict(target='class').")
    return {}


def _rule(command: Command, rule: Any, runs: Sequence[Path]) -> Any:
    """config.rule. Where nobody chose one, several runs vote in two levels, so that one with more
    folds or views does not count for more."""
    if not command.config_file and len(runs) > 1 and not any(
            'config.rule' in word for word in command.argv):
        rule = ('soft', 'soft')
    levels = split_words(rule)
    if len(levels) > 1:
        log.info('vote     %s within a run, then %s between runs', *levels)
    return rule


def _temperature(config: Mapping, views: Sequence[str]) -> bool:
    """Whether a temperature is fitted. Where no column shows how sure the answer is, it must not
    take predictions of the training's own data, which may not be on this machine."""
    asked = any(what.startswith((PROBABILITY, 'confidence')) for what in config['columns'].values())
    if config['temperature'] and not asked and any(view != IDENTITY for view in views):
        log.info('no temperature is fitted: no column holds probabilities')
        return False
    return config['temperature']


def _warn_of_shares(config: Mapping) -> None:
    """Says so where columns of probabilities will hold something else."""
    rule = split_words(config['rule'])[-1]
    asked = any(what.startswith(PROBABILITY) for what in config['columns'].values())
    if asked and not config['ensembles'] and not RULES[rule].distribution:
        log.warning('config.rule=%s: the columns hold shares, which are no probabilities', rule)


def _escaped(run: Path) -> str:
    """The workdir as config.members names it, where it could be a glob."""
    return glob.escape(str(run)) if glob.has_magic(str(run)) else str(run)
