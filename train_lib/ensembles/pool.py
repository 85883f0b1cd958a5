"""Votes on stored logits: one pass over the rows feeds every ensemble. NumPy only.

    logits (AlignedLogits) -- read a block --> RuleInputs -- inner level --> RuleInputs of models
    -- rule --> scores -- decide --> Outcome

The rows are read in blocks; the softmax of a member is computed once per block, and all ensembles
vote on it. So 20 members of 50,000 x 1,000 logits need no more memory than a few blocks and the
scores that are kept.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from input_pipeline.errors import did_you_mean, listed
from train_lib.ensembles import aligned_logits
from train_lib.ensembles.aligned_logits import AlignedLogits
from train_lib.ensembles.rules import FLOOR, RULES, RuleInputs, decide
from train_lib.ensembles.spec import EnsembleSpec, checked_weights
from train_lib.metrics import scores as scores_module
from train_lib.runtime.errors import ConfigError

_TOGETHER = 8  # ensembles


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an ensemble answers for N rows.

    Attributes:
        predicted: int32 [N].
        tied: bool [N], where classes shared the largest score.
        scores: float [N, C], rows sum to 1, or None if they were not kept.
        rows: with labels, what `metrics.scores.summary` takes: predicted, rank, confidence,
            nll, brier [N]. The last three are None if the scores are not probabilities. Where
            the label is -1 the rank is -1 and they are NaN. Without labels None.
        num_classes: C.
    """

    predicted: np.ndarray
    tied: np.ndarray
    scores: np.ndarray | None
    rows: dict[str, np.ndarray | None] | None
    num_classes: int

    @property
    def ties(self) -> int:
        """How many rows are tied."""
        return int(self.tied.sum())

    def summary(self, labels: np.ndarray) -> dict:
        """`metrics.scores.scores` of the labelled rows; `vote` needs the same labels."""
        known = np.asarray(labels) >= 0
        rows = {name: values if values is None else values[known]
                for name, values in self.rows.items()}
        return scores_module.summary(rows, np.asarray(labels)[known], self.num_classes)


def vote(logits: AlignedLogits | Sequence, specs: Mapping[Hashable, EnsembleSpec], *,
         labels: np.ndarray | None = None, models: Sequence[Hashable] | None = None,
         tie_break: Sequence[float] | None = None, keep: Collection[Hashable] = (),
         threads: int = 2) -> dict[Hashable, Outcome]:
    """Counts the votes of all ensembles in one pass.

    Args:
        logits: of M members for N rows, finite; or M arrays [N, C] of the same rows in the same
            order.
        specs: the ensembles by name.
        labels: int [N], -1 for none; needed for `Outcome.rows`.
        models: M names; members of the same name are folds of one model. Two levels need them.
        tie_break: M numbers, higher is better, that break ties; None: the weights. A model has the
            mean of its members, or its weight.
        keep: names of the ensembles whose scores are returned.
        threads: that share the blocks.

    Raises:
        ConfigError: an ensemble that cannot be counted.
        ValueError: shapes that do not fit, logits that are not finite, a label outside.
    """
    if not isinstance(logits, AlignedLogits):
        logits = AlignedLogits(logits)
    labels = None if labels is None else np.asarray(labels)
    size, classes = logits.check(labels)
    levels = {name: _outer_level(spec, logits.count, models, tie_break)
              for name, spec in specs.items()}
    used = np.unique(np.concatenate([level.all_members for level in levels.values()])) \
        if levels else np.zeros(0, int)
    outcomes = {name: _empty(RULES[level.rule].distribution, (size, classes), logits.dtype,
                             name in keep, labels is not None)
                for name, level in levels.items()}
    sharing = _sharing(levels)
    step = max(1, aligned_logits.BLOCK_CELLS // max(len(used) * classes, 1))

    def count(start: int) -> None:
        part = slice(start, min(start + step, size))
        block = logits.read(part, used, logits.dtype)
        # Each choice of members once: what is sorted, ranked or averaged for one ensemble serves
        # the next. The block itself must not keep it, or it would outlive the block in a circle.
        chosen = functools.cache(lambda *members: block.take(np.searchsorted(used, members)))
        # Several are counted together: many small steps would hold up the other threads.
        waiting: dict[bool, list[_Pooled]] = {True: [], False: []}
        for names in sharing:
            inputs = _inputs(levels[names[0]], chosen)
            for name in names:
                level, some = levels[name], waiting[RULES[levels[name].rule].distribution]
                some.append(_Pooled(outcomes[name], level, inputs, level.pool(inputs)))
                if len(some) == _TOGETHER:
                    _count(some, part, labels)
                    some.clear()
        for some in filter(None, waiting.values()):
            _count(some, part, labels)

    # glibc keeps freed memory for the next block, instead of having the system clear it anew, once
    # it has freed an array as large as this, which is never touched.
    np.empty(31 << 20, np.uint8)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(count, range(0, size, step)))
    return outcomes


def vote_one(logits: AlignedLogits | Sequence, spec: EnsembleSpec, **options) -> Outcome:
    """`vote` of one ensemble, whose scores are kept."""
    return vote(logits, {'': spec}, keep=('',), **options)['']


def score_rows(scores: np.ndarray, predicted: np.ndarray, labels: np.ndarray,
               distribution: bool) -> dict[str, np.ndarray | None]:
    """`Outcome.rows` of scores float [N, C] that were not made by `vote`.

    Args:
        predicted: int [N]; labels: int [N], -1 for none.
        distribution: whether the scores are probabilities.
    """
    known = np.flatnonzero(labels >= 0)
    rows = scores_module.per_row(np.log(np.maximum(scores[known], FLOOR)), labels[known])
    found: dict[str, np.ndarray | None] = {'predicted': np.asarray(predicted, np.int32)}
    for name in ('confidence', 'nll', 'brier'):
        found[name] = None
        if distribution:
            found[name] = np.full(len(labels), np.nan)
            found[name][known] = rows[name]
    rank = np.full(len(labels), -1)
    rank[known] = rows['rank']
    found['rank'] = np.where(found['predicted'] == labels, 0, rank).astype(np.int32)
    return found


@dataclasses.dataclass(frozen=True)
class _Level:
    """One level of an ensemble: K members with a weight, or K models that are levels themselves.

    Attributes:
        members: int [K], which of the M members vote here; empty if models do.
        weights: float64 [K] > 0 of sum 1.
        tie_break: float [K], higher is better.
        models: K inner levels; empty if members vote.
    """

    rule: str
    trim: float
    members: np.ndarray
    weights: np.ndarray
    tie_break: np.ndarray
    models: tuple['_Level', ...] = ()

    @property
    def all_members(self) -> np.ndarray:
        """The members that vote here or in an inner level."""
        return np.concatenate([level.members for level in self.models or (self,)])

    @property
    def key(self) -> tuple:
        """Equal for inner levels that hand on the same."""
        return (self.rule, tuple(self.members), tuple(self.weights), tuple(self.tie_break),
                self.trim)

    def pool(self, inputs: RuleInputs) -> np.ndarray:
        """The scores [B, C]."""
        return RULES[self.rule].pool(inputs, self.weights, self.trim)


def _outer_level(spec: EnsembleSpec, count: int, models: Sequence[Hashable] | None,
                 tie_break: Sequence[float] | None) -> _Level:
    """The level that answers, of an ensemble of some of `count` members."""
    for rule in (spec.rule, *([] if spec.inner is None else [spec.inner])):
        if rule not in RULES:
            raise ConfigError(f'The voting rule {rule!r} is unknown: '
                              f'{did_you_mean(rule, RULES, show=str)}')
    if not 0 <= spec.trim < 0.5:
        raise ConfigError(f'The share trim={spec.trim!r} of trimmed_mean is out of range: give a '
                          f'number from 0 to below 0.5.')
    weights = spec.member_weights(count)
    if tie_break is not None and len(tie_break) != count:
        raise ValueError(f'There are {len(tie_break)} numbers in tie_break for {count} members: '
                         f'give one per member.')
    ties = weights if tie_break is None else np.asarray(tie_break, float)
    if spec.inner is None:
        return _level(spec.rule, spec.trim, np.arange(count), weights, ties)
    if models is None or len(models) != count:
        raise ValueError(f'Two levels need the model of each of the {count} members.')
    given = spec.model_weights or {}
    unknown = [model for model in given if model not in set(models)]
    if unknown:
        raise ConfigError(f'The model weights name {unknown[0]!r}, which is not the model of any '
                          f'member: use some of {listed(dict.fromkeys(models))}.')
    voting = [model for model in dict.fromkeys(models)
              if any(w > 0 for w, of in zip(weights, models) if of == model)]
    model_weights = checked_weights([given.get(model, 1) for model in voting], 'model weights',
                                    voting)
    inner = []
    for model, weight in zip(voting, model_weights):
        if weight > 0:
            index = np.array([i for i, of in enumerate(models) if of == model])
            inner.append(_level(spec.inner, spec.trim, index, weights[index], ties[index]))
    model_weights = model_weights[model_weights > 0]
    model_ties = model_weights if tie_break is None else \
        np.array([level.tie_break.mean() for level in inner])
    outer = _level(spec.rule, spec.trim, np.arange(len(inner)), model_weights, model_ties)
    return dataclasses.replace(outer, members=np.zeros(0, int), models=tuple(inner))


def _level(rule: str, trim: float, members: np.ndarray, weights: np.ndarray,
           ties: np.ndarray) -> _Level:
    """A level of members, without those of weight 0."""
    voting = weights > 0
    weights = weights[voting]
    return _Level(rule, trim, members[voting], weights / weights.sum(), ties[voting])


def _sharing(levels: Mapping[Hashable, _Level]) -> list[list[Hashable]]:
    """Names of the ensembles whose outer rules pool the same inputs: those of the same members,
    or of the same inner levels. Uneven weights come first: their sorted members serve even
    weights too."""
    sharing: dict[tuple, list[Hashable]] = {}
    for name, level in sorted(levels.items(), key=lambda item: np.ptp(item[1].weights) == 0):
        key = tuple(model.key for model in level.models) or (tuple(level.members),)
        sharing.setdefault(key, []).append(name)
    return list(sharing.values())


def _inputs(level: _Level, chosen: Callable[..., RuleInputs]) -> RuleInputs:
    """What the rule of a level pools.

    Args:
        chosen: (*members) -> what these members put into a vote.
    """
    if not level.models:
        return chosen(*level.members)
    models = [(_inputs(model, chosen), model.weights, model.tie_break) for model in level.models]
    probs = np.stack([model.pool(members) for model, (members, *_) in zip(level.models, models)])
    votes, _, _ = decide(probs, models)
    means = np.stack([members.mean(weights) for members, weights, _ in models])
    return RuleInputs(probs, votes, tie_probs=means)


def _empty(distribution: bool, shape: tuple[int, int], dtype: type, keep: bool,
           labelled: bool) -> Outcome:
    """An Outcome that `_count` fills."""
    size, classes = shape
    predicted, rows = np.empty(size, np.int32), None
    if labelled:
        rows = {'predicted': predicted, 'rank': np.full(size, -1, np.int32)}
        rows.update({name: np.full(size, np.nan) if distribution else None
                     for name in ('confidence', 'nll', 'brier')})
    return Outcome(predicted, np.empty(size, bool),
                   np.empty((size, classes), dtype) if keep else None, rows, classes)


@dataclasses.dataclass(frozen=True)
class _Pooled:
    """One ensemble whose scores [B, C] for a block of rows are to be counted."""

    outcome: Outcome
    level: _Level
    inputs: RuleInputs
    scores: np.ndarray


def _count(pooled: Sequence[_Pooled], part: slice, labels: np.ndarray | None) -> None:
    """Fills the rows `part` of the outcomes of E ensembles, of which all or none have
    probabilities."""
    scores = np.stack([one.scores for one in pooled])
    predicted, tied, largest = decide(
        scores, [(one.inputs, one.level.weights, one.level.tie_break) for one in pooled])
    for i, one in enumerate(pooled):
        one.outcome.predicted[part], one.outcome.tied[part] = predicted[i], tied[i]
        if one.outcome.scores is not None:
            one.outcome.scores[part] = scores[i]
    if labels is None:
        return
    truth = labels[part]
    known = np.flatnonzero(truth >= 0)
    if len(known) < len(truth):
        scores, truth = scores[:, known], truth[known]
        predicted, largest = predicted[:, known], largest[:, known]
    here = np.arange(len(truth))
    label_scores = scores[:, here, truth]
    found = {'rank': _ranks(scores, truth, label_scores, predicted)}
    if pooled[0].outcome.rows['nll'] is not None:
        found['confidence'] = largest
        found['nll'] = -np.log(np.maximum(label_scores.astype(np.float64), FLOOR))
        for i, one in enumerate(pooled):
            if len(one.inputs.probs) == 1:  # its own log probability may be below log(FLOOR)
                found['nll'][i] = -one.inputs.log_probs[0][known, truth]
        # The one-hot label is subtracted in place: 1 - p would lose digits when squared apart.
        scores[:, here, truth] -= 1
        found['brier'] = np.einsum('ebc,ebc->eb', scores, scores)
    for name, values in found.items():
        for one, row in zip(pooled, values):
            one.outcome.rows[name][part.start + known] = row


def _ranks(scores: np.ndarray, truth: np.ndarray, label_scores: np.ndarray, predicted: np.ndarray
           ) -> np.ndarray:
    """The rank of each label by the scores [E, B, C], from 0, int32 [E, B]; equal scores rank by
    their class, but what was predicted is first."""
    found = np.zeros(predicted.shape, np.int32)
    ensemble, row = np.nonzero(predicted != truth)
    values, least = scores[ensemble, row], label_scores[ensemble, row][:, None]
    above, upto = (np.add.reduce(compare(values, least), axis=1, dtype=np.int32)
                   for compare in (np.greater, np.greater_equal))
    ties = np.flatnonzero(upto - above > 1)
    if len(ties):
        equal = values[ties] == least[ties]
        equal &= np.arange(scores.shape[2]) < truth[row[ties]][:, None]
        above[ties] += np.add.reduce(equal, axis=1, dtype=np.int32)
    found[ensemble, row] = above
    return found
