"""The verb curate through main.py on planted defects, and a run that obeys its decisions."""

import csv
import hashlib
import re

import cv2
import numpy as np
import pandas as pd
import pytest

import main
from input_pipeline import sources
from input_pipeline.sources import csv_file
from train_lib.metrics.out_of_fold import read_probabilities
from train_lib.runtime.errors import ConfigError
from train_lib.training.data import load_data

NAUGHTY = '<b>cat</b> & "co"'


def config_of(*argv):
    from train_lib.commands import command_line
    return command_line.parse(['curate', *argv]).config


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """A folder of 60 drawings, 9 copies, 4 photographs; out-of-fold predictions; decisions."""
    base = tmp_path_factory.mktemp('curate')
    manifest = sources.load_source({'source': 'doodles', 'doodles': dict(
        classes=4, per_class=15, near_duplicates=.15, photos=.07, wrong_labels=.1, size=64)})
    table = manifest.table
    names = np.array(['house', NAUGHTY, 'x', 'fish'])
    for row, (location, label) in enumerate(zip(table['location'], table['label/class'])):
        path = base / 'data' / names[label] / f'{table["group"][row]}_{row:03d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sources.read_bytes('', location))
    ids = [f'{names[label]}/{group}_{row:03d}.png' for row, (label, group) in
           enumerate(zip(table['label/class'], table['group']))]
    logits = np.random.default_rng(0).normal(0, 1, (len(table), 4))
    truth = table['truth/class'].to_numpy()
    logits[np.arange(len(table))[truth >= 0], truth[truth >= 0]] += 6
    (base / 'run/predictions').mkdir(parents=True)
    order = np.random.default_rng(1).permutation(len(table))
    np.savez(base / 'run/predictions/out_of_fold.npz', ids=np.array(ids)[order],
             labels=table['label/class'].to_numpy()[order], classes=names, logits=logits[order])
    before = digest_of(base / 'data')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(base / 'cache'))
        assert main.main(['curate', *argv(base), f'--workdir={base / "out"}',
                          '--config.curate.most=0.2',  # so many copies were planted
                          f'--config.curate.labels.predictions={base / "run"}']) == 0
    assert digest_of(base / 'data') == before  # no picture was touched
    table['id'] = ids
    return base, table.set_index('id')


def argv(base):
    return [f'--config=configs/sketch_vit.py:folder={base / "data"}',
            r'--config.data.group_regex=(w\d+)_']


def digest_of(folder):
    return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in sorted(folder.rglob('*.png'))]


def test_what_was_planted_is_found(base):
    base, truth = base
    rows = pd.read_csv(base / 'out/decisions.csv', na_filter=False).set_index('id')
    rows, table = rows.loc[truth.index], truth
    assert (rows['action'][table['truth/photo']] == 'drop').all()
    copies = table['truth/duplicate_of'] != ''
    found = rows['duplicate_group'] != ''
    assert found[copies].mean() >= .8
    dropped = rows['twin'] != ''
    assert dropped.sum() > 0 and found[rows['twin'][dropped]].all()
    wrong = (table['truth/class'] != table['label/class']) & ~table['truth/photo']
    flagged = rows['suggested_label'] != ''
    assert flagged[wrong].mean() >= .8 and not flagged[~wrong & ~table['truth/photo']].any()


def test_the_gallery_stands_alone_and_escapes(base):
    page = (base[0] / 'out/gallery.html').read_text()
    assert '<b>cat' not in page and '&lt;b&gt;cat' in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count('>kept<') >= 2 and 'looks like' in page and 'Classes that overlap' in page


def test_a_run_obeys_the_corrected_file(base):
    base, truth = base
    with open(base / 'out/decisions.csv', encoding='utf-8-sig', newline='') as file:
        rows = list(csv.DictReader(file))
    dropped = [row['id'] for row in rows if row['action'] == 'drop']
    rows[[row['id'] for row in rows].index(dropped[0])]['action'] = 'keep'  # by hand
    path = base / 'corrected.csv'
    with open(path, 'w', encoding='utf-8-sig', newline='') as file:
        writer = csv.DictWriter(file, rows[0], delimiter=';')
        writer.writeheader()
        writer.writerows(rows)
    manifest = load_data(config_of(*argv(base), f'--config.data.decisions={path}'))
    assert set(truth.index) - set(manifest.table['id']) == set(dropped[1:])


def test_to_mark_can_be_filled_in(base):
    base, _ = base
    with open(base / 'out/to_mark.csv', encoding='utf-8-sig', newline='') as file:
        ids = [row['id'] for row in csv.DictReader(file)]
    assert len(ids) == 20
    answers = {name: 'no' if k % 2 else 'yes' for k, name in enumerate(ids)}
    marks = base / 'marked.csv'
    marks.write_text('id;photograph\n' + ''.join(f'{name};{answer}\n'
                     for name, answer in answers.items() if ';' not in name), 'cp949')
    assert main.main(['curate', *argv(base), f'--workdir={base / "marked"}',
                      '--config.curate.detectors=photographs,', '--config.curate.most=1.0',
                      f'--config.curate.photographs.marks={marks}']) == 0
    rows = pd.read_csv(base / 'marked/decisions.csv', na_filter=False).set_index('id')
    for name, answer in answers.items():
        assert rows['score/photographs'][name] == (answer == 'yes')
        assert rows['action'][name] == ('drop' if answer == 'yes' else 'keep')
    again = pd.read_csv(base / 'marked/to_mark.csv')['id']
    assert len(again) == 20 and not set(again) & set(answers)


def test_the_gallery_shows_each_variant_beside_its_counterpart(base):
    base, truth = base
    rows = pd.read_csv(base / 'out/decisions.csv', na_filter=False).set_index('id')
    mirrored = truth.index[truth['truth/alteration'] == 'flip']
    assert len(mirrored) and (rows['action'][mirrored] != 'drop').all()
    assert (rows['duplicate_group'][mirrored] != '').all()
    page = (base / 'out/gallery.html').read_text()
    assert '<span class="chip">mirrored</span>' in page and 'beside it' in page


def tiny_folder(path, per_class, copies=False):
    """A folder with so many small pictures of each class; or copies of one picture per class."""
    for name, count in per_class.items():
        (path / name).mkdir(parents=True)
        for k in range(count):
            rng = np.random.default_rng((0 if copies else k, len(name)))
            image = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            cv2.imwrite(str(path / name / f'{k}.png'), image)
    return path


@pytest.mark.filterwarnings('error:::sklearn')
@pytest.mark.parametrize('method', ['statistics', 'kmeans', 'dbscan'])
@pytest.mark.parametrize('per_class, copies', [
    ({'a': 1}, False), ({'a': 6}, False), ({'a': 1, 'bb': 1}, False), ({'a': 4, 'bb': 3}, False),
    ({'a': 6, 'bb': 6}, True), ({'a': 7, 'bb': 1, 'ccc': 2}, False)])
def test_small_and_odd_sets_are_curated(tmp_path, capsys, per_class, copies, method):
    data = tiny_folder(tmp_path / 'data', per_class, copies)
    assert main.main(['curate', f'--config=configs/sketch_vit.py:folder={data}',
                      f'--workdir={tmp_path / "out"}',
                      f'--config.curate.photographs.method={method}']) == 0
    rows = pd.read_csv(tmp_path / 'out/decisions.csv', na_filter=False)
    assert len(rows) == sum(per_class.values())
    if copies:  # facts, although they are most of the set
        assert (rows['action'] == 'drop').sum() == len(rows) - 2
    printed = capsys.readouterr().err
    assert 'Warning' not in printed
    if copies or min(sorted(per_class.values())[-2:]) < 2 or len(per_class) == 1:
        assert 'cannot be judged' in printed


def test_a_common_flag_describes_the_data(tmp_path, capsys):
    """A filter on black and white must not drop an eighth of the pictures."""
    data = tiny_folder(tmp_path / 'data', {'a': 14, 'bb': 10})
    for k in range(3):
        path = data / f'a/{k}.png'
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    argv = ['curate', f'--config=configs/sketch_vit.py:folder={data}',
            '--config.curate.detectors=quality,', '--config.curate.quality_drop=black_and_white,']
    for most, action in ((.1, 'review'), (.2, 'drop')):
        assert main.main([*argv, f'--workdir={tmp_path / action}',
                          f'--config.curate.most={most}']) == 0
        rows = pd.read_csv(tmp_path / action / 'decisions.csv', na_filter=False)
        flagged = rows[rows['reason'].str.contains('black and white')]
        assert flagged['action'].tolist() == [action] * 3
        said = '3 of 24 pictures are black and white, which describes the data'
        assert (said in capsys.readouterr().err) == (action == 'review')
        assert (said in (tmp_path / action / 'gallery.html').read_text()) == (action == 'review')


def test_flags_that_are_common_together_describe_the_data_too(tmp_path):
    data = tiny_folder(tmp_path / 'data', {'a': 14, 'bb': 10})
    for k in range(6):
        path = data / f'a/{k}.png'
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE if k < 3 else cv2.IMREAD_COLOR)
        cv2.imwrite(str(path), picture if k < 3 else np.tile(picture, (1, 4, 1)))
    assert main.main(['curate', f'--config=configs/sketch_vit.py:folder={data}',
                      f'--workdir={tmp_path / "out"}', '--config.curate.detectors=quality,',
                      '--config.curate.quality_drop=black_and_white,odd_aspect',
                      '--config.curate.most=0.2']) == 0  # either flag has an eighth of them
    rows = pd.read_csv(tmp_path / 'out/decisions.csv', na_filter=False).set_index('id')['action']
    assert set(rows.index[rows == 'review']) == {f'a/{k}.png' for k in range(6)}
    assert (rows != 'drop').all()
    page = (tmp_path / 'out/gallery.html').read_text()
    assert '3 of 24 pictures are black and white; 3 of 24 pictures are odd aspect, which' in page


def test_borders_read_other_columns_of_the_table(tmp_path):
    manifest = sources.load_source({'source': 'doodles', 'doodles': dict(
        classes=2, per_class=4, size=32)})
    lines = ['image,label,age']
    for row, location in enumerate(manifest.table['location']):
        (tmp_path / f'{row}.png').write_bytes(sources.read_bytes('', location))
        lines.append(f'{row}.png,{row % 2},{54 + row}')
    (tmp_path / 'table.csv').write_text('\n'.join(lines))
    assert main.main(
        ['curate', f'--config=configs/sketch_vit.py:csv={tmp_path / "table.csv"}',
         f'--workdir={tmp_path / "out"}', '--config.curate.detectors=borders',
         '--config.curate.borders=(dict(column="age", between=(57, 59), weight=0.25),)']) == 0
    weight = pd.read_csv(tmp_path / 'out/decisions.csv')['weight'].fillna(1)
    assert weight.tolist() == [1, 1, 1, .25, .25, .25, 1, 1]
    found = csv_file.more_columns(str(tmp_path / 'table.csv'), ['age'], ['5.png', '?', '0.png'])
    assert found == {'age': ['59', '', '54']}


@pytest.mark.parametrize('flag, words', [
    ('detectors=duplicate', "'duplicate'"),
    ('photographs.method=objects', 'photographs.objects is empty'),
    ('quality_drop=grey', "'grey'"),
    ('labels.predictions=/nowhere', '/nowhere'),
    ('labels.head=age', "'age'"),
    ('most=2.0', 'out of range'),
    ('borders=(dict(column="size",between=3,action="drop"),)', 'curate.borders[0].between=3'),
    ('borders=("size",)', "curate.borders[0]='size' is not a rule"),
])
def test_mistakes_are_one_sentence(tmp_path, capsys, flag, words):
    code = main.main(['curate', '--config=configs/sketch_vit.py', f'--workdir={tmp_path / "x"}',
                      '--config.data.doodles.classes=2', '--config.data.doodles.per_class=4',
                      '--config.data.doodles.size=32', '--config.curate.detectors=labels',
                      f'--config.curate.{flag}'])
    printed = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and words in printed[-1] and not (tmp_path / 'x').exists()


def test_predictions_are_joined_by_id_and_class_name(tmp_path):
    manifest = sources.load_source({'source': 'doodles', 'doodles': dict(
        classes=3, per_class=2)})
    ids, names = manifest.table['id'].tolist(), manifest.classes['class']
    logits = np.log([[.7, .2, .1], [.1, .8, .1]])
    path = tmp_path / 'out_of_fold.npz'
    np.savez(path, ids=np.array([ids[4], ids[1]]), logits=logits,
             classes=np.array([names[2], names[0], names[1]]))
    found = read_probabilities(path, manifest, 'class')
    np.testing.assert_allclose(found[[4, 1]], [[.2, .1, .7], [.8, .1, .1]])
    assert np.isnan(found[[0, 2, 3, 5]]).all()
    with pytest.raises(ConfigError, match='no ids'):
        read_probabilities(path, manifest.with_column('id', list('abcdef')), 'class')
