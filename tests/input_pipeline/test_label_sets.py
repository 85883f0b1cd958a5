"""Several labels per picture: read from tables, saved, and brought into batches."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from configs.common import get_config
from input_pipeline import manifest_files, sources
from input_pipeline.curriculum import Stage
from input_pipeline.errors import DataError
from input_pipeline.label_sets import UNLABELLED, numbered
from input_pipeline.loader import Course, eval_dataset, train_iterator
from input_pipeline.manifest import class_counts, digest, make_manifest
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.products import combine_heads
from input_pipeline.resampling import make_order
from input_pipeline.splits import save_splits

LISTS = 'image,tags,kind\na.png,sea|ship,x\nb.png,|,y\nc.png,,x\nd.png, ship | sea ,y\n'
ONE_HOT = 'image,tag_sea,tag_ship,kind\na.png,1,1,x\nb.png,0,0,y\nc.png,,,x\nd.png,1.0,True,y\n'
ROWS = ('image,tags,kind\na.png,sea,x\nb.png,|,y\nc.png,,x\nd.png,ship,y\nd.png,sea,y\n'
        'a.png,ship,x\n')


def load(folder, text, labels='tags,kind', name='t.csv', **data):
    path = folder / name
    path.write_text(text)
    return sources.load_source(dict(source='csv', csv=str(path), columns=dict(labels=labels),
                                    multi_label=('tags',), **data))


def parquet(folder, tags):
    path = folder / 't.parquet'
    pyarrow.parquet.write_table(pa.table({
        'image': ['a.png', 'b.png', 'c.png', 'd.png'], 'tags': tags,
        'kind': ['x', 'y', 'x', 'y']}), path)
    return sources.load_source(dict(source='csv', csv=str(path), multi_label='tags',
                                    columns=dict(labels='tags,kind')))


def test_all_forms_of_a_table_are_the_same_data(tmp_path):
    lists = load(tmp_path, LISTS)
    assert lists.heads == ('tags', 'kind') and lists.classes['tags'] == ('sea', 'ship')
    assert lists.truth('tags').tolist() == [[1, 1], [0, 0], [UNLABELLED] * 2, [1, 1]]
    assert lists.texts('tags') == ['sea|ship', '|', '', 'sea|ship']
    assert class_counts(lists, 'tags').tolist() == [2, 2]
    others = [load(tmp_path, ONE_HOT, 'tags=tag_*,kind'),
              load(tmp_path, ONE_HOT.replace('tag_', ''), 'tags=sea+ship,kind'),
              load(tmp_path, ROWS), load(tmp_path, LISTS.replace('|', ';'), label_separator=';'),
              parquet(tmp_path, pa.array([['sea', 'ship'], [], None, ['ship', 'sea']]))]
    assert {digest(other) for other in others} == {digest(lists)}
    assert digest(lists) != digest(load(tmp_path, LISTS.replace('a.png,sea|ship', 'a.png,sea')))


def test_a_head_may_stand_alone_under_its_name_or_as_class(tmp_path):
    assert load(tmp_path, LISTS, 'tags').heads == ('tags',)
    path = tmp_path / 't.csv'
    one = sources.load_source(dict(source='csv', csv=str(path), columns=dict(labels='tags'),
                                   multi_label='class'))
    assert one.heads == ('class',) and list(one.label_sets) == ['class']
    spaces = load(tmp_path, 'image,tags\na.png,sea ship\nb.png, \n', 'tags', label_separator=' ')
    assert spaces.truth('tags').tolist() == [[1, 1], [0, 0]]


def test_the_order_of_given_classes_is_kept(tmp_path):
    given = load(tmp_path, LISTS, classes={'tags': ('ship', 'sun', 'sea')})
    assert given.truth('tags')[0].tolist() == [1, 0, 1]
    path = tmp_path / 'saved.csv'
    manifest_files.save(load(tmp_path, LISTS), str(path))
    moved = sources.load_source(dict(source='csv', csv=str(path),
                                     classes={'tags': ('ship', 'sun', 'sea')}))
    assert digest(moved) == digest(given)
    with pytest.raises(DataError, match="lacks the class 'sea'"):
        sources.load_source(dict(source='csv', csv=str(path), classes={'tags': ('ship',)}))


@pytest.mark.parametrize(('text', 'labels', 'words'), [
    ('image,tags\na.png,sea||ship\n', 'tags', 'line 2: .*has an empty label'),
    ('image,tags\na.png,sea|\n', 'tags', 'has an empty label'),
    ('image,tags\na.png,sea|sea\n', 'tags', "label 'sea' twice"),
    ('image,tags\na.png,"[\'sea\', \'ship\']"\n', 'tags', 'looks like a list of a program'),
    ('image,tags,group\na.png,sea,1\na.png,ship,2\n', 'tags', "line 3 with two values of 'group'"),
    ('image,tags\na.png,sea\na.png,\n', 'tags', 'only one of them has labels'),
    ('image,sea,ship\na.png,2,1\n', 'tags=sea+ship', "line 2: the column 'sea' .* is '2'"),
    ('image,sea,ship\na.png,,1\n', 'tags=sea+ship', "the column 'sea' .* is empty"),
    ('image,sea,ship\na.png,1,1\n', 'tags=sea+boat', "no column 'boat'"),
    ('image,sea,ship\na.png,1,1\n', 'tags=z*', r"no column 'z\*'"),
    ('image,sea,ship\na.png,1,1\n', 'tags=sea+sea', 'names a class twice'),
    ('image,tags\na.png,\n', 'tags', 'no label at all'),
    ('image,tag\na.png,sea\n', 'tag', "names the head 'tags'"),
    ('image,a|b,c\na.png,1,1\n', 'tags=a|b+c', 'choose another separator')])
def test_a_strange_table_is_refused_in_one_sentence(tmp_path, text, labels, words):
    with pytest.raises(DataError, match=words) as error:
        load(tmp_path, text, labels)
    assert '\n' not in str(error.value)


def test_what_is_joined_or_counted_once_is_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        load(tmp_path, ROWS + 'a.png,ship,x\n')
    said = [record.getMessage() for record in caplog.records]
    assert 'labels   7 rows of 4 pictures: their labels are joined' in said
    assert 'labels   1 label comes again in another row of the picture: counted once' in said
    assert 'labels   tags: 4 on 2 pictures, 1 without any, 1 unlabelled' in said
    assert all(len(line) <= 80 for line in said)


def test_only_a_table_has_several_labels():
    with pytest.raises(DataError, match=r'needs data\.source=csv'):
        sources.load_source(dict(source='digits', multi_label='tags'))


def test_the_hint_names_the_knob(tmp_path, caplog):
    path = tmp_path / 't.csv'
    path.write_text('image,tags\na,x\nb,y\nc,x;y\nd,y;z\ne,z\n')
    sources.load_source(dict(source='csv', csv=str(path), columns=dict(labels='tags')))
    assert "data.multi_label=class and data.label_separator=';'" in caplog.text


@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_a_saved_manifest_is_the_same(tmp_path, kind):
    lists = load(tmp_path, LISTS)
    path = tmp_path / f'saved.{kind}'
    manifest_files.save(lists, str(path))
    assert digest(manifest_files.load(str(path))) == digest(lists)
    with pytest.raises(DataError, match=r'data\.multi_label is set, but'):
        sources.load_source(dict(source='csv', csv=str(path), multi_label='tags'))
    save_splits(lists.with_column('split', 'train'), tmp_path / 'split.csv')
    assert '"sea|ship"' in (tmp_path / 'split.csv').read_text()


def test_who_knows_one_label_only_refuses(tmp_path):
    lists = load(tmp_path, LISTS)
    with pytest.raises(DataError, match="head 'tags' has several labels per picture"):
        lists.labels('tags')
    with pytest.raises(DataError, match='several labels per picture'):
        combine_heads(lists, ('tags', 'kind'))
    resample = get_config().resample.to_dict() | dict(kind='balanced')
    with pytest.raises(DataError, match=r'resample\.kind=balanced goes by one label per picture'):
        make_order(lists, resample, seed=0, batch_size=2, to_steps=lambda *_: 0)
    assert lists.labels('kind').tolist() == [0, 1, 0, 1]


def pictures(folder, count=6):
    for k in range(count):
        Image.new('RGB', (8, 8), (k, 0, 0)).save(folder / f'{k}.png')
    numbers, sets = numbered([[0], [1, 2], [], None, [0], [2]], 3)
    return make_manifest({'id': [str(k) for k in range(count)],
                          'location': [f'{k}.png' for k in range(count)], 'label/tags': numbers},
                         {'tags': ('a', 'b', 'c')}, str(folder), {'tags': sets})


def test_batches_hold_targets(tmp_path):
    manifest = pictures(tmp_path)
    spec = PreprocessSpec(size=8)
    batch = next(eval_dataset(manifest, spec, batch_size=8)())
    want = [[1, 0, 0], [0, 1, 1], [0, 0, 0], [-1, -1, -1], [1, 0, 0], [0, 0, 1]]
    assert batch['target/tags'][:6].tolist() == want
    assert batch['target/tags'].dtype == np.float32 and batch['label/tags'][3] == -1
    order = make_order(manifest, get_config().resample.to_dict(), seed=0, batch_size=3,
                       to_steps=lambda *_: 0)
    iterator = train_iterator(manifest, spec, Course(stages=(Stage(0, ()),), steps=2, seed=0,
                                                     order=order), batch_size=3)
    seen = np.concatenate([next(iterator)['target/tags'] for _ in range(2)])
    iterator.close()
    assert sorted(seen.tolist()) == sorted(want)  # each row once
