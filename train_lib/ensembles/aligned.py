"""Who votes, on which rows: the members of one source, joined by id, with what they lack made."""

import dataclasses
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline.manifest import SPLITS
from input_pipeline.products import SEPARATOR, product_log_probs
from train_lib.ensembles.multi_head import vote_then_combine
from train_lib.ensembles.pool import Ballot, Outcome, vote
from train_lib.ensembles.rules import FLOOR, RULES
from train_lib.metrics.scores import per_row
from train_lib.predictions.members import (
    find_members,
    folds_of,
    join,
    refuse_leakage,
    workdirs_of,
)
from train_lib.predictions.store import IDENTITY, OUT_OF_FOLD, Member, fold_of
from train_lib.runtime.errors import ConfigError

COMBINE = ('vote_then_combine', 'combine_then_vote')
_MOST_CELLS = 500_000_000  # of product log probabilities: 2 GB


@dataclasses.dataclass(frozen=True)
class Panel:
    """M members of N rows, and the question that they answer.

    Attributes:
        members: their `model` is the name in config.members where it has names.
        ids: object [N].
        heads: that are voted on; the answer to several is a class of their product.
        classes: of the answer.
        labels: int64 [N], of the answer, -1 for none.
        logits: M [N_m, C] of the answer; `rows`: M int [N], where to find row i.
        parts: for several heads that are voted on one by one, their logits a member and labels
            {head: [N]}; None otherwise.
        groups: object [N], rows of one group (person, drawer) belong together; None without.
    """

    members: tuple[Member, ...]
    ids: np.ndarray
    heads: tuple[str, ...]
    classes: tuple[str, ...]
    sizes: tuple[int, ...]
    labels: np.ndarray
    logits: Sequence
    rows: Sequence[np.ndarray]
    parts: tuple[Sequence[Mapping], Sequence[np.ndarray], Mapping] | None
    groups: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def models(self) -> list[str]:
        return [member.model for member in self.members]

    @property
    def known(self) -> np.ndarray:
        """bool [N], where there is a label."""
        return self.labels >= 0

    def vote(self, ballots: Mapping[Hashable, Ballot], keep: Sequence[Hashable] = (),
             at: np.ndarray | None = None) -> dict[Hashable, Outcome]:
        """Outcomes of ballots over all members (a weight 0 leaves one out), of the rows `at`."""
        where = slice(None) if at is None else at
        labels = self.labels[where]
        if self.parts is None:
            return vote(self.logits, ballots, rows=[rows[where] for rows in self.rows],
                        labels=labels, models=self.models, keep=keep)
        logits, rows, _ = self.parts
        outcomes = {}
        for name, ballot in ballots.items():
            answer, by_head = vote_then_combine(
                logits, self.heads, ballot, rows=[one[where] for one in rows],
                models=self.models)
            outcomes[name] = _combined(answer, [by_head[head] for head in self.heads],
                                       RULES[ballot.rule].distribution, labels, name in keep)
        return outcomes

    def of_heads(self, answers: np.ndarray) -> dict[str, np.ndarray]:
        """Answers (or labels) int [N] by head; {} of one head."""
        if len(self.heads) < 2:
            return {}
        split = np.unravel_index(np.maximum(answers, 0), self.sizes)
        return {head: np.where(answers >= 0, part, -1) for head, part in zip(self.heads, split)}


def open_panel(config: Mapping, source: str, make: Callable | None = None) -> Panel:
    """The panel of config.members for one source.

    Args:
        config: of a vote, as a dict.
        source: as in `members.find_members`.
        make: (workdir, source, views) -> None, called for runs without predictions.

    Raises:
        ConfigError: members that do not fit each other, or would score what they trained on.
    """
    members = named_members(config, source, make)
    return seat(config, members)


def seat(config: Mapping, members: Sequence[Member]) -> Panel:
    """The panel of these members; see `open_panel`."""
    joined = join(members)
    first = members[0]
    ids = np.asarray(first.ids, object)
    heads = tuple(config['heads']) or tuple(first.classes)
    unknown = [head for head in heads if head not in first.classes]
    if unknown:
        raise ConfigError(f'config.heads names {unknown[0]!r}, and the members have the heads '
                          f'{", ".join(first.classes)}: name some of these.')
    if config['combine'] not in COMBINE:
        raise ConfigError(f'config.combine = {config["combine"]!r}: choose '
                          f'{" or ".join(COMBINE)}.')
    truth = {head: np.asarray(first.labels[head])[joined[0]] for head in heads}
    labels = _product_labels(truth, [len(first.classes[head]) for head in heads])
    if any((values >= 0).any() for values in truth.values()):
        refuse_leakage(members, ids.tolist())
    sizes = tuple(len(first.classes[head]) for head in heads)
    parts = None
    if len(heads) == 1:
        logits, rows = [member.logits[heads[0]] for member in members], joined
    else:
        if len(members) * len(ids) * int(np.prod(sizes)) > _MOST_CELLS:
            raise ConfigError(f'The product of the heads {", ".join(heads)} has too many numbers '
                              f'for memory over {len(members)} members and {len(ids):,} rows: '
                              f'give fewer config.heads.')
        by_head = [{head: np.asarray(member.logits[head][found]) for head in heads}
                   for member, found in zip(members, joined)]
        logits = [product_log_probs(one, heads).astype(np.float32) for one in by_head]
        rows = [np.arange(len(ids))] * len(members)
        if config['combine'] == 'vote_then_combine':
            parts = (by_head, rows, truth)
    return Panel(tuple(members), ids, heads, _product_names(first, heads), sizes, labels, logits,
                 rows, parts, _groups(config['groups'], members, ids))


def member_table(config: Mapping) -> dict[str | None, tuple[str, ...]]:
    """config.members as {model: patterns}; without names {None: patterns}.

    Raises:
        ConfigError: there are none.
    """
    given = config['members']
    table = given if isinstance(given, Mapping) else {None: given}
    table = {name: patterns_of(patterns) for name, patterns in table.items()}
    if not any(table.values()):
        raise ConfigError('config.members is empty: give workdirs of trained runs, as in '
                          "--config.members='runs/a,runs/b*'.")
    return table


def patterns_of(value) -> tuple[str, ...]:
    """Workdirs or globs from a text with commas, or from a sequence."""
    if isinstance(value, (list, tuple)):
        return tuple(str(one) for one in value)
    return tuple(word.strip() for word in str(value).split(',') if word.strip())


def named_members(config: Mapping, source: str, make: Callable | None) -> list[Member]:
    """The members of config.members, those that ensembles add by their workdirs included."""
    table = member_table(config)
    plain = list(table.get(None, ()))
    for spec in config['ensembles'].values():
        plain += [pattern for pattern in patterns_of(spec.get('members', ()))
                  if pattern not in table and pattern not in plain]
    if plain:
        table = {**{name: value for name, value in table.items() if name is not None},
                 None: tuple(plain)}
    views = tuple(config['views'])
    if make is not None:
        for patterns in table.values():
            for workdir in (path for pattern in patterns for path in workdirs_of(pattern)):
                if lacks(workdir, source, views):
                    make(workdir, source, views or (IDENTITY,))
    members, seats = [], {}
    for name, patterns in table.items():
        for member in find_members(patterns, source, views):
            place = (member.workdir.resolve(), member.view)
            if place in seats and (name is None or seats[place] is None):
                continue
            if place in seats:
                raise ConfigError(f'config.members has {member.workdir} under {seats[place]!r} '
                                  f'and under {name!r}: a member votes once.')
            seats[place] = name
            members.append(member if name is None else dataclasses.replace(
                member, model=name, name=name + member.name.removeprefix(member.model)))
    names = [member.name for member in members]
    return [member if names.count(member.name) == 1 else dataclasses.replace(
        member, name=f'{member.name} ({_root(member)})') for member in members]


def lacks(workdir: Path, source: str, views: Sequence[str]) -> bool:
    """Whether a run, or a fold of it, has a checkpoint but no predictions of a source."""
    where = 'val' if source == OUT_OF_FOLD else source
    if where not in SPLITS:
        return False
    for path in folds_of(workdir) or [workdir]:
        stored = path / 'predictions' / where
        wanted = views or (IDENTITY,)
        there = [view for view in wanted if (stored / view).is_dir()
                 or (view == IDENTITY and stored.with_name(f'{where}.npz').exists())]
        if not views and stored.is_dir():
            continue
        if len(there) < len(wanted) and (path / 'checkpoints').is_dir():
            return True
    return False


def unit_of(member: Member) -> tuple[str, str]:
    """What folds of one run have in common: its workdir, and the view."""
    return _root(member), member.view


def _root(member: Member) -> str:
    path = Path(os.path.abspath(member.workdir))
    return str(path if fold_of(path) is None else path.parent)


def _product_labels(truth: Mapping[str, np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    labels = np.stack(list(truth.values())).astype(np.int64)
    known = (labels >= 0).all(0)
    product = np.full(labels.shape[1], -1, np.int64)
    product[known] = np.ravel_multi_index(tuple(labels[:, known]), tuple(sizes))
    return product


def _product_names(member: Member, heads: Sequence[str]) -> tuple[str, ...]:
    names = ['']
    for i, head in enumerate(heads):
        names = [f'{left}{SEPARATOR if i else ""}{name}' for left in names
                 for name in member.classes[head]]
    return tuple(names)


def _groups(kind: str, members: Sequence[Member], ids: np.ndarray) -> np.ndarray | None:
    """A row without a group is its own."""
    if kind == 'none':
        return None
    if kind == 'auto':
        found = {name: group for member in members for name, group in member.groups.items()}
    else:
        try:
            table = pd.read_csv(kind, dtype=str, keep_default_na=False)
            found = dict(zip(table['id'], table['group']))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f'config.groups = {kind!r} cannot be read as a CSV with the columns '
                              f'id and group ({error}): correct it, or take auto or none.'
                              ) from None
    if not any(found.get(name) for name in ids):
        return None
    return np.array([f'group {found[name]}' if found.get(name) else f'row {name}'
                     for name in ids], object)


def _combined(answer: np.ndarray, outcomes: Sequence[Outcome], distribution: bool,
              labels: np.ndarray, keep: bool) -> Outcome:
    """Heads that were voted on one by one, as one outcome of their product."""
    scores = outcomes[0].scores
    for outcome in outcomes[1:]:
        scores = (scores[:, :, None] * outcome.scores[:, None, :]).reshape(len(scores), -1)
    rows = rows_of(scores, answer, labels, distribution)
    return Outcome(answer.astype(np.int32), np.any([one.tied for one in outcomes], axis=0),
                   scores if keep else None, rows, scores.shape[1])


def rows_of(scores: np.ndarray, predicted: np.ndarray, labels: np.ndarray,
            distribution: bool) -> dict[str, np.ndarray | None]:
    """`Outcome.rows` of scores [N, C] that were made some other way."""
    known = np.flatnonzero(labels >= 0)
    rows = per_row(np.log(np.maximum(scores[known], FLOOR)), labels[known])
    found = {'predicted': np.asarray(predicted, np.int32)}
    for name in ('rank', 'confidence', 'nll', 'brier'):
        found[name] = np.full(len(labels), -1 if name == 'rank' else np.nan)
        found[name][known] = rows[name]
        if name != 'rank' and not distribution:
            found[name] = None
    found['rank'] = np.where(found['predicted'] == labels, 0, found['rank']).astype(np.int32)
    return found
