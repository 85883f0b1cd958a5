"""The verb vote for a multi-label head: class by class, with thresholds that are fitted on rows
that no member trained on, and scored there nested."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline.atomic_files import atomic_open, write_json, write_text
from input_pipeline.csv_table import quoting_for
from train_lib.ensembles.fit.fit_rows import fit_source, members_of_runs
from train_lib.ensembles.set_columns import write_set_submission
from train_lib.ensembles.set_pool import (
    SET_RULES,
    AlignedSets,
    align_sets,
    in_words,
    logit,
    pooled,
    rule_of,
    scores_of,
)
from train_lib.ensembles.voters import Predict
from train_lib.metrics.intervals import accuracy_interval
from train_lib.metrics.set_scores import HALF, set_table
from train_lib.metrics.thresholds import by_class, fit_thresholds, nested_sets
from train_lib.predictions.members import marks
from train_lib.predictions.run_folders import separator_of
from train_lib.predictions.store import Member
from train_lib.reporting.set_vote_page import set_vote_lines, write_set_vote_report
from train_lib.reporting.vote_table import mark_lines
from train_lib.run_dir.npz import write_npz
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)
_SHOWN = ('n', 'map', 'accuracy', 'f1_macro', 'f1_micro', 'f1_examples', 'nll')


def vote_on_sets(config: Mapping, members: Sequence[Member], head: str, workdir: Path,
                 predict: Predict | None) -> dict:
    """The whole vote on one multi-label head. Returns the content of vote.json.

    Args:
        config: of the vote, as a dict.
        members: of config.source.
        head: its name.
        workdir: where the files go.
        predict: as in `voters.find_voters`.

    Raises:
        ConfigError: something has no meaning for such a head, or members do not fit.
    """
    rule = rule_of(config)
    aligned = align_sets(config, members, head)
    name = '-'.join(rule)
    log.info('members  %s of %s; %s of %s', len(members), ', '.join(dict.fromkeys(aligned.models)),
             in_words(aligned), config['source'])
    shares = pooled(aligned, rule)
    thresholds, source, why_not = _thresholds(config, aligned, rule, predict)
    nested = None
    if source == config['source']:  # these rows fitted them: each part by those of the others
        nested = nested_sets(logit(shares), aligned.targets, aligned.units)
    predicted = shares >= thresholds
    labelled = bool(aligned.known.any())
    scored = predicted if source != config['source'] else nested
    figures = _figures(aligned, rule, shares, scored) if labelled else {}
    result = dict(
        status='done', answer=name, source=config['source'], rows=len(aligned), heads=[head],
        multi_label=True, classes=len(aligned.classes), labelled=int(aligned.known.sum()),
        members=[_about(member, scores) for member, scores in
                 zip(aligned.members, figures.pop('members', [{}] * len(members)))],
        thresholds=by_class(thresholds, aligned.classes), thresholds_from=source,
        fit=None, not_fitted=why_not, nested=nested is not None, **figures,
        config=json.loads(json.dumps(config)))
    result |= marks(aligned.members, aligned.ids.tolist(), shared=config['groups'] != 'none')
    workdir.mkdir(parents=True, exist_ok=True)
    separator = config['label_separator'] or separator_of(members[0].workdir)
    columns = write_set_submission(workdir / 'submission.csv',
                                   dict(config) | dict(label_separator=separator), aligned, shares,
                                   predicted)
    with atomic_open(workdir / 'predictions.npz', 'wb') as file:
        write_npz(file, dict(
            ids=aligned.ids.astype(np.str_), labels=aligned.targets,
            logits=logit(shares).astype(np.float32), classes=np.array(aligned.classes, np.str_),
            predicted=predicted.astype(np.uint8), thresholds=thresholds))
    table = pd.DataFrame([{key: value for key, value in row.items() if key != 'pretrained'}
                          for row in result['members']])
    write_text(workdir / 'members.csv', table.to_csv(index=False, lineterminator='\n',
                                                     quoting=quoting_for(table)))
    write_json(workdir / 'vote.json', result)
    classes = set_table(logit(shares)[aligned.known], aligned.targets[aligned.known],
                        aligned.classes, None if scored is None else scored[aligned.known]) \
        if labelled else pd.DataFrame({'class': list(aligned.classes)})
    classes['threshold'], classes['predicted'] = thresholds, predicted.sum(0)
    path = write_set_vote_report(workdir / 'report.html', result, classes,
                                 title=workdir.resolve().name)
    for line in [*set_vote_lines(result), *mark_lines(result)]:
        log.info('%s', line)
    log.info('report   %s', path)
    log.info('answers  %s', columns)
    log.info('submission  %s', workdir / 'submission.csv')
    return result


def _thresholds(config: Mapping, aligned: AlignedSets, rule: Sequence[str],
                predict: Predict | None) -> tuple[np.ndarray, str, str]:
    """(the threshold of each class, float64 [C]; the rows that they were fitted on, '' for none;
    why there are none)."""
    half = np.full(len(aligned.classes), HALF)
    if config['thresholds'] not in ('f1', 'half'):
        raise ConfigError(f'config.thresholds = {config["thresholds"]!r}: choose f1 or half.')
    if config['thresholds'] == 'half':
        return half, '', 'config.thresholds=half'
    if rule[-1] == 'hard':
        return half, '', 'the majority decides'
    source, why_not = fit_source(config, aligned.members)
    if not why_not:
        try:
            runs = align_sets(config, members_of_runs(aligned.members, source, predict),
                              aligned.head)
            shares = pooled(runs, rule)
            if runs.known.any():
                return fit_thresholds(logit(shares), runs.targets), source, ''
            why_not = f'no row of {source} has a label'
        except ConfigError as error:
            why_not = str(error)
    own = np.stack([aligned.thresholds(k) for k in range(len(aligned.members))])
    if (own == HALF).all():
        return half, '', why_not
    log.info('thresholds  means of those of the members (%s)', why_not[:40])
    return own.mean(0), '', f'{why_not}; the means of the members’ own thresholds decide'


def _figures(aligned: AlignedSets, rule: Sequence[str], shares: np.ndarray,
             scored: np.ndarray | None) -> dict:
    """Scores of the members, of every rule at 0.5, and of the answer by its thresholds."""
    targets, known = aligned.targets, aligned.known
    members = []
    for k in range(len(aligned.members)):
        found = scores_of(1 / (1 + np.exp(-np.clip(aligned.logits(k), -60, 60))), targets, True)
        members.append({key: found[key] for key in _SHOWN})
    name = '-'.join(rule)
    ensembles = {}
    for label, levels in {name: rule, **{one: (one,) for one in SET_RULES}}.items():
        of_rule = shares if label == name else pooled(aligned, levels)
        ensembles[label] = scores_of(of_rule, targets, levels[-1] != 'hard')
    groups = None if aligned.groups is None else aligned.groups[known]
    answer = scores_of(shares, targets, rule[-1] != 'hard', scored)
    sets = (shares >= HALF) if scored is None else scored
    low, high = accuracy_interval((sets[known] == (targets[known] == 1)).all(1), groups)
    best = int(np.argmax([-1 if one['map'] is None else one['map'] for one in members]))
    return dict(members=members, ensembles=ensembles, fitted=answer,
                accuracy_interval=[low, high],
                best_single=dict(name=aligned.members[best].name, **members[best]))


def _about(member: Member, scores: Mapping) -> dict:
    return dict(name=member.name, model=member.model, fold=member.fold, view=member.view,
                workdir=str(member.workdir), digest=member.digest, **scores)
