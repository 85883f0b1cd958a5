"""A picture that breaks between two starts of a run: by policy an error, or replaced."""

import cv2
import pytest

from configs import common
from input_pipeline import sources
from input_pipeline.errors import DataError
from train_lib.run_dir.workdirs import ids
from train_lib.training import run
from train_lib.training.data import load_data


@pytest.fixture
def pictures(tmp_path):
    manifest = sources.load_source({'source': 'doodles', 'doodles': dict(
        classes=2, per_class=12, writers=6, size=32)})
    for i, row in manifest.table.iterrows():
        folder = tmp_path / 'pictures' / str(row['label/class'])
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f'{i:03}.png'), sources.read_image('', row['location']))
    return tmp_path / 'pictures'


def config_of(pictures, epochs, unreadable='drop'):
    config = common.get_config()
    config.data.update(source='folder', folder=str(pictures), unreadable=unreadable)
    config.image.size = 16
    config.model = dict(name='small_cnn', width=4, stages=2)
    config.duration = dict(epochs=epochs)
    config.batch_size = 8
    config.log.tensorboard = False
    return config


def train(pictures, workdir, epochs, **settings):
    config = config_of(pictures, epochs, **settings)
    return run.train_one(config, load_data(config, workdir), workdir)[0]


def test_a_run_goes_on_with_a_picture_that_broke(pictures, tmp_path):
    workdir = tmp_path / 'run'
    assert train(pictures, workdir, 1)['pictures_replaced'] == 0
    train_ids = sorted(name for name in ids(workdir) if f'"{name}","train"' in
                       (workdir / 'split.csv').read_text())
    (pictures / train_ids[0]).write_bytes(b'')
    result = train(pictures, workdir, 2)
    assert result['pictures_replaced'] == 1
    assert train_ids[0] in ids(workdir)
    with pytest.raises(DataError, match=train_ids[0]):
        train(pictures, workdir, 3, unreadable='error')
    # A run that starts now leaves the picture out.
    train(pictures, tmp_path / 'other', 1)
    assert train_ids[0] not in ids(tmp_path / 'other')
