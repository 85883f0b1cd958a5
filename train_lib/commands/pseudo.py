"""The verb pseudo: trained runs and unlabelled pictures -> pseudo-labels that a run may learn from.

A label must not carry into a fold what that fold is scored on. So with k-fold runs each picture is
labelled once per fold, by the models of that fold alone, which never saw the rows that it holds
out; `config.data.extra` gives fold k of a student the labels of fold k. With --folds=all they all
vote, for students whose validation and test rows none of them trained on. Either is checked again
where a run starts from the file.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import train_lib
from input_pipeline import manifest_files
from input_pipeline.errors import counted, did_you_mean
from train_lib.commands.command import Command
from train_lib.commands.missing_predictions import predict_missing
from train_lib.commands.new_pictures import predict_pictures
from train_lib.commands.unlabelled_pictures import unlabelled_pictures
from train_lib.ensembles.calibrated_votes import calibrated, temperatures, vote_on_pictures
from train_lib.ensembles.chosen_runs import finished_runs, multi_label_of, shared_classes
from train_lib.ensembles.pseudo_labels import (
    Selection,
    check_names,
    read_selection,
    select,
    thresholds_of,
)
from train_lib.ensembles.read_specs import check_rules
from train_lib.ensembles.rules import RULES
from train_lib.ensembles.spec import EnsembleSpec
from train_lib.ensembles.voters import lacks_predictions, split_words, views_of
from train_lib.predictions import pseudo_file
from train_lib.predictions.members import Member
from train_lib.predictions.provenance import not_checked
from train_lib.predictions.pseudo_file import ALL, column, soft_text
from train_lib.predictions.run_folders import fold_of, folds_of, run_of
from train_lib.predictions.vote_result import folders_of_vote, is_vote
from train_lib.run_dir.ancestors import of_several, read_table
from train_lib.run_dir.workdirs import start_facts
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.signals import STOPPED, Interrupted

log = logging.getLogger(__name__)
NEEDED = ('members', 'images', 'out')
KINDS = ('soft', 'hard')  # --labels
FOLDS = ('each', 'all')  # --folds
_UNUSED = ('members', 'weights', 'ensembles', 'choose', 'sample', 'soup')  # of a vote


def pseudo(command: Command) -> int:
    """Writes the labels as the flags and the config say. Returns the exit code."""
    flags, config = _flags(command), command.config.to_dict()
    selection = read_selection(*(flags.get(name, '')
                                 for name in ('threshold', 'quantile', 'per-class')))
    kind = _choice(flags, 'labels', KINDS, KINDS[0])
    out = Path(flags['out']).expanduser()
    if out.exists() or out.suffix.lower() != '.csv':
        raise ConfigError(f'--out={str(out)!r} '
                          f'{"is there already" if out.exists() else "is not a .csv file"}: give '
                          f'a new file, as in --out=pseudo.csv.')
    views = views_of(config['views'])
    runs = _runs(flags['members'])
    spec = _rule(config, runs)
    groups = _groups(runs, flags)
    classes = shared_classes(runs, tuple(config['heads']))
    _refuse_sets(runs[0], classes)
    check_names(selection, classes)
    wanted, left, doubts = unlabelled_pictures(flags['images'], runs)
    name = f'pseudo-{wanted.digest[:12]}'
    file = out.with_suffix('.pictures.csv').absolute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        manifest_files.save(wanted.manifest, str(file))
        for run in runs:
            predict_pictures(run, name, views, file, wanted.manifest.root)
            if config['predict'] and config['temperature'] and _validates(run) and \
                    lacks_predictions(run, 'val', views):
                predict_missing(run, 'val', views)
    except Interrupted:
        log.info('Stopped. The same command continues.')
        return STOPPED
    made = _label(groups, spec, classes, selection, dict(
        source=name, views=views, calibrate=config['temperature'], soft=kind == 'soft',
        table=wanted.manifest.table))
    about = dict(
        version=train_lib.__version__, classes=[[head, list(names)]
                                                for head, names in classes.items()],
        images=wanted.manifest.root, pictures=len(wanted.manifest), pictures_digest=wanted.digest,
        left_out=left, labels=kind, rule=spec.label, views=list(views),
        selection=dict(threshold=selection.threshold, thresholds=dict(selection.thresholds),
                       quantile=selection.quantile, per_class=selection.per_class),
        **made.about, **_round(groups),
        not_checked=list(dict.fromkeys([*doubts, *made.not_checked])))
    written = pseudo_file.write(out, made.columns, about, made.seen)
    for clause in written.about['not_checked']:
        log.info('not checked: %s', clause)
    log.info('labels   %s', out)
    return 0


def _flags(command: Command) -> Mapping[str, str]:
    missing = [name for name in NEEDED if not command.flags.get(name)]
    if missing:
        raise ConfigError(f'--{missing[0]} is missing: write python main.py pseudo '
                          f"--members='runs/a*' --images=PATH --out=pseudo.csv "
                          f'[--threshold=0.9] [--per-class=N] [--labels=hard].')
    if command.workdir:
        raise ConfigError('--workdir: the verb pseudo writes one file: give --out=pseudo.csv.')
    config = command.config.to_dict()
    for key in _UNUSED:
        if config[key] and config[key] != 'none' and not command.config_file:
            raise ConfigError(f'config.{key} is set, and pseudo does not use it: leave it out.')
    return command.flags


def _validates(run: Path) -> bool:
    """Whether a run, or each of its folds, holds out rows to validate on."""
    tables = [read_table(path) for path in folds_of(run) or [run]]
    return all(table is not None and 'val' in table.sides for table in tables)


def _choice(flags: Mapping[str, str], name: str, allowed: Sequence[str], default: str) -> str:
    value = flags.get(name) or default
    if value not in allowed:
        raise ConfigError(f'--{name}={value!r}: {did_you_mean(value, allowed, show=str)}')
    return value


def _runs(members: str) -> list[Path]:
    """The runs that are named; for a vote, those that voted."""
    found: list[str] = []
    for word in split_words(members):
        if is_vote(word):
            folders = folders_of_vote(Path(word).expanduser())
            whole = dict.fromkeys(run_of(path) for path in folders)
            for run in whole:
                own = [path for path in folders if run_of(path) == run]
                complete = {path.resolve() for path in own} >= {
                    path.resolve() for path in folds_of(run)}
                found += [str(run)] if complete else map(str, own)
        else:
            found.append(word)
    return finished_runs(found, '--members')


def _rule(config: Mapping, runs: Sequence[Path]) -> EnsembleSpec:
    """The rule of the vote; several runs count alike unless one level was asked for.

    Raises:
        ConfigError: its scores are no probabilities.
    """
    check_rules(config)
    levels = split_words(config['rule'])
    if levels == ('soft',) and len(runs) > 1:
        levels = ('soft', 'soft')
    for level in levels:
        if not RULES[level].distribution:
            raise ConfigError(f'config.rule = {config["rule"]!r} gives shares and no '
                              f'probabilities, and labels need a confidence: use soft, log_mean, '
                              f'median or trimmed_mean.')
    return EnsembleSpec(rule=levels[-1], inner=levels[0] if len(levels) > 1 else None,
                        trim=config['trim'])


def _refuse_sets(run: Path, classes: Mapping[str, Sequence[str]]) -> None:
    """Refuses heads with several labels per picture, which no run may learn from pseudo-labels.

    Raises:
        ConfigError: there is one.
    """
    several = [head for head in classes if head in multi_label_of(run)]
    if several:
        others = [head for head in classes if head not in several]
        hint = f'name the others by --config.heads={",".join(others)}' if others else \
            'give runs with one label per picture'
        raise ConfigError(f'The head {several[0]!r} of {run} has several labels per picture, and '
                          f'pseudo-labels are one per picture: {hint}.')


def _groups(runs: Sequence[Path], flags: Mapping[str, str]) -> dict[str, list[Path]]:
    """{fold: workdirs of those who label for it}; `ALL` for all together.

    Raises:
        ConfigError: labels per fold are asked for, and the runs are not of the same folds.
    """
    folds = {run: folds_of(run) for run in runs}
    numbers = {tuple(fold_of(path) for path in paths) for paths in folds.values()}
    alike = len(numbers) == 1 and all(folds.values())
    wanted = _choice(flags, 'folds', FOLDS, 'each' if alike else 'all')
    if wanted == 'all':
        return {ALL: [path for run in runs for path in folds[run] or [run]]}
    if not alike:
        raise ConfigError('--folds=each needs k-fold runs of the same folds: give such runs only, '
                          'or --folds=all, for students that hold out rows which no member '
                          'trained on.')
    for paths in zip(*folds.values()):
        held = [{name for name, side in zip(table.ids, table.sides) if side == 'val'}
                for path in paths if (table := read_table(path)) is not None]
        if any(one != held[0] for one in held):
            raise ConfigError(f'--folds=each: {paths[0]} and {paths[1]} hold out other rows: give '
                              f'runs of one split (the same data, config.split and split.seed), or '
                              f'--folds=all.')
    return {str(fold_of(paths[0])): list(paths) for paths in zip(*folds.values())}


# --- the labels ----------------------------------------------------------------------------------


class _Made:
    """What is written: columns, and what is known of each fold."""

    def __init__(self, heads: Sequence[str], soft: bool):
        kinds = ('label', 'confidence', *(['soft'] if soft else []))
        self.columns: dict[str, list[str]] = {
            name: [] for name in ('id', 'image', 'fold', *(
                column(kind, head, heads) for head in heads for kind in kinds))}
        self.about: dict[str, Any] = dict(members=[], ancestors=[], temperatures={}, thresholds={},
                                          counts={})
        self.seen: dict[str, dict[str, str]] = {}
        self.not_checked: list[str] = []


def _label(groups: Mapping[str, Sequence[Path]], spec: EnsembleSpec,
           classes: Mapping[str, Sequence[str]], selection: Selection, asked: Mapping[str, Any]
           ) -> _Made:
    """The labels of every fold.

    Args:
        asked: source and views of the predictions, whether to calibrate and to write soft labels,
            and the table of the pictures.
    """
    heads, table = list(classes), asked['table']
    made = _Made(heads, asked['soft'])
    for fold, folders in groups.items():
        members, plain = vote_on_pictures(folders, asked['source'], asked['views'], heads, spec,
                                          table['id'].tolist())
        fitted: dict[str, float | None] = dict.fromkeys(heads)
        if asked['calibrate']:
            fitted = temperatures(_calibrating(groups, fold), asked['views'], heads, spec)
        probabilities = calibrated(plain, fitted)
        least = {head: thresholds_of(selection, probabilities[head], classes[head])
                 for head in heads}
        chosen = {head: select(probabilities[head], least[head], selection.per_class)
                  for head in heads}
        _add_rows(made, fold, table, classes, probabilities, chosen)
        made.about['temperatures'][fold] = fitted
        made.about['thresholds'][fold] = {head: least[head].tolist() for head in heads}
        made.about['counts'][fold] = {head: np.bincount(
            probabilities[head].argmax(1)[chosen[head]], minlength=len(classes[head])).tolist()
            for head in heads}
        _add_makers(made, fold, folders, members)
        _say(fold, len(table), made.about, heads)
    return made


def _calibrating(groups: Mapping[str, Sequence[Path]], fold: str) -> list[list[Path]]:
    """Whose validation rows fit the temperature for a fold: the other folds, so that no label of a
    row that the fold is scored on is used. For `ALL`, folds of one number, and runs without."""
    if fold != ALL:
        return [list(folders) for other, folders in groups.items() if other != fold]
    found: dict[int | None, list[Path]] = {}
    for folder in groups[ALL]:
        found.setdefault(fold_of(folder), []).append(folder)
    return list(found.values())


def _add_rows(made: _Made, fold: str, table, classes: Mapping[str, Sequence[str]],
              probabilities: Mapping[str, np.ndarray], chosen: Mapping[str, np.ndarray]) -> None:
    heads, soft = list(classes), made.columns
    ids, places = table['id'].tolist(), table['location'].tolist()
    for row in np.flatnonzero(np.any(list(chosen.values()), axis=0)).tolist():
        made.columns['id'].append(ids[row])
        made.columns['image'].append(places[row])
        made.columns['fold'].append(fold)
        for head in heads:
            values, given = probabilities[head][row], bool(chosen[head][row])
            answer = int(values.argmax())
            made.columns[column('label', head, heads)].append(
                str(classes[head][answer]) if given else '')
            made.columns[column('confidence', head, heads)].append(
                f'{values[answer]:.4f}' if given else '')
            if column('soft', head, heads) in soft:
                soft[column('soft', head, heads)].append(soft_text(values) if given else '')


def _add_makers(made: _Made, fold: str, folders: Sequence[Path], members: Sequence[Member]) -> None:
    """Who labelled for a fold, and every row that they or the runs before them trained on."""
    digests = {member.workdir: member.digest for member in members}
    rows: dict[str, str] = {}
    for folder in folders:
        whole = of_several([folder], lambda path: digests.get(path, ''))
        made.about['members'].append(dict(whole.runs[0], fold=fold))
        made.about['ancestors'] += [dict(run, fold=fold) for run in whole.runs[1:]]
        rows |= whole.rows
        made.not_checked += whole.unknown
    made.not_checked += not_checked(members)
    made.seen[fold] = rows


def _round(groups: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """The round of the labels, and the digests of the files of the rounds before."""
    before = [extra for folders in groups.values() for folder in folders
              if (extra := start_facts(folder).get('taught', {}).get('extra'))]
    earlier = [digest for extra in before for digest in (*extra['earlier'], extra['digest'])]
    if before:
        log.info('round    the members learnt from the labels of round %d',
                 max(extra['round'] for extra in before))
    return dict(round=1 + max((extra['round'] for extra in before), default=0),
                earlier=list(dict.fromkeys(earlier)))


def _say(fold: str, pictures: int, about: Mapping[str, Any], heads: Sequence[str]) -> None:
    for head in heads:
        counts, heat = np.array(about['counts'][fold][head]), about['temperatures'][fold][head]
        log.info('labels   %s%s%s of %s; %s; T %s', f'fold {fold}: ' if fold else '',
                 f'{head}: ' if len(heads) > 1 else '', f'{counts.sum():,}', f'{pictures:,}',
                 f'{counts.min():,} to {counts.max():,} per class',
                 'not fitted' if heat is None else f'{heat:.2f}')
        if heat is None:
            log.warning('labels   the confidence is not calibrated: no validation rows')
        if (counts == 0).any():
            log.warning('labels   %s without a label',
                        counted(int((counts == 0).sum()), 'class is', 'classes are'))
