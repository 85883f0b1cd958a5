"""Which rows of a run an ancestor trained on: refused at the start, marked in every result."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from input_pipeline.kept_splits import split_digest
from input_pipeline.manifest import SPLITS, Manifest
from train_lib.run_dir import workdirs
from train_lib.run_dir.ancestors import (
    UNLABELLED,
    Ancestry,
    ancestry_of,
    is_kfold,
    read_split,
    read_table,
    source_of,
    teacher_of,
)
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)

SEEN = ('error', 'accept')  # config.init.seen
HELD_OUT = ('val', 'test')
SCORED = (*HELD_OUT, 'out_of_fold')  # keys of `seen` in result.json besides 'train'


def connected(groups: Iterable[Mapping[str, str]]) -> dict[str, int]:
    """{id: number of its part}: ids that share a group are in one part, and so is whatever they
    share groups with.

    Args:
        groups: {id: group} as different runs know them; one name means one group.
    """
    pairs = {pair for part in groups for pair in part.items() if pair[1]}
    if not pairs:
        return {}
    members, names = (np.array(part, object) for part in zip(*pairs))
    rows, known = pd.factorize(members)
    columns, _ = pd.factorize(names)
    size = len(known) + int(columns.max()) + 1
    links = coo_matrix((np.ones(len(rows)), (rows, columns + len(known))), (size, size))
    return dict(zip(known, connected_components(links, directed=False)[1].tolist()))


def related(ids: Iterable[str], trained: Collection[str], parts: Mapping[str, int]) -> list[str]:
    """Those of the ids that were trained on, or are in one part with an id that was.

    Args:
        ids: of rows.
        trained: a set of ids.
        parts: of `connected`.
    """
    touched = {parts[name] for name in trained if name in parts}
    return [name for name in ids if name in trained or parts.get(name) in touched]


def seen_rows(ancestry: Ancestry, ids: Sequence[str], sides: Sequence[str],
              groups: Mapping[str, str] | None) -> dict[str, list[str]]:
    """{split: ids} of the rows that an ancestor trained on, for each split.

    Args:
        ancestry: of the run.
        ids, sides: of the N rows of the run.
        groups: {id: group} of the run; None if it allows groups on two sides, so that only ids
            count.
    """
    found: dict[str, list[str]] = {name: [] for name in SPLITS}
    if ancestry.rows:
        parts = {} if groups is None else connected((groups, ancestry.groups))
        side_of = dict(zip(ids, sides))
        for name in related(ids, ancestry.rows.keys(), parts):
            found[side_of[name]].append(name)
    return found


def groups_of(manifest: Manifest, grouped: bool) -> dict[str, str] | None:
    """{id: group} of the rows of a run; None if it allows groups on two sides."""
    table = manifest.table
    if not grouped:
        return None
    return dict(zip(table['id'], table['group'].astype(str))) if 'group' in table else {}


def accepts(seen: str) -> bool:
    """config.init.seen: whether rows that an ancestor trained on may be scored.

    Raises:
        ConfigError: it is not one of SEEN.
    """
    if seen not in SEEN:
        raise ConfigError(f'config.init.seen = {seen!r}: choose one of {", ".join(SEEN)}.')
    return seen == 'accept'


def check(config: Mapping, ancestry: Ancestry, manifest: Manifest, *, goes_on: bool = False
          ) -> None:
    """Refuses to score rows that an ancestor trained on, and says what is accepted or not known.

    Args:
        config: of the run.
        ancestry: of the run.
        manifest: of the run, with the column `split`.
        goes_on: the run began before, so it is not refused any more.

    Raises:
        ConfigError: validation or test rows were trained on, and config.init.seen is not 'accept';
            or the folds of a k-fold source are cut otherwise.
    """
    refuse = not accepts(config['init']['seen']) and not goes_on
    if refuse:
        _check_folds(config, manifest)
    table = manifest.table
    seen = seen_rows(ancestry, table['id'].tolist(), table['split'].tolist(),
                     groups_of(manifest, config['split']['grouped']))
    sizes = table['split'].value_counts()
    held = [(name, seen[name], int(sizes[name])) for name in HELD_OUT if seen[name]]
    if held and refuse:
        raise ConfigError(_refusal(config, ancestry, held))
    for name, ids, size in held:
        log.warning('seen     %d of %d %s rows were trained on by an ancestor (%s)', len(ids), size,
                    name, 'init.seen=accept' if ancestry.accepted else 'as this run began')
    for clause in ancestry.unknown:
        log.info('seen     not checked: %s', clause)


def _refusal(config: Mapping, ancestry: Ancestry, held: Sequence[tuple[str, list[str], int]]
             ) -> str:
    keys = [f'config.{section}.{key} = {given!r}' for section, key in (
        ('init', 'from'), ('init', 'pretrained'), ('teacher', 'workdir'))
        if (given := config.get(section, {}).get(key))]
    by_group = sum(name not in ancestry.rows for _, ids, _ in held for name in ids)
    counts = ' and '.join(f'{len(ids)} of the {size} {name} rows' for name, ids, size in held)
    shown = ', '.join(repr(name) for name in held[0][1][:3])
    who = ancestry.runs[0]['workdir'] if len(ancestry.runs) == 1 else \
        f'{ancestry.runs[0]["workdir"]} or its ancestors'
    return (f'{" and ".join(keys)}: {who} trained on {counts} of this run '
            f'({shown}{", ..." if len(held[0][1]) > 3 else ""}'
            f'{f"; {by_group} only by their group" if by_group else ""}), so their scores would '
            f'mean nothing: keep its split by {_way_to_keep(ancestry.runs[0]["workdir"])}, or for '
            f'folds let each have its own (give a k-fold workdir of the same folds), or '
            f'accept it by --config.init.seen=accept, which is marked in every result.')


def _way_to_keep(workdir: str) -> str:
    if (Path(workdir) / UNLABELLED).exists():  # then split.csv does not have all rows
        return 'the data, config.split and seed of that run'
    return f'--config.split.kind=given --config.split.file={workdir}/{workdirs.SPLIT}'


def _check_folds(config: Mapping, manifest: Manifest) -> None:
    """Fold k of a k-fold source must hold out the rows that fold k holds out here."""
    for name, find in (('init.from', source_of), ('teacher.workdir', teacher_of)):
        section, key = name.split('.')
        given = config.get(section, {}).get(key)
        if given and is_kfold(Path(given)):
            _check_folds_of(config, manifest, name, given, find(config))


def _check_folds_of(config: Mapping, manifest: Manifest, name: str, given: str,
                    source: Path | None) -> None:
    assert source is not None
    theirs = read_table(source)
    if theirs is None:
        return  # said by `Ancestry.unknown`
    ours = split_digest(manifest.table['id'], manifest.table['split'])
    if split_digest(theirs.ids, theirs.sides) != ours:
        raise ConfigError(f'config.{name} = {given!r}: its fold {config["split"]["fold"]} holds '
                          f'out other rows than fold {config["split"]["fold"]} of this run (the '
                          f'digests of the splits differ): give the data, config.split and seed '
                          f'of that run, one of its folds, as in {source}, or accept it by '
                          f'--config.init.seen=accept.')


# --- what results say ----------------------------------------------------------------------------


def facts(workdir: Path) -> dict[str, Any]:
    """What result.json says of the ancestors of a run, from its record and its split.csv.

    Returns:
        ancestors: [dict(workdir, data_digest, split_digest, checkpoint, rows)].
        seen: {split: how many of its rows an ancestor trained on}.
        seen_accepted: whether that was accepted.
        not_checked: clauses on what is not known.

    Raises:
        ConfigError, DataError: a file is damaged.
    """
    ancestry = ancestry_of(workdir)
    return _facts(ancestry, seen_of(workdir, ancestry) if ancestry.rows else {})


def facts_of_rows(ancestry: Ancestry, parts: Sequence[Manifest], *, grouped: bool
                  ) -> dict[str, Any]:
    """`facts` of a run that has no split.csv yet: of its rows, or of those of its folds."""
    found = [_facts(ancestry, seen_rows(ancestry, part.table['id'].tolist(),
                                        part.table['split'].tolist(), groups_of(part, grouped)))
             for part in parts]
    return found[0] if len(found) == 1 else facts_of_folds(found)


def _facts(ancestry: Ancestry, seen: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return dict(ancestors=[dict(run) for run in ancestry.runs],
                seen={name: len(seen.get(name, ())) for name in SPLITS},
                seen_accepted=ancestry.accepted, not_checked=list(ancestry.unknown))


def seen_of(workdir: Path, ancestry: Ancestry) -> dict[str, list[str]]:
    """`seen_rows` of a run that has begun, by its split.csv."""
    table = read_table(workdir)
    if table is None:
        return {name: [] for name in SPLITS}
    grouped = read_split(workdir).get('grouped', True)
    return seen_rows(ancestry, table.ids, table.sides, table.groups if grouped else None)


def facts_of_folds(results: Sequence[Mapping]) -> dict[str, Any]:
    """`facts` of a k-fold run, from those of its folds: out-of-fold rows are all validation rows
    together, and the test rows of all folds are the same."""
    parts = [part for part in results if 'seen' in part]
    runs = {(run['workdir'], run['checkpoint']): run for part in parts for run in part['ancestors']}
    return dict(ancestors=list(runs.values()),
                seen=dict(out_of_fold=sum(part['seen']['val'] for part in parts),
                          test=max((part['seen']['test'] for part in parts), default=0)),
                seen_accepted=any(part['seen_accepted'] for part in parts),
                not_checked=list(dict.fromkeys(
                    clause for part in parts for clause in part['not_checked'])))


def held_out_seen(result: Mapping) -> int:
    """How many rows of a result.json that are scored were trained on by an ancestor, or learned
    without labels by the run itself."""
    seen = result.get('seen')
    return (sum(seen.get(name, 0) for name in SCORED) if isinstance(seen, Mapping) else 0
            ) + _kept_unlabelled(result)


def _kept_unlabelled(result: Mapping) -> int:
    """Unlabelled pictures that are held-out ones (config.unlabelled.transductive)."""
    folds = result.get('folds')
    parts = [result, *(folds if isinstance(folds, list) else ())]
    own = [part.get('unlabelled') for part in parts if isinstance(part, Mapping)]
    return max((one['held_out'] for one in own
                if isinstance(one, Mapping) and one.get('held_out_kept')), default=0)


def marks(result: Mapping) -> list[str]:
    """Sentences for a report on the held-out rows that an ancestor trained on, from result.json."""
    seen = result.get('seen')
    found = []
    for name in SCORED:
        count = seen.get(name) if isinstance(seen, Mapping) else None
        scores = result.get(name)
        if isinstance(count, int) and count:
            size = scores.get('n') if isinstance(scores, Mapping) else None
            found.append(f'{count:,}{f" of the {size:,}" if isinstance(size, int) else ""} '
                         f'{name.replace("_", "-")} picture'
                         f'{"s were" if count > 1 else " was"} trained on by an ancestor of '
                         f'this run{" (init.seen=accept)" if result.get("seen_accepted") else ""}, '
                         f'so their scores are not those of new pictures.')
    kept = _kept_unlabelled(result)
    if kept:
        found.append(f'{kept:,} unlabelled picture{"s are" if kept > 1 else " is"} of validation '
                     f'or test pictures (unlabelled.transductive), so their scores are not those '
                     f'of new pictures.')
    unknown = result.get('not_checked')
    found += [f'Not checked: {clause}.' for clause in unknown if isinstance(clause, str)] \
        if isinstance(unknown, list) else []
    return found
