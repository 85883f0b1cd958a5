"""What a data set is like: quality, duplicates, photographs and splits."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline import sixteen_bits
from input_pipeline.atomic_files import atomic_open
from input_pipeline.csv_table import quoting_for
from input_pipeline.curation import photographs, quality
from input_pipeline.curation.decisions import Finding, moderated
from input_pipeline.curation.duplicates import Duplicates, conflicting, find_duplicates
from input_pipeline.curation.measures import Measures
from input_pipeline.curation.one_reading import look_at
from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest
from input_pipeline.splits import assign_splits

# Flags that are a defect where most pictures have them, the strongest first; others describe a set.
_DEFECTS = {'empty': 'empty', 'dark': 'dark throughout', 'bright': 'bright throughout',
            'blurred': 'blurred'}


@dataclasses.dataclass(frozen=True)
class Exploration:
    """What is known of N pictures in G groups of duplicates.

    Attributes:
        manifest: N rows, with the column split if the config's split can be made.
        problems: object [N], '' or why a picture cannot be read.
        split_note: why there is no split, or ''.
        measures, duplicates: of the pictures.
        conflicts: bool [G], whether a group has different labels of some head.
        flags: bool [N, quality.FLAGS].
        suspicion: float [N], 0 for pictures that are not suspicious.
        why: N texts, the suspicion in words.
        photographs: what kind of picture is rare here, such as photographs among drawings; NaN
            for rows that cannot be read.
        statistics: float32 [N, S], of `picture_statistics`, and descriptors, float16 [N, D], of
            `descriptors` (D is 0 if they were not wanted) or float32 of a model; NaN for rows that
            cannot be read.
        range_note: what is unusual about the values of 16-bit pictures, or ''.
        by_model: whether the descriptors are features of a model.
    """

    manifest: Manifest
    problems: np.ndarray
    split_note: str
    measures: Measures
    duplicates: Duplicates
    conflicts: np.ndarray
    flags: pd.DataFrame
    suspicion: np.ndarray
    why: list[str]
    photographs: Finding
    statistics: np.ndarray
    descriptors: np.ndarray
    range_note: str = ''
    by_model: bool = False


def explore_pictures(
        manifest: Manifest, options: Mapping, split: Mapping | None, *, seed: int, cache_dir: str,
        range16: str | sixteen_bits.Range = 'auto',
        described: bool | Callable[[Manifest], np.ndarray] = False,
        progress: Callable[[str, str], AbstractContextManager[Callable[[int, int], None]]]
) -> Exploration:
    """Looks at every picture; each file is read once.

    Args:
        manifest: N rows.
        options: config.curate, of which quality, duplicates and photographs count.
        split: config.split; None for no split.
        seed: of the split.
        cache_dir: folder in which measures of files are kept between runs.
        range16: config.image.range16, see `sixteen_bits.check`.
        described: whether the descriptors are wanted; or a function from the rows that can be read,
            n, to features of a model, float32 [n, D], which take their place, and by which
            duplicates and photographs are found too.
        progress: (what, unit) -> a block with a progress bar, which yields its function
            (done, total).

    Raises:
        DataError: a threshold or the range is wrong.
    """
    quality.check(options['quality'])  # rather than after minutes of measuring
    photographs.check_wanted(options['photographs']['wanted'])
    wanted = sixteen_bits.check(range16)
    by_model = described if callable(described) else None
    with progress('look', 'image') as done:
        looked = look_at(manifest, range16=wanted, cache_dir=cache_dir,
                         described=by_model is None and bool(described), progress=done)
    manifest, problems, measures = looked.manifest, looked.problems, looked.measures
    features = by_model and _features(manifest, problems == '', by_model)
    split_note = ''
    if split is not None:
        manifest, split_note = _with_split(manifest, np.flatnonzero(problems == ''), split, seed)
    suspicion, why = quality.suspicions(measures.table, options['quality'])
    with progress('compare', 'pair') as done:
        duplicates = find_duplicates(measures, features=features, progress=done,
                                     **options['duplicates'])
    group = duplicates.group
    conflicts = np.zeros(group.max(initial=-1) + 1, bool)
    for head in manifest.heads:
        conflicts |= conflicting(group, manifest.labels(head))
    return Exploration(manifest, problems, split_note, measures, duplicates, conflicts,
                       quality.flags(measures.table, options['quality']), suspicion, why,
                       _photographs(looked.statistics, features, problems == '', options, seed),
                       looked.statistics, looked.descriptors if features is None else features,
                       looked.range_note, features is not None)


def _features(manifest: Manifest, readable: np.ndarray,
              by_model: Callable[[Manifest], np.ndarray]) -> np.ndarray:
    """Features of the rows that can be read, float32 [N, D], NaN for the others."""
    if not readable.any():
        return np.full((len(readable), 0), np.nan, np.float32)
    known = by_model(manifest.select(readable))
    found = np.full((len(readable), known.shape[1]), np.nan, np.float32)
    found[readable] = known
    return found


def _photographs(statistics: np.ndarray, features: np.ndarray | None, readable: np.ndarray,
                 options: Mapping, seed: int) -> Finding:
    wanted = options['photographs']['wanted']
    odd = np.full(len(readable), np.nan)
    if readable.any():
        odd[readable] = photographs.photographs(
            statistics[readable], features=None if features is None else features[readable],
            wanted=wanted, seed=seed)
    return moderated(photographs.to_finding(
        odd, wanted=wanted, drop=options['photographs']['drop'],
        review=options['photographs']['review']), options['most'])


def common_defects(found: Exploration) -> list[str]:
    """What is wrong with most pictures, such as 'all 40 are empty'; none of them is suspicious for
    what nearly all have."""
    seen = found.flags[found.problems == '']
    total, said = len(seen), []
    for name, words in _DEFECTS.items():
        n = int(seen[name].sum())
        if 2 * n > total:
            said.append(f'all {n:,} are {words}' if n == total else
                        f'{n:,} of {total:,} are {words}')
            seen = seen[~seen[name]]  # an empty picture is dark or bright, and blurred, too
            if not len(seen):
                break
    return said


def _with_split(manifest: Manifest, readable: np.ndarray, split: Mapping, seed: int
                ) -> tuple[Manifest, str]:
    """The manifest with the column split, '' for unreadable rows; or as it was, and why."""
    try:
        if not len(readable):
            raise DataError('No picture can be read.')
        placed = assign_splits(manifest.select(readable), split, seed=seed)
    except DataError as error:  # a page that says so is worth more than none
        return manifest, str(error)
    sides = np.full(len(manifest), '', object)
    sides[readable] = placed.table['split']
    return manifest.with_column('split', sides), ''


def save_exploration(found: Exploration, path: Path, more: Mapping[str, object] | None = None
                     ) -> None:
    """Writes a CSV with one row per image: what the manifest has, measures, flags, duplicates.

    Args:
        found: N pictures.
        path: of the file.
        more: {column: N values} to add.

    Raises:
        OSError: it cannot be written.
    """
    manifest, group = found.manifest, found.duplicates.group
    known = [name for name in ('id', 'location', 'group', 'split') if name in manifest.table]
    table = manifest.table[known].copy()
    for head, names in manifest.classes.items():
        table[f'label/{head}'] = np.array([*names, ''], object)[manifest.labels(head)]
    table = pd.concat([table, found.measures.table.drop(columns='problem'),
                       found.flags.astype(int)], axis=1)
    table['problem'] = found.problems
    kinds = np.array([*found.duplicates.kinds(), ''], object)
    table['duplicate_group'] = np.where(group >= 0, group.astype(str).astype(object), '')
    table['duplicate_kind'] = kinds[group]
    table['suspicion'], table['why'] = found.suspicion.round(3), found.why
    table['photograph'] = found.photographs.score
    table = table.assign(**(more or {}))
    with atomic_open(path, errors='surrogateescape') as file:
        table.to_csv(file, index=False, lineterminator='\n', float_format='%.6g',
                     quoting=quoting_for(table))
