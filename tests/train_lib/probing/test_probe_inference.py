"""The verb predict on the workdir of a probing run."""

import csv
import json
import shutil

import cv2
import numpy as np
import pytest

import main
from tests.train_lib.probing.test_probing import probe_config
from train_lib.ensembles.calibrated_votes import temperatures
from train_lib.ensembles.spec import EnsembleSpec
from train_lib.ensembles.temperature import fit_temperature
from train_lib.metrics.scores import softmax
from train_lib.predictions import members
from train_lib.probing.run_probe import probe
from train_lib.run_dir import ancestors
from train_lib.training.data import load_data


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('probe')
    config = probe_config(folder, **{'probe.views': 0, 'probe.lr': (1e-2,), 'curriculum': (),
                                     'duration': dict(epochs=2)})
    probe(config, load_data(config), folder / 'run')
    shutil.copytree(folder / 'run', folder / 'before')
    return folder / 'run'


def predict(run, *argv):
    return main.main(['predict', f'--workdir={run}', '--config.predict.dtype=float32', *argv])


def stored(path):
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def same_rows(new, old):
    assert new['ids'].tolist() == old['ids'].tolist()
    np.testing.assert_array_equal(new['labels'], old['labels'])
    np.testing.assert_allclose(new['logits'], old['logits'], atol=1e-4)
    assert np.ptp(old['logits']) > 1e-3


def test_it_gives_what_the_probe_wrote(run):
    before = run.with_name('before')
    name = json.loads((run / 'result.json').read_text())['chosen']
    for source, whole in (('test', 'test'), ('val', 'out_of_fold')):
        (run / f'predictions/{whole}.npz').unlink()
        assert predict(run, f'--config.predict.source={source}') == 0
        for path in (f'predictions/{whole}.npz', f'{name}/fold_1/predictions/{source}.npz'):
            same_rows(stored(run / path), stored(before / path))
    both = members.find_members([run, run / name], 'test')
    assert [member.fold for member in both] == [None, 0, 1]
    members.join(both)


def test_it_trained_on_the_rows_of_all_its_folds(run):
    """Its answers are those of all folds, so who learns from them learns from all these rows."""
    name = json.loads((run / 'result.json').read_text())['chosen']
    rows = set()
    for fold in (0, 1):
        with open(run / f'{name}/fold_{fold}/split.csv', newline='') as file:
            rows |= {row['id'] for row in csv.DictReader(file) if row['split'] == 'train'}
    whole, = members.find_members([run], 'test')
    assert {one for one, role in whole.roles.items() if role == 'train'} == rows
    assert {*ancestors.of_several([run]).rows} == rows
    one = ancestors.of_several([run / f'{name}/fold_1']).rows
    assert one and len(one) < len(rows)


def test_its_folds_have_its_ancestors(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / 'copy')
    above = ancestors.Ancestry((dict(workdir='/above', checkpoint=''),), {'x': ''}, accepted=True)
    ancestors.save(copy, above)
    name = json.loads((copy / 'result.json').read_text())['chosen']
    one, _ = members.find_members([copy / name], 'test')
    assert one.workdir == copy / name / 'fold_0' and one.ancestry == above
    assert 'x' in ancestors.of_several([copy / name / 'fold_1']).rows


def test_its_out_of_fold_rows_calibrate(run, tmp_path):
    """Also beside a run that has no such rows."""
    head, views, spec = 'class', ['identity'], EnsembleSpec(rule='soft')
    rows = stored(run / 'predictions/out_of_fold.npz')
    wanted = fit_temperature(softmax(rows['logits']), rows['labels'])
    other = shutil.copytree(run, tmp_path / 'other')
    (other / 'predictions/out_of_fold.npz').unlink()
    for group in ([run], [run, other]):
        found = temperatures([group], views, [head], spec)
        assert found[head] == pytest.approx(wanted, rel=1e-3)
    assert temperatures([[other]], views, [head], spec) == {head: None}


def test_other_pictures_in_several_views(run, tmp_path):
    cv2.imwrite(str(tmp_path / 'x.png'), np.tile(np.arange(32, dtype=np.uint8) * 7, (32, 1)))
    cv2.imwrite(str(tmp_path / 'y.png'), np.tile(np.arange(32, dtype=np.uint8)[::-1] * 7, (32, 1)))
    assert predict(run, '--config.predict.source=data', '--config.predict.labelled=false',
                   '--config.data.source=folder', f'--config.data.folder={tmp_path}',
                   '--config.predict.views=identity,hflip') == 0
    flipped, plain = members.find_members([run], 'data')
    assert (flipped.view, plain.ids.tolist()) == ('hflip', ['x.png', 'y.png'])
    assert plain.labels['class'].tolist() == [-1, -1]
    np.testing.assert_allclose(flipped.logits['class'][::-1], plain.logits['class'], atol=1e-4)
    assert np.abs(flipped.logits['class'] - plain.logits['class']).max() > 1e-3


def test_what_it_lacks_is_one_sentence(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / 'copy')
    result = json.loads((copy / 'result.json').read_text())
    name = result['chosen']

    def refused(*argv):
        assert predict(copy, *argv) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    (copy / 'result.json').write_text(json.dumps(result | dict(backbone='0')))
    assert 'other weights than when its heads were trained' in refused()
    (copy / 'result.json').write_text(json.dumps(result))
    file = copy / name / 'fold_0/head.safetensors'
    file.write_bytes(file.read_bytes()[:50])
    assert 'head.safetensors cannot be read' in refused()
    (copy / 'result.json').unlink()
    assert 'is not a finished probing run' in refused()


def test_a_submission(run, tmp_path, capsys):
    """Its temperature is fitted on what its folds validated, which is in one file."""
    for name in 'xyz':
        cv2.imwrite(str(tmp_path / f'{name}.png'), np.full((32, 32, 3), 40 + ord(name), np.uint8))
    (tmp_path / 's.csv').write_text('id,label,confidence\nz,,\nx,,\ny,,\n')
    argv = ['submit', f'--workdirs={run}', f'--sample={tmp_path}/s.csv', f'--images={tmp_path}',
            f'--out={tmp_path}/out']
    assert main.main(argv) == 0
    rows = (tmp_path / 'out/submission.csv').read_text().splitlines()
    assert [row.split(',')[0] for row in rows] == ['id', 'z', 'x', 'y']
    vote = json.loads((tmp_path / 'out/vote.json').read_text())
    fit, whole = vote['fit'], stored(run / 'predictions/out_of_fold.npz')
    assert fit['source'] == 'out_of_fold' and fit['n'] == len(whole['ids'])
    scores, = vote['unlabelled']['members']
    assert (scores['rows'], scores['n']) == ('out_of_fold', len(whole['ids']))
    assert scores['accuracy'] == (whole['logits'].argmax(1) == whole['labels']).mean()
    assert vote['not_checked'] == []  # the heads and the backbone are those of the run
    assert 'Out of fold:' in (tmp_path / 'out/report.html').read_text()
    assert main.main([*argv, '--config.views=hflip']) == 0
    said = ' '.join(capsys.readouterr().err.split())  # lines end where the path is long
    assert 'has out-of-fold predictions of the view identity only' in said


def test_predictions_of_other_heads_are_marked(run, tmp_path):
    cv2.imwrite(str(tmp_path / 'x.png'), np.full((32, 32, 3), 90, np.uint8))
    copy = shutil.copytree(run, tmp_path / 'copy')
    assert predict(copy, '--config.predict.source=data', '--config.predict.labelled=false',
                   '--config.data.source=folder', f'--config.data.folder={tmp_path}',
                   '--config.predict.name=new') == 0
    one, = members.find_members([copy], 'new')
    assert one.doubt == ''
    name = json.loads((copy / 'result.json').read_text())['chosen']
    head = copy / name / 'fold_0/head.safetensors'
    head.write_bytes(head.read_bytes()[:-1] + b'\1')  # as if trained again
    one, = members.find_members([copy], 'new')
    assert 'is gone' in one.doubt
