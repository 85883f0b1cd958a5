"""The verb submit: from runs, a sample and pictures to submission.csv, and what is refused."""

import csv
import json
import os
import shutil
import signal
import zipfile

import cv2
import numpy as np
import pytest

import main
from train_lib.ensembles import wanted_pictures
from train_lib.training import inference

CLASSES = ('dark', 'bright', 'grey')  # not in the order of their names
SHADE = dict(dark=20, bright=230, grey=125)
TRAIN = ['--config=configs/sketch_cnn.py', '--config.image.size=8', '--config.curriculum=()',
         '--config.model=dict(name="small_cnn", width=8, stages=2)', '--config.batch_size=16',
         '--config.log.tensorboard=false', '--config.report.heat_maps=false',
         '--config.report.errors=0', '--config.duration.steps=30',
         '--config.schedule.lr=0.01', '--config.data.source=folder',
         f'--config.data.classes={",".join(CLASSES)}']


def picture(name, seed):
    noise = np.random.default_rng(seed).integers(-15, 15, (12, 12, 3))
    return np.clip(SHADE[name] + noise, 0, 255).astype(np.uint8)


def truth(number):
    return CLASSES[number * 7 % 3]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A 2-fold run `a` and a single run `b`."""
    root = tmp_path_factory.mktemp('submit')
    for name in CLASSES:
        (root / 'train' / name).mkdir(parents=True)
        for k in range(20):
            cv2.imwrite(str(root / f'train/{name}/{k}.png'), picture(name, k))
    data = f'--config.data.folder={root}/train'
    assert main.main([*TRAIN, data, f'--workdir={root}/runs/a', '--config.split.kind=kfold',
                      '--config.split.folds=2', '--config.split.fold=all']) == 0
    assert main.main([*TRAIN, data, f'--workdir={root}/runs/b', '--config.seed=1']) == 0
    return root / 'runs'


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / 'test'
    folder.mkdir()
    for k in range(9):
        cv2.imwrite(str(folder / f'{k:03}.png'), picture(truth(k), 100 + k))
    return folder


def sample_of(path, rows, header=('ID', 'target')):
    with open(path, 'w', newline='', encoding='utf-8') as file:
        csv.writer(file, lineterminator='\n').writerows([header, *rows])
    return path


def submit(runs, sample, pictures, out, *flags):
    return main.main(['submit', f'--workdirs={runs}', f'--sample={sample}', f'--images={pictures}',
                      f'--out={out}', *flags])


def rows_of(path, delimiter=','):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def refused(capsys, *arguments) -> str:
    assert submit(*arguments) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_names_in_the_order_and_columns_of_the_sample(runs, pictures, tmp_path, capsys):
    order = [5, 1, 8, 0, 2, 3, 7, 6, 4]
    sample = sample_of(tmp_path / 's.csv', [
        (f'{k:03}', f'test/{k:03}.png', 'grey') for k in order], ('ID', 'image_path', 'target'))
    assert submit(f'{runs}/*', sample, pictures, tmp_path / 'out') == 0
    found = rows_of(tmp_path / 'out/submission.csv')
    assert [(row['ID'], row['image_path'], row['target']) for row in found] == [
        (f'{k:03}', f'test/{k:03}.png', truth(k)) for k in order]
    said = capsys.readouterr().err.splitlines()
    assert said[-2:] == ['answers  9 rows; columns ID, image_path, target',
                         f'submission  {tmp_path}/out/submission.csv']
    assert "ids      column image_path, by path without 'test/'" in said
    assert 'column   target: class names' in said
    vote = json.loads((tmp_path / 'out/vote.json').read_text())
    assert {member['name'] for member in vote['members']} == {'a/fold_0', 'a/fold_1', 'b'}
    assert 'vote     soft within a run, then soft between runs' in said
    assert (tmp_path / 'out/report.html').exists()


def test_predictions_are_made_again_only_if_pictures_changed(runs, pictures, tmp_path, monkeypatch):
    sample = sample_of(tmp_path / 's.csv', [(k, 0) for k in range(9)])
    assert submit(runs / 'b', sample, pictures, tmp_path / 'one') == 0

    def never(*_):
        raise AssertionError('predicted again')

    with monkeypatch.context() as patch:
        patch.setattr(inference, '_write_view', never)
        assert submit(runs / 'b', sample, pictures, tmp_path / 'two') == 0
    for name in ('submission.csv', 'predictions.npz'):
        assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'two' / name).read_bytes()
    first = rows_of(tmp_path / 'one/submission.csv')
    assert [row['target'] for row in first] == [str(CLASSES.index(truth(k))) for k in range(9)]
    other = next(name for name in CLASSES if name != truth(0))
    cv2.imwrite(str(pictures / '000.png'), picture(other, 7))
    assert submit(runs / 'b', sample, pictures, tmp_path / 'one') == 0
    second = rows_of(tmp_path / 'one/submission.csv')
    assert second[0]['target'] == str(CLASSES.index(other)) and second[1:] == first[1:]


def test_told_to_stop_it_goes_on(runs, pictures, tmp_path, monkeypatch, capsys):
    sample = sample_of(tmp_path / 's.csv', [(f'{k:03}.png', 'grey') for k in range(9)])
    cv2.imwrite(str(pictures / '000.png'), picture(truth(0), 9))  # nobody has predicted this one
    logits_of = inference.logits_of

    def stopped(*given):
        for batch in logits_of(*given):
            os.kill(os.getpid(), signal.SIGTERM)  # in the first fold
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(inference, 'logits_of', stopped)
        assert submit(runs / 'a', sample, pictures, tmp_path / 'out') == 75
    assert not (tmp_path / 'out/submission.csv').exists()
    assert f'--out={tmp_path}/out continues' in capsys.readouterr().err
    assert submit(runs / 'a', sample, pictures, tmp_path / 'out') == 0
    said = capsys.readouterr().err
    assert said.count('reused ') == said.count('predict  ') == 1
    assert [row['target'] for row in rows_of(tmp_path / 'out/submission.csv')] == list(
        map(truth, range(9)))


def test_probabilities_per_class_and_views(runs, pictures, tmp_path):
    sample = tmp_path / 's.tsv'
    sample.write_bytes('\ufeffgrey\tname\tbright\tdark\r\n'.encode() + ''.join(
        f'0\t{k:03}.png\t0\t0\r\n' for k in reversed(range(9))).encode())
    assert submit(f'{runs}/a,{runs}/b', sample, pictures, tmp_path / 'out',
                  '--config.views=identity,hflip', '--config.rule=soft') == 0
    text = (tmp_path / 'out/submission.csv').read_bytes().decode()
    assert text.startswith('grey\tname\tbright\tdark\r\n008.png'[:24]) and text.count('\r\n') == 10
    found = rows_of(tmp_path / 'out/submission.csv', '\t')
    assert [row['name'] for row in found] == [f'{k:03}.png' for k in reversed(range(9))]
    values = np.array([[float(row[name]) for name in CLASSES] for row in found])
    np.testing.assert_allclose(values.sum(1), 1, atol=1e-7)
    assert [CLASSES[k] for k in values.argmax(1)] == [truth(k) for k in reversed(range(9))]
    # The mean over folds, views and runs of what the store holds.
    logits = [np.load(path) for path in sorted(runs.glob('*/predictions/submit-*/*/logits.npy'))
              + sorted(runs.glob('a/fold_*/predictions/submit-*/*/logits.npy'))
              if path.parent.parent.joinpath('hflip').exists()]
    assert len(logits) == 6
    exp = np.exp(np.float64(logits))
    mean = (exp / exp.sum(2, keepdims=True)).mean(0)
    np.testing.assert_allclose(values, mean, atol=2e-3)


def test_without_the_training_pictures_the_temperature_may_be_left_out(runs, pictures, tmp_path,
                                                                       capsys):
    shutil.copytree(runs / 'b', tmp_path / 'runs/b')
    config = json.loads((tmp_path / 'runs/b/config.json').read_text())
    config['data']['folder'] = str(tmp_path / 'elsewhere')
    del config['sha256']
    (tmp_path / 'runs/b/config.json').write_text(json.dumps(config))
    sample = sample_of(tmp_path / 's.csv', [(f'{k:03}.png', 0, 0, 0) for k in range(9)],
                       ('ID', *CLASSES))
    given = (tmp_path / 'runs/b', sample, pictures, tmp_path / 'out', '--config.views=vflip')
    sentence = refused(capsys, *given)
    assert 'elsewhere' in sentence and sentence.endswith('by --config.temperature=False.')
    assert submit(*given, '--config.temperature=False') == 0


def test_shares_of_votes_are_called_so(runs, pictures, tmp_path, capsys):
    sample = sample_of(tmp_path / 's.csv', [(f'{k:03}.png', 0, 0, 0) for k in range(9)],
                       ('ID', *CLASSES))
    assert submit(runs / 'a', sample, pictures, tmp_path / 'out', '--config.rule=hard') == 0
    assert 'config.rule=hard: the columns hold shares' in capsys.readouterr().err
    assert {row[name] for row in rows_of(tmp_path / 'out/submission.csv') for name in CLASSES} <= {
        '0', '0.5', '1'}


def test_an_archive_and_a_larger_folder(runs, pictures, tmp_path, capsys):
    shutil.copytree(pictures, tmp_path / 'all/part/test')
    cv2.imwrite(str(tmp_path / 'all/more.png'), picture('dark', 0))
    with zipfile.ZipFile(tmp_path / 'all.zip', 'w') as archive:
        for path in sorted((tmp_path / 'all').rglob('*.png')):
            archive.write(path, path.relative_to(tmp_path))
    sample = sample_of(tmp_path / 's.csv', [(f'{k:03}.png', '') for k in range(9)])
    sentence = refused(capsys, runs / 'b', sample, tmp_path / 'all.zip', tmp_path / 'out')
    assert "1 of 10 pictures that the sample" in sentence and "('all/more.png')" in sentence
    assert '--config.extra=ignore' in sentence and not (tmp_path / 'out').exists()
    for place in ('all.zip', 'all.zip/all', 'all'):
        out = tmp_path / f'out-{place.replace("/", "-")}'
        assert submit(runs / 'b', sample, tmp_path / place, out, '--config.extra=ignore') == 0
        assert [row['target'] for row in rows_of(out / 'submission.csv')] == list(
            map(truth, range(9)))
    assert 'images   left out 1 of 10 pictures' in capsys.readouterr().err


def test_a_packed_folder(runs, pictures, tmp_path):
    (tmp_path / 'data').mkdir()
    pictures.rename(tmp_path / 'data/x')
    assert main.main(['pack', '--config=configs/sketch_cnn.py:folder=' + str(tmp_path / 'data'),
                      f'--config.pack.folder={tmp_path}/packed']) == 0
    sample = sample_of(tmp_path / 's.csv', [(f'{k:03}', 'grey') for k in range(9)])
    assert submit(runs / 'b', sample, tmp_path / 'packed', tmp_path / 'out') == 0
    assert [row['target'] for row in rows_of(tmp_path / 'out/submission.csv')] == list(
        map(truth, range(9)))


def test_ids_that_do_not_fit(runs, pictures, tmp_path, capsys):
    rows = [(f'{k:03}', 0) for k in range(9)]

    def sentence(rows, *flags):
        sample = sample_of(tmp_path / 's.csv', rows)
        found = refused(capsys, runs / 'b', sample, pictures, tmp_path / 'out', *flags)
        assert not (tmp_path / 'out').exists()
        return found

    assert ("asks for 6 of 15 pictures that are not there ('900', '901', '902', '903', '904', "
            "...") in sentence(rows + [(900 + k, 0) for k in range(6)])
    assert "2 rows whose id another row has ('000', '001')" in sentence(rows + rows[:2])
    assert "('008.png')" in sentence(rows[:-1])
    assert "called '000.png'" in sentence([('x', 0), ('y', 0)])
    assert 'is a file' in refused(capsys, runs / 'b', tmp_path / 's.csv', tmp_path / 's.csv',
                                  tmp_path / 'out')
    (pictures / '003.png').write_bytes(b'no picture')
    assert "1 of 9 pictures" in sentence(rows) and "'003.png' is" in sentence(rows)
    cv2.imwrite(str(pictures / '003.jpg'), picture('dark', 0))
    assert "fit several pictures by path without its extension ('003')" in sentence(rows)


def test_classes_that_do_not_fit(runs, pictures, tmp_path, capsys):
    sample = sample_of(tmp_path / 's.csv', [(f'{k:03}', 'pink') for k in range(9)])
    assert "classes that the models lack ('pink')" in refused(
        capsys, runs / 'b', sample, pictures, tmp_path / 'out')
    shutil.copytree(runs / 'b', tmp_path / 'runs/c')
    config = json.loads((tmp_path / 'runs/c/config.json').read_text())
    config['classes']['class'][1] = 'pink'
    del config['sha256']
    (tmp_path / 'runs/c/config.json').write_text(json.dumps(config))
    sentence = refused(capsys, f'{runs}/b,{tmp_path}/runs/c', sample, pictures, tmp_path / 'out')
    assert "it lacks 1 classes ('bright') and adds 1 classes ('pink')" in sentence


def test_runs_that_do_not_fit(runs, pictures, tmp_path, capsys):
    sample = sample_of(tmp_path / 's.csv', [(f'{k:03}', 'grey') for k in range(9)])

    def sentence(workdirs):
        return refused(capsys, workdirs, sample, pictures, tmp_path / 'out')

    assert f"has no 'bb'; did you mean '{runs}/b'?" in sentence(runs / 'bb')
    assert f"the runs in '{runs}' are a, b" in sentence(runs / 'bb')
    assert 'are a, b' in sentence(f'{runs}/x*')
    assert 'did you mean' in sentence(f'{runs}s/x*') and 'no run' in sentence(f'{runs}s/x*')
    assert 'but holds a, b' in sentence(runs)
    shutil.copytree(runs / 'b', tmp_path / 'runs/open')
    (tmp_path / 'runs/open/result.json').unlink()
    assert 'runs/open has no result.json' in sentence(f'{runs}/*,{tmp_path}/runs/*')
    shutil.copytree(runs / 'a', tmp_path / 'runs/folds')
    shutil.rmtree(tmp_path / 'runs/folds/fold_1')
    assert 'runs/folds has 1 of 2 folds' in sentence(f'{tmp_path}/runs/folds')
    assert submit(f'{tmp_path}/runs/folds/fold_0', sample, pictures, tmp_path / 'out') == 0


@pytest.mark.parametrize('argv, words', [
    (['--sample=s.csv', '--images=x'], '--workdirs is missing'),
    (['--workdirs=a', '--images=x'], '--sample is missing'),
    (['--workdirs=a', '--sample=s.csv'], '--images is missing'),
    (['--workdirs=a', '--sample=s', '--images=x', '--out=o', '--workdir=o'], 'give one'),
    (['--workdirs=a', '--sample=s', '--images=x', '--config.members=b'], 'takes --workdirs'),
    (['--workdirs=a', '--sample=s', '--images=x', '--config.views=flip'], "'flip'"),
    (['--workdirs=a', '--sample=s', '--images=x', '--config=configs/sketch_cnn.py'], 'of a vote'),
    (['--workdirs=a', '--sample=s', '--images=x', '--config.rule=soft,hrad'], "'hrad'"),
    (['--workdirs=a', '--sample=s', '--images=x', '--config.columns=a,b'], 'of the sample'),
])
def test_flags_that_are_refused(capsys, argv, words):
    assert main.main(['submit', *argv]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_sample_is_read_before_anything_slow(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(wanted_pictures, 'check_files', None)
    sentence = refused(capsys, runs / 'b', tmp_path / 'none.csv', tmp_path, tmp_path / 'out')
    assert 'none.csv' in sentence and 'cannot be opened' in sentence
