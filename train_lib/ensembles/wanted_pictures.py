"""The pictures that a sample submission asks for, in a folder, an archive or a packed folder."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from input_pipeline import sources
from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest
from input_pipeline.readable import check_files
from input_pipeline.sixteen_bits import Range
from input_pipeline.sources import array_records, folder, zip_archive
from train_lib.ensembles.answer_columns import USUAL
from train_lib.ensembles.matched_ids import Match, match
from train_lib.ensembles.sample_file import SampleFile
from train_lib.runtime.cache_folder import cache_folder
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)
EXTRA = ('refuse', 'ignore')
_TRIED = 8  # columns that may hold the ids
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The pictures of a sample.

    Attributes:
        key: the column of the ids.
        manifest: one row per row of the sample, in its order; ids as the sample writes them, and no
            labels.
        digest: of the ids and the bytes of the pictures.
    """

    key: str
    manifest: Manifest
    digest: str

    def shown(self, range16: Range) -> tuple[Callable[[str], np.ndarray], dict[str, str]]:
        """How a report shows them: (location -> uint8 [H, W, 3], {id: location})."""
        table = self.manifest.table
        read = sources.reader(dataclasses.replace(self.manifest, range16=range16))
        return read, dict(zip(table['id'], table['location']))


def list_pictures(path: str, flag: str, *, allow_outside: bool = False, zip_encoding: str = ''
                  ) -> Manifest:
    """The pictures of a folder (at any depth), of a zip archive or of a packed folder; labels are
    left out.

    Args:
        path: the folder or archive.
        flag: that gave it, for errors.
        allow_outside, zip_encoding: as in `sources.folder.load`.

    Raises:
        DataError: there are none. ConfigError: it is another file.
    """
    full = os.path.expanduser(path)
    if os.path.isfile(full) and not zip_archive.split_path(full)[0]:
        raise ConfigError(f'{flag}={path!r} is a file: give the folder of the pictures, a .zip of '
                          f'it, or a packed folder.')
    try:
        if os.path.isfile(os.path.join(full, array_records.INDEX)):
            found = array_records.load(full)
        else:
            found = folder.load(full, labelled=False, allow_outside=allow_outside,
                                zip_encoding=zip_encoding)
    except DataError as error:
        raise DataError(str(error).replace('data.folder', flag).replace('data.packed', flag)
                        ) from None
    table = found.table[['id', 'location']].assign(**{'label/class': np.int32(-1)})
    return dataclasses.replace(found, table=table, classes={'class': ()})


def find_wanted(sample: SampleFile, pictures: Manifest, told: Mapping[str, str], extra: str
                ) -> Wanted:
    """Matches the sample with the pictures, and decodes those once that it asks for.

    Args:
        sample, pictures: of `read_sample` and `list_pictures`.
        told: {column: content} that the user gave.
        extra: of EXTRA, what becomes of pictures that the sample does not ask for.

    Raises:
        ConfigError: an id has no picture, two or that of another id, a picture is not asked for,
            or one that is cannot be read.
    """
    if extra not in EXTRA:
        raise ConfigError(f'config.extra = {extra!r}: choose {" or ".join(EXTRA)}.')
    names = pictures.table['id'].tolist()
    key, found = _find_key(sample, names, told)
    log.info('ids      column %s, by %s', key, found.how)
    rest = np.ones(len(names), bool)
    rest[found.places] = False
    if rest.any():
        shown = _first(np.array(names, object)[rest])
        if extra == 'refuse':
            raise ConfigError(f'{pictures.root!r} holds {rest.sum():,} of {len(names):,} pictures '
                              f'that the sample {sample.path!r} does not ask for ({shown}): give '
                              f'the pictures of the sample only, or leave the others out with '
                              f'--config.extra=ignore.')
        log.info('images   left out %s of %s pictures that the sample does not ask for',
                 f'{rest.sum():,}', f'{len(names):,}')
    wanted = pictures.select(found.places)
    checked = check_files(wanted, cache_dir=cache_folder())
    if checked.bad:
        shown = '; '.join(f'{wanted.table["id"][row]!r} {reason}'
                          for row, reason in list(checked.bad.items())[:_SHOWN])
        more = ', ...' if len(checked.bad) > _SHOWN else ''
        raise ConfigError(f'{len(checked.bad)} of {len(wanted):,} pictures that the sample '
                          f'{sample.path!r} asks for cannot be read ({shown}{more}): restore them, '
                          f'or put any picture in their place and correct these rows by hand.')
    ids = sample.columns[key]
    hasher = hashlib.sha256()
    for row in sorted(range(len(ids)), key=ids.__getitem__):
        hasher.update(f'{ids[row]}\0{checked.contents[row]}\n'.encode('utf-8', 'surrogateescape'))
    return Wanted(key, wanted.with_column('id', ids), hasher.hexdigest())


def _find_key(sample: SampleFile, names: Sequence[str], told: Mapping[str, str]
              ) -> tuple[str, Match]:
    """The column of the ids, and the picture of each."""
    unique = {name: list(dict.fromkeys(cells)) for name, cells in sample.columns.items()}
    named = [name for name, what in told.items() if what == 'id' and name in unique]
    likely = sorted((name for name in unique if name not in told and (
        2 * len(unique[name]) > len(sample) or _is_usual(name))), key=lambda name: (
            not _is_usual(name)))
    tried = named or likely[:_TRIED] or [name for name in unique if name not in told]
    if not tried:
        raise ConfigError(f'config.columns says of every column of {sample.path!r} that it holds '
                          f"no ids: name theirs, as in dict(ID='id').")
    matches = {name: match(unique[name], names) for name in tried[:_TRIED]}
    whole = [name for name, one in matches.items()
             if one.is_whole and len(unique[name]) == len(sample)]
    if whole:
        key = min(whole, key=lambda name: matches[name].rank)
        for name in whole:
            if (matches[name].places != matches[key].places).any():
                log.warning('ids      column %s would mean other pictures, by %s', name,
                            matches[name].how)
        return key, matches[key]
    # 'id' twice may be a free column, so what fits most pictures is meant.
    key = max(matches, key=lambda name: matches[name].count)
    _refuse(sample, key, matches[key], unique[key], names)
    raise AssertionError(key)


def _is_usual(name: str) -> bool:
    return USUAL.get(name.casefold()) == 'id'


def _refuse(sample: SampleFile, key: str, found: Match, ids: Sequence[str], names: Sequence[str]
            ) -> None:
    """Raises the error for ids that cannot be matched."""
    column = f'The sample {sample.path!r} (ids in the column {key!r})'
    if len(ids) < len(sample):
        cells = sample.columns[key]
        seen: set[str] = set()
        twice = [name for name in cells if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
        raise ConfigError(f'{column} has {len(sample) - len(ids)} rows whose id another row has '
                          f'({_first(dict.fromkeys(twice))}): give each picture one row.')
    if found.several:
        raise ConfigError(f'{column} has {len(found.several)} of {len(ids)} ids that fit several '
                          f'pictures by {found.how} ({_first(found.several)}): write the paths of '
                          f'the pictures as ids, or keep one picture of each name.')
    missing = [name for name, place in zip(ids, found.places.tolist()) if place < 0]
    if missing:
        how = (f'the others match by {found.how}' if found.count else
               f'pictures there are called {names[0]!r}')
        raise ConfigError(f'{column} asks for {len(missing):,} of {len(ids):,} pictures that are '
                          f'not there ({_first(missing)}; {how}): give the folder with all of them '
                          f'by --images.')
    raise ConfigError(f'{column} has {len(found.shared)} ids that mean the picture of another id '
                      f'by {found.how} ({_first(found.shared)}): write the paths of the pictures '
                      f'as ids.')


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ', '.join(map(repr, map(str, names[:_SHOWN]))) + (', ...' if len(names) > _SHOWN else '')
