"""The verb predict, through main.py: the logits that training wrote, whatever happens between."""

import json
import os
import shutil
import signal

import cv2
import numpy as np
import pytest

import main
from input_pipeline import loader
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.sources import digits, folder
from train_lib.predictions import members, store
from train_lib.predictions.views import make_views
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.signals import AT_ONCE
from train_lib.training import inference

# Frozen weights, averaged ones, and logits adjusted afterwards: what training does to them too.
TRAIN = ['--config=configs/sketch_vit.py:data=digits', '--config.image.size=16',
         '--config.model=dict(name="small_cnn", width=8, stages=2)', '--config.curriculum=()',
         '--config.log.tensorboard=false', '--config.batch_size=64', '--config.schedule.lr=0.02',
         '--config.finetune.table=[("conv1/.*", dict(train=False)), (".*", dict(lr=2.0))]',
         '--config.ema.decay=0.7', '--config.eval.adjust_tau=0.5']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'run'
    assert main.main([*TRAIN, '--config.duration.steps=20', f'--workdir={workdir}']) == 0
    shutil.copytree(workdir / 'predictions', workdir / 'of_training')
    return workdir


def predict(workdir, *argv):
    return main.main(['predict', f'--workdir={workdir}', *argv])


def refused(capsys, workdir, *argv) -> str:
    assert predict(workdir, *argv) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def trained(workdir, name):
    with np.load(workdir / f'of_training/{name}.npz', allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@pytest.mark.parametrize('dtype, tolerance', [('float16', 2**-11), ('float32', 1e-5)])
def test_predict_gives_what_training_wrote(run, dtype, tolerance):
    for split in ('val', 'test'):
        assert predict(run, f'--config.predict.source={split}',
                       f'--config.predict.dtype={dtype}') == 0
        wanted = trained(run, split)
        member, = members.find_members([run], split)
        assert member.logits['class'].dtype == dtype
        assert member.ids.tolist() == wanted['ids'].tolist()
        assert member.classes['class'] == tuple(wanted['classes'])
        np.testing.assert_array_equal(member.labels['class'], wanted['labels'])
        np.testing.assert_allclose(member.logits['class'], wanted['logits'], rtol=tolerance,
                                   atol=1e-4 if dtype == 'float16' else 1e-5)
        assert np.ptp(wanted['logits']) > 1
        members.refuse_leakage([member], member.ids)
        with np.load(run / f'predictions/{split}.npz', allow_pickle=False) as file:
            np.testing.assert_array_equal(file['logits'], member.logits['class'])


def test_a_view_is_what_predicting_such_pictures_gives(run, tmp_path):
    assert predict(run, '--config.predict.views=hflip,identity',
                   '--config.predict.dtype=float32') == 0
    flipped, plain = members.find_members([run], 'test')
    assert (flipped.name, plain.name) == ('run:hflip', 'run')
    manifest = digits.load()
    rows = manifest.table['id'].isin(flipped.ids).to_numpy()
    pictures = loader.Pictures(manifest.select(rows), PreprocessSpec(size=16))
    (tmp_path / 'deep/er').mkdir(parents=True)
    for row in range(20):
        cv2.imwrite(str(tmp_path / ('deep/er' if row % 2 else '') / f'{row:02}.png'),
                    pictures[row][:, ::-1, ::-1])  # BGR
    assert predict(run, '--config.predict.source=data', '--config.predict.name=mirrored',
                   '--config.predict.labelled=false', '--config.predict.dtype=float32',
                   '--config.data.source=folder', f'--config.data.folder={tmp_path}') == 0
    mirrored, = members.find_members([run], 'mirrored')
    assert set(mirrored.labels['class']) == {-1} and len(mirrored) == 20
    order = np.argsort([os.path.basename(name) for name in mirrored.ids])
    np.testing.assert_allclose(mirrored.logits['class'][order], flipped.logits['class'][:20],
                               rtol=1e-4, atol=1e-4)
    assert np.abs(plain.logits['class'] - flipped.logits['class']).max() > 0.1
    # Together they are the mean of their probabilities.
    exp = [np.exp(np.float64(member.logits['class'])) for member in (flipped, plain)]
    mean = np.log(sum(one / one.sum(1, keepdims=True) for one in exp) / 2)
    with np.load(run / 'predictions/test.npz', allow_pickle=False) as file:
        np.testing.assert_allclose(file['logits'], mean, rtol=1e-5, atol=1e-5)


def test_other_data_are_joined_by_the_names_of_the_classes(run, tmp_path, capsys):
    for name in ('7', '3'):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / 'a.png'), np.full((16, 16, 3), 99, np.uint8))
    other = ['--config.predict.source=data', f'--config=configs/sketch_vit.py:folder={tmp_path}']
    assert predict(run, *other) == 0
    member, = members.find_members([run], 'data')
    assert dict(zip(member.ids, member.labels['class'])) == {'3/a.png': 3, '7/a.png': 7}
    (tmp_path / '3').rename(tmp_path / 'three')
    assert "the class 'three', which the run does not know (it knows 10" in refused(
        capsys, run, *other)
    cv2.imwrite(str(tmp_path / 'b.png'), np.full((16, 16, 3), 99, np.uint8))
    assert 'predict.labelled=False' in refused(capsys, run, *other)
    (tmp_path / 'test.csv').write_text('ID,image_path\n5,b.png\n')
    assert predict(run, '--config.predict.source=data', '--config.predict.labelled=false',
                   f'--config=configs/sketch_vit.py:csv={tmp_path / "test.csv"}') == 0
    member, = members.find_members([run], 'data')
    assert member.ids.tolist() == ['5'] and member.labels['class'].tolist() == [-1]


def test_what_was_decided_about_the_rows_of_a_run_is_not_about_other_pictures(tmp_path):
    """Decisions and group_regex of the training data would refuse any other pictures."""
    for k in range(24):
        path = tmp_path / f'mine/{"ab"[k % 2]}/w{k % 5}_{k}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((16, 16, 3), 9 * k, np.uint8))
    (tmp_path / 'decisions.csv').write_text('id,action\na/w0_0.png,drop\n')
    (tmp_path / 'others').mkdir()
    cv2.imwrite(str(tmp_path / 'others/x.png'), np.full((16, 16, 3), 50, np.uint8))
    argv = [f'--config=configs/sketch_vit.py:folder={tmp_path / "mine"}', *TRAIN[1:],
            '--config.data.group_regex=/(w.)_', f'--workdir={tmp_path / "run"}',
            f'--config.data.decisions=({str(tmp_path / "decisions.csv")!r},)',
            '--config.duration.steps=2']
    assert main.main([item.replace('batch_size=64', 'batch_size=8') for item in argv]) == 0
    other = ['--config.predict.source=data', '--config.predict.labelled=false',
             f'--config.data.folder={tmp_path / "others"}']
    assert predict(tmp_path / 'run', *other) == 0
    member, = members.find_members([tmp_path / 'run'], 'data')
    assert member.ids.tolist() == ['x.png']
    # What the user gives for them holds.
    assert predict(tmp_path / 'run', *other, '--config.data.group_regex=/(w.)_') == 2


def test_pictures_without_the_columns_of_the_training_are_called_test(tmp_path, capsys):
    """As in a competition: the run has no test rows, and theirs have no labels and no groups."""
    for k in range(24):
        cv2.imwrite(str(tmp_path / f'{k}.png'), np.full((16, 16, 3), 9 * k, np.uint8))
    (tmp_path / 'train.csv').write_text('file,kind,who,how\n' + ''.join(
        f'{k}.png,{"ab"[k % 2]},w{k % 6},1\n' for k in range(24)))
    (tmp_path / 'new.csv').write_text('file\n0.png\n3.png\n')
    run = tmp_path / 'run'
    argv = [f'--config=configs/sketch_vit.py:csv={tmp_path / "train.csv"}', *TRAIN[1:],
            '--config.data.columns=dict(image="file", labels="kind", group="who", weight="how")',
            '--config.split.test=0', f'--workdir={run}', '--config.duration.steps=2']
    assert main.main([item.replace('batch_size=64', 'batch_size=8') for item in argv]) == 0
    other = ['--config.predict.source=data', f'--config.data.csv={tmp_path / "new.csv"}']
    assert "has no column 'kind'" in refused(capsys, run, *other)
    other += ['--config.predict.labelled=false', '--config.predict.name=test']
    assert predict(run, *other) == 0
    assert 'new.csv has no column who (data.columns.group)' in capsys.readouterr().err
    member, = members.find_members([run], 'test')
    assert member.ids.tolist() == ['0.png', '3.png'] and set(member.labels['class']) == {-1}
    assert main.main(['report', f'--workdir={run}']) == 0
    other[-1] = '--config.predict.name=val'
    assert 'has rows of its own in that split' in refused(capsys, run, *other)


def test_what_fits_is_reused_and_what_does_not_is_made_anew(run, capsys):
    stored = run / 'predictions/test/vflip'
    argv = ['--config.predict.views=vflip']
    assert predict(run, *argv) == 0
    before = (stored / 'logits.npy').stat().st_mtime_ns
    assert predict(run, *argv, '--config.predict.batch_size=50') == 0
    assert 'reused' in capsys.readouterr().err
    assert (stored / 'logits.npy').stat().st_mtime_ns == before
    meta = json.loads((stored / 'meta.json').read_text())
    (stored / 'meta.json').write_text(json.dumps(meta | dict(digest='of another checkpoint')))
    assert predict(run, *argv) == 0
    assert (stored / 'logits.npy').stat().st_mtime_ns != before
    assert json.loads((stored / 'meta.json').read_text()) == meta
    data = bytearray((stored / 'logits.npy').read_bytes())
    data[-3] ^= 1
    (stored / 'logits.npy').write_bytes(data)
    assert predict(run, *argv) == 0  # what was damaged too
    assert json.loads((stored / 'meta.json').read_text()) == meta


@pytest.mark.parametrize('how', ['kill', 'SIGTERM'])
def test_a_broken_off_pass_goes_on_and_ends_with_the_same_bytes(run, monkeypatch, how):
    argv = ['--config.predict.views=both', '--config.predict.batch_size=32']
    stored = run / 'predictions/test/both'
    assert predict(run, *argv) == 0
    whole = {path.name: path.read_bytes() for path in stored.iterdir()}
    shutil.rmtree(stored)
    monkeypatch.setattr(inference, 'FLUSH_SECONDS', 0)
    seen = []

    def broken(*given):
        for number, (rows, logits) in enumerate(logits_of(*given)):
            if number == 4 and how == 'kill':
                raise KeyboardInterrupt  # no handler of ours sees it
            if number == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            yield rows, logits

    def counted(*given):
        for rows, logits in logits_of(*given):
            seen.extend(rows.tolist())
            yield rows, logits

    logits_of = inference.logits_of
    with monkeypatch.context() as patch:
        patch.setattr(inference, 'logits_of', broken)
        if how == 'kill':
            assert predict(run, *argv) == AT_ONCE
        else:
            assert predict(run, *argv) == 75
    assert not stored.exists()
    monkeypatch.setattr(inference, 'logits_of', counted)
    assert predict(run, *argv) == 0
    assert seen[0] in (128, 160) and seen == list(range(seen[0], 270))
    assert {path.name: path.read_bytes() for path in stored.iterdir()} == whole


def test_a_run_that_is_not_what_it_was_is_refused(run, tmp_path, capsys):
    copy = tmp_path / 'copy'
    shutil.copytree(run, copy)
    config = json.loads((copy / 'config.json').read_text())
    del config['sha256']
    (copy / 'config.json').write_text(json.dumps(config | dict(data_digest='0')))
    assert 'data have changed' in refused(capsys, copy)
    (copy / 'config.json').write_text(json.dumps(config))
    assert 'did you mean crops5' in refused(capsys, copy, '--config.predict.views=crop5')
    assert 'train, val, test' in refused(capsys, copy, '--config.predict.source=tset')
    for name, said in (('val', 'rows of its own'), ('a/b', 'plain name')):
        assert said in refused(capsys, copy, '--config.predict.source=data',
                               f'--config.predict.name={name}')
    part = max((copy / 'checkpoints').glob('*/state/**/*'), key=lambda path: path.stat().st_size)
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert predict(copy, '--config.predict.views=transpose') == 1
    assert 'damaged' in capsys.readouterr().err
    shutil.rmtree(copy / 'checkpoints')
    assert 'no checkpoints' in refused(capsys, copy)
    assert 'holds no run' in refused(capsys, tmp_path)
    assert main.main(['predict']) == 2 and '--workdir' in capsys.readouterr().err


def test_every_fold_and_their_out_of_fold_rows(tmp_path):
    workdir = tmp_path / 'folds'
    assert main.main([*TRAIN, '--config.duration.steps=3', '--config.split.kind=kfold',
                      '--config.split.folds=2', '--config.split.fold=all',
                      f'--workdir={workdir}']) == 0
    before, = members.find_members([workdir], 'out_of_fold')  # of what training wrote
    assert predict(workdir, '--config.predict.source=val') == 0
    assert predict(workdir) == 0
    member, = members.find_members([workdir], 'out_of_fold')
    assert isinstance(member.logits['class']._parts[0], np.memmap)
    rows, again = members.join([member, before])
    np.testing.assert_allclose(member.logits['class'][rows], before.logits['class'][again],
                               rtol=2**-11, atol=1e-4)
    with np.load(workdir / 'predictions/out_of_fold.npz', allow_pickle=False) as file:
        assert file['ids'].tolist() == member.ids.tolist()
        np.testing.assert_array_equal(file['logits'], member.logits['class'][:])
    tests = members.find_members([workdir], 'test')
    assert [one.name for one in tests] == ['folds/fold_0', 'folds/fold_1']
    members.join(tests)
    members.refuse_leakage([member], member.ids)
    members.refuse_leakage(tests, tests[0].ids)
    with pytest.raises(ConfigError, match='folds/fold_0 trained on'):
        members.refuse_leakage(tests, member.ids)
    # The weights of the folds differ, and so do their logits.
    assert np.abs(tests[0].logits['class'] - tests[1].logits['class']).max() > 0.01


def test_views_draw_nothing_and_show_what_they_say(tmp_path):
    stages = make_views(['flips', 'crops5', 'hflip', 'scale1.15', 'scale0.5', 'vflip+scale1.25'])
    assert list(stages) == ['identity', 'hflip', 'vflip', 'both', 'center', 'top_left',
                            'top_right', 'bottom_left', 'bottom_right', 'scale1.15', 'scale0.5',
                            'vflip+scale1.25']
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[0, 15] = 255  # only the upper right corner is white
    cv2.imwrite(str(tmp_path / '0.png'), picture)
    manifest = folder.load(str(tmp_path), labelled=False)
    shown = {view: next(loader.eval_dataset(manifest, PreprocessSpec(size=16, border='black'),
                                            batch_size=1, view=stage)())['image'][0]
             for view, stage in stages.items()}
    white = {'identity': (0, -1), 'hflip': (0, 0), 'vflip': (-1, -1), 'both': (-1, 0),
             'top_right': (0, -1)}
    for view, image in shown.items():
        corners = {(y, x) for y in (0, -1) for x in (0, -1) if image[y, x].min() > 250}
        assert corners == ({white[view]} if view in white else set()), view
    np.testing.assert_array_equal(shown['both'], picture[::-1, ::-1])
    assert shown['scale0.5'][4:8, 8:12].max() > 0 and not shown['scale0.5'][:4].any()


@pytest.mark.parametrize('name', ['scale', 'hflip2', 'scalex', 'sideways', ''])
def test_views_that_do_not_exist(name):
    with pytest.raises(ConfigError, match='no view'):
        make_views([name])


def test_a_store_of_a_run_says_what_it_was_made_from(run):
    assert predict(run) == 0
    meta = json.loads((run / 'predictions/test/identity/meta.json').read_text())
    result = json.loads((run / 'result.json').read_text())
    assert meta['step'] == result['best_step'] and meta['model'] == 'small_cnn'
    assert meta['input']['size'] == 16 and meta['view'] == 'identity' and meta['fold'] is None
    assert meta['rows_done'] == meta['rows'] == result['test']['n']
    assert meta['format'] == store.FORMAT
