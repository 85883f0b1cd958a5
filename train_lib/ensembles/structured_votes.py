"""What vote.json says of classes that have an order or are leaves of a tree: the keys of
result.json (`metrics/structured.py`), of every ensemble and of every member."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from input_pipeline.class_levels import inner_levels
from input_pipeline.products import SEPARATOR
from train_lib.ensembles.aligned import AlignedPredictions
from train_lib.ensembles.multi_head import vote_on
from train_lib.ensembles.rules import FLOOR, RULES
from train_lib.ensembles.spec import EnsembleSpec
from train_lib.ensembles.vote_scores import Votes
from train_lib.metrics.scores import softmax
from train_lib.metrics.structured import ORDER_SCORES, level_scores, medians, ordinal_scores
from train_lib.predictions.class_order import medians_of_members, orders_of_members
from train_lib.runtime.errors import ConfigError


def add_structure(figures: Mapping, aligned: AlignedPredictions, specs: Sequence[EnsembleSpec],
                  votes: Votes) -> dict:
    """The figures of a vote, with those of order and tree.

    Args:
        figures: of `vote_scores.describe`; is not changed.
        aligned: with at least one labelled row.
        specs: the ensembles, with their fitted weights.
        votes: their outcomes.

    Returns:
        The figures. If a head has an order or a tree, each entry of `ensembles`, `members` and
        `best_single` has `mae`, `mae_median`, `qwk` and `levels` of it, in `heads` if there are
        several, which then also have means over the ordered ones. What needs probabilities is None
        of rules that give none. `order` is {ordered head: the members whose config does not say
        that it is}; `members_mean` has the means of the members.
    """
    orders = orders_of_members(workdirs_of(aligned), aligned.heads)
    classes = {head: aligned.members[0].classes[head] for head in aligned.heads}
    # The parts of a product's names are labels of their own, not levels.
    trees = [head for head, names in classes.items()
             if SEPARATOR not in head and inner_levels(names)]
    if not orders and not trees:
        return dict(figures)

    def scored(predicted: np.ndarray, probabilities: np.ndarray | None) -> dict:
        return _scored(aligned, predicted, probabilities, (orders, trees))

    found = dict(figures, ensembles=dict(figures['ensembles']), order={
        head: list(names) for head, names in orders.items()})
    for spec in specs:
        outcome, probabilities = votes.ensembles[spec.name], None
        if spec.name == votes.chosen:
            probabilities = votes.plain
        elif RULES[spec.rule].distribution:  # one at a time: scores of all may be large
            probabilities = vote_on(aligned, {spec.name: spec}, keep=[spec.name])[spec.name].scores
        if not RULES[spec.rule].distribution:
            probabilities = None
        found['ensembles'][spec.name] = _merged(figures['ensembles'][spec.name],
                                                scored(outcome.predicted, probabilities))
    members = [scored(one.predicted, softmax(aligned.logits.of_member(k)))
               for k, one in enumerate(votes.members)]
    found['members'] = [_merged(one, more) for one, more in zip(figures['members'], members)]
    found['best_single'] = _merged(figures['best_single'], members[figures['best']])
    found['members_mean'] = figures['members_mean'] | {
        name: float(np.mean([one[name] for one in members]))
        for name in ORDER_SCORES if name in members[0]}
    return found


def answer_medians(votes: Votes, aligned: AlignedPredictions, spec: EnsembleSpec) -> Votes:
    """The votes, with the medians of the heads that the members answer so (config.eval.answer).

    Args:
        votes: their outcomes.
        aligned: what they voted on.
        spec: the ensemble that answers.

    Raises:
        ConfigError: members answer a head differently, or the rule gives no probabilities.
    """
    heads = medians_of_members(workdirs_of(aligned), aligned.heads)
    if not heads:
        return votes
    refuse_shares(spec.rule, heads)
    several = len(aligned.heads) > 1
    answers = aligned.split_heads(votes.answer.predicted) if several else {}
    for head in heads:
        # Without the temperature, which is not fitted for every submission.
        answers[head] = medians(_marginal(aligned, votes.plain, head))
    said = np.ravel_multi_index([answers[head] for head in aligned.heads], aligned.sizes)
    return dataclasses.replace(votes, medians=said.astype(np.int32), by_median=heads)


def refuse_shares(rule: str, heads: Sequence[str]) -> None:
    """Refuses a rule that has no probabilities where the heads answer their median.

    Raises:
        ConfigError: see above.
    """
    if heads and not RULES[rule].distribution:
        some = ', '.join(name for name, one in RULES.items() if one.distribution)
        raise ConfigError(f'The rule {rule!r} gives no probabilities, and the members answer '
                          f'{heads[0]!r} by its median (config.eval.answer): vote by one of '
                          f'{some}.')


def workdirs_of(aligned: AlignedPredictions) -> dict[str, Path]:
    """{name of a member: its workdir}"""
    return {member.name: member.workdir for member in aligned.members}


def _marginal(aligned: AlignedPredictions, probabilities: np.ndarray, head: str) -> np.ndarray:
    """Log probabilities of one head, float [N, C_h], of probabilities of the answer [N, C]."""
    by_head = probabilities.reshape(-1, *aligned.sizes)
    place = 1 + aligned.heads.index(head)
    others = tuple(axis for axis in range(1, by_head.ndim) if axis != place)
    return np.log(np.maximum(by_head.sum(others), FLOOR))


def _scored(aligned: AlignedPredictions, predicted: np.ndarray,
            probabilities: np.ndarray | None, structure: tuple[Mapping, Sequence[str]]) -> dict:
    """The scores of one answer: int [N] of the class or product class, and probabilities [N, C] of
    it. `structure`: the heads with an order, and those with a tree."""
    orders, trees = structure
    several = len(aligned.heads) > 1
    answers = aligned.split_heads(predicted) if several else {aligned.heads[0]: predicted}
    labels = aligned.split_heads(aligned.labels) if several else {aligned.heads[0]: aligned.labels}
    heads: dict[str, dict] = {}
    for head in aligned.heads:
        if head not in orders and head not in trees:
            continue
        logits = None if probabilities is None else _marginal(aligned, probabilities, head)
        heads[head] = ordinal_scores(logits, labels[head], answers[head]) if head in orders else {}
        if head in trees:
            heads[head]['levels'] = level_scores(
                logits, labels[head], aligned.members[0].classes[head], answers[head])
    if not several:
        return heads[aligned.heads[0]]
    means = {}
    for name in ORDER_SCORES if orders else ():
        values = [one[name] for head, one in heads.items() if head in orders]
        means[name] = None if None in values else float(np.mean(values))
    return dict(means, heads=heads)


def _merged(entry: Mapping, more: Mapping) -> dict:
    """An entry with more scores; those of heads go to the heads that it has."""
    found = {**entry, **more}
    if 'heads' in more:
        found['heads'] = {head: {**entry.get('heads', {}).get(head, {}),
                                 **more['heads'].get(head, {})}
                          for head in {**entry.get('heads', {}), **more['heads']}}
    return found
