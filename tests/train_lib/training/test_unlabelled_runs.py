"""Runs with unlabelled pictures: which they are, what is refused, what is written."""

import csv
import json
import shutil
from pathlib import Path

import pytest

import main
from tests.train_lib.training.few_pictures import (
    FEW,
    FIXMATCH,
    TINY,
    flags,
    last_line,
    rows_of,
    rows_of_csv,
    write,
)
from train_lib.commands.command_line import parse
from train_lib.run_dir import ancestors
from train_lib.training.data import load_data, split_data


@pytest.fixture(scope='module')
def pictures(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp('pictures'))


@pytest.fixture(scope='module')
def train(pictures):
    """(workdir, *flags) -> exit code."""
    return lambda workdir, *more: main.main([*flags(pictures, *more), f'--workdir={workdir}'])


@pytest.fixture(scope='module')
def first(train, tmp_path_factory) -> Path:
    """A run with few labels and the others hidden."""
    workdir = tmp_path_factory.mktemp('first') / 'run'
    assert train(workdir, *FIXMATCH, FEW) == 0
    return workdir


def data_of(pictures, *more: str):
    config = parse(flags(pictures, *more)).config
    return split_data(config, load_data(config))


def ids(manifest) -> set[str]:
    return set(manifest.table['id'])


# --- which pictures --------------------------------------------------------------------------


@pytest.mark.parametrize('seed', range(4))
def test_hidden_rows_train(pictures, seed):
    """Those that the tail leaves out; with all rows they are the rows of a run without a tail."""
    whole = data_of(pictures, f'--config.seed={seed}')
    few = data_of(pictures, *FIXMATCH, FEW, f'--config.seed={seed}')
    hidden = ids(few.unlabelled.rows)
    assert len(few.parts['train']) == 8 and len(hidden) == len(whole.parts['train']) - 8
    assert hidden | ids(few.parts['train']) == ids(whole.parts['train'])
    for name in ('val', 'test'):
        assert ids(few.parts[name]) == ids(whole.parts[name]) and not hidden & ids(few.parts[name])
    groups = set(few.unlabelled.rows.table['group'])
    assert not groups & {*few.parts['val'].table['group'], *few.parts['test'].table['group']}
    assert few.unlabelled.truth and few.unlabelled.held_out == 0


def table_of(pictures, path: Path, label) -> Path:
    """A CSV of all pictures; label(class, number) -> what stands there."""
    names = sorted(str(one.relative_to(pictures)) for one in pictures.rglob('*.png'))
    with open(path, 'w', newline='') as file:
        csv.writer(file).writerows([('image', 'label', 'group'), *(
            (name, label(name[0], k), Path(name).name[:3]) for k, name in enumerate(names))])
    return path


def test_rows_without_a_label_are_hidden_ones(pictures, tmp_path):
    table = table_of(pictures, tmp_path / 'table.csv', lambda name, k: name if k % 3 else '')
    config = parse([f'--config=configs/sketch_cnn.py:csv={table},images={pictures}', *TINY,
                    *FIXMATCH]).config
    data = split_data(config, load_data(config))
    assert (data.parts['train'].labels('class') >= 0).all()
    assert (data.unlabelled.rows.labels('class') == -1).all() and not data.unlabelled.truth
    table = data.manifest.table
    assert ids(data.unlabelled.rows) | ids(data.parts['train']) == set(
        table['id'][table['split'] == 'train'])
    # Without, or with other pictures, they are in the labelled batches, as before.
    for changes in (dict(kind='none'), dict(source='folder', folder=str(pictures))):
        config.unlabelled.update(dict(kind='fixmatch') | changes)
        assert (split_data(config, load_data(config)).parts['train'].labels('class') < 0).any()


@pytest.fixture(scope='module')
def others(pictures, tmp_path_factory) -> Path:
    """New pictures, and copies of all of the run."""
    folder = write(tmp_path_factory.mktemp('others') / 'new', people=6, seed=1)
    shutil.copytree(pictures, folder / 'copies')
    return folder


def test_copies_of_held_out_pictures_are_left_out(pictures, others):
    more = (*FIXMATCH, '--config.unlabelled.source=folder', f'--config.unlabelled.folder={others}')
    data = data_of(pictures, *more)
    held = len(data.parts['val']) + len(data.parts['test'])
    assert data.unlabelled.held_out == held and not data.unlabelled.kept
    names = {Path(name).name for name in ids(data.unlabelled.rows) if name.startswith('copies')}
    assert names == {Path(name).name for name in ids(data.parts['train'])}
    assert len(data.unlabelled.rows) == 12 + len(data.parts['train'])
    kept = data_of(pictures, *more, '--config.unlabelled.transductive=True').unlabelled
    assert kept.kept and kept.held_out == held and len(kept.rows) == 12 + 60
    archive = shutil.make_archive(str(others.parent / 'archive'), 'zip', others)
    zipped = data_of(pictures, *more[:-1], f'--config.unlabelled.folder={archive}').unlabelled
    assert zipped.held_out == held and len(zipped.rows) == len(data.unlabelled.rows)


def test_groups_of_held_out_pictures_are_left_out(pictures, others, tmp_path):
    """Other pictures of the people who validate or test."""
    table = tmp_path / 'more.csv'
    new = sorted(str(one.relative_to(others)) for one in others.glob('[ab]/*.png'))
    people = sorted({Path(name).name[:3] for name in map(str, pictures.rglob('*.png'))})
    with open(table, 'w', newline='') as file:
        csv.writer(file).writerows([('image', 'group'), *zip(new, people)])
    data = data_of(pictures, *FIXMATCH, '--config.unlabelled.source=csv',
                   f'--config.unlabelled.csv={table}', f'--config.unlabelled.images={others}')
    groups = set(data.unlabelled.rows.table['group'])
    assert groups == {person for person in people[:12]
                      if person in set(data.parts['train'].table['group'])}
    assert data.unlabelled.held_out == 12 - len(groups) > 0


# --- a run ---------------------------------------------------------------------------------------


def test_what_a_run_writes(first):
    row, = [row for row in rows_of(first) if row['split'] == 'train']
    assert {'unlabelled_loss', 'unlabelled_share', 'unlabelled_accuracy'} <= row.keys()
    result = json.loads((first / 'result.json').read_text())
    assert result['unlabelled']['rows'] == len(rows_of_csv(first / ancestors.UNLABELLED)) == 28
    assert result['unlabelled']['held_out'] == 0


def test_hidden_rows_are_known_to_descendants(train, first, tmp_path, capfd):
    """Who starts from the run, or is taught by it, must not score what it learned unlabelled."""
    hidden = {row['id'] for row in rows_of_csv(first / ancestors.UNLABELLED)}
    assert not hidden & {row['id'] for row in rows_of_csv(first / 'split.csv')}
    known = ancestors._below(first, '').rows
    assert hidden < set(known) and len(known) == 36
    for key in ('init.from', 'teacher.workdir'):
        assert train(tmp_path / 'b', '--config.seed=1', f'--config.{key}={first}') == 2
        line = last_line(capfd)
        assert f'config.{key} = {str(first)!r}' in line and 'trained on' in line
        assert 'by the data, config.split and seed of that run' in line
    assert not (tmp_path / 'b/config.json').exists()


@pytest.mark.parametrize(('more', 'words'), [
    (['--config.unlabelled.kind=fixmatch'], 'every training row has a label'),
    (['--config.unlabelled.kind=mean_teacher', FEW], 'set config.ema.decay'),
    (['--config.unlabelled.kind=twice'], "kind = 'twice': choose one of"),
    ([*FIXMATCH, FEW, '--config.unlabelled.source=web'], "source = 'web': choose one of"),
    ([*FIXMATCH, '--config.unlabelled.source=csv'], 'needs config.unlabelled.csv'),
    ([*FIXMATCH, FEW, '--config.unlabelled.folder=x'], 'has no meaning with'),
    (['--config.unlabelled.source=folder', '--config.unlabelled.folder=x'], 'nothing learns from'),
    ([*FIXMATCH, FEW, '--config.unlabelled.transductive=True'], 'whose rows all train'),
    ([*FIXMATCH, FEW, '--config.unlabelled.batch_size=0'], 'give a positive multiple of 1'),
    ([*FIXMATCH, FEW, '--config.accumulate=2', '--config.unlabelled.batch_size=5'],
     'multiple of 2'),
    ([*FIXMATCH, FEW, '--config.loss.name=binary_cross_entropy'], 'other probabilities'),
    ([*FIXMATCH, FEW, '--config.loss.name={{"class": "ldam"}}'],
     "config.loss.name = 'ldam' trains"),
    ([*FIXMATCH, FEW, '--config.loss.name={{"class": "focal"}}', '--config.unlabelled.strong=()'],
     'unlabelled.strong is empty'),
    ([*FIXMATCH, FEW, '--config.unlabelled.strong=()'], 'unlabelled.strong is empty'),
    ([*FIXMATCH, FEW, '--config.unlabelled.strong=["rotat"]'], 'config.unlabelled.strong[0]'),
    ([*FIXMATCH, FEW, '--config.unlabelled.weak=3'], 'config.unlabelled.weak = 3 is not a list'),
    ([*FIXMATCH, FEW, '--config.probe.heads=[dict(name="a")]'], 'labels alone'),
    (['--config.teacher.workdir=nowhere'], "config.teacher.workdir = 'nowhere' has no checkpoints"),
    (['--config.teacher.workdir={first}', '--config.teacher.weight=2'], 'teacher.weight = 2'),
    (['--config.teacher.workdir={first}', '--config.teacher.temperature=0'],
     'teacher.temperature = 0'),
    (['--config.teacher.workdir={first}', '--config.image.size=24'], 'both see the same pictures'),
    (['--config.teacher.workdir={first}', '--config.model.in_channels=1'], 'model.in_channels')])
def test_mistakes_are_one_sentence(train, first, pictures, tmp_path, capfd, more, words):
    more = [flag.format(first=first, pictures=pictures) if '{' in flag and 'dict' not in flag
            else flag for flag in more]
    assert train(tmp_path / 'run', *more, '--config.init.seen=accept') == 2
    assert words in last_line(capfd)
    assert not (tmp_path / 'run/config.json').exists()


@pytest.mark.slow
def test_only_held_out_pictures(pictures, train, tmp_path, capfd):
    data = data_of(pictures)
    for name in ids(data.parts['test']):
        shutil.copy(pictures / name, tmp_path)
    more = [*FIXMATCH, '--config.unlabelled.source=folder',
            f'--config.unlabelled.folder={tmp_path}']
    assert train(tmp_path / 'run', *more) == 2
    assert 'are validation or test pictures' in last_line(capfd)
    assert train(tmp_path / 'run', *more, '--config.unlabelled.transductive=True') == 0
    marked = json.loads((tmp_path / 'run/result.json').read_text())['unlabelled']
    assert marked['held_out_kept'] and marked['held_out'] == marked['rows'] == 12
    assert '12 unlabelled pictures' in (tmp_path / 'run/report.html').read_text()


@pytest.mark.slow
def test_other_unlabelled_pictures_do_not_go_on(train, tmp_path, capfd):
    folder = write(tmp_path / 'more', people=4, seed=2)
    more = [*FIXMATCH, '--config.unlabelled.source=folder', f'--config.unlabelled.folder={folder}']
    assert train(tmp_path / 'run', *more) == 0
    assert train(tmp_path / 'run', *more) == 0
    write(folder, people=5, seed=2)
    assert train(tmp_path / 'run', *more) == 2
    assert 'The unlabelled pictures have changed' in last_line(capfd)
