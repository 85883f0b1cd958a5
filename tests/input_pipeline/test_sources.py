import logging
import os
import sys

import numpy as np
import pytest
from PIL import Image

from input_pipeline import sources
from input_pipeline.errors import DataError
from input_pipeline.sources import load_source, read_image

DOT = Image.fromarray(np.full((4, 6, 3), 200, np.uint8))


def tree(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith('/'):
            (root / path).mkdir(parents=True, exist_ok=True)
        else:
            DOT.save(root / path, 'PNG')
    return str(root)


def load_folder(root, **data):
    return load_source({'source': 'folder', 'folder': str(root)} | data)


def table_of(manifest, head='class'):
    return {row['id']: manifest.classes[head][row[f'label/{head}']]
            for row in manifest.table.to_dict('records')}


# The table of sources


def test_unknown_source():
    with pytest.raises(DataError, match=r"'foldr'.*did you mean 'folder'.*doodles, digits"):
        load_source({'source': 'foldr'})


def test_doodles_get_the_seed_and_their_keys(monkeypatch):
    class Fake:
        load = staticmethod(lambda **kwargs: kwargs)
        read = staticmethod(lambda location: location)
    monkeypatch.setitem(sys.modules, 'input_pipeline.sources.doodles', Fake)
    data = {'source': 'doodles', 'doodles': {'classes': 3, 'size': None}, 'rules': 1}
    assert load_source(data, seed=7) == {'seed': 7, 'classes': 3}
    data['doodles']['seed'] = 9
    assert load_source(data, seed=7) == {'seed': 9, 'classes': 3}
    assert read_image('', 'doodles:4') == 'doodles:4'


def test_every_source_is_a_module():
    for module, _ in sources.SOURCES.values():
        if module != 'doodles':
            assert callable(sources._module(module).load)


def test_digits():
    manifest = load_source({'source': 'digits'})
    assert len(manifest) == 1797 and manifest.classes['class'] == tuple('0123456789')
    assert manifest.table['id'][17] == 'digits/0017' and 'group' not in manifest.table
    image = read_image('', manifest.table['location'][17])
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8 and image.max() == 255
    image[:] = 0  # a copy, not the cache
    assert read_image('', 'digits:17').max() == 255
    with pytest.raises(DataError, match='digits:1796'):
        read_image('', 'digits:1797')


def test_read_image(tmp_path):
    tree(tmp_path, 'cat/a.png')
    assert read_image(str(tmp_path), 'cat/a.png').shape == (4, 6, 3)
    assert read_image('/nowhere', str(tmp_path / 'cat/a.png')).shape == (4, 6, 3)
    with pytest.raises(DataError, match=r'cat/b.png'):
        read_image(str(tmp_path), 'cat/b.png')


# Folders


def test_folder_classes_ids_and_order(tmp_path):
    root = tree(tmp_path, 'b/10.png', 'b/9.PNG', 'a/deep/er/x.jpeg', 'a/deep/y.Gif', 'a/z.webp')
    manifest = load_folder(root)
    assert table_of(manifest) == {
        'a/deep/er/x.jpeg': 'a/deep/er', 'a/deep/y.Gif': 'a/deep', 'a/z.webp': 'a',
        'b/10.png': 'b', 'b/9.PNG': 'b'}
    assert manifest.classes['class'] == ('a', 'a/deep', 'a/deep/er', 'b')
    assert list(manifest.table['id']) == sorted(manifest.table['id'])
    assert manifest.root == root and 'split' not in manifest.table
    assert 'group' not in manifest.table


@pytest.mark.parametrize('val', ['val', 'valid', 'validation'])
def test_split_folders(tmp_path, val):
    root = tree(tmp_path, 'train/a/1.png', 'train/b/2.png', f'{val}/a/1.png', 'test/b/x/3.png',
                'test/a/')
    manifest = load_folder(root)
    assert table_of(manifest) == {'train/a/1.png': 'a', 'train/b/2.png': 'b',
                                  f'{val}/a/1.png': 'a', 'test/b/x/3.png': 'b/x'}
    assert dict(zip(manifest.table['id'], manifest.table['split'])) == {
        'train/a/1.png': 'train', 'train/b/2.png': 'train', f'{val}/a/1.png': 'val',
        'test/b/x/3.png': 'test'}


def test_a_class_may_be_called_train(tmp_path):
    manifest = load_folder(tree(tmp_path, 'train/1.png', 'bus/2.png'))
    assert manifest.classes['class'] == ('bus', 'train') and 'split' not in manifest.table
    tree(tmp_path, 'train/bus/1.png')
    with pytest.raises(DataError, match="split folder 'train' and also 'bus'"):
        load_folder(tmp_path)


def test_group_regex(tmp_path):
    root = tree(tmp_path, 'a/0671_08.png', 'a/0671_13.png', 'b/0001_08.png')
    assert list(load_folder(root, group_regex=r'_(\d+)\.').table['group']) == ['08', '13', '08']
    assert list(load_folder(root, group_regex=r'\d{4}').table['group']) == ['0671', '0671', '0001']
    tree(tmp_path, *[f'b/none{n}.png' for n in range(7)])
    with pytest.raises(DataError, match=r"7 of 10 paths \('b/none0.png'.*none4.png', \.\.\.\)"):
        load_folder(root, group_regex=r'_(\d+)\.')
    with pytest.raises(DataError, match='not a valid regular expression'):
        load_folder(root, group_regex='(')


def test_odd_names(tmp_path):
    names = ['a b/new\nline.png', 'quo"te\'s/x,y.png', '그림/ö.png', 'digits:/3.png']
    manifest = load_folder(tree(tmp_path, *names))
    assert set(manifest.table['id']) == set(names)
    for location in manifest.table['location']:
        assert read_image(manifest.root, location).shape == (4, 6, 3)
    tree(tmp_path, os.fsdecode(b'latin\xe9/1.png'))
    with pytest.raises(DataError, match='not UTF-8: rename'):
        load_folder(tmp_path)


def test_clutter_is_left_out(tmp_path, caplog):
    root = tree(tmp_path, 'a/1.png', 'b/2.png', 'a/.hidden.png', 'a/._1.png', '.git/x.png',
                '__MACOSX/a/1.png', 'a/.ipynb_checkpoints/1.png', 'a/Thumbs.db', '.empty/',
                'b/notes.txt', 'b/scan.tif', 'readme.md')
    with caplog.at_level(logging.WARNING):
        assert set(load_folder(root).table['id']) == {'a/1.png', 'b/2.png'}
    assert '3 files' in caplog.text and '1 .tif' in caplog.text
    assert len(load_folder(root, extensions=('tif', '.png'))) == 3


def test_links_are_followed_without_loops(tmp_path):
    tree(tmp_path, 'data/a/1.png', 'far/deep/2.png')
    (tmp_path / 'data/b').symlink_to(tmp_path / 'far')
    (tmp_path / 'far/up').symlink_to(tmp_path / 'data')
    (tmp_path / 'data/a/self').symlink_to(tmp_path / 'data/a')
    (tmp_path / 'data/a/gone.png').symlink_to(tmp_path / 'nowhere.png')
    # A broken link stays in the manifest, so that the readability check names it.
    assert set(load_folder(tmp_path / 'data', allow_outside=True).table['id']) == {
        'a/1.png', 'a/gone.png', 'b/deep/2.png'}
    for link in ('data/b', 'data/a/gone.png'):
        with pytest.raises(DataError, match=rf'{link}.* leads .*allow_outside'):
            load_folder(tmp_path / 'data')
        (tmp_path / link).unlink()
    assert set(load_folder(tmp_path / 'data').table['id']) == {'a/1.png'}


def test_bad_folders(tmp_path):
    tree(tmp_path, 'omniglot/a/1.png', 'loose/x.png', 'loose/a/1.png', 'hollow/a/1.png',
         'hollow/b/', 'void/', 'shallow/train/1.png', 'shallow/test/a/1.png', 'list.csv')
    for name, words in {
            'omniglto': "does not exist.*did you mean '.*/omniglot'", 'loose': "loose.*x.png",
            'hollow': "class folder '.*hollow/b' holds no image", 'void': 'holds no images',
            'shallow': "shallow/train' without a class folder", 'list.csv': 'source=csv'}.items():
        with pytest.raises(DataError, match=words):
            load_folder(tmp_path / name)
    with pytest.raises(DataError, match=r'data.folder is empty'):
        load_folder('')


# CSV


def write(root, text, encoding='utf-8', name='t.csv'):
    (root / name).write_bytes(text.encode(encoding))
    return str(root / name)


def load_csv(path, **data):
    return load_source({'source': 'csv', 'csv': path} | data)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
@pytest.mark.parametrize('comma', [',', ';', '\t'])
def test_csv_dialects(tmp_path, encoding, end, comma):
    lines = ['image_path,target', '"a b.png",NA', '그림.png, None ', 'c.png,', '', 'd.png,007']
    path = write(tmp_path, end.join(lines).replace(',', comma) + end, encoding)
    manifest = load_csv(path)
    assert manifest.classes == {'class': ('007', 'NA', 'None')}
    assert list(manifest.table['id']) == ['a b.png', '그림.png', 'c.png', 'd.png']
    assert manifest.labels('class').tolist() == [1, 2, -1, 0]
    assert manifest.root == str(tmp_path)


def test_csv_heads_and_other_columns(tmp_path):
    path = write(tmp_path, 'ID,path,mask,age,who,weight,split\n'
                           '7,x/a.png,yes,old,ann,2,train\n8,b.png,no,,,0.5,Validation\n')
    manifest = load_csv(path, columns={'labels': 'mask, age', 'group': 'who', 'image': ''})
    assert manifest.classes == {'mask': ('no', 'yes'), 'age': ('old',)}
    table = manifest.table
    assert table['id'].tolist() == ['7', '8'] and table['location'].tolist() == ['x/a.png', 'b.png']
    assert table['group'].tolist() == ['ann', ''] and table['weight'].tolist() == [2, 0.5]
    assert table['split'].tolist() == ['train', 'val']
    assert manifest.labels('age').tolist() == [0, -1]
    named = load_csv(path, columns={'labels': 'mask'}, group_regex='[ab].png')
    assert named.classes == {'class': ('no', 'yes')}
    assert named.table['group'].tolist() == ['a.png', 'b.png']


def test_csv_classes(tmp_path):
    path = write(tmp_path, 'image,label\na.png,dog\nb.png,caat\n')
    with pytest.raises(DataError, match=r"t.csv', line 3: the label 'caat'.*mean 'cat'"):
        load_csv(path, classes=('dog', 'cat'))
    path = write(tmp_path, 'image,label\na.png,dog\n')
    assert load_csv(path, classes=('cat', 'dog')).labels('class').tolist() == [1]
    assert load_csv(path, classes={'class': ('dog', 'cat')}).labels('class').tolist() == [0]
    with pytest.raises(DataError, match=r"'klass'.*did you mean 'class'"):
        load_csv(path, classes={'klass': ('dog',)})
    path = write(tmp_path, 'image\na.png\n')
    assert load_csv(path, classes=('cat', 'dog')).labels('class').tolist() == [-1]


def test_csv_images_stay_in_their_folder(tmp_path):
    tree(tmp_path, 'images/a.png', 'images/b.png', 'secret.png')
    inside = str(tmp_path / 'images/b.png')
    data = {'images': str(tmp_path / 'images')}
    manifest = load_csv(write(tmp_path, f'image,label\nx/../a.png,0\n{inside},1\n'), **data)
    assert manifest.table['location'].tolist() == ['a.png', 'b.png']
    for name in ('../secret.png', str(tmp_path / 'secret.png'), 'x/../../secret.png'):
        path = write(tmp_path, f'image,label\na.png,0\n{name},1\n')
        with pytest.raises(DataError, match=r'line 3: the image .* lies outside'):
            load_csv(path, **data)
        location = load_csv(path, allow_outside=True, **data).table['location'][1]
        assert read_image(data['images'], location).shape == (4, 6, 3)


@pytest.mark.parametrize('text, words', [
    ('', 'is empty'), ('image,label\n', 'no lines'),
    ('image,labl\na.png,0\n', 'no column called label or class.*data.columns.labels.*image, labl'),
    ('image,label,label\na,0,1\n', "'label' twice"),
    ('image,label\na.png,0\nb.png\n', '1 fields in line 3'),
    ('image,label\na,b.png,0\n', '3 fields in line 2'),
    ('image,label\n"a\nb.png",0\n\na.png,1\na.png,0\n', "id 'a.png' in line 5 and in line 6"),
    ('image,label\na.png,0\n ,1\n', 'line 3: the image path'),
    ('image,label\na.png,\n', 'no label at all'),
    ('image,label,weight\na,0,1\nb,0,x\n', "line 3: the weight 'x'"),
    ('image,label,weight\na,0,nan\n', "line 2: the weight 'nan'"),
    ('image,label,split\na,0,train\nb,0,dev\n', "line 3: the split 'dev'"),
    ('image,label\n"a.png,0\n', 'not a valid CSV')])
def test_bad_csv(tmp_path, text, words):
    with pytest.raises(DataError, match=words) as error:
        load_csv(write(tmp_path, text))
    assert 't.csv' in str(error.value)


def test_bad_csv_settings(tmp_path):
    path = write(tmp_path, 'image,lable\na.png,0\n')
    with pytest.raises(DataError, match=r"no column 'label' .*did you mean 'lable'.*image, lable"):
        load_csv(path, columns={'labels': 'label'})
    with pytest.raises(DataError, match=r"data.columns.lables is unknown.*'labels'"):
        load_csv(path, columns={'lables': 'x'})
    with pytest.raises(DataError, match='not UTF-8'):
        load_csv(write(tmp_path, 'image,label\n그림,0\n', 'cp949'))
    with pytest.raises(DataError, match=r"did you mean '.*t.csv'"):
        load_csv(str(tmp_path / 'tt.csv'))
    with pytest.raises(DataError, match=r'data.images'):
        load_csv(path, images=str(tmp_path / 'nowhere'))
    with pytest.raises(DataError, match=r'data.csv is empty'):
        load_csv('')
