"""One picture in several rows of a table."""

import os

import numpy as np
import pytest
from PIL import Image

import main
from configs import common
from input_pipeline.errors import DataError
from input_pipeline.readable import check_readable
from input_pipeline.same_files import join_same_files
from input_pipeline.sources import load_source
from train_lib.training.data import load_data, split_data


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Ten different pictures cat/0.png to cat/9.png."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    (tmp_path / 'cat').mkdir()
    for k in range(10):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f'cat/{k}.png')
    return tmp_path


def config_of(pictures, *rows, head='id,image,label,group', **data):
    lines = [f'{k},cat/{k}.png,{"ab"[k % 2]},' for k in range(10)]
    (pictures / 't.csv').write_text('\n'.join([head, *lines, *rows]))
    config = common.get_config()
    config.data.source, config.data.csv = 'csv', str(pictures / 't.csv')
    config.data.update(data)
    return config


def groups(manifest):
    return dict(zip(manifest.table['id'], manifest.table['group']))


def again(pictures, form):
    """The path of picture 0 in another form."""
    if form == 'link':
        (pictures / 'link.png').symlink_to(pictures / 'cat/0.png')
    elif form == 'hard link':
        os.link(pictures / 'cat/0.png', pictures / 'link.png')
    elif form == 'folder link':
        (pictures / 'dog').symlink_to(pictures / 'cat')
    elif form == 'copy':
        (pictures / 'link.png').write_bytes((pictures / 'cat/0.png').read_bytes())
    return {'other id': 'cat/0.png', 'dot': './cat/0.png', 'up': 'cat/../cat/0.png',
            'folder link': 'dog/0.png'}.get(form, 'link.png')


@pytest.mark.parametrize('form', ['other id', 'dot', 'up', 'link', 'hard link', 'folder link',
                                  'copy'])
def test_its_rows_are_one_group(pictures, caplog, form):
    path = again(pictures, form)
    found = load_data(config_of(pictures, f'x,{path},a,', f'y,{path},,', f'z,{path},a,'))
    assert {name for name, group in groups(found).items() if group} == {'0', 'x', 'y', 'z'}
    assert len(set(groups(found).values())) == 2 and 'content' not in found.table
    assert "4 rows show 1 picture ('0' and 'x' are the same one" in caplog.text
    config = config_of(pictures, f'x,{path},a,')
    for seed in range(5):
        config.seed = seed
        table = split_data(config, load_data(config)).manifest.table.set_index('id')
        assert table['split']['0'] == table['split']['x']


def test_groups_that_share_a_picture_are_joined(pictures):
    rows = ['x,cat/0.png,a,ann', 'y,cat/2.png,a,ann', 'z,cat/0.png,a,bob', 'v,cat/5.png,b,bob',
            'w,cat/5.png,b,eve']
    found = groups(load_data(config_of(pictures, *rows)))
    assert {name for name, group in found.items() if group == 'ann'} == set('025xyzvw')


def test_two_labels_are_refused_until_they_are_decided_on(pictures, capfd):
    config = config_of(pictures, 'x,./cat/0.png,b,', 'y,cat/1.png,a,')
    words = (r"2 pictures are in several rows with different labels of the head 'class' "
             r"\('0' is 'a' and 'x' is 'b'; '1' is 'b' and 'y' is 'a'\): correct the table, or "
             r'drop or relabel rows by a file of data.decisions')
    with pytest.raises(DataError, match=words):
        load_data(config)
    assert len(load_data(config, refuse=False)) == 12  # for the verb that writes decisions
    (pictures / 'd.csv').write_text('id,action,label\nx,drop,\ny,keep,b\n')
    config.data.decisions = (str(pictures / 'd.csv'),)
    assert len(load_data(config)) == 11
    assert main.main([f'--config=configs/sketch_vit.py:csv={pictures}/t.csv',
                      f'--workdir={pictures}/run']) == 2
    assert 'different labels' in capfd.readouterr().err


def test_each_label_of_a_picture_is_named(pictures):
    rows = [*(f'{name},cat/0.png,a,' for name in 'uvw'), 'x,cat/0.png,b,']
    with pytest.raises(DataError, match=r"\('0' is 'a' and 'x' is 'b'\)"):
        load_data(config_of(pictures, *rows))


def test_a_run_of_older_rules_has_no_such_groups(pictures):
    found = load_data(config_of(pictures, 'x,cat/0.png,b,', rules=1))
    assert not any(groups(found).values())


def test_a_table_without_copies_stays_as_it_is(pictures):
    config = config_of(pictures, head='id,image,label,x')
    assert 'group' not in load_data(config).table


def test_the_answers_of_the_last_check_are_enough(pictures, tmp_path_factory):
    cache = str(tmp_path_factory.mktemp('cache'))
    config = config_of(pictures, 'x,cat/0.png,a,')
    for _ in range(2):
        found = check_readable(load_source(config.data.to_dict()), cache_dir=cache)
        assert sum(group != '' for group in join_same_files(found).table['group']) == 2
