"""What vote.json says: scores, paired intervals, diversity, contributions, calibration."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from train_lib.ensembles.aligned import AlignedPredictions
from train_lib.ensembles.candidates import find_candidates
from train_lib.ensembles.contributions import contributions, learning_curve
from train_lib.ensembles.multi_head import vote_on
from train_lib.ensembles.pool import Outcome, score_rows
from train_lib.ensembles.rules import FLOOR, RULES
from train_lib.ensembles.spec import EnsembleSpec, each_alone
from train_lib.ensembles.temperature import tempered
from train_lib.metrics import scores as scores_module
from train_lib.metrics.intervals import (
    accuracy_interval,
    difference_interval,
    f1_interval,
    f1_rows,
)
from train_lib.metrics.statistics import (
    diversity,
    equal_accuracy,
    holm,
    macro_f1,
    oracle,
    paired_test,
    robustness,
    weighted_scores,
)
from train_lib.run_dir import starting_weights
from train_lib.runtime.errors import ConfigError

_DRAWS = 20
_SAME = np.zeros(0)
METRICS = ('accuracy', 'f1_macro', 'nll')


@dataclasses.dataclass(frozen=True)
class Votes:
    """The outcomes of one vote.

    Attributes:
        ensembles: of every ensemble, by name.
        members: of every member alone.
        chosen: the name of the ensemble that answers.
        plain: its scores, float [N, C].
        scores: its scores with the temperature, float [N, C].
        medians: int [N], what is answered where ordered heads answer their median; None: the
            predictions of the answer. Scores are of these, and only `mae_median` of medians.
        by_median: those heads.
    """

    ensembles: Mapping[str, Outcome]
    members: Sequence[Outcome]
    chosen: str
    plain: np.ndarray
    scores: np.ndarray
    medians: np.ndarray | None = None
    by_median: tuple[str, ...] = ()

    @property
    def said(self) -> np.ndarray:
        """int [N], the class that is answered."""
        return self.answer.predicted if self.medians is None else self.medians

    @property
    def answer(self) -> Outcome:
        """The outcome of the ensemble that answers."""
        return self.ensembles[self.chosen]


def count_votes(aligned: AlignedPredictions, specs: Sequence[EnsembleSpec], chosen: str,
                temperature: float | None) -> Votes:
    """Counts the votes of every ensemble, and of every member alone.

    Args:
        specs: the ensembles, with their fitted weights.
        chosen: the name of the one that answers.
        temperature: for its scores, or None.
    """
    ensembles = vote_on(aligned, {spec.name: spec for spec in specs}, keep=[chosen])
    # The answer of a single member is the same whichever way heads are combined.
    product = dataclasses.replace(aligned, by_head=None)
    alone = vote_on(product, dict(enumerate(each_alone(len(aligned.members)))))
    plain = ensembles[chosen].scores
    scores = plain if temperature is None else tempered(plain, temperature)
    return Votes(ensembles, [alone[i] for i in range(len(aligned.members))], chosen, plain, scores)


def describe(config: Mapping, aligned: AlignedPredictions, specs: Sequence[EnsembleSpec],
             votes: Votes) -> dict:
    """The figures of vote.json that need labels, by name, ready for JSON.

    Args:
        config: of the vote, as a dict; bootstrap and seed are read.
        aligned: with at least one labelled row.
        specs: the ensembles, with their fitted weights.
    """
    labels, known = aligned.labels, aligned.known
    predicted = np.stack([one.predicted for one in votes.members])
    members = [one.summary(labels) for one in votes.members]
    best = int(np.argmax([one['accuracy'] for one in members]))
    right = predicted[:, known] == labels[known]
    answer = votes.answer
    candidates = find_candidates(aligned.logits, labels)
    chosen = next(spec for spec in specs if spec.name == votes.chosen)
    shares = chosen.member_shares(aligned.models)
    lost = contributions(candidates, shares)
    voting = chosen.voting(len(aligned.members))
    curve = learning_curve(candidates.of_members(voting), draws=_DRAWS, seed=config['seed'])
    groups = None if aligned.groups is None else len(np.unique(aligned.groups[known].astype(str)))
    return dict(
        n=int(known.sum()), groups=groups,
        interval_unit='group' if groups else 'example',
        members_mean={name: _mean(members, name) for name in METRICS},
        best_single=dict(name=aligned.members[best].name,
                         **{name: members[best][name] for name in METRICS}),
        oracle=oracle(predicted, labels),
        cochran=equal_accuracy(
            right, None if aligned.groups is None else aligned.groups[known],
            draws=config['bootstrap'], seed=config['seed']) if len(right) > 1 else None,
        ensembles=_ensembles(aligned, specs, votes, best),
        repaired=int((~right[best] & (answer.predicted == labels)[known]).sum()),
        broken=int((right[best] & (answer.predicted != labels)[known]).sum()),
        calibration=_calibration(aligned, votes, chosen),
        diversity={name: np.where(np.isfinite(value), value, None).tolist()
                   for name, value in diversity(predicted, labels).items()},
        learning_curve=curve.to_dict('list'),
        members=[dict(summary, weight=float(share), **{
            f'contribution_{name}': _finite(lost[name][i]) for name in METRICS})
            for i, (summary, share) in enumerate(zip(members, shares))],
        best=best)


def vote_json(config: Mapping, aligned: AlignedPredictions, votes: Votes, figures: Mapping | None,
              fitted: Mapping | None, not_fitted: str) -> dict:
    """The content of vote.json.

    Args:
        figures: of `describe`; None if no row has a label.
        fitted: what was fitted, and its scores.
        not_fitted: why nothing was fitted, '' if something was.
    """
    members = figures['members'] if figures else [{}] * len(aligned.members)
    return dict(
        status='done', answer=votes.chosen, source=config['source'], rows=len(aligned),
        heads=list(aligned.heads), classes=len(aligned.classes), ties=votes.answer.ties,
        labelled=int(aligned.known.sum()),
        members=[dict(name=member.name, model=member.model, fold=member.fold, view=member.view,
                      workdir=str(member.workdir), digest=member.digest,
                      pretrained=_published(member.workdir), **figures_of)
                 for member, figures_of in zip(aligned.members, members)],
        fit=fitted, not_fitted=not_fitted, soup=None,
        **{key: value for key, value in (figures or {}).items() if key != 'members'},
        config=json.loads(json.dumps(config)))


def _published(workdir: Path) -> list[dict]:
    """The published weights that a member goes back to, with their licences; [] if not known."""
    try:
        return starting_weights.of_run(workdir)
    except ConfigError:  # its predictions count all the same
        return []


def _ensembles(aligned: AlignedPredictions, specs: Sequence[EnsembleSpec], votes: Votes,
               best: int) -> dict[str, dict]:
    """{ensemble: its scores}; `best` is the number of the best single member."""
    labels, known = aligned.labels, aligned.known
    intervals = _intervals(aligned, specs, votes, best)
    groups = None if aligned.groups is None else aligned.groups[known]
    best_right = votes.members[best].predicted[known] == labels[known]
    found = {}
    for spec in specs:
        outcome = votes.ensembles[spec.name]
        found[spec.name] = dict(
            rule=spec.label, members=int(spec.voting(len(aligned.members)).sum()),
            weights=spec.weighting,
            **outcome.summary(labels), **weighted_scores(outcome.predicted, labels),
            ties=outcome.ties, ties_labelled=int(outcome.tied[known].sum()),
            robustness=robustness(outcome.predicted, labels),
            intervals=intervals[spec.name],
            mcnemar_best_single=paired_test(
                outcome.predicted[known] == labels[known], best_right, groups,
                chosen=len(aligned.members)),
            **_heads(aligned, outcome.predicted))
    tests = [entry['mcnemar_best_single'] for entry in found.values()]
    for test, p in zip(tests, holm([1 if test['p'] is None else test['p'] for test in tests])):
        test['p_holm'] = None if test['p'] is None else float(p)
    return found


def _intervals(aligned: AlignedPredictions, specs: Sequence[EnsembleSpec], votes: Votes,
               best: int) -> dict[str, dict]:
    """{ensemble: {'example' | 'group': {metric: dict(low, high, best_single=(difference, low,
    high), mean_member=...)}}}"""
    known = aligned.known
    units = {'example': None} | ({} if aligned.groups is None else
                                 {'group': aligned.groups[known]})
    members = [_by_row(one, aligned.labels, known) for one in votes.members]
    found: dict[str, dict] = {}
    for spec in specs:
        voting = np.flatnonzero(spec.voting(len(members)))
        answer = _by_row(votes.ensembles[spec.name], aligned.labels, known)
        same = {best} == set(voting.tolist())  # the vote of one member is that member
        others = {metric: {
            'best_single': None if metric not in members[best] else
            _SAME if same else values - members[best][metric],
            'mean_member': None if any(metric not in members[i] for i in voting) else
            _SAME if len(voting) == 1 else
            values - np.mean([members[i][metric] for i in voting], axis=0)}
            for metric, values in answer.items()}
        found[spec.name] = {unit: {
            metric: _score_interval(metric, answer, groups)
            | {name: _difference(metric, values, groups, len(members) if name == 'best_single'
                                 else 1) for name, values in others[metric].items()}
            for metric in answer} for unit, groups in units.items()}
    return found


def _by_row(outcome: Outcome, labels: np.ndarray, known: np.ndarray) -> dict[str, np.ndarray]:
    """What each labelled row adds to the scores of METRICS, of which NLL may be missing."""
    predicted, truth, nll = outcome.predicted[known], labels[known], outcome.rows['nll']
    found = {'accuracy': (predicted == truth).astype(float),
             'f1_macro': f1_rows(predicted, truth, outcome.num_classes)}
    return found if nll is None else found | {'nll': nll[known]}


def _score_interval(metric: str, answer: Mapping[str, np.ndarray], groups: np.ndarray | None
                    ) -> dict:
    """low and high of a score; None for the NLL, of which a few rows are so much larger than all
    others that no interval covers (docs/statistics.md)."""
    if metric == 'nll':
        return {'low': None, 'high': None}
    low, high = (accuracy_interval(answer['accuracy'], groups) if metric == 'accuracy' else
                 f1_interval(answer['f1_macro'], answer['accuracy'], groups))
    return {'low': _finite(low), 'high': _finite(high)}


def _difference(metric: str, of_rows: np.ndarray | None, groups: np.ndarray | None, chosen: int
                ) -> list[float | None]:
    """[difference, low, high] to another answer; of_rows: by row, None where the other one is
    missing, _SAME where it is the same answer; chosen: as in `difference_interval`."""
    if of_rows is None:
        return [None] * 3
    if not of_rows.size:
        return [0.0] * 3
    edges = difference_interval(of_rows, groups, share=metric == 'accuracy', chosen=chosen)
    return [float(of_rows.mean()), *map(_finite, edges)]


def _calibration(aligned: AlignedPredictions, votes: Votes, chosen: EnsembleSpec) -> dict | None:
    """Before and after the temperature: nll, ece, brier, and the table of the bins."""
    if not RULES[chosen.rule].distribution:
        return None
    known, labels = aligned.known, aligned.labels[aligned.known]
    found = {}
    for name, scores in (('before', votes.plain[known]), ('after', votes.scores[known])):
        rows = score_rows(scores, votes.answer.predicted[known], labels, True)
        summary = scores_module.summary(rows, labels, len(aligned.classes))
        table = scores_module.reliability(np.log(np.maximum(scores, FLOOR)), labels)
        found[name] = {key: summary[key] for key in ('nll', 'ece', 'brier')} | dict(
            bins=table.astype(object).where(table.notna(), None).to_dict('list'))
    return found


def _heads(aligned: AlignedPredictions, predicted: np.ndarray) -> dict:
    """{'heads': {head: accuracy and f1_macro}}, which is empty if there is only one head."""
    labels, known = aligned.split_heads(aligned.labels), aligned.known
    return {'heads': {
        head: dict(accuracy=float(np.mean(part[known] == labels[head][known])),
                   f1_macro=macro_f1(part[known], labels[head][known], size))
        for (head, part), size in zip(aligned.split_heads(predicted).items(), aligned.sizes)}}


def _mean(summaries: Sequence[Mapping], name: str) -> float:
    return float(np.mean([one[name] for one in summaries]))


def _finite(value) -> float | None:
    return float(value) if np.isfinite(value) else None
