"""TensorFlow Datasets, read without TensorFlow.

A prepared data set is read through `as_data_source`, in any order, from ArrayRecord files. The
pictures stay encoded until our own decoder sees them. A location is `tfds:<split>:<number>`, and
the manifest's root is the prepared folder, such as `~/tensorflow_datasets/food101/2.0.0`. Only
the preparation needs TensorFlow. Where TensorFlow is installed, the data set is prepared at first
use, in a separate process.
"""

import dataclasses
import functools
import glob
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from input_pipeline.decode import UnreadableImage
from input_pipeline.errors import DataError, in_one_line, listed, perhaps
from input_pipeline.manifest import Manifest, make_manifest
from input_pipeline.sources.array_records import refuse_fork
from input_pipeline.sources.split_folders import SPLIT_NAMES

_ID_FEATURES = ('file_name', 'filename', 'image/filename', 'image/file_name', 'id')

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Preset:
    """What is known about a data set of TFDS.

    Attributes:
        labels: features that are the labels; each is one head.
        id: the feature that names a picture; '' to name it by its number.
        splits: TFDS's splits that are read.
        joined: whether TFDS's splits mean nothing here: they form one pool for config.split.
    """

    labels: tuple[str, ...] = ('label',)
    id: str = ''
    splits: tuple[str, ...] = ('train', 'test')
    joined: bool = False


PRESETS = {
    'beans': Preset(splits=('train', 'validation', 'test')),
    'caltech_birds2011': Preset(id='image/filename'),
    'cars196': Preset(id='id'),
    'cassava': Preset(id='image/filename', splits=('train', 'validation', 'test')),
    'cifar10': Preset(id='id'),
    'cifar100': Preset(id='id'),  # and coarse_label
    'dtd': Preset(id='file_name', splits=('train', 'validation', 'test')),
    'eurosat': Preset(id='filename', splits=('train',)),
    'food101': Preset(splits=('train', 'validation')),
    'imagenet2012': Preset(id='file_name', splits=('train', 'validation')),
    'imagenet_lt': Preset(id='file_name', splits=('train', 'validation', 'test')),
    'imagenet_r': Preset(id='file_name', splits=('test',), joined=True),
    'imagenet_sketch': Preset(id='file_name', splits=('test',), joined=True),
    # Its train and test sides have no character in common.
    'omniglot': Preset(joined=True),  # and alphabet
    'oxford_flowers102': Preset(id='file_name', splits=('train', 'validation', 'test')),
    'oxford_iiit_pet': Preset(id='file_name'),  # and species
    'plant_village': Preset(id='image/filename', splits=('train',)),
    'quickdraw_bitmap': Preset(splits=('train',)),
    'stanford_dogs': Preset(id='image/filename'),
}


def load(name: str, *, data_dir: str = '', splits: Sequence[str] | str = (),
         columns: Mapping[str, str] | None = None) -> Manifest:
    """The manifest of a data set; its ids are `<split>/<file name or number>`.

    Args:
        name: 'food101', 'eurosat/rgb', 'food101:2.0.0' or the path of a prepared folder.
        data_dir: where TFDS keeps its data; '' for $TFDS_DATA_DIR or ~/tensorflow_datasets.
        splits: TFDS's splits to read; () for those of the preset, else all.
        columns: `labels`, `id`, `group`, `weight`: names of features, as in csv_file.load;
            '' or absent for those of the preset. Without a preset the label is the feature
            `label`, or the only class label.

    A data set with several splits gets the column `split`. A picture without a usable name
    (absent, or not unique in its split) is named by its number.

    Raises:
        DataError: the data set is unknown or not prepared, or lacks the split or feature.
    """
    if not name:
        raise DataError('data.tfds is empty: give the name of a data set, such as food101.')
    root = _prepared_folder(name, data_dir)
    builder = _builder(root)
    preset = PRESETS.get(builder.name)
    found = tuple(builder.info.splits)
    splits = tuple(splits.split(',') if isinstance(splits, str) and splits else splits)
    chosen = splits or (preset.splits if preset else found)
    for split in chosen:
        if split not in found:
            raise DataError(f'data.tfds={name!r} has no split {split!r}'
                            f'{perhaps(split, found)}: it has {", ".join(found)}.')
    roles = _roles(name, builder.info.features, columns or {}, preset)
    sides = _sides(name, chosen, bool(preset and preset.joined))
    heads = {'class' if len(roles['labels']) == 1 else feature: feature
             for feature in roles['labels']}
    table: dict[str, list] = {'id': [], 'location': []}
    table |= {f'label/{head}': [] for head in heads}
    table |= {role: [] for role in ('group', 'weight') if roles[role]}
    if sides:
        table['split'] = []
    for split in chosen:
        values = _column_values(root, split, [*heads.values(), *(
            roles[role] for role in ('id', 'group', 'weight') if roles[role])])
        count = len(_source(root, split)[0])
        numbers = [f'{number:07d}' for number in range(count)]
        names = values.get(roles['id'], numbers)
        names = names if len(set(names)) == count and all(names) else numbers
        table['id'] += [f'{split}/{name}' for name in names]
        table['location'] += [f'tfds:{split}:{number}' for number in range(count)]
        for head, feature in heads.items():
            table[f'label/{head}'] += values[feature]
        for role in {'group', 'weight'} & set(table):
            table[role] += values[roles[role]]
        if sides:
            table['split'] += [sides[split]] * count
    classes = {head: tuple(builder.info.features[feature].names)
               for head, feature in heads.items()}
    return make_manifest(table, classes, root=root)


def read_bytes(root: str, location: str) -> bytes:
    """The encoded picture `tfds:<split>:<number>` of a prepared folder.

    Raises:
        UnreadableImage: it is missing or damaged.
    """
    split, number = _place(location)
    import tensorflow_datasets as tfds
    refuse_fork()
    try:
        records, image, parser = _source(root, split)
        return parser.deserialize_example_np(
            records[int(number)], decoders={image: tfds.decode.SkipDecoding()})[image]
    except (RuntimeError, ValueError, IndexError, KeyError, OSError) as error:
        detail = in_one_line(error)[:200]
        raise UnreadableImage.of(location, f'in {root!r} is damaged ({detail})') from None


def stamp(root: str, location: str) -> tuple[int, int]:
    """(bytes, newest mtime in ns) of the files of the split."""
    return _split_stamp(root, _place(location)[0])


def _place(location: str) -> tuple[str, str]:
    parts = location.split(':')
    if len(parts) != 3:
        raise UnreadableImage.of(location, 'is not of the form tfds:<split>:<number>')
    return parts[1], parts[2]


@functools.lru_cache(maxsize=64)
def _split_stamp(root: str, split: str) -> tuple[int, int]:
    status = [os.stat(path) for path in glob.glob(
        os.path.join(glob.escape(root), f'*-{glob.escape(split)}.array_record*'))]
    return sum(s.st_size for s in status), max((s.st_mtime_ns for s in status), default=0)


def _prepared_folder(name: str, data_dir: str) -> str:
    """The folder of a prepared data set; prepares it first where TensorFlow is installed."""
    data_dir = os.path.abspath(os.path.expanduser(
        data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'))
    base, _, version = name.partition(':')
    direct = os.path.abspath(os.path.expanduser(name))
    if os.path.exists(os.path.join(direct, 'dataset_info.json')):
        return direct
    folder = _newest(os.path.join(data_dir, base), version)
    if folder:
        return folder
    configs = [config for config in _folders(os.path.join(data_dir, base))
               if _newest(os.path.join(data_dir, base, config), version)]
    if len(configs) == 1:
        return _newest(os.path.join(data_dir, base, configs[0]), version)
    if configs:
        raise DataError(f'data.tfds={name!r} is prepared in several forms ({", ".join(configs)}): '
                        f'choose one, such as {base}/{configs[0]}.')
    _refuse_unknown(name, base.partition('/')[0])
    # Without single quotes, so that it can be pasted into a shell.
    code = (f'import tensorflow_datasets as tfds; tfds.builder({json.dumps(name)}, '
            f'data_dir={json.dumps(data_dir)}, file_format="array_record")'
            f'.download_and_prepare()')
    if importlib.util.find_spec('tensorflow') is None:
        raise DataError(f"data.tfds={name!r} is not prepared in {data_dir!r}, and preparing it "
                        f"needs TensorFlow once: on a machine with tensorflow and "
                        f"tensorflow-datasets run python -c '{code}', or set data.tfds_dir to "
                        f"where it is prepared.")
    _log.warning('%s is not prepared yet: TensorFlow will download and prepare it in %s.',
                 name, data_dir)
    if subprocess.run([sys.executable, '-c', code]).returncode:
        raise DataError(f'data.tfds={name!r} could not be prepared (see above): correct the '
                        f'cause, or prepare it by hand and set data.tfds_dir.')
    return _prepared_folder(name, data_dir)


def _refuse_unknown(name: str, plain: str) -> None:
    import tensorflow_datasets as tfds
    known = tfds.list_builders(with_community_datasets=False)
    if plain not in known:
        raise DataError(f'data.tfds={name!r} is not a data set of TFDS{perhaps(plain, known)}: '
                        f'use one of its names, or the path of a prepared folder.')


def _folders(path: str) -> list[str]:
    return sorted(name for name in (os.listdir(path) if os.path.isdir(path) else ())
                  if os.path.isdir(os.path.join(path, name)))


def _newest(path: str, version: str) -> str:
    """The folder of the given version under `path`, else of the newest; '' if none is prepared."""
    found = [name for name in _folders(path)
             if re.fullmatch(r'\d+\.\d+\.\d+', name) and version in ('', name)
             and os.path.exists(os.path.join(path, name, 'dataset_info.json'))]
    newest = max(found, key=lambda name: [int(part) for part in name.split('.')], default='')
    return os.path.join(path, newest) if newest else ''


@functools.lru_cache(maxsize=8)
def _builder(root: str):
    import tensorflow_datasets as tfds
    try:
        return tfds.builder_from_directory(root)
    except Exception as error:  # TFDS raises nearly every type on damaged metadata
        detail = in_one_line(error)[:200]
        raise DataError(f'The prepared data set {root!r} cannot be opened ({detail}): delete it '
                        f'and prepare it again.') from None


@functools.lru_cache(maxsize=32)
def _source(root: str, split: str):
    """(sequence of encoded records, name of the picture's feature, its parser). Thread-safe."""
    import tensorflow_datasets as tfds
    builder = _builder(root)
    images = [name for name, feature in builder.info.features.items()
              if isinstance(feature, tfds.features.Image)]
    if not images:
        raise DataError(f'The data set {root!r} has no pictures, only the features '
                        f'{", ".join(builder.info.features)}: use a data set of pictures.')
    image = 'image' if 'image' in images else images[0]
    try:
        records = builder.as_data_source(split=split).data_source
    except NotImplementedError:
        raise DataError(
            f'The data set {root!r} was prepared as {builder.info.file_format.value}, which cannot '
            f'be read in any order: prepare it with file_format="array_record", or convert it '
            f'with `tfds convert_format`.') from None
    return records, image, tfds.features.FeaturesDict({image: builder.info.features[image]})


def _column_values(root: str, split: str, names: Sequence[str]) -> dict[str, list]:
    """All values of some features, with text decoded; the pictures are not parsed."""
    import tensorflow_datasets as tfds
    features = _builder(root).info.features
    parser = tfds.features.FeaturesDict({name: features[name] for name in names})
    columns: dict[str, list] = {name: [] for name in names}
    refuse_fork()
    for record in _source(root, split)[0]:
        for name, value in parser.deserialize_example_np(record).items():
            columns[name].append(value.decode('utf-8', 'replace')
                                 if isinstance(value, bytes) else value)
    return columns


def _roles(name: str, features, columns: Mapping[str, str], preset: Preset | None) -> dict:
    """{role: name of the feature}, '' for none; for `labels` a tuple of names."""
    import tensorflow_datasets as tfds
    classes = [feature for feature, kind in features.items()
               if isinstance(kind, tfds.features.ClassLabel)]
    labels = tuple(part.strip() for part in (columns.get('labels') or '').split(',') if part)
    labels = labels or (preset.labels if preset else ('label',) if 'label' in classes
                        else tuple(classes[:2]))
    if not labels or (len(labels) > 1 and not preset and not columns.get('labels')):
        raise DataError(f'data.tfds={name!r} has {len(classes)} class labels '
                        f'({listed(classes)}): name the ones to use in data.columns.labels.')
    for label in labels:
        if label not in classes:
            raise DataError(f'data.tfds={name!r} has no class label {label!r}'
                            f'{perhaps(label, classes)}: it has {listed(classes)}.')
    roles = {'labels': labels, 'id': preset.id if preset else
             next((known for known in _ID_FEATURES if known in features), '')}
    for role in ('id', 'group', 'weight'):
        wanted = columns.get(role) or ''
        if wanted and wanted not in features:
            raise DataError(f'data.tfds={name!r} has no feature {wanted!r} (data.columns.{role})'
                            f'{perhaps(wanted, features)}: it has {", ".join(features)}.')
        roles[role] = wanted or roles.get(role, '')
    return roles


def _sides(name: str, splits: Sequence[str], joined: bool) -> dict[str, str]:
    """{TFDS's split: our split}, {} if they form one pool."""
    if joined or len(splits) == 1:
        return {}
    for split in splits:
        if split not in SPLIT_NAMES:
            raise DataError(f'data.tfds={name!r} has the split {split!r}, which is neither train '
                            f'nor validation nor test: choose splits with data.tfds_splits, from '
                            f'{", ".join(splits)}.')
    return {split: SPLIT_NAMES[split] for split in splits}
