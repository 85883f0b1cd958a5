"""EnsembleSpec, the one form of an ensemble: `read_specs` makes it, `pool.vote` counts it."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from train_lib.runtime.errors import ConfigError

FITTED = ('fit', 'greedy')


@dataclasses.dataclass(frozen=True)
class EnsembleSpec:
    """One way to vote: which of M members, by which rules, with which weights.

    In two levels the members of each model vote by `inner`, then the models by `rule`. A model
    hands on the scores of its level as its distribution (shares of the votes for 'hard',
    normalised ranks for 'rank_mean') and its answer, ties broken, as its vote. An outer 'hard'
    counts one vote per model, all other outer rules take the distributions. So hard-hard is a
    vote of votes, and hard-soft the mean share of the votes. Ties between models are broken by the
    mean probability of their members, models weighted alike.

    Attributes:
        rule: of RULES.
        inner: of RULES, or None for one level.
        weights: float [M] >= 0; None: equal. In two levels they only weigh within a model.
        model_weights: {model: >= 0} of the outer level; models that are missing have 1.
        trim: of trimmed_mean, cut off at either end, in [0, 0.5).
        members: bool [M], who votes; None: all.
        weighting: where the weights come from: 'none' (equal), 'given', or one of FITTED, whose
            weights are equal until they are fitted.
        name: in config.ensembles.
    """

    rule: str = 'soft'
    inner: str | None = None
    weights: Sequence[float] | np.ndarray | None = None
    model_weights: Mapping[Hashable, float] | None = None
    trim: float = 0.2
    members: np.ndarray | None = None
    weighting: str = 'none'
    name: str = ''

    @property
    def fitted(self) -> bool:
        """Whether its weights are fitted on the rows of config.fit_source."""
        return self.weighting in FITTED

    @property
    def label(self) -> str:
        """Its rule in words: 'soft', or 'soft-hard' of two levels."""
        return self.rule if self.inner is None else f'{self.inner}-{self.rule}'

    def voting(self, count: int) -> np.ndarray:
        """bool [M], which of M = `count` members vote; their weight may be 0."""
        return np.ones(count, bool) if self.members is None else self.members

    def member_weights(self, count: int) -> np.ndarray:
        """float64 [M], 0 for members that do not vote.

        Raises:
            ConfigError: another number of weights, one that is negative or not finite, or only 0.
        """
        weights = np.ones(count) if self.weights is None else self.weights
        weights = checked_weights(weights, 'weights', range(count))
        return weights if self.members is None else np.where(self.members, weights, 0.0)

    def with_weights(self, weights: np.ndarray, models: Sequence[Hashable]) -> 'EnsembleSpec':
        """The same with weights float [M]; in two levels a model has the sum of its members'."""
        by_model: dict[Hashable, float] = {}
        for model, weight in zip(models, weights):
            by_model[model] = by_model.get(model, 0.0) + float(weight)
        return dataclasses.replace(self, weights=weights,
                                   model_weights=None if self.inner is None else by_model)

    def member_shares(self, models: Sequence[Hashable]) -> np.ndarray:
        """The share of each member in the answer, float64 [M] of sum 1. In two levels a model's
        weight is divided among its members."""
        weights = self.member_weights(len(models))
        if self.inner is not None:
            of_model = self.model_weights or {
                model: 1.0 for model, weight in zip(models, weights) if weight}
            total = {model: sum(weight for weight, of in zip(weights, models) if of == model)
                     for model in of_model}
            weights = np.array([weight / total[model] * of_model[model] if weight else 0.0
                                for weight, model in zip(weights, models)])
        return weights / weights.sum()


def each_alone(count: int) -> list[EnsembleSpec]:
    """Per member the ensemble of this member alone."""
    return [EnsembleSpec(weights=tuple(row)) for row in np.eye(count)]


def checked_weights(weights, what: str, names: Sequence) -> np.ndarray:
    """float64 [len(names)] >= 0, not all 0. Raises ConfigError otherwise; `what` they are."""
    weights = np.asarray(weights, np.float64)
    if weights.shape != (len(names),):
        raise ConfigError(f'The vote has {weights.size} {what} for {len(names)} members: give '
                          f'one per member.')
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise ConfigError(f'The {what} of the vote include {weights[bad[0]]} for '
                          f'{names[bad[0]]}: give finite numbers of 0 or more.')
    if not weights.sum() > 0:
        raise ConfigError(f'The {what} of the vote are all 0: give at least one above 0.')
    return weights
