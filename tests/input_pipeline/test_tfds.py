import io
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from etils import epath

from input_pipeline import loader
from input_pipeline.errors import DataError
from input_pipeline.manifest import digest
from input_pipeline.packing import pack
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.readable import check_readable
from input_pipeline.sources import load_source, read_bytes, read_image, tfds

SPLITS = {'train': 7, 'validation': 4, 'test': 3}


def png(number):
    return cv2.imencode('.png', np.full((4, 6, 3), number, np.uint8))[1].tobytes()


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    """A data set that the library prepares itself; for pictures in files it needs no TensorFlow."""
    import tensorflow_datasets
    root = tmp_path_factory.mktemp('tfds')
    features = tensorflow_datasets.features

    class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder):
        VERSION = tensorflow_datasets.core.Version('1.2.0')
        pkg_dir_path = epath.Path(root)

        def _info(self):
            table = features.FeaturesDict({
                'image': features.Image(shape=(None, None, 3), encoding_format='png'),
                'label': features.ClassLabel(names=['cat', 'dog', 'eel']),
                'fur': features.ClassLabel(names=['no', 'yes']),
                'mask': features.Image(shape=(None, None, 1), encoding_format='png'),
                'who': features.Text(), 'file_name': features.Text()})
            return tensorflow_datasets.core.DatasetInfo(builder=self, features=table)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in SPLITS}

        def _generate_examples(self, split):
            for k in range(SPLITS[split]):
                value = 20 * k + len(split)
                yield k, {'image': io.BytesIO(png(value)), 'label': k % 3, 'fur': (k + 1) % 2,
                          'mask': io.BytesIO(png(0)), 'who': f'w{k % 2}', 'file_name': f'{k}.png'}

    Tiny(data_dir=str(root), file_format='array_record').download_and_prepare()
    return str(root)


def load(data_dir, name='tiny', **data):
    return load_source({'source': 'tfds', 'tfds': name, 'tfds_dir': data_dir} | data)


def test_labels_and_pictures_belong_together(data_dir, tmp_path):
    manifest = load(data_dir, columns={'group': 'who'})
    assert manifest.classes == {'class': ('cat', 'dog', 'eel')}
    assert manifest.root.endswith('tiny/1.2.0')
    assert manifest.table['split'].value_counts().to_dict() == {'train': 7, 'val': 4, 'test': 3}
    for row in manifest.table.to_dict('records'):
        split, _, file = row['id'].partition('/')
        k = int(file.split('.')[0])
        assert row['label/class'] == k % 3 and row['group'] == f'w{k % 2}'
        # The same bytes that went in: nothing was decoded.
        assert read_bytes(manifest.root, row['location']) == png(20 * k + len(split))
        assert read_image(manifest.root, row['location'])[0, 0, 0] == 20 * k + len(split)
    assert check_readable(manifest, cache_dir=str(tmp_path)) is manifest
    left, right = ([batch['image'] for batch in loader.eval_dataset(
        m, PreprocessSpec(size=8), batch_size=5)()]
        for m in (manifest, pack(manifest, read_bytes, str(tmp_path / 'p'))))
    np.testing.assert_array_equal(np.concatenate(left), np.concatenate(right))


def test_names_heads_and_splits(data_dir):
    heads = load(data_dir, 'tiny:1.2.0', columns={'labels': 'fur,label'}, tfds_splits=('test',))
    assert heads.classes == {'fur': ('no', 'yes'), 'label': ('cat', 'dog', 'eel')}
    assert 'split' not in heads.table and len(heads) == 3
    assert digest(load('', f'{data_dir}/tiny/1.2.0')) == digest(load(data_dir))
    for data, words in ((dict(columns={'labels': 'lable'}), "'lable'.*mean 'label'"),
                        (dict(columns={'group': 'whom'}), "'whom'.*mean 'who'"),
                        (dict(tfds_splits='train,tset'), "'tset'.*mean 'test'"),
                        (dict(tfds=''), 'data.tfds is empty')):
        with pytest.raises(DataError, match=words):
            load(data_dir, **data)


def test_presets(data_dir, monkeypatch):
    monkeypatch.setitem(tfds.PRESETS, 'tiny', tfds.Preset(
        labels=('fur',), id='who', splits=('train', 'test'), joined=True))
    manifest = load(data_dir)
    assert manifest.classes == {'class': ('no', 'yes')} and 'split' not in manifest.table
    assert len(manifest) == 10
    # Two pictures by one writer: the numbers are the ids.
    assert manifest.table['id'][9] == 'test/0000002'


def test_presets_name_features_that_exist(tmp_path):
    import tensorflow_datasets
    known = tensorflow_datasets.list_builders(with_community_datasets=False)
    assert set(tfds.PRESETS) <= set(known)
    for name, preset in tfds.PRESETS.items():
        features = tensorflow_datasets.builder(name, data_dir=str(tmp_path)).info.features
        assert {*preset.labels, 'image', *filter(None, [preset.id])} <= set(features), name
        assert preset.joined or set(preset.splits) <= {'train', 'validation', 'test'}


def test_unprepared_and_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(DataError, match=r'food101.*needs TensorFlow once.*download_and_prepare'):
        load(str(tmp_path), 'food101')
    with pytest.raises(DataError, match=r"not a data set of TFDS.*mean 'food101'"):
        load(str(tmp_path), 'food10')
    monkeypatch.setattr(tfds.importlib.util, 'find_spec', lambda name: True)
    commands = []

    def run(command):  # takes the place of TensorFlow, which prepares in a separate process
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)
    monkeypatch.setattr(tfds.subprocess, 'run', run)
    with pytest.raises(DataError, match='could not be prepared'):
        load(str(tmp_path), 'food101')
    assert commands[0][0] == sys.executable
    compile(commands[0][2], 'command', 'exec')
    assert "'" not in commands[0][2]


def test_damage_is_named(data_dir, tmp_path):
    shutil.copytree(f'{data_dir}/tiny/1.2.0', tmp_path / 'tiny/1.2.0')
    manifest = load(str(tmp_path))
    file, = (tmp_path / 'tiny/1.2.0').glob('*train.array_record*')
    data = bytearray(file.read_bytes())
    data[200:len(data):50] = bytes(len(data[200::50]))
    file.write_bytes(data)
    with pytest.raises(DataError, match=r'7 of 14 .*tfds:train:0.*is damaged'):
        check_readable(manifest)
    (tmp_path / 'tiny/1.2.0/features.json').write_text('no json')
    tfds._builder.cache_clear()
    with pytest.raises(DataError, match='cannot be opened'):
        load(str(tmp_path))


def test_tensorflow_stays_out(data_dir):
    code = (f'import sys; sys.path[:0] = {sys.path!r}\n'
            f'from input_pipeline import sources\n'
            f'm = sources.load_source(dict(source="tfds", tfds="tiny", tfds_dir={data_dir!r}))\n'
            f'sources.read_image(m.root, m.table["location"][0])\n'
            f'assert "tensorflow" not in sys.modules and "jax" not in sys.modules')
    subprocess.run([sys.executable, '-c', code], check=True)
