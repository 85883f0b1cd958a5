"""The verb vote: members -> vote.json, members.csv, predictions.npz, submission.csv, report.html.

Rows are joined by id. What is fitted (weights, the choice of an ensemble, the temperature) is
fitted on rows that no member trained on, and its scores there are given twice, naive and nested. A
member that trained on a row to be scored, or on its group, is refused by name.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from input_pipeline.atomic_files import write_json
from input_pipeline.errors import counted
from train_lib.commands.command import Command
from train_lib.commands.missing_predictions import predict_missing
from train_lib.ensembles import vote_files
from train_lib.ensembles.aligned import align
from train_lib.ensembles.fit.fitting import fit_if_asked
from train_lib.ensembles.read_specs import read_specs
from train_lib.ensembles.set_pool import set_head
from train_lib.ensembles.structured_votes import add_structure, answer_medians
from train_lib.ensembles.unlabelled import describe_unlabelled
from train_lib.ensembles.vote_scores import count_votes, describe, vote_json
from train_lib.ensembles.voters import find_voters
from train_lib.predictions.members import marks
from train_lib.reporting.vote_table import mark_lines, unlabelled_table, vote_table
from train_lib.run_dir import lock, workdirs
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.signals import STOPPED, Interrupted

log = logging.getLogger(__name__)


def vote(command: Command) -> int:
    """Votes as the config says, in --workdir or a new folder. Returns the exit code."""
    workdir = workdirs.choose(command.workdir, command.config_file)
    log.info('workdir  %s', workdir)
    try:
        with lock.held(workdir):
            run_vote(command.config.to_dict(), workdir)
    except Interrupted:
        log.info('Stopped. The same command with --workdir=%s goes on.', workdir)
        return STOPPED
    return 0


def run_vote(config: Mapping, workdir: Path,
             pictures: tuple[Callable, Mapping[str, str]] | None = None) -> dict:
    """The whole vote. Returns the content of vote.json.

    Args:
        config: of the vote, as a dict.
        workdir: where its files go.
        pictures: for the report: (location -> uint8 [H, W, 3], {id: location}). None: those that
            the members predicted, where the predictions or the runs say where they are.

    Raises:
        ConfigError: members that do not fit each other, leak, or do not exist; a wrong value.
        Interrupted: told to stop while predictions were made.
    """
    if config['bootstrap'] < 1:
        raise ConfigError(f'config.bootstrap = {config["bootstrap"]}: give 1 or more.')
    predict = predict_missing if config['predict'] else None
    members = find_voters(config, config['source'], predict)
    several = set_head(config, members)
    if several:
        from train_lib.commands.vote_sets import vote_on_sets

        return vote_on_sets(config, members, several, workdir, predict)
    aligned = align(config, members)
    specs = read_specs(config, aligned)
    log.info('members  %s of %s; %s of %s, %s', len(aligned.members),
             ', '.join(dict.fromkeys(aligned.models)), counted(len(aligned), 'row'),
             config['source'], counted(len(aligned.classes), 'class', 'classes'))
    fit, why_not = fit_if_asked(config, aligned, specs, predict)
    specs = fit.specs if fit else specs
    votes = count_votes(aligned, specs, fit.decision.chosen if fit else specs[0].name,
                        fit.decision.temperature if fit else None)
    answering = next(spec for spec in specs if spec.name == votes.chosen)
    votes = answer_medians(votes, aligned, answering)
    labelled = bool(aligned.known.any())
    figures = add_structure(describe(config, aligned, specs, votes), aligned, specs, votes) \
        if labelled else None
    fitted = fit.as_json(aligned, config['source']) if fit else None
    result = vote_json(config, aligned, votes, figures, fitted, why_not)
    result |= marks(aligned.members, aligned.ids.tolist(), shared=config['groups'] != 'none')
    if votes.by_median:
        result['medians'] = list(votes.by_median)
    if not labelled:
        result['unlabelled'] = describe_unlabelled(config, aligned, answering, votes)
    workdir.mkdir(parents=True, exist_ok=True)
    if config['soup']:
        from train_lib.commands.soup import make_soup  # needs a model, and so a device

        result['soup'] = make_soup(config, aligned, workdir / 'soup')
    columns = vote_files.write_submission(workdir / 'submission.csv', config, aligned, votes)
    vote_files.write_predictions(workdir / 'predictions.npz', aligned, votes)
    vote_files.write_members(workdir / 'members.csv', aligned, figures,
                             answering.member_shares(aligned.models))
    write_json(workdir / 'vote.json', result)
    from train_lib.reporting.vote_page import write_vote_report  # loads matplotlib

    path = write_vote_report(workdir / 'report.html', result, aligned, votes,
                             title=workdir.resolve().name, most=config['pictures'],
                             pictures=pictures)
    for line in vote_table(result) if labelled else unlabelled_table(result):
        log.info('%s', line)
    for line in mark_lines(result):
        log.warning('%s', line)
    log.info('report   %s', path)
    log.info('answers  %s', columns)
    log.info('submission  %s', workdir / 'submission.csv')
    return result
