"""Pseudo-labels as files: what was answered for unlabelled pictures, by whom, and by which rule.

    pseudo.csv        id, image, fold; label, confidence and perhaps soft, of several heads as
                      label/<head>, ...: one line per picture, or per picture and fold
    pseudo.json       where the pictures are, the classes, the members and their checkpoints, rule,
                      temperatures, thresholds, counts, the round, the files of earlier rounds, and
                      digests of the other two files
    pseudo.rows.csv   id, group, folds: every row that a member trained on, or a run before it, and
                      the folds (between spaces) whose labels that member made

`fold` is the fold of a student that may learn from the line: none of the models that made its label
trained on a row which that fold holds out. It is '' where all members answered together. `soft`
holds place:probability of the classes, largest first.

The three belong together, and a file that was edited is refused: it would not be what its members
answered.
"""

import csv
import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.atomic_files import write_json, write_text
from input_pipeline.csv_table import read_csv
from input_pipeline.errors import DataError, in_one_line
from train_lib.run_dir.json_files import json_digest, read_json
from train_lib.runtime.errors import ConfigError

FORMAT = 1
ALL = ''  # `fold` of labels that all members made together
LEAST = 5e-4  # probability that `soft` still names


@dataclasses.dataclass(frozen=True)
class PseudoFile:
    """The content of the three files.

    Attributes:
        path: of the CSV.
        columns: {name: N cells} of it.
        about: the JSON file.
        seen: {fold: {id: group, '' for none}} of what those who made its labels trained on.
    """

    path: Path
    columns: Mapping[str, Sequence[str]]
    about: Mapping[str, Any]
    seen: Mapping[str, Mapping[str, str]]

    def __len__(self) -> int:
        return len(self.columns['id'])

    @property
    def digest(self) -> str:
        """Of everything, by which later rounds name it."""
        return self.about['sha256']

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """{head: its classes}, to which the places of `soft` belong."""
        return {head: tuple(names) for head, names in self.about['classes']}

    @property
    def folds(self) -> list[str]:
        """The folds that it has labels for, `ALL` for those of all members."""
        return list(self.seen)


def beside(path: Path) -> tuple[Path, Path]:
    """(pseudo.json, pseudo.rows.csv) of a pseudo.csv."""
    return path.with_suffix('.json'), path.with_suffix('.rows.csv')


def column(kind: str, head: str, heads: Sequence[str]) -> str:
    """The name of the column of a head: 'label', or 'label/<head>' of several."""
    return kind if len(heads) == 1 else f'{kind}/{head}'


def soft_text(probabilities: np.ndarray) -> str:
    """A distribution float [C] as 'place:probability ...', largest first."""
    order = np.argsort(-probabilities, kind='stable')
    order = order[probabilities[order] >= LEAST]
    return ' '.join(f'{place}:{probabilities[place]:.4g}' for place in order.tolist())


def soft_row(text: str, size: int) -> np.ndarray:
    """float32 [size] of sum 1 from what `soft_text` wrote.

    Raises:
        ValueError: it did not.
    """
    found = np.zeros(size, np.float32)
    for word in text.split():
        place, _, value = word.partition(':')
        found[int(place)] = float(value)
    if not (found >= 0).all() or not 0 < found.sum() < 2:
        raise ValueError(f'{text[:40]!r} is not a distribution')
    return found / found.sum()


def write(path: Path, columns: Mapping[str, Sequence[str]], about: Mapping[str, Any],
          seen: Mapping[str, Mapping[str, str]]) -> PseudoFile:
    """Writes the three files, the JSON file last.

    Args:
        path: of the CSV; its folder is made.
        columns, about, seen: as in `PseudoFile`; digests and format are added.

    Raises:
        ConfigError: they cannot be written.
    """
    folds: dict[tuple[str, str], list[str]] = {}
    for fold, rows in seen.items():
        for name, group in rows.items():
            folds.setdefault((name, group), []).append(fold)
    notes, rows_file = beside(path)
    whole = dict(format=FORMAT, **about, folds=list(seen))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, header, lines, key in (
                (path, list(columns), zip(*columns.values()), 'labels_sha256'),
                (rows_file, ['id', 'group', 'folds'],
                 ((*row, ' '.join(names)) for row, names in folds.items()), 'rows_sha256')):
            opened = io.StringIO(newline='')
            writer = csv.writer(opened, quoting=csv.QUOTE_ALL, lineterminator='\n')
            writer.writerow(header)
            writer.writerows(lines)
            text = opened.getvalue()
            write_text(file, text)
            whole[key] = hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()
        whole = dict(sha256=json_digest(whole)) | whole
        write_json(notes, whole)
    except OSError as error:
        raise ConfigError(f'{path} cannot be written ({error.strerror}): give another --out.'
                          ) from None
    return PseudoFile(path, columns, whole, seen)


def read(path: Path, key: str = 'data.extra.file') -> PseudoFile:
    """The three files, checked against their digests.

    Args:
        path: of the CSV.
        key: of the config that names it, for errors.

    Raises:
        ConfigError: one is missing, damaged or was edited, or is of a newer version of the code.
    """
    where = f'config.{key} = {str(path)!r}'
    notes, rows_file = beside(path)
    if not path.is_file():
        raise ConfigError(f'{where}: there is no such file: give one that `main.py pseudo` wrote.')
    missing = [file.name for file in (notes, rows_file) if not file.is_file()]
    if missing:
        raise ConfigError(f'{where} lacks {missing[0]} beside it, which says who made the labels '
                          f'and what they trained on: give a file that `main.py pseudo` wrote, '
                          f'with the two others that it wrote.')
    try:
        about = read_json(notes)
        if about.get('sha256') != json_digest(about):
            raise ValueError(f'{notes.name} has changed since it was written')
        if about['format'] > FORMAT:
            raise ValueError(f'it has format {about["format"]}, and this version of the code reads '
                             f'up to {FORMAT}')
        for file, name in ((path, 'labels_sha256'), (rows_file, 'rows_sha256')):
            if hashlib.sha256(file.read_bytes()).hexdigest() != about[name]:
                raise ValueError(f'{file.name} has changed since it was written')
        header, rows, _ = read_csv(str(path))
        columns = dict(zip(header, map(list, zip(*rows)) if rows else ([] for _ in header)))
        seen: dict[str, dict[str, str]] = {str(fold): {} for fold in about['folds']}
        for name, group, folds in read_csv(str(rows_file))[1]:
            for fold in folds.split(' '):
                seen[fold][name] = group
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise ConfigError(f'{where} cannot be used ({in_one_line(error)}): restore it, or write '
                          f'it again by `main.py pseudo`.') from None
    return PseudoFile(path, columns, about, seen)
