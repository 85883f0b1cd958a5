"""The verb vote: members -> vote.json, members.csv, predictions.npz, submission.csv, report.html.

Rows are joined by id. What is fitted (weights, the choice of an ensemble, the temperature) is
fitted on rows that no member trained on, and its scores there stand naive and nested side by
side; a member that trained on a row to be scored, or on its group, is refused by name.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from train_lib.commands.command_line import Command
from train_lib.commands.predict_missing import Stopped, predict_with
from train_lib.ensembles import outputs
from train_lib.ensembles.aligned import Panel, open_panel
from train_lib.ensembles.fit.fitting import Fit, fit, source_for, units_panel
from train_lib.ensembles.results import Votes, count, describe, flat_weights
from train_lib.ensembles.spec import Ensemble, read_ensembles
from train_lib.run_dir import lock, workdirs
from train_lib.run_dir.metrics_log import write_json
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)
STOPPED = 75


def vote_command(command: Command) -> int:
    """The verb vote. Returns the exit code."""
    config = command.config.to_dict()
    workdir = workdirs.choose(command.workdir, command.config_file)
    log.info('workdir  %s', workdir)
    try:
        with lock.held(workdir):
            run_vote(config, workdir)
    except Stopped:
        log.info('Stopped. The same command with --workdir=%s goes on.', workdir)
        return STOPPED
    return 0


def run_vote(config: Mapping, workdir: Path) -> dict:
    """The whole vote. Returns the content of vote.json.

    Raises:
        ConfigError: members that do not fit each other, leak, or are not there; a wrong value.
    """
    if config['bootstrap'] < 1:
        raise ConfigError(f'config.bootstrap = {config["bootstrap"]}: give 1 repetition or more.')
    make = predict_with if config['predict'] else None
    panel = open_panel(config, config['source'], make)
    ensembles = read_ensembles(config, panel)
    log.info('members  %s of %s; %s rows of %s, %d classes', len(panel.members),
             ', '.join(dict.fromkeys(panel.models)), f'{len(panel):,}', config['source'],
             len(panel.classes))
    fitted, why_not = _fit(config, panel, ensembles, make)
    chosen = fitted.decision.chosen if fitted else ensembles[0].name
    weights = dict(fitted.weights) if fitted else {}
    votes = count(panel, ensembles, weights, chosen,
                  fitted.decision.temperature if fitted else None)
    labelled = bool(panel.known.any())
    found = describe(config, panel, ensembles, weights, votes) if labelled else None
    answer = next(one for one in ensembles if one.name == chosen)
    result = _result(config, panel, votes, found, fitted, why_not, chosen)
    workdir.mkdir(parents=True, exist_ok=True)
    if config['soup']:
        from train_lib.commands.soup import make_soup  # needs a model, and so a device

        result['soup'] = make_soup(config, panel, workdir / 'soup')
    outputs.write_submission(workdir / 'submission.csv', config, panel, votes)
    outputs.write_predictions(workdir / 'predictions.npz', panel, votes)
    outputs.write_members(workdir / 'members.csv', panel, found,
                          flat_weights(panel, answer, weights.get(chosen)))
    write_json(workdir / 'vote.json', result)
    from train_lib.reporting.vote_page import write_vote_report  # loads matplotlib

    path = write_vote_report(workdir / 'report.html', result, panel, votes,
                             title=workdir.resolve().name, most=config['pictures'])
    for line in table_lines(result, ensembles) if labelled else ():
        log.info('%s', line)
    log.info('report   %s', path)
    return result


def _fit(config: Mapping, panel: Panel, ensembles: Sequence[Ensemble], make
         ) -> tuple[Fit | None, str]:
    """What is fitted, None and why if nothing is. Weights and a choice have to be; the
    temperature can be done without."""
    needed = [f'the weights of {one.name!r}' for one in ensembles if one.fitted]
    needed += ["config.choose"] if config['choose'] else []
    if not needed and not config['temperature']:
        return None, 'nothing is to be fitted'
    source, why_not = source_for(config, panel)
    if not source:
        if needed:
            raise ConfigError(f'{needed[0]} cannot be fitted: {why_not}; give members that are '
                              f'all k-fold runs, or all single runs with the same validation '
                              f'rows.')
        log.info('no temperature is fitted: %s', why_not)
        return None, why_not
    units = units_panel(config, panel, source, make)
    if not units.known.any() and not needed:
        why_not = f'the rows of {source} have no labels'
        log.info('no temperature is fitted: %s', why_not)
        return None, why_not
    return fit(config, panel, units, ensembles, source), ''


def _result(config: Mapping, panel: Panel, votes: Votes, found: dict | None, fitted: Fit | None,
            why_not: str, chosen: str) -> dict:
    about = None
    if fitted:
        decision = fitted.decision
        about = dict(
            fitted.about, temperature=decision.temperature,
            # Then the scores above are those of a fit on the same rows; `nested` is honest.
            on_the_scored_rows=fitted.about['source'] == config['source'],
            weights={name: {member.name: float(weight) for member, weight in
                            zip(panel.members, values)}
                     for name, values in fitted.weights.items()})
    answer = votes.ensembles[chosen]
    return dict(
        status='done', answer=chosen, source=config['source'], rows=len(panel),
        heads=list(panel.heads), classes=len(panel.classes), ties=answer.ties,
        labelled=int(panel.known.sum()),
        members=[dict(name=member.name, model=member.model, fold=member.fold, view=member.view,
                      workdir=str(member.workdir), digest=member.digest,
                      **(found['members'][i] if found else {}))
                 for i, member in enumerate(panel.members)],
        fit=about, not_fitted=why_not, soup=None,
        **({key: value for key, value in found.items() if key != 'members'} if found else {}),
        config=json.loads(json.dumps(config)))


def table_lines(result: Mapping, ensembles: Sequence[Ensemble]) -> list[str]:
    """What the screen shows: answers, and their paired differences, at most 80 columns."""
    unit = result['interval_unit']
    row = lambda name, accuracy, rest='': f'{name:20}{accuracy:7.4f}{rest}'
    lines = [f'{"":20}   acc. ties  {"to the best single":24}to the mean member',
             row('  members, mean', result['members_mean']['accuracy']),
             row(_cut(f'  best: {result["best_single"]["name"]}'),
                 result['best_single']['accuracy'])]
    for one in ensembles:
        entry = result['ensembles'][one.name]
        paired = entry['intervals'][unit]['accuracy']
        mark = '*' if one.name == result['answer'] else ' '
        lines.append(row(_cut(f'{mark} {one.name}'), entry['accuracy'],
                         f'{entry["ties_labelled"]:5d}  {_signed(paired["best_single"])}  '
                         f'{_signed(paired["mean_member"])}'))
    lines.append(f'* answers. 95 % intervals, n {result["n"]:,}, {unit_words(result)} drawn '
                 f'{result["config"]["bootstrap"]:,} times')
    fitted = result['fit']
    if fitted and fitted['answer']['nested']:
        naive, nested = fitted['answer']['naive'], fitted['answer']['nested']
        lines.append(f'fitted on {fitted["source"]}: accuracy {naive["accuracy"]:.4f} naive, '
                     f'{nested["accuracy"]:.4f} nested')
        if fitted['temperature']:
            nll = ', '.join(f'{found["nll"]:.4f} {name}' for name, found in
                            (('without', fitted['answer']['plain']), ('naive', naive),
                             ('nested', nested)) if found['nll'] is not None)
            lines.append(f'temperature {fitted["temperature"]:.3f}: nll {nll}')
    return lines


def unit_words(result: Mapping) -> str:
    """What the intervals draw: 'groups', or 'rows' and why not groups."""
    if result['interval_unit'] == 'group':
        return f'{result["groups"]:,} groups'
    few = result['groups']
    return 'rows' + (f' ({few} groups are too few)' if few else '')


def _signed(difference: Sequence[float | None]) -> str:
    value, low, high = difference
    return f'{value:+.3f} [{low:+.3f},{high:+.3f}]'


def _cut(name: str, width: int = 19) -> str:
    return name if len(name) <= width else name[:width - 1] + '…'
