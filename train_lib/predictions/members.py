"""Members of a vote: found by workdir, joined by id, and kept from scoring what they trained on."""

import dataclasses
import glob
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline.class_names import nfc
from input_pipeline.errors import counted, listed
from train_lib.predictions.provenance import not_checked
from train_lib.predictions.run_folders import folds_of, missing_folds, natural, run_of
from train_lib.predictions.stacked_arrays import StackedArrays
from train_lib.predictions.store import IDENTITY, OUT_OF_FOLD, Member, members_of
from train_lib.run_dir.seen_rows import connected, related
from train_lib.run_dir.unknown_workdir import neighbours
from train_lib.runtime.errors import ConfigError


def find_members(patterns: Sequence[str], source: str, views: Sequence[str] = ()) -> list[Member]:
    """The members of one source, under unique names.

    Args:
        patterns: workdirs or globs, in this order; matches of a glob come in natural order. A
            k-fold workdir stands for its folds; with source='out_of_fold' it is one member.
        source: 'val', 'test', 'train', 'out_of_fold' or the name of other data.
        views: those wanted; (): all that a run has.

    Raises:
        ConfigError: a pattern matches no run, or a run lacks the predictions.
    """
    members: list[Member] = []
    for workdir in dict.fromkeys(path for pattern in patterns for path in workdirs_of(pattern)):
        folds = folds_of(workdir)
        if source == OUT_OF_FOLD and folds:
            members += [out_of_fold(workdir, view) for view in views or (IDENTITY,)]
        else:
            for path in folds or [workdir]:
                members += members_of(path, source, views)
    unique = {(member.workdir.resolve(), member.view): member for member in reversed(members)}
    return _named(list(reversed(unique.values())))


def workdirs_of(pattern: str) -> list[Path]:
    """The runs that a workdir or a glob names; matches of a glob come in natural order.

    Raises:
        ConfigError: there are none.
    """
    pattern = os.path.expanduser(str(pattern))
    if not glob.has_magic(pattern):
        if not os.path.isdir(pattern):
            raise ConfigError(f'The member {pattern!r} is not a folder: {neighbours(pattern)}')
        path = Path(pattern)
        if not (folds_of(path) or any((path / name).exists()
                                      for name in ('config.json', 'predictions'))):
            raise ConfigError(f'The member {pattern!r} holds no run: {neighbours(pattern)}')
        return [path]
    found = [Path(path) for path in sorted(glob.glob(pattern, recursive=True), key=natural)]
    found = [path for path in found if (path / 'predictions').is_dir() or folds_of(path)]
    if not found:
        plain = pattern.rstrip('*?')
        hint = '' if glob.has_magic(plain) else neighbours(plain, '')
        raise ConfigError(f'The pattern {pattern!r} matches no folders with predictions: '
                          f'{hint or "correct it, or train and predict first."}')
    return found


def _named(members: list[Member]) -> list[Member]:
    """The members; if two runs have the same name, each is called by its path instead, from the
    first folder that differs."""
    roots = {run_of(member.workdir) for member in members}
    if len({root.name for root in roots}) == len(roots):
        return members
    common = os.path.commonpath(roots)

    def rename(member: Member) -> Member:
        model = run_of(member.workdir).relative_to(common).as_posix()
        return dataclasses.replace(member, model=model,
                                   name=model + member.name.removeprefix(member.model))

    return [rename(member) for member in members]


def join(members: Sequence[Member], ids: Sequence[str] | None = None) -> list[np.ndarray]:
    """Per member the row of every id, intp [len(ids)]: rows are joined by id alone.

    Args:
        members: one or more.
        ids: those wanted; None: those of the first member, and then no other may have more.

    Raises:
        ConfigError: names the member that has an id twice, lacks ids, or differs from the first
            member in its heads, its classes, their order, or a label.
    """
    first = members[0]
    for member in members:
        _refuse_doubled(member)
        _refuse_other_classes(member, first)
    wanted = np.asarray(first.ids if ids is None else ids, object)
    joined = []
    for member in members:
        rows = pd.Index(np.asarray(member.ids, object), dtype=object).get_indexer(wanted)
        missing = wanted[rows < 0]
        if len(missing):
            raise ConfigError(f'The member {member.name} lacks {len(missing)} of {len(wanted)} '
                              f'rows ({_some(missing)}): predict the same rows with every member.')
        if ids is None and len(member) > len(wanted):
            more = sorted(set(member.ids.tolist()) - set(wanted))
            raise ConfigError(f'The member {first.name} lacks {len(more)} of {len(member)} rows of '
                              f'{member.name} ({_some(more)}): predict the same rows with every '
                              f'member.')
        joined.append(rows)
        for head, labels in first.labels.items():
            if member.labels[head].ndim != labels.ndim:
                raise ConfigError(f'One of the members {first.name} and {member.name} has several '
                                  f'labels per picture of the head {head!r}, and the other one: '
                                  f'vote with models of one kind.')
            differ = member.labels[head][rows] != labels[joined[0]]
            others = np.flatnonzero(differ if differ.ndim == 1 else differ.any(1))
            if len(others):
                raise ConfigError(f'The member {member.name} has other labels of {head!r} than '
                                  f'{first.name} for {counted(len(others), "row")} '
                                  f'({_some(wanted[others])}): predict both from the same data.')
    return joined


def _refuse_doubled(member: Member) -> None:
    ids = pd.Series(np.asarray(member.ids, object), dtype=object)
    doubled = ids[ids.duplicated()].unique()
    if len(doubled):
        raise ConfigError(f'The member {member.name} has {len(doubled)} ids twice '
                          f'({_some(doubled)}): predict it again.')


def _refuse_other_classes(member: Member, first: Member) -> None:
    if set(member.classes) != set(first.classes):
        raise ConfigError(f'The member {member.name} has the heads {listed(member.classes)}, '
                          f'and {first.name} {listed(first.classes)}: vote with models of the '
                          f'same heads.')
    for head, names in first.classes.items():
        others = member.classes[head]
        for k, (ours, theirs) in enumerate(zip(names, others)):
            if nfc(ours) != nfc(theirs):
                raise ConfigError(f'The member {member.name} has the class {theirs!r} as number '
                                  f'{k} of {head!r}, where {first.name} has {ours!r}: train with '
                                  f'the same config.data.classes in the same order.')
        if len(names) != len(others):
            longer = names if len(names) > len(others) else others
            raise ConfigError(f'The member {member.name} has '
                              f'{counted(len(others), "class", "classes")} of {head!r}, '
                              f'and {first.name} {len(names)} (the first that differs is '
                              f'{longer[min(len(names), len(others))]!r}): train with the same '
                              f'config.data.classes.')


def leakage(member: Member, ids: Iterable[str], groups: Mapping[str, str] | None = None
            ) -> list[str]:
    """The ids that this member must not score: it trained on that row, or on a row that shares its
    group, directly or by way of others.

    Args:
        member: if the splits of its run are not known, the result is [].
        ids: to be scored.
        groups: {id: group} as others know them.
    """
    return related(ids, _trained(member), connected((member.groups, groups or {})))


def inherited(member: Member, ids: Iterable[str]) -> list[str]:
    """The ids that an ancestor of this member trained on, or on their group."""
    return related(ids, member.ancestry.rows.keys(), _parts(member))


def refuse_leakage(members: Sequence[Member], ids: Iterable[str], *, shared: bool = True) -> None:
    """Checks that no member, and no ancestor of one, trained on what is to be scored. Rows of
    ancestors that a run was told to accept (config.init.seen) pass.

    Args:
        members: what one of them knows to be copies, or of one group, counts for all.
        ids: to be scored.
        shared: False judges each member by its own groups.

    Raises:
        ConfigError: names the first member that did, and how many rows are concerned.
    """
    ids = list(ids)
    everything = _parts(*members) if shared else {}
    for member in members:
        parts = everything if shared else _parts(member)
        leaked = related(ids, _trained(member), parts)
        if leaked:
            why = '' if leakage(member, ids) else (
                ', as the groups of other members say; judge each member by its own with '
                '--config.groups=none')
            raise ConfigError(f'The member {member.name} trained on {len(leaked)} of the '
                              f'{len(ids)} rows or on their groups ({_some(leaked)}{why}): score '
                              f'it on rows that it did not train on, or leave it out.')
        if member.ancestry.accepted:
            continue
        seen = related(ids, member.ancestry.rows.keys(), parts)
        if seen:
            raise ConfigError(f'The member {member.name} started from '
                              f'{member.ancestry.runs[0]["workdir"]}: that run or an ancestor of '
                              f'it trained on {len(seen)} of the {len(ids)} rows or on their '
                              f'groups ({_some(seen)}): leave the member out, or start its run '
                              f'again with --config.init.seen=accept (a finished one only '
                              f'evaluates), which is marked in every result.')


def marks(members: Sequence[Member], ids: Iterable[str], *, shared: bool = True) -> dict:
    """What a result of these members says of rows that they were told to accept.

    Args:
        members, ids, shared: as in `refuse_leakage`.

    Returns:
        seen: {member: how many of the rows an ancestor of it trained on}, without zeros;
        not_checked: clauses on what cannot be known.
    """
    ids = list(ids)
    counts = {member.name: len(inherited(member, ids)) for member in members}
    return dict(seen={name: count for name, count in counts.items() if count},
                not_checked=not_checked(members, shared=shared))


def _trained(member: Member) -> set[str]:
    return {name for name, role in member.roles.items() if role == 'train'}


def _parts(*members: Member) -> dict[str, int]:
    """`connected` by the groups of all members, and of the ancestors of those that have groups."""
    groups = [part for member in members if member.groups
              for part in (member.groups, member.ancestry.groups)]
    return connected(groups)


def out_of_fold(workdir: Path, view: str = IDENTITY) -> Member:
    """The validation rows of all folds as one member: each row scored by the fold that did not
    see it. The logits stay in the files of the folds.

    Raises:
        ConfigError: a fold is missing or incomplete, a row is scored twice, or a fold trained on
            a row that it scores, or on its group.
    """
    workdir = Path(workdir)
    missing = missing_folds(workdir)
    if missing:
        raise ConfigError(f'{workdir} has {missing}: finish its training, or give a k-fold '
                          f'workdir.')
    whole = join_folds(folds_of(workdir), view)
    return dataclasses.replace(whole, workdir=workdir, name=whole.name.replace(
        f'{whole.model}/fold_{whole.fold}', whole.model, 1), fold=None)


def join_folds(workdirs: Sequence[Path], view: str = IDENTITY) -> Member:
    """The validation rows of several folds of one split as one member, called as the first fold;
    see `out_of_fold`.

    Raises:
        ConfigError: a row is scored twice, or a fold trained on a row that it scores, or on its
            group.
    """
    parts = [members_of(path, 'val', [view])[0] for path in workdirs]
    for part in parts:
        _refuse_other_classes(part, parts[0])
        held_out = {name for name, role in part.roles.items() if role == 'val'}
        wrong = held_out.symmetric_difference(part.ids.tolist())
        if wrong:
            raise ConfigError(f'The member {part.name} was not scored on the {len(held_out)} rows '
                              f'that its split.csv holds out ({len(wrong)} differ, '
                              f'{_some(sorted(wrong))}): predict it again.')
        refuse_leakage([part], part.ids.tolist())
    # What is left of the ancestors: rows that the folds were told to accept.
    seen = {name: '' for part in parts for name in inherited(part, part.ids.tolist())}
    first, heads = parts[0], parts[0].classes
    ids = np.concatenate([part.ids for part in parts])
    digests = ' '.join(part.digest for part in parts)
    whole = dataclasses.replace(
        first, source=OUT_OF_FOLD, ids=ids,
        labels={head: np.concatenate([part.labels[head] for part in parts]) for head in heads},
        logits={head: StackedArrays([part.logits[head] for part in parts]) for head in heads},
        digest=hashlib.sha256(digests.encode()).hexdigest() if digests.strip() else '',
        doubt=next((part.doubt for part in parts if part.doubt), ''),
        # As checked above, no fold trained on a row that it scores.
        roles=dict(first.roles) | dict.fromkeys(ids.tolist(), 'val'),
        ancestry=dataclasses.replace(
            first.ancestry, rows=seen, accepted=any(part.ancestry.accepted for part in parts),
            unknown=tuple(dict.fromkeys(clause for part in parts
                                        for clause in part.ancestry.unknown))))
    _refuse_doubled(whole)
    return whole


def _some(names: Sequence[str] | np.ndarray) -> str:
    return ', '.join(map(repr, map(str, names[:3]))) + (', ...' if len(names) > 3 else '')
