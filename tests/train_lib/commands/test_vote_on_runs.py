"""The verb vote on runs that were trained: missing predictions, and soups of weights."""

import json
import shutil

import cv2
import numpy as np
import pytest

import main
from tests.train_lib.commands.stored_runs import refused, result_of, vote
from train_lib.metrics.scores import scores
from train_lib.predictions import store
from train_lib.run_dir import checkpoints
from train_lib.runtime.trees import by_path
from train_lib.training import init

TINY = ['--config.image.size=16', '--config.curriculum=()', '--config.batch_size=16',
        '--config.model=dict(name="small_cnn", width=8, stages=2)', '--config.duration.steps=4',
        '--config.data.doodles.classes=3', '--config.data.doodles.per_class=20',
        '--config.split.seed=0']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A k-fold run of two folds, barely trained."""
    workdir = tmp_path_factory.mktemp('trained') / 'run'
    assert main.main(['--config=configs/sketch_cnn.py', f'--workdir={workdir}', *TINY,
                      '--config.split.kind=kfold', '--config.split.folds=2',
                      '--config.split.fold=all']) == 0
    return workdir


def test_predictions_that_are_missing_are_made(trained, tmp_path, capsys):
    for k in (0, 1):
        (trained / f'fold_{k}/predictions/test.npz').unlink()
    line = refused(capsys, [trained], tmp_path / 'v', '--config.predict=False')
    assert f'main.py predict --workdir={trained}/fold_0' in line
    own = {path: path.read_bytes() for path in trained.rglob('predictions/*.*')
           if path.stem in ('train', 'val', 'out_of_fold')}
    assert {path.name for path in own} >= {'val.npz', 'val.csv', 'out_of_fold.npz'}
    assert vote([trained], tmp_path / 'v', '--config.views=identity,hflip') == 0
    assert {path: path.read_bytes() for path in own} == own  # those of a run stay as they were
    result = result_of(tmp_path / 'v')
    assert [one['name'] for one in result['members']] == [
        'run/fold_0', 'run/fold_0:hflip', 'run/fold_1', 'run/fold_1:hflip']
    assert result['fit']['n'] == len(np.load(trained / 'predictions/out_of_fold.npz')['ids'])
    assert result['groups'] > 1
    assert 'data:image' in (tmp_path / 'v/report.html').read_text() or not result['repaired']


def test_pictures_without_labels_are_shown_from_where_they_were_predicted(trained, tmp_path):
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for k in range(6):
        cv2.imwrite(str(folder / f'{k}.png'), np.full((40, 40, 3), 40 * k, np.uint8))
    argv = ['predict', f'--workdir={trained}', '--config.predict.source=data',
            '--config.predict.labelled=False', '--config.predict.name=new',
            '--config.data.source=folder', f'--config.data.folder={folder}']
    assert main.main(argv) == 0
    meta = json.loads((trained / 'fold_0/predictions/new/identity/meta.json').read_text())
    assert meta['other_data']['data']['folder'] == str(folder)
    (folder / '2.png').write_bytes(b'no picture any more')
    assert vote([trained], tmp_path / 'v', '--config.source=new') == 0
    page = (tmp_path / 'v/report.html').read_text()
    assert page.count('src="data:image') == 5 and page.count('class="pic blank') == 1
    assert '1 of the pictures below could not be read' in page and '0.png' in page
    folder.rename(tmp_path / 'elsewhere')
    assert vote([trained], tmp_path / 'w', '--config.source=new') == 0
    page = (tmp_path / 'w/report.html').read_text()
    assert 'No pictures are shown. The pictures cannot be read' in page and '0.png' in page


def test_a_soup_is_a_run(trained, tmp_path, capsys):
    line = refused(capsys, [trained], tmp_path / 'v', '--config.soup=uniform')
    assert 'run/fold_0 started from random ones' in line
    for name, fold in (('a', 0), ('b', 1), ('c', 0)):  # as if they had been fine-tuned from x
        shutil.copytree(trained / f'fold_{fold}', tmp_path / name)
        saved = json.loads((tmp_path / name / 'config.json').read_text())
        saved['init']['from'] = 'runs/x'
        del saved['sha256']
        (tmp_path / name / 'config.json').write_text(json.dumps(saved))
    pair = f'{tmp_path}/a,{tmp_path}/b'
    assert vote(pair, tmp_path / 'uniform', '--config.soup=uniform',
                '--config.temperature=False', '--config.soup_statistics=0') == 0
    soup = tmp_path / 'uniform/soup'
    weights = [by_path(checkpoints.read_weights(init.best_checkpoint(workdir)))
               for workdir in (tmp_path / 'a', tmp_path / 'b', soup)]
    for name, value in weights[2].items():
        np.testing.assert_allclose(value, (weights[0][name] + weights[1][name]) / 2, rtol=1e-5,
                                   atol=1e-7)
    member, = store.members_of(soup, 'test')
    assert result_of(tmp_path / 'uniform')['soup']['accuracy'] == scores(
        member.logits['class'], member.labels['class'])['accuracy']
    # Between them, the folds trained on every row but those of the test.
    assert set(member.roles.values()) == {'train', 'test'}
    line = refused(capsys, pair, tmp_path / 'v', '--config.soup=greedy',
                   '--config.temperature=False')
    assert 'same validation rows' in line
    assert vote(f'{tmp_path}/a,{tmp_path}/c', tmp_path / 'greedy', '--config.soup=greedy') == 0
    assert result_of(tmp_path / 'greedy')['soup']['members'] == ['a', 'c']
