"""A second set beside the data, through main.py: copies, what differs, unreadable files."""

import shutil
from collections import Counter

import cv2
import numpy as np
import pandas as pd
import pytest

import main
from input_pipeline import sources

CONFIG = '--config=configs/sketch_vit.py:folder='


def jpeg(picture, quality=70):
    quality = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return cv2.imencode('.jpg', picture[..., ::-1], quality)[1].tobytes()


def png(picture):
    return cv2.imencode('.png', picture[..., ::-1])[1].tobytes()


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """60 drawings with a copy among them, and 24 darker ones by other writers with five copies of
    pictures of the data, one of them a copy of a copy, and a broken file."""
    base = tmp_path_factory.mktemp('beside')
    table = sources.load_source({'source': 'doodles', 'doodles': dict(
        classes=4, per_class=20, size=96)}).table
    pictures = [sources.read_image('', location) for location in table['location']]
    second = base / 'second<b>'
    (second / 'more').mkdir(parents=True)
    for row, picture in enumerate(pictures[:60]):
        path = base / 'data' / 'abcd'[table['label/class'][row]] / f'{row:02}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture))
    for row, picture in enumerate(pictures[60:]):
        (second / f'new{row:02}.png').write_bytes(png((picture * 0.6).astype(np.uint8)))
    files = sorted((base / 'data').rglob('*.png'))
    shutil.copy(files[3], second / 'bytes.png')
    (second / 'more/pixels.png').write_bytes(cv2.imencode(
        '.png', cv2.imread(str(files[4])), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
    (second / 'near.jpg').write_bytes(jpeg(cv2.imread(str(files[5]))[..., ::-1]))
    shutil.copy(second / 'near.jpg', second / 'near_again.jpg')
    (second / 'mirrored.png').write_bytes(png(cv2.imread(str(files[6]))[:, ::-1, ::-1]))
    (second / 'broken.png').write_bytes(files[7].read_bytes()[:150])
    return base, [str(path.relative_to(base / 'data')) for path in files[3:7]]


@pytest.fixture(scope='module')
def explored(base):
    """(copied ids, how often each file was read, explore.csv, beside.csv, page)"""
    folder, copied = base
    reads, read = Counter(), sources.read_bytes

    def counted(root, location):
        reads[root, location] += 1
        return read(root, location)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(folder / 'cache'))
        patch.setattr('input_pipeline.sources.read_bytes', counted)
        patch.setattr('input_pipeline.readable.read_bytes', counted)
        patch.setattr('train_lib.commands.explore.write_explore_page', kept := Kept())
        assert main.main(['explore', f'{CONFIG}{folder / "data"}', f'--workdir={folder / "out"}',
                          f'--config.explore.beside={folder / "second<b>"}']) == 0
        counts = dict(reads)
        patch.undo()
    kept.write()
    first, second = (pd.read_csv(folder / f'out/{name}.csv', na_filter=False)
                     for name in ('explore', 'beside'))
    return copied, counts, first, second, (folder / 'out/explore.html').read_text()


class Kept:
    """Writes the page later: it reads the pictures that it shows again."""

    def __call__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs
        return args[0]

    def write(self):
        from train_lib.reporting.explore_page import write_explore_page
        write_explore_page(*self.args, **self.kwargs)


def test_every_file_is_read_once(explored):
    _, counts, first, second, _ = explored
    assert len(counts) == len(first) + len(second) and set(counts.values()) == {1}


def test_copies_have_their_kind_and_origin(explored):
    copied, _, _, second, _ = explored
    rows = second[second['copy_of'] != ''].set_index('id')
    assert rows['copy_of'].to_dict() == {
        'bytes.png': copied[0], 'more/pixels.png': copied[1], 'near.jpg': copied[2],
        'near_again.jpg': copied[2], 'mirrored.png': copied[3]}
    assert rows['copy_kind'].to_dict() == {
        'bytes.png': 'bytes', 'more/pixels.png': 'pixels', 'near.jpg': 'near',
        'near_again.jpg': 'near', 'mirrored.png': 'near'}
    differs = rows['copy_differs'].to_dict()
    assert differs.pop('mirrored.png').startswith('mirrored') and set(differs.values()) == {''}


def test_the_difference_is_found_and_scored_per_picture(explored):
    _, _, first, second, page = explored
    probability = second.set_index('id')['second_set']
    assert probability['broken.png'] == '' and (second['problem'] != '').sum() == 1
    new = probability[probability.index.str.startswith('new')].astype(float)
    assert new.mean() > 0.7 > 0.3 > first['second_set'].astype(float).mean()
    assert 'can be told apart' in page and 'Yes: a classifier tells them apart' in page
    assert {'sharpness', 'photograph', 'suspicion', 'duplicate_group'} <= set(second)
    assert 'label/class' not in second


def test_the_page_shows_the_second_set(explored):
    *_, page = explored
    assert '<b>5</b><span>pictures of the second set with a copy in the data' in page
    assert 'second&lt;b&gt;' in page and 'second<b>' not in page and '://' not in page
    part = page.split('<section id="beside">')[1].split('</section>')[0]
    assert part.count('class="card"') == 5 and 'mirrored' in part and 'is truncated' in part
    assert part.count('<svg') >= 3 and 'larger in the second set in' in part
    assert len(page) < 1_500_000


def test_the_data_are_described_as_without_a_second_set(base, explored, monkeypatch):
    folder, (_, _, first, _, _) = base[0], explored
    monkeypatch.setenv('XDG_CACHE_HOME', str(folder / 'cache'))
    argv = ['explore', f'{CONFIG}{folder / "data"}', f'--workdir={folder / "alone"}']
    (folder / 'alone').mkdir()
    (folder / 'alone/beside.csv').write_text('')  # of a start with a second set
    assert main.main(argv) == 0
    alone = pd.read_csv(folder / 'alone/explore.csv', na_filter=False)
    pd.testing.assert_frame_equal(first.drop(columns='second_set'), alone)
    assert not (folder / 'alone/beside.csv').exists()
    assert 'id="beside"' not in (folder / 'alone/explore.html').read_text()


def test_few_and_broken_pictures_are_said(base, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(base[0] / 'cache'))
    (tmp_path / 'one').mkdir()
    shutil.copy(base[0] / 'second<b>/broken.png', tmp_path / 'one/broken.png')
    argv = ['explore', f'{CONFIG}{base[0] / "data"}', f'--workdir={tmp_path}',
            f'--config.explore.beside={tmp_path / "one"}']
    assert main.main(argv) == 0
    page = (tmp_path / 'explore.html').read_text()
    assert 'There are too few pictures to say so' in page and 'of which 1 cannot be read' in page
    assert pd.read_csv(tmp_path / 'beside.csv')['second_set'].isna().all()


def test_a_missing_second_set_is_one_sentence(base, tmp_path, capsys):
    assert main.main(['explore', f'{CONFIG}{base[0] / "data"}', f'--workdir={tmp_path}',
                      f'--config.explore.beside={tmp_path / "nowhere"}']) == 2
    assert 'explore.beside' in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / 'explore.csv').exists()


def test_a_second_set_whose_files_are_all_missing_is_not_taken_for_the_data(base, tmp_path, capsys):
    (tmp_path / 'second.csv').write_text('image\nnowhere.png\nno.png\n')
    assert main.main(['explore', f'{CONFIG}{base[0] / "data"}', f'--workdir={tmp_path / "out"}',
                      f'--config.explore.beside={tmp_path / "second.csv"}']) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert 'correct the paths in the table of explore.beside.' in said
