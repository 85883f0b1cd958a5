"""Some of the folds in one workdir: trained, gone on with, reported and voted on together."""

import json
import shutil

import numpy as np
import pytest

import main
from tests.train_lib.commands.stored_runs import result_of, vote
from train_lib.ensembles.fit.fit_rows import runs_of
from train_lib.predictions.store import members_of

TINY = ['--config=configs/sketch_cnn.py', '--config.image.size=16', '--config.curriculum=()',
        '--config.batch_size=16', '--config.model=dict(name="small_cnn", width=4, stages=1)',
        '--config.duration.steps=2', '--config.data.doodles.classes=3',
        '--config.data.doodles.per_class=20', '--config.split.kind=kfold',
        '--config.split.folds=4', '--config.log.tensorboard=false',
        '--config.report.heat_maps=false']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('some') / 'run'
    assert main.main([*TINY, f'--workdir={workdir}', '--config.split.fold=(3, 0)']) == 0
    return workdir


def ids(path):
    with np.load(path, allow_pickle=False) as file:
        return file['ids'].tolist()


def test_the_folds_that_were_asked_for_are_there(run):
    assert sorted(path.name for path in run.glob('fold_*')) == ['fold_0', 'fold_3']
    result = json.loads((run / 'result.json').read_text())
    rows = ids(run / 'predictions/out_of_fold.npz')
    assert len(result['folds']) == 2 and result['out_of_fold']['n'] == len(rows)
    assert sorted(rows) == sorted(ids(run / 'fold_0/predictions/val.npz')
                                  + ids(run / 'fold_3/predictions/val.npz'))
    page = (run / 'report.html').read_text()
    assert '0, 3 of 4' in page and 'href="fold_3/report.html"' in page
    assert 'fold 0' in page and 'fold_1/' not in page


def test_it_goes_on(run, capfd):
    before = (run / 'predictions/out_of_fold.npz').read_bytes()
    shutil.rmtree(run / 'fold_3')
    assert main.main([*TINY, f'--workdir={run}', '--config.split.fold=3,0']) == 0
    assert 'fold 2 of 2: number 3\n' in capfd.readouterr().err
    assert (run / 'predictions/out_of_fold.npz').read_bytes() == before


def test_reports_are_written_again(run, capfd):
    for path in (run, run / 'fold_0', run / 'fold_3'):
        (path / 'report.html').unlink()
    assert main.main(['report', f'--workdir={run}']) == 0
    assert capfd.readouterr().err.count('report   ') == 3
    assert all((path / 'report.html').exists() for path in (run, run / 'fold_0', run / 'fold_3'))
    assert 'href="fold_3/report.html"' in (run / 'report.html').read_text()


def test_they_vote_and_are_fitted_on_the_rows_that_they_validated(run, tmp_path):
    assert vote([run], tmp_path / 'v') == 0
    result = result_of(tmp_path / 'v')
    assert [one['name'] for one in result['members']] == ['run/fold_0', 'run/fold_3']
    assert result['fit']['n'] == len(ids(run / 'predictions/out_of_fold.npz'))
    # So are they in workdirs of their own.
    for fold in (0, 3):
        shutil.copytree(run / f'fold_{fold}', tmp_path / f'a{fold}')
    assert vote([tmp_path / 'a3', tmp_path / 'a0'], tmp_path / 'w') == 0
    found = result_of(tmp_path / 'w')['fit']
    assert found['n'] == result['fit']['n'] and found['source'] == 'out_of_fold'
    assert found['temperature'] == pytest.approx(result['fit']['temperature'], rel=1e-5)


def test_folds_that_began_from_those_of_another_run_on_other_machines_are_joined(run, tmp_path):
    for fold in (0, 3):
        path = tmp_path / f'a{fold}'
        shutil.copytree(run / f'fold_{fold}', path)
        content = json.loads((path / 'config.json').read_text())
        content['init']['from'] = f'runs/first/fold_{fold}'
        content['data']['folder'] = f'/machine{fold}/pictures'
        del content['sha256']
        (path / 'config.json').write_text(json.dumps(content))
    runs = runs_of([*members_of(tmp_path / 'a0', 'test'), *members_of(tmp_path / 'a3', 'test')])
    assert len(set(runs.values())) == 1 and len(runs) == 2


@pytest.mark.parametrize('fold, words', [
    ('0,4', 'split.fold=4 is not one of the 4 folds'), ('0,0', 'split.fold=(0, 0) is not valid')])
def test_wrong_folds_are_one_sentence(tmp_path, capfd, fold, words):
    for verb in ('train', 'lr_find'):
        command = [verb, *TINY, f'--workdir={tmp_path}/{verb}', f'--config.split.fold={fold}']
        assert main.main(command) == 2
        assert words in capfd.readouterr().err.splitlines()[-1]
    assert main.main([*TINY, f'--workdir={tmp_path}/run', '--config.split.fold=0,1',
                      '--config.plan_only=true', '--config.plan_memory_gb=1']) == 0
