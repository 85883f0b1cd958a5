"""The predictions of all members for the same rows, joined by id."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from input_pipeline.class_names import RULES, groups_of_cells, nfc
from input_pipeline.csv_table import read_csv
from input_pipeline.errors import listed
from input_pipeline.products import SEPARATOR, product_log_probs
from train_lib.ensembles.aligned_logits import AlignedLogits
from train_lib.predictions.members import join, refuse_leakage
from train_lib.predictions.store import Member
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)
COMBINE = ('vote_then_combine', 'combine_then_vote')
_MOST_CELLS = 500_000_000  # float32 log probabilities of product classes: 2 GB


@dataclasses.dataclass(frozen=True)
class AlignedPredictions:
    """Predictions of M members for the same N rows, and the question that they answer.

    The answer to one head is one of its classes. The answer to several heads is a class of their
    product, and `by_head` is set if each head is voted on by itself (config.combine).

    Attributes:
        members: M; their logits are as stored, in their own order of the rows.
        ids: object [N].
        heads: the heads that are voted on.
        sizes: the number of classes of each head.
        classes: C names, of the answer.
        labels: int64 [N], of the answer, -1 for none.
        logits: M x [N, C], of the answer.
        by_head: {head: M x [N, C_h]} if the heads are voted on one by one, else None.
        groups: object [N], rows of one group (person, drawer) belong together; None without.
    """

    members: tuple[Member, ...]
    ids: np.ndarray
    heads: tuple[str, ...]
    sizes: tuple[int, ...]
    classes: tuple[str, ...]
    labels: np.ndarray
    logits: AlignedLogits
    by_head: Mapping[str, AlignedLogits] | None
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
        return self.labels >= 0

    def split_heads(self, answers: np.ndarray) -> dict[str, np.ndarray]:
        """Answers or labels int [N] as {head: int [N]}; {} if there is only one head."""
        if len(self.heads) < 2:
            return {}
        split = np.unravel_index(np.maximum(answers, 0), self.sizes)
        return {head: np.where(answers >= 0, part, -1) for head, part in zip(self.heads, split)}


def align(config: Mapping, members: Sequence[Member]) -> AlignedPredictions:
    """Joins the members by id, in the order of the first one.

    Args:
        config: of a vote, as a dict; heads, combine and groups are read.
        members: of one source.

    Raises:
        ConfigError: members that do not fit each other or trained on what they would score, or
            a wrong value.
    """
    rows = join(members)
    first = members[0]
    ids = np.asarray(first.ids, object)
    heads = tuple(config['heads']) or tuple(first.classes)
    unknown = [head for head in heads if head not in first.classes]
    if unknown:
        raise ConfigError(f'config.heads names {unknown[0]!r}, and the members have the heads '
                          f'{listed(first.classes)}: name some of these.')
    several = [head for head in heads if head in first.multi_label]
    if several:
        raise ConfigError(f'The head {several[0]!r} has several labels per picture, so it is no '
                          f'part of a product class: vote on it alone by '
                          f'--config.heads={several[0]}, or name the other heads.')
    if config['combine'] not in COMBINE:
        raise ConfigError(f'config.combine = {config["combine"]!r}: choose '
                          f'{" or ".join(COMBINE)}.')
    sizes = tuple(len(first.classes[head]) for head in heads)
    labels = [np.asarray(first.labels[head])[rows[0]] for head in heads]
    if any((of_head >= 0).any() for of_head in labels):
        refuse_leakage(members, ids.tolist(), shared=config['groups'] != 'none')
    by_head = {head: AlignedLogits([member.logits[head] for member in members], rows)
               for head in heads}
    joint = len(heads) > 1
    return AlignedPredictions(
        members=tuple(members), ids=ids, heads=heads, sizes=sizes,
        classes=_product_names(first, heads), labels=_product_labels(labels, sizes),
        logits=product_of_heads(by_head) if joint else by_head[heads[0]],
        by_head=by_head if joint and config['combine'] == COMBINE[0] else None,
        groups=groups_of_rows(config['groups'], members, ids))


def product_of_heads(by_head: Mapping[str, AlignedLogits]) -> AlignedLogits:
    """Log probabilities of the product classes, in memory, taking the heads as independent.

    Args:
        by_head: the logits of the same members and rows per head, in the order of the product
            class (that of `np.ravel_multi_index`).

    Returns:
        M float32 arrays [N, product of the C_h].

    Raises:
        ConfigError: they are too large for memory.
    """
    heads, shapes = list(by_head), [logits.check() for logits in by_head.values()]
    first, size = by_head[heads[0]], shapes[0][0]
    if first.count * size * int(np.prod([classes for _, classes in shapes])) > _MOST_CELLS:
        raise ConfigError(f'The product of the heads {listed(heads)} has too many numbers for '
                          f'memory over {first.count} members and {size:,} rows: give fewer '
                          f'config.heads.')
    return AlignedLogits([
        product_log_probs({head: logits.of_member(m) for head, logits in by_head.items()},
                          heads).astype(np.float32) for m in range(first.count)])


def _product_labels(labels: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Labels of each head, int [N], as those of the product class; -1 where one is missing."""
    stacked = np.stack(labels).astype(np.int64)
    known = (stacked >= 0).all(0)
    product = np.full(stacked.shape[1], -1, np.int64)
    product[known] = np.ravel_multi_index(tuple(stacked[:, known]), tuple(sizes))
    return product


def _product_names(member: Member, heads: Sequence[str]) -> tuple[str, ...]:
    names = ['']
    for i, head in enumerate(heads):
        names = [f'{left}{SEPARATOR if i else ""}{name}' for left in names
                 for name in member.classes[head]]
    return tuple(names)


def groups_of_rows(kind: str, members: Sequence[Member], ids: np.ndarray) -> np.ndarray | None:
    """object [N] as config.groups says; a row without a group is a group of its own. None if no row
    has one."""
    if kind == 'none':
        return None
    if kind == 'auto':
        found = {name: group for member in members for name, group in member.groups.items()}
    else:
        found = _read_groups(kind)
        lacking = sum(name not in found and nfc(name) not in found for name in ids)
        if lacking:
            log.warning('groups   %d of %d rows are not in %s: each counts by itself', lacking,
                        len(ids), Path(kind).name)
    of_rows = [found.get(name) or found.get(nfc(name)) for name in ids]
    if not any(of_rows):
        return None
    return np.array([f'group {group}' if group else f'row {name}'
                     for group, name in zip(of_rows, ids)], object)


def _read_groups(path: str) -> dict[str, str]:
    """{id: group} of a CSV, the ids as they are written and in NFC; '' for no group."""
    header, rows, _ = read_csv(path, edited=True)
    missing = {'id', 'group'} - set(header)
    if missing:
        raise ConfigError(f'config.groups = {path!r} has no column {min(missing)}: give a CSV with '
                          f'the columns id and group, or take auto or none.')
    ids, cells = ([row[header.index(name)] for row in rows] for name in ('id', 'group'))
    groups = groups_of_cells(cells, path, RULES[-1])
    return dict(zip(map(nfc, ids), groups)) | dict(zip(ids, groups))
