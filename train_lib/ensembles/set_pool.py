"""Votes on a multi-label head: how the probabilities of members become one answer, class by class.

A class is voted on by itself, so there is no softmax and no tie between classes: a member says of
each class how probable it is, and the pooled number decides at a threshold.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from input_pipeline.errors import counted, listed
from train_lib.ensembles.aligned import groups_of_rows
from train_lib.ensembles.voters import split_words
from train_lib.metrics.set_scores import HALF, decided, is_labelled, set_scores, sigmoid
from train_lib.predictions.members import join, refuse_leakage
from train_lib.predictions.run_folders import thresholds_of
from train_lib.predictions.store import OUT_OF_FOLD, Member
from train_lib.runtime.errors import ConfigError

_TINY = 1e-7


@dataclasses.dataclass(frozen=True)
class AlignedSets:
    """Predictions of M members of one multi-label head for the same N rows.

    Attributes:
        members: M.
        rows: per member int [N], where row i is.
        ids: object [N].
        head: its name.
        classes: C names.
        targets: uint8 [N, C], see `LabelSets.targets`.
        groups: object [N]; None without.
    """

    members: tuple[Member, ...]
    rows: Sequence[np.ndarray]
    ids: np.ndarray
    head: str
    classes: tuple[str, ...]
    targets: np.ndarray
    groups: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def models(self) -> list[str]:
        """The model of each member."""
        return [member.model for member in self.members]

    @property
    def known(self) -> np.ndarray:
        """bool [N], which rows have a label."""
        return is_labelled(self.targets)

    @property
    def units(self) -> list[str]:
        """What must stay together where rows are cut: the group of each row, or the row."""
        return [f'row {name}' for name in self.ids] if self.groups is None else \
            [str(group) for group in self.groups]

    def logits(self, member: int) -> np.ndarray:
        """float64 [N, C] of one member.

        Raises:
            ConfigError: they are not finite.
        """
        found = np.asarray(self.members[member].logits[self.head][self.rows[member]], np.float64)
        if not np.isfinite(found).all():
            raise ConfigError(f'The member {self.members[member].name} has logits that are not '
                              f'finite: leave it out.')
        return found

    def thresholds(self, member: int) -> np.ndarray:
        """Those that the run of a member fitted, float64 [C]; 0.5 each where it has none, and on
        the rows that it fitted them on."""
        one, half = self.members[member], np.full(len(self.classes), HALF)
        if one.source in ('val', OUT_OF_FOLD):
            return half
        return thresholds_of(one.workdir, {self.head: self.classes}).get(self.head, half)


# --- rules: (probabilities [K, N, C], votes bool [K, N, C], weights [K] of sum 1) -> [N, C] -------


def soft(probs: np.ndarray, votes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean probability of each class."""
    return np.einsum('k,knc->nc', weights, probs)


def log_mean(probs: np.ndarray, votes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The geometric mean of the probabilities that a class applies, against that it does not: the
    mean of the logits."""
    probs = np.clip(probs, _TINY, 1 - _TINY)
    return sigmoid(np.einsum('k,knc->nc', weights, np.log(probs) - np.log1p(-probs)))


def hard(probs: np.ndarray, votes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The share of the members that predict each class, each by its own thresholds."""
    return np.einsum('k,knc->nc', weights, votes.astype(float))


SET_RULES: dict[str, Callable] = {'soft': soft, 'log_mean': log_mean, 'hard': hard}


def rule_of(config: Mapping) -> tuple[str, ...]:
    """config.rule as one rule, or those of two levels.

    Raises:
        ConfigError: it has no meaning for a multi-label head, or something else in the config has
            none.
    """
    rule = split_words(config['rule'])
    for name in rule:
        if name not in SET_RULES:
            raise ConfigError(f'config.rule = {config["rule"]!r} has no meaning for a head with '
                              f'several labels per picture, whose classes are voted on one by '
                              f'one: choose {listed(SET_RULES)}.')
    if not 1 <= len(rule) <= 2:
        raise ConfigError(f'config.rule = {config["rule"]!r}: give one rule, or two for two '
                          f'levels.')
    for key, plain in (('weights', 'none'), ('ensembles', {}), ('choose', ''), ('soup', '')):
        if config[key] != plain:
            raise ConfigError(f'config.{key} = {config[key]!r} is for heads with one label per '
                              f'picture, and the votes on a multi-label head are equal: set it to '
                              f'{plain!r}.')
    return rule


def pooled(aligned: AlignedSets, rule: Sequence[str]) -> np.ndarray:
    """The pooled number of each class, float64 [N, C], 0 to 1.

    Args:
        aligned: of the members.
        rule: one of SET_RULES; or two: of the members of each model, and of the models, which
            count alike. A model votes for what it gives more than half.
    """
    logits = [aligned.logits(k) for k in range(len(aligned.members))]
    probs = np.stack([sigmoid(one) for one in logits])
    votes = np.stack([one >= aligned.thresholds(k) for k, one in enumerate(probs)])
    if len(rule) == 1:
        return SET_RULES[rule[0]](probs, votes, _even(len(probs)))
    models = []
    for model in dict.fromkeys(aligned.models):
        mine = np.array([one == model for one in aligned.models])
        models.append(SET_RULES[rule[0]](probs[mine], votes[mine], _even(int(mine.sum()))))
    outer = np.stack(models)
    return SET_RULES[rule[1]](outer, outer >= HALF, _even(len(outer)))


def _even(count: int) -> np.ndarray:
    return np.full(count, 1 / count)


def logit(shares: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)), finite, float64."""
    shares = np.clip(shares, _TINY, 1 - _TINY)
    return np.log(shares) - np.log1p(-shares)


def scores_of(shares: np.ndarray, targets: np.ndarray, probability: bool,
              predicted: np.ndarray | None = None) -> dict:
    """The scores of pooled numbers, at 0.5 or by the predicted sets.

    Args:
        shares: float [N, C], 0 to 1.
        targets: uint8 [N, C].
        probability: whether they are probabilities: else nll, ece and brier are None.
        predicted: bool [N, C]; None: at 0.5.
    """
    found = set_scores(logit(shares), targets)
    known = is_labelled(targets)
    if found['n']:
        said = shares >= HALF if predicted is None else predicted
        found |= decided(said[known], targets[known] == 1)
    if not probability:
        found |= dict(nll=None, ece=None, brier=None)
    return found


def set_head(config: Mapping, members: Sequence[Member]) -> str:
    """The multi-label head that is to be voted on; '' where heads have one label each.

    Raises:
        ConfigError: it is to be voted on together with others.
    """
    first = members[0]
    heads = tuple(config['heads']) or tuple(first.classes)
    several = [head for head in heads if head in first.multi_label]
    if several and len(heads) > 1:
        raise ConfigError(f'The head {several[0]!r} has several labels per picture, so it is no '
                          f'part of a product class: vote on it alone by '
                          f'--config.heads={several[0]}, or name the other heads.')
    return several[0] if several else ''


def align_sets(config: Mapping, members: Sequence[Member], head: str) -> AlignedSets:
    """Joins the members by id, in the order of the first one.

    Raises:
        ConfigError: members that do not fit each other, or trained on what they would score.
    """
    rows = join(members)
    first = members[0]
    ids = np.asarray(first.ids, object)
    targets = np.asarray(first.labels[head])[rows[0]]
    if is_labelled(targets).any():
        refuse_leakage(members, ids.tolist(), shared=config['groups'] != 'none')
    return AlignedSets(tuple(members), rows, ids, head, first.classes[head], targets,
                       groups_of_rows(config['groups'], members, ids))


def in_words(aligned: AlignedSets) -> str:
    """How many rows and classes there are."""
    return f'{counted(len(aligned), "row")}, {counted(len(aligned.classes), "class", "classes")}'
