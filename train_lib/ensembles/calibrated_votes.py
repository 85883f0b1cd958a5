"""The vote of models on pictures without labels, with a temperature from rows that have some."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from train_lib.ensembles.aligned_logits import AlignedLogits
from train_lib.ensembles.pool import vote_one
from train_lib.ensembles.spec import EnsembleSpec
from train_lib.ensembles.temperature import fit_temperature, tempered
from train_lib.predictions.members import join, leakage
from train_lib.predictions.store import OUT_OF_FOLD, Member, members_of
from train_lib.runtime.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Answers:
    """What some models answer together for N pictures.

    Attributes:
        members: who answered.
        probabilities: {head: float [N, C]}, with the temperature.
        temperatures: {head: it}, None where no row could fit it.
    """

    members: Sequence[Member]
    probabilities: Mapping[str, np.ndarray]
    temperatures: Mapping[str, float | None]


def vote_on_pictures(folders: Sequence[Path], source: str, views: Sequence[str],
                     heads: Sequence[str], spec: EnsembleSpec, ids: Sequence[str]
                     ) -> tuple[list[Member], dict[str, np.ndarray]]:
    """(the members, {head: probabilities float [N, C]}) of a vote on stored predictions.

    Args:
        folders: workdirs of runs or of folds.
        source: of the predictions; they need no labels.
        views: that vote.
        heads: that are voted on, each by itself.
        spec: of a rule whose scores are probabilities.
        ids: of the N rows.

    Raises:
        ConfigError: predictions are missing or do not fit each other.
    """
    members = [member for folder in folders for member in members_of(folder, source, views)]
    rows = join(members, ids)
    return members, {head: vote_one(AlignedLogits([one.logits[head] for one in members], rows),
                                    spec, models=[one.model for one in members]).scores
                     for head in heads}


def temperatures(groups: Sequence[Sequence[Path]], views: Sequence[str], heads: Sequence[str],
                 spec: EnsembleSpec) -> dict[str, float | None]:
    """The temperature of each head, fitted on the validation rows of groups of models that vote
    together; None where no row has a label.

    Args:
        groups: workdirs; those of a group vote on the validation rows that all of them hold out,
            or each on its own where there are none; a probing run on its out-of-fold rows.
        views, heads, spec: as in `vote_on_pictures`.
    """
    scores: dict[str, list[np.ndarray]] = {head: [] for head in heads}
    labels: dict[str, list[np.ndarray]] = {head: [] for head in heads}

    def add(folders: Sequence[Path], source: str) -> bool:
        members = [one for folder in folders for one in members_of(folder, source, views)]
        shared = set.intersection(*(set(one.ids.tolist()) for one in members))
        for one in members:
            shared -= set(leakage(one, shared))
        ids = [name for name in members[0].ids.tolist() if name in shared]
        if not ids:
            return False
        _, found = vote_on_pictures(folders, source, views, heads, spec, ids)
        row, = join(members[:1], ids)
        for head in heads:
            scores[head].append(found[head])
            labels[head].append(np.asarray(members[0].labels[head])[row])
        return True

    def added(folders: Sequence[Path], source: str = 'val') -> bool:
        try:
            return add(folders, source)
        except ConfigError:
            return False  # a run without a validation split, for instance

    for folders in groups:
        if len(folders) > 1 and added(folders):
            continue
        for folder in folders:
            if not added([folder]):
                added([folder], OUT_OF_FOLD)
    fitted: dict[str, float | None] = {}
    for head in heads:
        truth = np.concatenate([np.zeros(0, int), *labels[head]])
        fitted[head] = fit_temperature(np.concatenate(scores[head]), truth) \
            if (truth >= 0).any() else None
    return fitted


def calibrated(probabilities: Mapping[str, np.ndarray], fitted: Mapping[str, float | None]
               ) -> dict[str, np.ndarray]:
    """The probabilities of each head with its temperature."""
    return {head: values if fitted[head] is None else tempered(values, fitted[head])
            for head, values in probabilities.items()}
