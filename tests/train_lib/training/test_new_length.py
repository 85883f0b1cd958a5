"""A run that goes on with another duration."""

import numpy as np
import pytest

from configs import common
from input_pipeline.manifest import make_manifest
from tests.train_lib.training import test_loop
from train_lib.run_dir import workdirs
from train_lib.runtime.errors import ConfigError
from train_lib.training.checks import check_values
from train_lib.training.data import load_data, split_data
from train_lib.training.new_length import find_new_length, say
from train_lib.training.run import train_one

HALF, LATE = dict(percent=50), dict(percent=80)
STAGES = (dict(until=HALF, transforms=['hflip']), dict(transforms=['vflip'], lr_scale=0.5))


def config_of(**changes):
    config = common.get_config()
    config.batch_size, config.duration = 10, dict(epochs=10)  # 100 steps
    config.split.update(kind='given', val=0.0, test=0.0)
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


def data_of(config, rows=100):
    manifest = make_manifest({'id': [f'{k}' for k in range(rows)], 'location': '',
                              'label/class': np.arange(rows) % 2, 'split': ['train'] * rows},
                             {'class': ('a', 'b')})
    return split_data(config, manifest)


def found(tmp_path, step, duration, rows=100, **changes):
    """The comparison of a start with `duration` at a step of a run of ten epochs."""
    config = config_of(**changes)
    data = data_of(config)
    workdirs.claim(tmp_path / 'run', config, data.digest, data.manifest)
    now = config_of(**changes, duration=duration)
    return find_new_length(now, data_of(now, rows), tmp_path / 'run', step)


@pytest.mark.parametrize('changes, step, named', [
    ({'curriculum': STAGES}, 70, 'the curriculum'),
    ({'resample.kind': 'balanced', 'resample.start': LATE}, 90, 'resampling'),
    ({'loss.class_weights.kind': 'balanced', 'loss.class_weights.start': LATE}, 90,
     'the class weights'),
    ({'mixing': (dict(kind='mixup', until=HALF),)}, 70, r'mixing\[0\]'),
    ({'mixing': (dict(kind='mixup', p=0.5), dict(kind='cutmix', p=0.5, start=HALF))}, 70,
     r'mixing\[1\]')])
def test_what_would_go_back_is_refused_unless_asked_for(changes, step, named, tmp_path, caplog):
    words = rf'200 steps instead of 100 {named} would go back at step {step}.*back=accept'
    with pytest.raises(ConfigError, match=words):
        found(tmp_path, step, dict(epochs=20), **changes)
    asked = found(tmp_path, step, dict(epochs=20), **changes, **{'checkpoint.back': 'accept'})
    with caplog.at_level('INFO'):
        say(asked)
    assert [line for line in caplog.messages if 'goes back' in line]
    # Not yet begun, or begun in the longer run as well.
    assert not found(tmp_path, 20, dict(epochs=20), **changes).goes_back
    assert not found(tmp_path, step, dict(epochs=9), **changes).goes_back


def test_the_rate_before_and_after_is_said(tmp_path, caplog):
    changes = {'schedule.lr': 1.0, 'schedule.warmup': dict(steps=0), 'curriculum': (
        dict(until=dict(steps=30), transforms=[]), dict(transforms=[], lr_scale=0.5))}
    length = found(tmp_path, 100, dict(steps=200), **changes)
    np.testing.assert_allclose(length.before.rate, 0.25 * (1 + np.cos(np.pi * 0.99)), rtol=1e-3)
    np.testing.assert_allclose(length.after.rate, 0.25)  # in the middle of the cosine
    with caplog.at_level('INFO'):
        say(length, cuts=0.1)
    assert caplog.messages == [
        'changed  the length: 100 -> 200 steps; 100 are done',
        'changed  the learning rate rises: 1.23e-05 -> 0.025; stage 1 -> 1']
    assert max(map(len, caplog.messages)) <= 72


def test_the_same_length_in_another_unit_is_no_change(tmp_path):
    assert found(tmp_path, 50, dict(steps=100), curriculum=STAGES) is None
    assert found(tmp_path, 0, dict(steps=200), curriculum=STAGES) is None  # nothing is done yet
    with pytest.raises(ConfigError, match=r'200 steps instead of 100'):  # twice as many pictures
        found(tmp_path, 70, dict(epochs=10), rows=200, curriculum=STAGES)
    with pytest.raises(ConfigError, match=r"back = 'yes': choose one of error, accept"):
        check_values(config_of(**{'checkpoint.back': 'yes'}), 1)


def test_a_refused_start_changes_nothing_and_an_accepted_one_goes_on(tmp_path, caplog):
    settings = dict(schedule=dict(name='constant', lr=1e-4, warmup=dict(percent=0)),
                    report=dict(heat_maps=False))

    def train(workdir, **sections):
        config = test_loop.config_of(**sections)
        config.mixing = (dict(kind='mixup', until=HALF),)
        return train_one(config, load_data(config), workdir)

    train(tmp_path, **settings)  # 12 steps
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    longer = settings | dict(duration=dict(steps=30))
    with pytest.raises(ConfigError, match=r'30 steps instead of 12 mixing\[0\] would go back'):
        train(tmp_path, **longer)
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before
    with caplog.at_level('INFO'):
        train(tmp_path, **longer, checkpoint=dict(back='accept'))
    assert 'changed  the length: 12 -> 30 steps; 12 are done' in caplog.messages
    assert test_loop.lines(tmp_path, 'train')[-1]['step'] == 30
