"""What is said of a vote: scores, paired intervals, diversity, contributions, calibration."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from train_lib.ensembles.aligned import Panel, rows_of
from train_lib.ensembles.candidates import gather_evidence
from train_lib.ensembles.fit.selection import robustness
from train_lib.ensembles.pool import Outcome, member_ballots
from train_lib.ensembles.rules import FLOOR, RULES
from train_lib.ensembles.spec import Ensemble
from train_lib.ensembles.stacking import tempered
from train_lib.metrics import scores as scores_module
from train_lib.metrics.bootstrap import MEAN, bootstrap
from train_lib.metrics.statistics import (
    cochran_q,
    contributions,
    diversity,
    holm,
    learning_curve,
    macro_f1,
    mcnemar,
    oracle,
    weighted_scores,
)

METRICS = ('accuracy', 'f1_macro', 'nll')
_DRAWS = 20
FEW_GROUPS = 10  # fewer say too little of how they differ: intervals come out too narrow


@dataclasses.dataclass(frozen=True)
class Votes:
    """The outcomes of one panel: of every ensemble, of every member alone, and the answer's scores.

    `scores` are tempered, float [N, C]; `plain` are not.
    """

    ensembles: Mapping[str, Outcome]
    members: Sequence[Outcome]
    chosen: str
    plain: np.ndarray
    scores: np.ndarray


def count(panel: Panel, ensembles: Sequence[Ensemble], weights: Mapping[str, np.ndarray],
          chosen: str, temperature: float | None) -> Votes:
    """Counts every vote; `weights` are the fitted ones."""
    ballots = {one.name: one.ballot(panel, weights.get(one.name)) for one in ensembles}
    found = panel.vote(ballots, keep=[chosen])
    # Alone, a member answers the same whichever way heads are combined.
    whole = dataclasses.replace(panel, parts=None)
    alone = whole.vote(dict(enumerate(member_ballots(len(panel.members)))))
    plain = found[chosen].scores
    scores = plain if temperature is None else tempered(plain, temperature)
    return Votes(found, [alone[i] for i in range(len(panel.members))], chosen, plain, scores)


def describe(config: Mapping, panel: Panel, ensembles: Sequence[Ensemble],
             weights: Mapping[str, np.ndarray], votes: Votes) -> dict:
    """The figures of vote.json that need labels, by name; JSON-ready but for the key 'tables',
    {name: DataFrame}."""
    labels, known = panel.labels, panel.known
    predicted = np.stack([one.predicted for one in votes.members])
    members = [one.summary(labels) for one in votes.members]
    best = int(np.argmax([one['accuracy'] for one in members]))
    intervals = _intervals(config, panel, ensembles, votes, best)
    right = predicted[:, known] == labels[known]
    tests, entries = [], {}
    for one in ensembles:
        outcome = votes.ensembles[one.name]
        tests.append(mcnemar(outcome.predicted[known] == labels[known], right[best]))
        entries[one.name] = dict(
            rule=one.label, members=int(one.there.sum()), weights=_weights_word(one),
            **outcome.summary(labels), **weighted_scores(outcome.predicted, labels),
            ties=outcome.ties, ties_labelled=int(outcome.tied[known].sum()),
            robustness=robustness(outcome.predicted, labels),
            intervals=intervals[one.name], mcnemar_best_single=tests[-1],
            **_heads(panel, outcome.predicted))
    for entry, p in zip(entries.values(), holm([test['p'] for test in tests])):
        entry['mcnemar_best_single']['p_holm'] = float(p)
    answer = votes.ensembles[votes.chosen]
    evidence = gather_evidence(panel.logits, labels, panel.rows)
    chosen = next(one for one in ensembles if one.name == votes.chosen)
    own = flat_weights(panel, chosen, weights.get(chosen.name))
    table = contributions(evidence, own)
    curve = learning_curve(_only(evidence, chosen.there), draws=_DRAWS, seed=config['seed'])
    spread = diversity(predicted, labels)
    groups = None if panel.groups is None else len(np.unique(panel.groups[known].astype(str)))
    return dict(
        n=int(known.sum()), groups=groups,
        interval_unit='group' if groups and groups >= FEW_GROUPS else 'example',
        members_mean={name: _mean(members, name) for name in METRICS},
        best_single=dict(name=panel.members[best].name,
                         **{name: members[best][name] for name in METRICS}),
        oracle=oracle(predicted, labels),
        cochran=cochran_q(right) if len(right) > 1 else None,
        ensembles=entries,
        repaired=int((~right[best] & (answer.predicted == labels)[known]).sum()),
        broken=int((right[best] & (answer.predicted != labels)[known]).sum()),
        calibration=_calibration(panel, votes, chosen),
        diversity={name: np.where(np.isfinite(value), value, None).tolist()
                   for name, value in spread.items()},
        learning_curve=curve.to_dict('list'),
        members=[dict(summary, weight=float(weight), **{
            f'contribution_{name}': _finite(table[name][i]) for name in METRICS})
            for i, (summary, weight) in enumerate(zip(members, own))],
        best=best)


def _intervals(config, panel, ensembles, votes, best) -> dict[str, dict]:
    """{ensemble: {'example' | 'group': {metric: dict(low, high, best_single=(difference, low,
    high), mean_member=...)}}}"""
    answers = {f'member {i}': _rows(one) for i, one in enumerate(votes.members)}
    answers |= {f'vote {name}': _rows(one) for name, one in votes.ensembles.items()}
    found = {one.name: {} for one in ensembles}
    units = {'example': None} | ({} if panel.groups is None else {'group': panel.groups})
    for unit, groups in units.items():
        def draw(names, reference, mean_of=(), groups=groups):
            return bootstrap({name: answers[name] for name in names}, panel.labels,
                             num_classes=len(panel.classes), reference=reference, groups=groups,
                             repetitions=config['bootstrap'], seed=config['seed'],
                             mean_of=mean_of).set_index(['name', 'metric'])

        names = [f'vote {one.name}' for one in ensembles]
        to_best = draw([*names, f'member {best}'], f'member {best}')
        to_mean = {}
        for one in ensembles:  # those of the same members share their draws
            mine = tuple(f'member {i}' for i in np.flatnonzero(one.there))
            to_mean.setdefault(mine, []).append(one.name)
        for mine, of in to_mean.items():
            table = draw([*(f'vote {name}' for name in of), *mine], MEAN, mine)
            for name in of:
                found[name][unit] = {
                    metric: dict(low=_finite(row['low']), high=_finite(row['high']),
                                 best_single=_difference(row),
                                 mean_member=_difference(table.loc[f'vote {name}', metric]))
                    for metric in METRICS if (f'vote {name}', metric) in to_best.index
                    for row in [to_best.loc[f'vote {name}', metric]]}
    return found


def _rows(outcome: Outcome) -> dict:
    return {'predicted': outcome.predicted, 'nll': outcome.rows['nll']}


def _difference(row: pd.Series) -> list[float | None]:
    return [_finite(row[name]) for name in ('difference', 'difference_low', 'difference_high')]


def _calibration(panel: Panel, votes: Votes, chosen: Ensemble) -> dict | None:
    """Before and after the temperature: nll, ece, brier, and the table of the bins."""
    if not RULES[chosen.rule].distribution:
        return None
    found = {}
    for name, scores in (('before', votes.plain), ('after', votes.scores)):
        known = panel.known
        rows = rows_of(scores[known], votes.ensembles[chosen.name].predicted[known],
                       panel.labels[known], True)
        summary = scores_module.summary(rows, panel.labels[known], len(panel.classes))
        table = scores_module.reliability(np.log(np.maximum(scores[known], FLOOR)),
                                          panel.labels[known])
        found[name] = {key: summary[key] for key in ('nll', 'ece', 'brier')} | dict(
            bins=table.astype(object).where(table.notna(), None).to_dict('list'))
    return found


def _heads(panel: Panel, predicted: np.ndarray) -> dict:
    truth = panel.of_heads(panel.labels)
    known = panel.known
    return {'heads': {
        head: dict(accuracy=float(np.mean(part[known] == truth[head][known])),
                   f1_macro=macro_f1(part[known], truth[head][known], size))
        for (head, part), size in zip(panel.of_heads(predicted).items(), panel.sizes)}}


def flat_weights(panel: Panel, ensemble: Ensemble, fitted: np.ndarray | None) -> np.ndarray:
    """Shares of the members in the answer, float [M] of sum 1; of two levels, a model's share
    spread over its members."""
    ballot = ensemble.ballot(panel, fitted)
    weights = np.asarray(ballot.weights, float)
    if ballot.inner is not None:
        of_model = ballot.model_weights or dict.fromkeys(
            [model for model, there in zip(panel.models, weights) if there], 1.0)
        total = {model: sum(w for w, of in zip(weights, panel.models) if of == model)
                 for model in of_model}
        weights = np.array([w / total[model] * of_model[model] if w else 0.0
                            for w, model in zip(weights, panel.models)])
    return weights / weights.sum()


def _only(evidence, there: np.ndarray):
    return dataclasses.replace(evidence, own=evidence.own[there], probs=evidence.probs[there])


def _weights_word(ensemble: Ensemble) -> str:
    return ensemble.weights if isinstance(ensemble.weights, str) else 'given'


def _mean(summaries: Sequence[Mapping], name: str) -> float:
    return float(np.mean([one[name] for one in summaries]))


def _finite(value) -> float | None:
    return float(value) if np.isfinite(value) else None
