"""What predictions need to know about a run: its folds, its split, its config."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from input_pipeline.csv_table import read_csv
from input_pipeline.manifest import SPLITS
from train_lib.metrics.thresholds import in_order
from train_lib.run_dir.ancestors import probing_run_of
from train_lib.run_dir.json_files import read_json
from train_lib.run_dir.workdirs import read_config
from train_lib.runtime.errors import ConfigError

THRESHOLDS = 'thresholds.json'  # of a fold of a probing run: {head: {class: probability}}


def natural(name: str) -> list:
    """A key that sorts 'fold_10' after 'fold_9'."""
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', name)]


def fold_of(workdir: Path) -> int | None:
    """k of a folder fold_<k>, None of any other folder."""
    name = re.fullmatch(r'fold_(\d+)', os.path.basename(os.path.abspath(workdir)))
    return int(name[1]) if name else None


def folds_of(workdir: Path) -> list[Path]:
    """The fold_<k> folders of a k-fold workdir, in order; [] of any other run."""
    return sorted((path for path in Path(workdir).glob('fold_*') if path.is_dir()),
                  key=lambda path: natural(path.name))


def missing_folds(workdir: Path) -> str:
    """How many folds a k-fold workdir has, as '3 of 5 folds'; '' if it has those of its config.

    Raises:
        ConfigError: config.json is damaged.
    """
    found = {path.name for path in folds_of(workdir)}
    split = config_json(workdir).get('split', {})
    wanted = split.get('fold')
    if not isinstance(wanted, list):
        wanted = range(split.get('folds', len(found)))
    if found and found == {f'fold_{fold}' for fold in wanted}:
        return ''
    return f'{len(found)} of {len(wanted)} folds'


def run_of(workdir: Path) -> Path:
    """The absolute workdir of the whole run: of a fold_<k> the folder above it."""
    path = Path(os.path.abspath(workdir))
    return path if fold_of(path) is None else path.parent


@dataclasses.dataclass(frozen=True)
class Splits:
    """split.csv of a run.

    Attributes:
        roles: {id: 'train' | 'val' | 'test'}.
        groups: {id: group} of the rows that have one; {} if the run allowed groups on two sides.
        labels: {head: class name of each row, '' for none}, in the order of `roles`.
        known_groups: as `groups`, and also there if the run allowed them on two sides; by them
            scores get their intervals, as in the report of the run.
    """

    roles: Mapping[str, str]
    groups: Mapping[str, str]
    labels: Mapping[str, tuple[str, ...]]
    known_groups: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def training_labels(self, head: str) -> list[str]:
        """The class names of the training rows; of a multi-label head, those of each row in one
        text."""
        return [name for name, role in zip(self.labels[head], self.roles.values())
                if role == 'train']


def splits_of(workdir: Path) -> Splits:
    """The rows of each split of a run; all empty if it has no split.csv.

    Raises:
        DataError or ConfigError: split.csv or config.json is damaged.
    """
    path = workdir / 'split.csv'
    if not path.exists():
        return Splits({}, {}, {})
    header, rows, _ = read_csv(str(path))
    columns = dict(zip(header, zip(*rows) if rows else [()] * len(header)))
    if not {'id', 'split'} <= set(columns) or not set(columns['split']) <= set(SPLITS) or \
            len(set(columns['id'])) < len(rows):
        raise ConfigError(f'{path} is damaged (each id must appear once, with train, val or '
                          f'test): restore it.')
    grouped = config_json(workdir).get('split', {}).get('grouped', True)
    groups = {name: group for name, group in zip(columns['id'], columns.get('group', ())) if group}
    return Splits(dict(zip(columns['id'], columns['split'])), groups if grouped else {},
                  {name.removeprefix('label/'): values for name, values in columns.items()
                   if name.startswith('label/')}, groups)


def thresholds_of(workdir: Path, classes: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """The thresholds of the multi-label heads that a run, a fold or all folds together fitted,
    {head: float64 [C]}; {} where there are none. The folds of a probing run, which have no
    result.json, keep them in thresholds.json.

    Raises:
        ConfigError: that file is damaged.
    """
    path = Path(workdir) / 'result.json'
    if not path.exists() and (Path(workdir) / THRESHOLDS).exists():
        path = Path(workdir) / THRESHOLDS
    try:
        stored = read_json(path) if path.exists() else {}
        stored = stored if path.name == THRESHOLDS else stored.get('thresholds', {})
        return {head: in_order(stored[head], names) for head, names in classes.items()
                if head in stored}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f'{path} has thresholds that cannot be read '
                          f'({" ".join(str(error).split())}): restore it.') from None


def separator_of(workdir: Path) -> str:
    """What stands between several labels in the tables of a run, config.data.label_separator; of a
    fold of a probing run, which has no config.json, that of the run.

    Raises:
        ConfigError: config.json is damaged.
    """
    folder = Path(workdir)
    return config_json(probing_run_of(folder) or folder).get('data', {}).get('label_separator', '|')


def config_json(workdir: Path) -> dict:
    """The content of config.json of a run, {} if it has none.

    Raises:
        ConfigError: it is damaged.
    """
    path = workdir / 'config.json'
    if not path.exists():
        return {}
    config = read_config(workdir)
    try:
        split, model = config.get('split', {}), config.get('model', {})
        if not (isinstance(split, dict) and isinstance(split.get('folds', 2), int)
                and isinstance(model, dict) and isinstance(model.get('name', ''), str)):
            raise ValueError('config.split or config.model is malformed')
    except (OSError, ValueError) as error:
        raise ConfigError(f'{path} cannot be read ({" ".join(str(error).split())}): restore it.'
                          ) from None
    return config
