"""The rows that the verb predict works on: a split of the run's own data, or other data."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from input_pipeline import loader
from input_pipeline.class_names import number_labels
from input_pipeline.errors import listed, perhaps
from input_pipeline.label_sets import LabelSets
from input_pipeline.manifest import SPLITS, Manifest, class_counts, digest
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.sixteen_bits import Range
from train_lib.predictions import store
from train_lib.predictions.run_folders import folds_of, separator_of, splits_of
from train_lib.run_dir import workdirs
from train_lib.runtime.errors import ConfigError
from train_lib.training.data import load_data
from train_lib.training.predict_spec import PredictSpec


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is predicted: the rows, with the classes of the run; their digest; their pictures; and
    for meta.json where these are, {} for the run's own."""

    manifest: Manifest
    digest: str
    pictures: loader.Pictures
    place: Mapping = dataclasses.field(default_factory=dict)


def rows_of_runs(asked: PredictSpec, config: ConfigDict, own: ConfigDict, spec: PreprocessSpec,
                 workdir: Path, whole: Path | None = None) -> Callable[[Path], Rows]:
    """A function from the workdir of a run or a fold to its rows.

    The data are loaded once, and folds with the same rows share the decoded pictures.

    Args:
        asked: which rows.
        config: of this start; data and image.cache_mb count.
        own: the config of the run, with which its own data are loaded.
        spec: how pictures are prepared.
        workdir: of the run, or of all folds.
        whole: has the config.json of folds that have none, and the split.csv of all their rows.

    Raises:
        ConfigError: the predictions of other data are called like a split that the run has.
    """
    last: list[Rows] = []

    def make(manifest: Manifest, place: Mapping) -> Rows:
        name = digest(manifest)
        if not last or last[0].digest != name:
            last[:] = [Rows(manifest, name, loader.Pictures(manifest, spec, config.image.cache_mb),
                            place)]
        return last[0]

    if asked.source == 'data':
        runs = folds_of(workdir) or [workdir]
        _refuse_name(asked.folder, runs)
        other = _other_data(config, asked.labelled, runs[0],
                            workdirs.range16_of(whole or runs[0]))
        data = json.loads(config.data.to_json()) | dict(labelled=asked.labelled)
        place = {store.OTHER_DATA: dict(data=data, seed=config.seed)}
        return lambda run: make(other, place)
    with own.ignore_type():
        own.data.unreadable = config.data.unreadable
    manifest = load_data(own, whole or workdir)
    return lambda run: make(_part_of(manifest, run, asked.source, whole or run), {})


def _refuse_name(name: str, runs: Sequence[Path]) -> None:
    """Other data may be called `test` where the run has no test rows, as in a competition."""
    for run in runs if name in SPLITS else ():
        if name in splits_of(run).roles.values():
            raise ConfigError(f'config.predict.name = {name!r}: {run} has rows of its own in that '
                              f'split, and theirs are stored there: give another plain name.')


def _part_of(manifest: Manifest, run: Path, source: str, whole: Path) -> Manifest:
    """The rows of one split of a run; `whole` has the config.json and all rows."""
    roles = splits_of(run).roles
    own = manifest.select(manifest.table['id'].isin(splits_of(whole).roles.keys()).to_numpy())
    if digest(own) != workdirs.data_digest(whole):
        raise ConfigError(f'The data have changed since {run} was trained (ids, labels, groups '
                          f'or classes differ): put them back, or predict them as other data '
                          f'with --config.predict.source=data.')
    part = own.select((own.table['id'].map(roles) == source).to_numpy())
    if not len(part):
        raise ConfigError(f'config.predict.source = {source!r}: {run} has no rows in that split; '
                          f'choose another.')
    return part


def _other_data(config: ConfigDict, labelled: bool, run: Path, range16: Range | None) -> Manifest:
    """The rows of config.data, with the classes of the run, and its labels by class name."""
    member = store.open_member(trained_predictions(run))
    classes, several = member.classes, member.multi_label
    separator = separator_of(run) if several else ''
    if not labelled:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.data.update(labelled=False, separate=(), combine=())
    found = load_data(config, range16=range16)
    table = found.table.drop(columns=[f'label/{head}' for head in found.heads])
    if not labelled:
        table = table.assign(**{f'label/{head}': np.int32(-1) for head in classes})
        sets = {head: LabelSets(np.zeros((0, len(classes[head])), bool), separator)
                for head in several}
        return dataclasses.replace(found, table=table, classes=classes, label_sets=sets)
    if set(found.heads) != set(classes):
        raise ConfigError(f'The data have the heads {listed(found.heads)}, and the run '
                          f'{listed(classes)}: set config.data.columns.labels, or '
                          f'config.predict.labelled=False to ignore their labels.')
    label_sets = {}
    for head, names in classes.items():
        places = number_labels(found.classes[head], names)
        if (head in several) != (head in found.label_sets):
            ours, theirs = (('one', 'several'), ('several', 'one'))[head in several]
            raise ConfigError(f'The run takes {ours} of the labels of {head!r} per picture, and '
                              f'the data have {theirs}: set config.data.multi_label as in '
                              f'training, or config.predict.labelled=False to ignore the labels.')
        if head in several:
            label_sets[head] = dataclasses.replace(
                found.label_sets[head].moved(places, len(names)), separator=separator)
            counts = class_counts(found, head)
            lost = [name for name, place, count in zip(found.classes[head], places, counts)
                    if place is None and count]
            if lost:
                raise ConfigError(_unknown_class(lost[0], names))
            table = table.assign(**{f'label/{head}': found.numbers(head)})
            continue
        known = np.array([-2 if k is None else k for k in places] + [-1], np.int32)
        labels = known[found.labels(head)]
        if (labels == -2).any():
            name = found.classes[head][found.labels(head)[np.argmin(labels)]]
            raise ConfigError(_unknown_class(name, names))
        table = table.assign(**{f'label/{head}': labels})
    return dataclasses.replace(found, table=table, classes=classes, label_sets=label_sets)


def _unknown_class(name: str, names: Sequence[str]) -> str:
    return (f'The data have the class {name!r}, which the run does not know{perhaps(name, names)} '
            f'(it knows {len(names)}, such as {names[0]!r}): rename it, or set '
            f'config.predict.labelled=False to ignore the labels.')


def trained_predictions(run: Path) -> Path:
    """What training wrote for its own rows: it holds the names of the classes in their order.
    A fold of a probing run has its head beside it, and no predictions of its training rows."""
    names = ('val', 'test') if (run / 'head.safetensors').exists() else ('train',)
    paths = [run / 'predictions' / f'{name}.npz' for name in names]
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        raise ConfigError(f'{run} is not finished ({paths[0].name} is missing): finish the '
                          f'training first.')
    return found
