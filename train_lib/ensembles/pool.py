"""Votes on stored logits: one pass over the rows feeds every rule. NumPy only.

The rows are read in blocks, a member's softmax is made once a block, and all ballots are counted
on it, so 20 members of 50,000 x 1,000 logits need no more memory than a few blocks and what is
asked for. Members of float16 logits are computed in float32, all others in float64.
"""

import dataclasses
import difflib
from collections.abc import Collection, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from train_lib.ensembles.rules import FLOOR, RULES, Entries, decide, weighted_sum
from train_lib.metrics import scores as scores_module
from train_lib.runtime.errors import ConfigError

BLOCK_CELLS = 1 << 20  # members x rows x classes of a block: a few MB, which stay in the cache


@dataclasses.dataclass(frozen=True)
class Ballot:
    """One way to vote.

    In two levels the members of each model vote by `inner`, then the models by `rule`. A model
    hands over the scores of its level as its distribution (shares of the votes for 'hard', ranks
    over their sum for 'rank_mean') and its answer, ties broken, as its vote: an outer 'hard'
    counts one vote a model, all other outer rules take the distributions. So hard-hard is a vote
    of votes, and hard-soft the mean share of the votes. Ties between models are broken by the
    mean probability of their members, models weighted alike.

    Attributes:
        rule: of RULES.
        inner: of RULES, or None for one level.
        weights: one a member, >= 0; None: equal. In two levels they weigh within a model only.
        model_weights: {model: >= 0} of the outer level; models that are missing count 1.
        trim: of trimmed_mean, cut off at either end, in [0, 0.5).
    """

    rule: str = 'soft'
    inner: str | None = None
    weights: Sequence[float] | None = None
    model_weights: Mapping[Hashable, float] | None = None
    trim: float = 0.2


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a ballot says of N rows.

    Attributes:
        predicted: int32 [N].
        tied: bool [N], where classes shared the largest score.
        scores: float [N, C], rows sum to 1, or None if they were not kept.
        rows: with labels, what `metrics.scores.summary` takes: predicted, rank, confidence,
            nll, brier [N]; the last three are None where the scores are no probabilities, and
            where the label is -1 the rank is -1 and they are NaN. Without labels None.
        num_classes: C.
    """

    predicted: np.ndarray
    tied: np.ndarray
    scores: np.ndarray | None
    rows: dict[str, np.ndarray | None] | None
    num_classes: int

    @property
    def ties(self) -> int:
        return int(self.tied.sum())

    def summary(self, labels: np.ndarray) -> dict:
        """`metrics.scores.scores` of the labelled rows; needs the labels in `vote` too."""
        known = np.asarray(labels) >= 0
        rows = {name: values if values is None else values[known]
                for name, values in self.rows.items()}
        return scores_module.summary(rows, np.asarray(labels)[known], self.num_classes)


def vote(logits: Sequence, ballots: Mapping[str, Ballot], *, rows: Sequence | None = None,
         labels=None, models: Sequence[Hashable] | None = None,
         merit: Sequence[float] | None = None, keep: Collection[str] = (),
         threads: int = 2) -> dict[str, Outcome]:
    """Counts all ballots in one pass.

    Args:
        logits: M members [N_m, C], arrays or memory maps, finite.
        ballots: by name.
        rows: for each member None (its rows as they are) or int [N], where to find row i of N.
        labels: int [N], -1 for none; asks for `Outcome.rows`.
        models: M names; members of one name are folds of one model. Two levels need them.
        merit: M numbers, higher is better, that break ties; None: the weights. A model has the
            mean of its members' merit, or its weight.
        keep: names of the ballots whose scores are returned.
        threads: that share the blocks.

    Raises:
        ConfigError: a ballot that cannot be counted.
        ValueError: shapes that do not fit, logits that are not finite, a label outside.
    """
    size, classes = check_members(logits, rows, labels)
    plans = {name: _plan(ballot, len(logits), models, merit)
             for name, ballot in ballots.items()}
    used = np.unique(np.concatenate([plan.members for plan in plans.values()])) if plans else []
    # Ballots on the same members, and two-level ones of the same inner level, share entries;
    # those of uneven weights come first, whose sorted members serve the even ones too.
    sharing = {}
    for name, plan in sorted(plans.items(), key=lambda item: np.ptp(item[1].outer.weights) == 0):
        sharing.setdefault(plan.key, []).append(name)
    dtype = np.float32 if all(member.dtype == np.float16 for member in logits) \
        else np.float64
    labels = None if labels is None else np.asarray(labels)
    outcomes = {name: _empty(plan, size, classes, dtype, name in keep, labels is not None)
                for name, plan in plans.items()}
    step = max(1, BLOCK_CELLS // max(len(used) * classes, 1))

    def count(start: int) -> None:
        part = slice(start, min(start + step, size))
        block = read_block(logits, rows, part, used, dtype)
        for names in sharing.values():
            entries = plans[names[0]].entries(block, used)
            for name in names:
                _store(outcomes[name], part, plans[name], entries, labels)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(count, range(0, size, step)))
    return outcomes


def vote_one(logits: Sequence, ballot: Ballot, **options) -> Outcome:
    """`vote` with one ballot, whose scores are kept."""
    return vote(logits, {'': ballot}, keep=('',), **options)['']


def member_ballots(count: int) -> list[Ballot]:
    """Ballots in which each of `count` members stands alone."""
    return [Ballot(weights=tuple(row)) for row in np.eye(count)]


def without_each(ballot: Ballot, count: int) -> list[Ballot]:
    """The ballot without one of its `count` members each, for its contribution."""
    weights = np.ones(count) if ballot.weights is None else np.asarray(ballot.weights, float)
    return [dataclasses.replace(ballot, weights=tuple(np.where(np.arange(count) == i, 0, weights)))
            for i in range(count)]


def read_block(logits: Sequence, rows: Sequence | None, part: slice, used: Sequence[int],
               dtype) -> Entries:
    """The rows `part` of the members `used` as Entries of that dtype.

    Raises:
        ValueError: logits that are not finite.
    """
    size = part.stop - part.start
    shape = (len(used), size, logits[0].shape[1])
    values, log_probs, probs = (np.empty(shape, dtype) for _ in range(3))
    votes = np.empty(shape[:2], np.int32)
    for i, member in enumerate(used):
        at = part if rows is None or rows[member] is None else rows[member][part]
        values[i] = logits[member][at]
        votes[i] = values[i].argmax(-1)
        largest = values[i][np.arange(size), votes[i]][:, None]
        if not np.isfinite(values[i]).all():
            row = part.start + int(np.argmin(np.isfinite(values[i]).all(1)))
            raise ValueError(f'Member {member} has logits that are not finite, first in row '
                             f'{row}: the model has diverged, leave it out.')
        np.subtract(values[i], largest, out=log_probs[i])
        np.exp(log_probs[i], out=probs[i])
        total = probs[i].sum(-1, keepdims=True)
        probs[i] *= 1 / total
        log_probs[i] -= np.log(total)
    return Entries(probs, votes, log_probs, values)


@dataclasses.dataclass(frozen=True)
class _Level:
    """Who votes, and how: indices of entries with weights > 0 of sum 1."""

    rule: str
    index: np.ndarray
    weights: np.ndarray
    merit: np.ndarray
    trim: float

    @property
    def key(self) -> tuple:
        return (self.rule, tuple(self.index), tuple(self.weights), tuple(self.merit), self.trim)

    def pool(self, entries: Entries) -> np.ndarray:
        return RULES[self.rule].pool(entries, self.weights, self.trim)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A ballot with everything looked up: `groups` are the models of two levels, or empty."""

    outer: _Level
    groups: tuple[_Level, ...]

    @property
    def members(self) -> np.ndarray:
        groups = self.groups or (self.outer,)
        return np.concatenate([group.index for group in groups])

    @property
    def key(self) -> tuple:
        """The same for ballots whose outer rule votes on the same entries."""
        return (*(group.key for group in self.groups),) or (tuple(self.outer.index),)

    def entries(self, block: Entries, used: np.ndarray) -> Entries:
        """What the outer rule votes on."""
        if not self.groups:
            return block.take(np.searchsorted(used, self.outer.index))
        pooled = []
        for group in self.groups:
            members = block.take(np.searchsorted(used, group.index))
            scores = group.pool(members)
            votes, _ = decide(scores, members, group.weights, group.merit)
            beliefs = scores if group.rule == 'soft' else weighted_sum(members.probs,
                                                                       group.weights)
            pooled.append((scores, votes, beliefs))
        probs, votes, beliefs = (np.stack(column) for column in zip(*pooled))
        return Entries(probs, votes, beliefs=beliefs)


def _plan(ballot: Ballot, count: int, models: Sequence[Hashable] | None,
          merit: Sequence[float] | None) -> _Plan:
    for rule in (ballot.rule, *([] if ballot.inner is None else [ballot.inner])):
        if rule not in RULES:
            near = difflib.get_close_matches(str(rule), RULES, n=1) or list(RULES)
            raise ConfigError(f'The voting rule {rule!r} is not known: did you mean '
                              f'{" or ".join(near)}?')
    if not 0 <= ballot.trim < 0.5:
        raise ConfigError(f'The share trim={ballot.trim!r} of trimmed_mean is out of range: give '
                          f'a number from 0 to below 0.5.')
    weights = np.ones(count) if ballot.weights is None else ballot.weights
    weights = _checked(weights, 'weights', range(count))
    if merit is not None and len(merit) != count:
        raise ValueError(f'There are {len(merit)} merits for {count} members: give one a member.')
    if ballot.inner is None:
        return _Plan(_level(ballot.rule, np.arange(count), weights, merit, ballot.trim), ())
    if models is None or len(models) != count:
        raise ValueError(f'Two levels need the model of each of the {count} members.')
    present = [model for model in dict.fromkeys(models)
               if any(w > 0 for w, of in zip(weights, models) if of == model)]
    given = ballot.model_weights or {}
    unknown = [model for model in given if model not in set(models)]
    if unknown:
        raise ConfigError(f'The model weights name {unknown[0]!r}, which is no member\'s model: '
                          f'use some of {", ".join(map(str, dict.fromkeys(models)))}.')
    model_weights = _checked([given.get(model, 1) for model in present], 'model weights', present)
    groups, model_merit = [], []
    for model, weight in zip(present, model_weights):
        if weight == 0:
            continue
        index = np.array([i for i, of in enumerate(models) if of == model])
        groups.append(_level(ballot.inner, index, weights[index],
                             None if merit is None else np.asarray(merit)[index], ballot.trim))
        model_merit.append(weight if merit is None else groups[-1].merit.mean())
    outer = _level(ballot.rule, np.arange(len(groups)), model_weights[model_weights > 0],
                   model_merit, ballot.trim)
    return _Plan(outer, tuple(groups))


def _level(rule: str, index: np.ndarray, weights: np.ndarray, merit, trim: float) -> _Level:
    merit = weights if merit is None else np.asarray(merit, float)
    there = weights > 0
    weights = weights[there]
    return _Level(rule, index[there], weights / weights.sum(), merit[there], trim)


def _checked(weights, what: str, names) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    if weights.shape != (len(names),):
        raise ConfigError(f'The vote has {weights.size} {what} for {len(names)} members: give '
                          f'one a member.')
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise ConfigError(f'The {what} of the vote hold {weights[bad[0]]} for {names[bad[0]]}: '
                          f'give finite numbers from 0.')
    if not weights.sum() > 0:
        raise ConfigError(f'The {what} of the vote are all 0: give at least one that is more.')
    return weights


def check_members(logits: Sequence, rows: Sequence | None, labels) -> tuple[int, int]:
    """(N, C) of what `vote` is given, or its errors."""
    if not len(logits):
        raise ConfigError('The vote has no members: give at least one.')
    sizes = {len(member) if rows is None or rows[i] is None else len(rows[i])
             for i, member in enumerate(logits)}
    if labels is not None:
        sizes.add(len(labels))
    widths = {member.shape[1:] for member in logits}
    if len(sizes) > 1 or len(widths) > 1 or len(next(iter(widths))) != 1:
        raise ValueError(f'The members have {sorted(sizes)} rows (labels included) and shapes '
                         f'{sorted(widths)} a row: they must agree.')
    size, (classes,) = sizes.pop(), widths.pop()
    if classes < 2:
        raise ValueError('A vote needs at least 2 classes.')
    if labels is not None and size and not -1 <= np.min(labels) <= np.max(labels) < classes:
        raise ValueError(f'Labels range from {np.min(labels)} to {np.max(labels)}, but there are '
                         f'{classes} classes: use 0 to {classes - 1}, or -1 for none.')
    return size, classes


def _empty(plan: _Plan, size: int, classes: int, dtype, keep: bool, judged: bool) -> Outcome:
    predicted, rows = np.empty(size, np.int32), None
    if judged:
        rows = {'predicted': predicted, 'rank': np.full(size, -1, np.int32)}
        proper = RULES[plan.outer.rule].distribution
        rows.update({name: np.full(size, np.nan) if proper else None
                     for name in ('confidence', 'nll', 'brier')})
    return Outcome(predicted, np.empty(size, bool), np.empty((size, classes), dtype) if keep
                   else None, rows, classes)


def _store(outcome: Outcome, part: slice, plan: _Plan, entries: Entries, labels) -> None:
    """Counts one block of one ballot."""
    scores = plan.outer.pool(entries)
    outcome.predicted[part], outcome.tied[part] = decide(
        scores, entries, plan.outer.weights, plan.outer.merit)
    if outcome.scores is not None:
        outcome.scores[part] = scores
    if labels is None:
        return
    truth = labels[part]
    known = np.flatnonzero(truth >= 0)
    if len(known) < len(truth):
        scores, truth = scores[known], truth[known]
    at, here = part.start + known, np.arange(len(truth))
    own = scores[here, truth][:, None]
    outcome.rows['rank'][at] = 0  # of all but these
    asked = np.flatnonzero(outcome.predicted[at] != truth)
    values, least = scores[asked], own[asked]
    above, upto = (np.count_nonzero(compare(values, least), axis=1)
                   for compare in (np.greater, np.greater_equal))
    for i in np.flatnonzero(upto - above > 1):  # equal scores rank by their class
        above[i] += np.count_nonzero(values[i, :truth[asked[i]]] == least[i])
    outcome.rows['rank'][at[asked]] = above
    if outcome.rows['nll'] is None:
        return
    outcome.rows['confidence'][at] = scores.max(1)
    if len(entries.probs) == 1:  # what a single member is sure is impossible costs what it says
        own_log = entries.log_probs[0][known, truth]
    else:
        own_log = np.log(np.maximum(own[:, 0].astype(np.float64), FLOOR))
    outcome.rows['nll'][at] = -own_log
    # The one-hot label is subtracted in place: 1 - p would lose digits when squared apart.
    scores[here, truth] -= 1
    outcome.rows['brier'][at] = np.einsum('bc,bc->b', scores, scores)
