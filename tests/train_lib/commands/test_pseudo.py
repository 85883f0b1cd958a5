"""The verb pseudo, and runs that learn from its files: provenance, rounds, what is refused."""

import csv
import json
import shutil
import zipfile
from collections import Counter
from fractions import Fraction

import cv2
import numpy as np
import pytest

import main
from input_pipeline import sources
from train_lib.commands.command_line import parse
from train_lib.predictions import pseudo_file
from train_lib.run_dir.ancestors import ancestry_of
from train_lib.runtime.sharding import make_mesh
from train_lib.training.data import load_data, split_data
from train_lib.training.setup import assemble

SHADE = dict(dark=20, bright=230, grey=125)
NAMES = tuple(SHADE)
TRAIN = ['--config=configs/sketch_cnn.py', '--config.image.size=8', '--config.curriculum=()',
         '--config.model=dict(name="small_cnn", width=8, stages=2)', '--config.batch_size=16',
         '--config.log.tensorboard=false', '--config.report.heat_maps=false',
         '--config.report.errors=0', '--config.duration.steps=30', '--config.schedule.lr=0.01',
         # Of a constant rate one compiled program serves runs of any length.
         '--config.schedule.name=constant', '--config.schedule.warmup.steps=0',
         '--config.data.extra.weight=0.5', '--config.split.test=0.2']
START = '--config.data.extra.start.steps=4'
KFOLD = ['--config.split.kind=kfold', '--config.split.folds=2', '--config.split.fold=all']


def picture(number):
    noise = np.random.default_rng(number).integers(-15, 15, (12, 12, 3))
    return np.clip(SHADE[NAMES[number % 3]] + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """60 labelled pictures, 24 others, and among these a labelled one and a copy."""
    root = tmp_path_factory.mktemp('pseudo')
    for k in range(60):
        path = root / 'train' / NAMES[k % 3] / f'{k}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture(k))
    (root / 'more').mkdir()
    for k in range(24):
        cv2.imwrite(str(root / f'more/{k:02}.png'), picture(100 + k))
    shutil.copy(root / 'train/dark/0.png', root / 'more/known.png')
    shutil.copy(root / 'more/05.png', root / 'more/twin.png')
    (root / 'more/broken.png').write_bytes(b'no picture')
    return root


@pytest.fixture(scope='module')
def teacher(root):
    assert train(root, 'teacher', *KFOLD) == 0
    return root / 'teacher'


@pytest.fixture(scope='module')
def labels(root, teacher):
    """The labels of both folds, at most six of a class."""
    assert pseudo(teacher, root / 'more', root / 'labels.csv', '--threshold=0.4',
                  '--per-class=6') == 0
    return root / 'labels.csv'


@pytest.fixture(scope='module')
def student(root, labels):
    """Two folds that learnt from them."""
    assert train(root, 'student', *KFOLD, f'--config.data.extra.file={labels}', START) == 0
    return root / 'student'


def train(root, name, *flags):
    given = {flag.partition('=')[0]: flag for flag in (*TRAIN, *flags)}  # the last one counts
    return main.main([*given.values(), '--config.data.source=folder',
                      f'--config.data.folder={root}/train', f'--workdir={root / name}'])


def pseudo(members, images, out, *flags):
    return main.main(['pseudo', f'--members={members}', f'--images={images}', f'--out={out}',
                      *flags])


def refused(capsys, code) -> str:
    assert code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def rows_of(path):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def held_out(workdir, *sides):
    return {row['id'] for row in rows_of(workdir / 'split.csv') if row['split'] in sides}


def test_each_fold_labels_with_its_own_model(teacher, labels):
    rows = rows_of(labels)
    assert list(rows[0]) == ['id', 'image', 'fold', 'label', 'confidence', 'soft']
    assert {row['fold'] for row in rows} == {'0', '1'}
    assert not {'known.png', 'twin.png', 'broken.png'} & {row['id'] for row in rows}
    right = [row['label'] == NAMES[(100 + int(row['id'][:2])) % 3] for row in rows]
    assert np.mean(right) > 0.8
    counts = Counter((row['fold'], row['label']) for row in rows)
    assert max(counts.values()) == 6  # of the eight that there are
    assert min(float(row['confidence']) for row in rows) >= 0.4
    # The most confident ones of each class, as that fold's model alone is.
    for fold in '01':
        stored = next((teacher / f'fold_{fold}/predictions').glob('pseudo-*/identity'))
        logits = np.load(stored / 'logits.npy').astype(float)
        answers = dict(zip(np.load(stored / 'ids.npy').tolist(), logits.argmax(1)))
        classes = pseudo_file.read(labels).classes['class']
        assert all(classes[answers[row['id']]] == row['label']
                   for row in rows if row['fold'] == fold)
        soft = pseudo_file.soft_row(rows[0]['soft'], 3)
        assert soft.argmax() == classes.index(rows[0]['label'])


def test_the_file_says_where_its_labels_are_from(root, teacher, labels):
    found = pseudo_file.read(labels)
    about = found.about
    assert (about['format'], about['round'], about['earlier']) == (1, 1, [])
    assert about['left_out'] == dict(unreadable=1, own=1, copies=1) and about['pictures'] == 24
    assert about['rule'] == 'soft' and about['labels'] == 'soft'
    assert about['selection'] == dict(threshold=0.4, thresholds={}, quantile=0, per_class=6)
    assert {fold: set(heads) for fold, heads in about['temperatures'].items()} == {
        '0': {'class'}, '1': {'class'}}
    for member in about['members']:
        fold = teacher / f'fold_{member["fold"]}'
        assert member['workdir'] == str(fold)
        assert member['checkpoint'] == json.loads(
            (fold / 'result.json').read_text())['checkpoint']
        assert set(found.seen[member['fold']]) == held_out(fold, 'train')
    counts = about['counts']['0']['class']
    assert sum(counts) == sum(row['fold'] == '0' for row in rows_of(labels))


def test_the_temperature_of_a_fold_is_fitted_on_the_other_folds(root, teacher, labels):
    """Labels of rows that a fold is scored on do not even set its temperature."""
    copy = root / 'teacher_with_other_answers'
    shutil.copytree(teacher, copy)
    path = copy / 'fold_0/predictions/val.npz'
    with np.load(path) as content:
        changed = dict(content) | {'logits': content['logits'][::-1]}
    np.savez(path, **changed)
    assert pseudo(copy, root / 'more', root / 'again.csv') == 0
    old, new = (pseudo_file.read(file).about['temperatures']
                for file in (labels, root / 'again.csv'))
    assert old['0'] == new['0'] and old['1'] != new['1']


def test_extra_rows_train_and_are_never_scored(student, labels):
    result = json.loads((student / 'result.json').read_text())
    assert result['out_of_fold']['n'] == 48
    for number, fold in enumerate(result['folds']):
        taught = fold['taught']['extra']
        assert taught['fold'] == str(number) and taught['round'] == 1
        assert taught['digest'] == pseudo_file.read(labels).digest
        assert taught['rows'] == sum(row['fold'] == str(number) for row in rows_of(labels))
        assert fold['val']['n'] == 24 and fold['test']['n'] == 12
        assert fold['seen'] == dict(train=24, val=0, test=0)
        assert [run['workdir'] for run in fold['ancestors']] == [
            str(student.parent / f'teacher/fold_{number}')]
        ids = set(np.load(student / f'fold_{number}/predictions/val.npz')['ids'].tolist())
        assert ids == held_out(student / f'fold_{number}', 'val')


def data_of(root, *flags):
    """(config, what a run would train on)"""
    given = {flag.partition('=')[0]: flag for flag in (*TRAIN, *flags)}
    config = parse([*given.values(), '--config.data.source=folder',
                    f'--config.data.folder={root}/train', '--config.split.kind=kfold',
                    '--config.split.folds=2', '--config.split.fold=0']).config
    return config, split_data(config, load_data(config))


def test_class_counts_and_epochs_are_those_of_the_labelled_rows(root, labels, tmp_path):
    config, data = data_of(root, f'--config.data.extra.file={labels}',
                           '--config.loss.name=logit_adjustment')
    job = assemble(config, data, make_mesh(config.mesh), None, tmp_path, abstract=True)
    job.iterator.close()
    assert job.run.scoring.losses['class'].counts == (8, 8, 8)
    assert job.run.timing.examples_per_epoch == 24 and len(data.taught.extra.manifest) > 10


def test_copies_of_pictures_that_the_run_scores_are_left_out(root, labels, tmp_path, caplog):
    """Pictures that somebody labelled since, under other names: no member knew them."""
    shutil.copytree(root / 'train', tmp_path / 'train')
    for k in range(24):
        shutil.copy(root / f'more/{k:02}.png',
                    tmp_path / 'train' / NAMES[(100 + k) % 3] / f'new_{k:02}.png')
    flags = [f'--config.data.extra.file={labels}', '--config.init.seen=accept']
    _, data = data_of(tmp_path, *flags)
    table = data.manifest.table
    held = {name[-6:] for name in table['id'][table['split'] != 'train'] if 'new_' in name}
    shown = {row['id'] for row in rows_of(labels) if row['fold'] == '0'}
    assert shown & held and shown - held
    assert set(data.taught.extra.manifest.table['id']) == shown - held
    assert data.taught.facts['extra']['copies'] == len(shown & held)
    assert 'of validation or test pictures: left out' in caplog.text
    _, plain = data_of(root, *flags)
    assert plain.taught.facts['extra']['copies'] == 0


def test_a_second_round_knows_the_first(root, teacher, labels, student, capsys):
    out = root / 'second.csv'
    assert pseudo(student, root / 'more', out, '--labels=hard') == 0
    second, first = pseudo_file.read(out), pseudo_file.read(labels)
    assert second.about['round'] == 2 and second.about['earlier'] == [first.digest]
    assert 'soft' not in second.columns
    # What the teachers of the first round trained on counts as seen in the second.
    for fold in '01':
        assert set(second.seen[fold]) == set(first.seen[fold])
        assert {run['workdir'] for run in second.about['ancestors'] if run['fold'] == fold} == {
            str(teacher / f'fold_{fold}')}
    assert train(root, 'third', *KFOLD[:2], '--config.split.fold=0',
                 f'--config.data.extra.file={out}', '--config.duration.steps=3') == 0
    runs = ancestry_of(root / 'third').runs
    assert [run['workdir'] for run in runs] == [str(student / 'fold_0'), str(teacher / 'fold_0')]


def test_what_a_teacher_of_an_earlier_round_saw_is_refused_later(root, teacher, student, capsys):
    """A student whose teacher saw the rows of fold 1 may not label for a run that scores them, even
    if the student itself did not train on them."""
    other = root / 'laundered'
    shutil.copytree(student, other)
    for fold in '01':  # as if the student had trained on nothing but extra rows
        path = other / f'fold_{fold}/split.csv'
        path.write_text(path.read_text().replace('"train"', '"val"'))
    assert pseudo(other / 'fold_0', root / 'more', root / 'laundered.csv') == 0
    words = refused(capsys, train(root, 'never', '--config.split.val=0.4',
                                  f'--config.data.extra.file={root}/laundered.csv'))
    assert 'who made its labels trained on' in words and not (root / 'never').exists()


def test_labels_of_all_folds_are_for_rows_that_none_saw(root, teacher, capfd):
    out = root / 'all.csv'
    assert pseudo(teacher, root / 'more', out, '--folds=all') == 0
    assert {row['fold'] for row in rows_of(out)} == {''}
    words = refused(capfd, train(root, 'leaks', *KFOLD, f'--config.data.extra.file={out}'))
    assert 'trained on 24 of the 24 val rows of this run' in words
    assert '--config.init.seen=accept' in words and not (root / 'leaks').exists()
    # The test rows of the teacher were held out by both folds.
    table = teacher / 'fold_0/split.csv'
    given = root / 'given.csv'
    given.write_text(table.read_text().replace('"val"', '"train"'))
    settings = ['--config.split.kind=given', f'--config.split.file={given}', '--config.split.val=0',
                f'--config.data.extra.file={out}']
    assert train(root, 'final', *settings) == 0
    result = json.loads((root / 'final/result.json').read_text())
    assert result['seen'] == dict(train=48, val=0, test=0)
    # It has no validation rows, on which its confidence could be calibrated.
    capfd.readouterr()
    assert pseudo(root / 'final', root / 'more', root / 'uncalibrated.csv') == 0
    assert 'the confidence is not calibrated' in capfd.readouterr().err
    about = pseudo_file.read(root / 'uncalibrated.csv').about
    assert about['temperatures'] == {'': {'class': None}} and about['round'] == 2


def test_what_is_accepted_is_marked(root, labels, capsys):
    words = refused(capsys, train(root, 'cut', *KFOLD, '--config.split.seed=7',
                                  f'--config.data.extra.file={labels}'))
    assert 'keep the split of those runs, fold by fold' in words
    assert train(root, 'cut', *KFOLD[:2], '--config.split.fold=1', '--config.split.seed=7',
                 '--config.init.seen=accept', f'--config.data.extra.file={labels}',
                 '--config.duration.steps=2') == 0
    result = json.loads((root / 'cut/result.json').read_text())
    assert result['seen']['val'] > 0 and result['seen_accepted']
    assert 'trained on by an ancestor' in (root / 'cut/report.html').read_text()


def test_a_vote_names_those_who_voted(root, teacher):
    assert main.main(['vote', f'--config=configs/vote/digits.py:members={teacher}',
                      '--config.bootstrap=10', f'--workdir={root}/vote']) == 0
    assert pseudo(root / 'vote', root / 'more', root / 'of_vote.csv') == 0
    assert pseudo_file.read(root / 'of_vote.csv').folds == ['0', '1']


def test_archives_and_tables_hold_pictures_too(root, teacher):
    with zipfile.ZipFile(root / 'more.zip', 'w') as archive:
        for k in range(4):
            archive.write(root / f'more/{k:02}.png', f'in/{k}.png')
    with open(root / 'more.csv', 'w') as file:
        file.write('image\n' + ''.join(f'more/{k:02}.png\n' for k in range(4)))
    for images in ('more.zip', 'more.csv'):
        out = root / f'of_{images[-3:]}.csv'
        assert pseudo(teacher, root / images, out) == 0
        assert len(rows_of(out)) == 8
        extra = data_of(root, f'--config.data.extra.file={out}',
                        '--config.data.extra.share=0.5')[1].taught.extra
        read = sources.reader(extra.manifest)
        shades = [read(place).mean() for place in extra.manifest.table['location']]
        np.testing.assert_allclose(shades, [SHADE[NAMES[(100 + k) % 3]] for k in range(4)], atol=9)
        assert extra.share == Fraction(1, 2)


def test_labels_that_changed_are_refused_when_the_run_goes_on(root, teacher, student, labels,
                                                              capsys):
    other = root / 'other.csv'
    assert pseudo(teacher, root / 'more', other, '--threshold=0.1') == 0
    words = refused(capsys, train(root, 'student', *KFOLD, START,
                                  f'--config.data.extra.file={other}'))
    assert 'config.data.extra.file' in words and 'give a new --workdir' in words
    kept = labels.with_suffix('.kept'), labels.with_suffix('.json').with_suffix('.kept_json'), \
        labels.with_suffix('.kept_rows')
    places = labels, labels.with_suffix('.json'), labels.with_suffix('.rows.csv')
    others = other, other.with_suffix('.json'), other.with_suffix('.rows.csv')
    for place, keep, new in zip(places, kept, others):
        shutil.move(place, keep)
        shutil.copy(new, place)
    try:  # the same name, other labels
        words = refused(capsys, train(root, 'student', *KFOLD, START,
                                      f'--config.data.extra.file={labels}'))
    finally:
        for place, keep in zip(places, kept):
            shutil.move(keep, place)
    assert 'was started with other labels than config.data.extra.file has today' in words


@pytest.mark.parametrize(('flags', 'words'), [
    (['--labels=sift'], "--labels='sift': did you mean soft"),
    (['--folds=every'], "--folds='every'"),
    (['--threshold=2'], "--threshold='2'"),
    (['--threshold=0.5,dork=0.9'], "names 'dork', which is not a class: did you mean 'dark'"),
    (['--config.rule=hard'], 'no probabilities'),
    (['--config.rule=("soft","rank_mean")'], 'no probabilities'),
    (['--config.weights=fit'], 'config.weights is set'),
    (['--config.views=hflop'], "config.views: there is no view 'hflop'"),
    (['--out=OUT/labels.txt'], 'is not a .csv file'),
    (['--members=OUT/nobody'], '--members'),
    (['--members=OUT/teacher/fold_0,OUT/teacher/fold_1', '--folds=each'], 'needs k-fold runs'),
    (['--images=OUT/nothing'], '--images'),
    (['--workdir=OUT/w'], 'writes one file')])
def test_mistakes_are_one_sentence(root, teacher, capsys, flags, words):
    given = {'members': f'--members={teacher}', 'images': f'--images={root}/more',
             'out': f'--out={root}/mistake.csv'}
    for flag in flags:
        name = flag.partition('=')[0].lstrip('-')
        given[name] = flag.replace('OUT', str(root))
    assert words in refused(capsys, main.main(['pseudo', *given.values()]))
    assert not (root / 'mistake.csv').exists()


def test_flags_that_are_missing_and_files_that_are_there(root, teacher, labels, capsys):
    assert '--images is missing' in refused(capsys, main.main(
        ['pseudo', f'--members={teacher}', '--out=x.csv']))
    assert 'is there already' in refused(capsys, pseudo(teacher, root / 'more', labels))


@pytest.mark.parametrize(('flags', 'words'), [
    (['--config.data.extra.weight=0'], 'config.data.extra.weight = 0'),
    (['--config.data.extra.share=1.0'], 'config.data.extra.share = 1'),
    (['--config.data.extra.file=nowhere.csv'], 'there is no such file'),
    (['--config.split.kind=holdout'], 'this run has no folds'),
    (['--config.split.folds=3'], 'trained on'),
    (['--config.data.classes=("dark","grey")', '--config.data.extra.file=LABELS'], 'class'),
    (['--config.probe.heads=[dict(name="one")]'], 'config.probe.heads'),
    (['--config.data.extra.file=', '--config.data.extra.share=0.5'],
     'needs config.data.extra.file'),
])
def test_starts_that_are_refused(root, labels, capsys, flags, words):
    settings = [*KFOLD, f'--config.data.extra.file={labels}',
                *(flag.replace('LABELS', str(labels)) for flag in flags)]
    assert words in refused(capsys, train(root, 'refused', *settings))
    assert not (root / 'refused').exists()
