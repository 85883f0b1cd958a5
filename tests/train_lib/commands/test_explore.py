"""The verb explore through main.py: planted duplicates, an unreadable file, names that are HTML."""

import re
import shutil

import pandas as pd
import pytest

import main
from input_pipeline import sources

NAUGHTY = '<b>cat</b> & "co"'


@pytest.fixture(scope='module')
def explored(tmp_path_factory):
    base = tmp_path_factory.mktemp('explore')
    manifest = sources.load_source({'source': 'doodles', 'doodles': dict(
        classes=4, per_class=10, imbalance=2, near_duplicates=.15, photos=.08)})
    table = manifest.table
    names = ['house', NAUGHTY, 'x/y', 'fish']
    for row, (location, label) in enumerate(zip(table['location'], table['label/class'])):
        folder = base / 'data' / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        picture = sources.read_bytes('', location)
        (folder / f'{table["group"][row]}_{row:03d}.png').write_bytes(picture)
    files = sorted((base / 'data/house').iterdir())
    shutil.copy(files[0], base / 'data/fish/w99_copy.png')  # under another label
    cut = base / 'data/house/w98_<img src=x onerror=alert(1)>.png'
    cut.write_bytes(files[1].read_bytes()[:200])
    sound = files[2].read_bytes()  # a checksum that only the strict check looks at
    (base / 'data/house/w97_sum.png').write_bytes(
        sound[:-12] + b'\0\0\0\4tEXta\0bc\0\0\0\0' + sound[-12:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(base / 'cache'))
        argv = ['explore', f'--config=configs/sketch_vit.py:folder={base / "data"}',
                r'--config.data.group_regex=(w\d+)_', f'--workdir={base / "out"}']
        assert main.main(argv) == 0
        assert (base / 'cache/atelier').is_dir()
    page = (base / 'out/explore.html').read_text()
    return table, files[0], pd.read_csv(base / 'out/explore.csv', na_filter=False), page


def test_one_row_per_image_with_its_duplicates(explored):
    table, copied, rows, _ = explored
    assert len(rows) == len(table) + 3
    number = rows['id'].str.extract(r'_(\d+)\.png')[0]
    group = {int(n): g for n, g in zip(number, rows['duplicate_group']) if isinstance(n, str)}
    origin = {name: k for k, name in enumerate(table['id'])}
    for row, of in enumerate(table['truth/duplicate_of']):
        if of and table['truth/alteration'][row] != 'crop-10':
            assert group[row] != '' and group[row] == group[origin[of]]
    twins = rows[rows['duplicate_group'] == rows.set_index('id')['duplicate_group'][
        f'house/{copied.name}']]
    assert set(twins['label/class']) == {'house', 'fish'}
    assert (twins['duplicate_kind'] == 'bytes').all() and len(twins) == 2
    unreadable = rows[rows['problem'] != '']
    assert unreadable['problem'].str.match('is (truncated|damaged)').tolist() == [True] * 2
    assert unreadable['split'].tolist() == [''] * 2 and (rows['split'] == 'val').any()
    assert {'sharpness', 'chroma', 'sha256', 'black_and_white'} <= set(rows)


def test_photographs_are_the_most_suspicious(explored):
    table, _, rows, _ = explored
    worst = rows.sort_values('suspicion', ascending=False, kind='stable')['id'].head(3)
    photos = [f'_{row:03d}.png' for row in table.index[table['truth/photo']]]
    assert len(photos) == 2 and all(any(name.endswith(end) for name in worst) for end in photos)


def test_the_page_is_self_contained_and_escaped(explored):
    *_, page = explored
    assert '<b>cat' not in page and '&lt;b&gt;cat&lt;' in page
    assert '<img src=x' not in page and 'onerror=alert' in page and 'is truncated' in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and '://' not in page
    assert 'different labels' in page and 'mirrored' in page
    for count, text in ((2, 'pictures that cannot be read'),
                        (1, 'group of duplicates with different labels')):
        assert re.search(rf'<b>{count}</b><span>{text}', page)
    assert 30_000 < len(page) < 1_000_000


def test_heads_are_combined_and_a_missing_split_is_said(tmp_path):
    argv = ['explore', '--config=configs/sketch_vit.py', '--config.data.doodles.classes=3',
            '--config.data.doodles.per_class=3', '--config.data.doodles.heads=class,tool',
            '--config.split.test_groups=w77', f'--workdir={tmp_path}']
    assert main.main(argv) == 0
    page = (tmp_path / 'explore.html').read_text()
    assert re.search(r'\d+ of 12 possible combinations occur', page)
    assert 'No split: ' in page and 'w77' in page
    assert 'split' not in pd.read_csv(tmp_path / 'explore.csv')


def test_a_set_without_a_readable_picture_has_a_page_that_says_so(tmp_path):
    for name in ('a', 'b'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        (tmp_path / 'data' / name / '0.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    assert main.main(['explore', f'--config=configs/sketch_vit.py:folder={tmp_path / "data"}',
                      f'--workdir={tmp_path / "out"}']) == 0
    page = (tmp_path / 'out/explore.html').read_text()
    assert 'No picture can be read' in page and '2 cannot be read' in page
    assert (pd.read_csv(tmp_path / 'out/explore.csv')['problem'] != '').all()


def test_a_threshold_that_is_none_is_one_sentence(tmp_path, capsys):
    argv = ['explore', '--config=configs/sketch_vit.py', '--config.data.doodles.classes=2',
            '--config.data.doodles.per_class=2', '--config.curate.quality.tiny=-1.0',
            f'--workdir={tmp_path}']
    assert main.main(argv) == 2
    assert 'curate.quality.tiny=-1.0' in capsys.readouterr().err.splitlines()[-1]


def test_what_looks_like_a_photograph_is_shown_and_curate_is_named(explored):
    table, _, rows, page = explored
    photos = [f'_{row:03d}.png' for row in table.index[table['truth/photo']]]
    top = rows.sort_values('photograph', ascending=False)['id'].head(len(photos))
    assert len(photos) == 2 and {name[-8:] for name in top} == set(photos)
    scores = rows['photograph'][rows['problem'] == ''].astype(float)
    assert (scores > 0).all() and scores.nunique() > .8 * len(scores)
    assert (rows['photograph'][rows['problem'] != ''] == '').all()
    shown = page.split('<section id="photographs">')[1].split('</section>')[0]
    assert 'Photographs among drawings' in shown and 'main.py curate' in shown
    assert all(f'title="{name}"' in shown or name.split('/')[-1] in shown for name in top)
    assert re.search(r'<b>2</b><span>pictures that look like photographs among drawings', page)
