"""Exports of models with several labels per picture: they say how logits become labels, and their
examples answer as `train_lib.load` does."""

import csv
import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from trained_by_recipe import by_recipe

import main
import train_lib
from input_pipeline import loader
from tests.train_lib.commands.test_export import CHECKED, load
from tests.train_lib.tagged_pictures import TAGS, make_tagged
from train_lib.metrics.set_scores import sigmoid
from train_lib.predictions import store
from train_lib.predictions.answers import Deciding, answers
from train_lib.runtime.errors import ConfigError
from train_lib.serving import (
    export_onnx,
    export_stablehlo,
    export_timm,
    load_exported,
    model_card,
    trained_models,
)
from train_lib.serving.exported_answers import answers_of
from train_lib.training.data import load_data
from train_lib.training.row_splits import split_rows

TRAIN = ['--config=configs/sketch_cnn.py', '--config.data.source=csv', '--config.image.size=16',
         '--config.curriculum=()', '--config.batch_size=16', '--config.log.tensorboard=false',
         '--config.model=dict(name="small_cnn", width=4, stages=1)',
         '--config.data.columns.labels=tags,kind', '--config.data.multi_label=tags',
         '--config.data.columns.group=group', '--config.loss.name={"tags":"asymmetric"}',
         '--config.duration.steps=6', '--config.eval.batch_size=8', '--config.split.tolerance=0.0',
         '--config.report.heat_maps=false', '--config.split.test=0.2',
         '--config.split.kind=kfold', '--config.split.folds=2', '--config.split.fold=all']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Two folds with the heads tags and kind, and their export."""
    folder = tmp_path_factory.mktemp('tagged')
    table = make_tagged(folder)
    assert main.main([*TRAIN, f'--config.data.csv={table}', f'--workdir={folder}/run']) == 0
    assert main.main(['export', f'--workdir={folder}/run', '--format=stablehlo']) == 0
    return folder / 'run'


def read(path):
    return json.loads(path.read_text())


def test_the_logits_are_bit_for_bit_those_of_the_run(run):
    fold = run / 'fold_0'
    program, weights = load(run / 'export/stablehlo/fold_0')
    trained, = trained_models.read_models(fold)
    rows = split_rows(trained.config, load_data(trained.config, fold), fold)
    own = store.open_member(fold / 'predictions/test.npz')
    part = rows.select(rows.table['id'].isin(own.ids.tolist()).to_numpy())
    batches = loader.eval_dataset(part, trained.preprocess, shard=loader.Shard(), batch_size=8)
    found = [program.call(weights, batch['image']) for batch in batches(0)]
    assert part.table['id'].tolist() == own.ids.tolist() and len(found) > 1
    assert set(own.logits) == {'tags', 'kind'}
    for head, logits in own.logits.items():
        np.testing.assert_array_equal(
            np.concatenate([one[head] for one in found])[:len(part)], logits)


def test_what_it_says_of_the_heads_is_in_the_result(run):
    folder = run / 'export/stablehlo'
    for where, result in ((folder, run), *((folder / f'fold_{k}', run / f'fold_{k}')
                                           for k in (0, 1))):
        thresholds = read(result / 'result.json')['thresholds']['tags']
        assert read(where / 'answers.json') == dict(
            tags=dict(multi_label=True, activation='sigmoid', thresholds=thresholds,
                      separator='|'),
            kind=dict(multi_label=False, activation='softmax'))
    assert read(folder / 'fold_0/classes.json')['tags'] == list(TAGS)
    assert read(folder / 'answers.json') != read(folder / 'fold_0/answers.json')
    assert 'answers.json' in read(folder / 'export.json')['files']


def test_the_example_answers_as_a_loaded_run(run, tmp_path):
    paths = sorted(path for path in run.parent.glob('*.png'))[:12]
    done = subprocess.run(
        [sys.executable, '-c', CHECKED, str(run / 'export/stablehlo/fold_1/load.py'),
         *(str(path) for path in paths)], cwd=tmp_path, capture_output=True, text=True,
        env={key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
        | dict(JAX_PLATFORMS='cpu'))
    assert done.returncode == 0, done.stderr
    table = train_lib.load(run / 'fold_1').predict([str(path) for path in paths],
                                                   probabilities=True)
    lines = [line for line in done.stdout.splitlines() if ': tags: ' in line]
    wanted = []
    for place, path in enumerate(paths):
        names = table['prediction/tags'][place]
        said = [f'{name} {table[f"tags/{name}"][place]:.3f}' for name in names.split('|') if name]
        wanted.append(f'{path}: tags: {", ".join(said) or "(no label)"}')
    assert lines == wanted and len(done.stdout.splitlines()) == 2 * len(paths)
    sets = set(table['prediction/tags'])
    assert len(sets) > 1, 'the pictures have to differ in their answers'


def test_the_mean_of_the_folds_and_the_thresholds_beside_them_are_the_answer_of_the_run(run):
    paths = sorted(run.parent.glob('*.png'))[:12]
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    folder = run / 'export/stablehlo'
    mean = np.mean([sigmoid(program.call(weights, images)['tags']) for program, weights in (
        load(folder / f'fold_{k}') for k in (0, 1))], axis=0)
    thresholds = read(folder / 'answers.json')['tags']['thresholds']
    said = ['|'.join(tag for k, tag in enumerate(TAGS) if row[k] >= thresholds[tag]) or '|'
            for row in mean]
    table = train_lib.load(run).predict([str(path) for path in paths])
    assert table['prediction/tags'].tolist() == said


def test_the_card_explains_sets(run):
    card = (run / 'export/stablehlo/README.md').read_text()
    result = read(run / 'result.json')
    own = result['out_of_fold']['tags']
    for words in ('Probabilities of `kind` are the softmax of the logits',
                  'The head `tags` has several labels per picture: probabilities are the sigmoid',
                  'of tags (the sigmoid of the logits); the labels are those whose mean',
                  f'| out of fold | tags | {own["n"]} | {own["accuracy"]:.3f} (',
                  f'| out of fold | tags | {own["map"]:.3f} | {own["f1_micro"]:.3f} | '
                  f'{own["accuracy_fitted"]:.3f} |', '| `answers.json` |',
                  'kind: the model answers with one of its classes for every picture'):
        assert words in card, words
    with open(run / 'fold_0/split.csv', newline='') as file:
        rows = [row for row in csv.DictReader(file) if row['split'] == 'train']
    counts = [sum(tag in row['label/tags'] for row in rows) for tag in TAGS]
    assert f'Training pictures per class of tags: {min(counts)} to {max(counts)}.' in card


def tagged(folder, **result):
    """A model of timm for trees, of which several may apply."""
    trained = by_recipe('resnet18', layers=(1, 1, 1, 1), size=32, classes={'trees': (
        'ash', 'beech|copper', 'cédar', 'elm')})
    (folder / 'run').mkdir()
    (folder / 'run/result.json').write_text(json.dumps(result))
    return dataclasses.replace(trained, workdir=folder / 'run', multi_label=('trees',))


THRESHOLDS = {'ash': 0.31, 'beech|copper': 0.5, 'cédar': 0.123456789012345, 'elm': 0.75}


def test_timm_has_the_answers_in_config_json(tmp_path):
    trained = tagged(tmp_path, thresholds={'trees': THRESHOLDS})
    (tmp_path / 'out').mkdir()
    files = export_timm.write(trained, tmp_path / 'out')
    about = read(tmp_path / 'out/config.json')
    assert about['label_names'] == list(THRESHOLDS)
    assert about['problem_type'] == 'multi_label_classification'
    assert about['answers'] == read(tmp_path / 'out/answers.json') == {'trees': dict(
        multi_label=True, activation='sigmoid', thresholds=THRESHOLDS, separator='|')}
    assert 'answers.json' in files
    code = export_timm.LOADING_SETS.split('```python\n')[1].split('```')[0]

    class Logits(np.ndarray):
        def sigmoid(self):
            return sigmoid(self).view(Logits)

    given = np.array([[-2.0, 0.0, -1.9, 1.0]]).view(Logits)
    names = dict(json=json, classes=about['label_names'], logits=given)
    exec(code.replace('FOLDER', str(tmp_path / 'out')), names)
    assert names['labels'] == ['beech|copper', 'cédar']


def test_one_label_per_picture_is_exported_as_before(tmp_path):
    trained = dataclasses.replace(tagged(tmp_path), multi_label=())
    (tmp_path / 'out').mkdir()
    files = export_timm.write(trained, tmp_path / 'out')
    assert set(files) == {'model.safetensors', 'config.json'}
    assert not {'problem_type', 'answers'} & set(read(tmp_path / 'out/config.json'))
    assert model_card._probabilities(trained, False) == [
        'Probabilities are the softmax of the logits.']


def test_thresholds_are_half_without_fitted_ones_and_damaged_ones_are_refused(tmp_path):
    trained = tagged(tmp_path, status='done')
    assert set(answers_of(trained.workdir, trained)['trees']['thresholds'].values()) == {0.5}
    (trained.workdir / 'result.json').write_text('{"thresholds": {"trees": {"ash": "high"}}}')
    with pytest.raises(ConfigError, match='thresholds that cannot be read'):
        export_stablehlo.write_facts(trained, tmp_path)


def test_the_examples_decide_as_tables_do():
    """Also where a probability is its threshold, and of logits of any size."""
    logits = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32) * 3
    logits[0], logits[1] = (800, -800, 0, 1e-8), (-1e-8, 40, -40, 0)
    thresholds = sigmoid(logits[7])
    thresholds[2] = 0.5
    names = list('abcd')
    about = dict(multi_label=True, thresholds=dict(zip(names, thresholds.tolist())))
    table = answers(logits, names, Deciding('|', thresholds)).names
    for row, name in zip(logits, table):
        said = load_exported.said(row, names, about)
        assert [one.split()[0] for one in said.split(', ') if one != '(no label)'] == \
            [one for one in name.split('|') if one]
    assert load_exported.said(np.float32([-9, -9, -9, -9]), names, about) == '(no label)'
    assert load_exported.said(np.float32([2, 9, 3, 0]), names, {}).startswith('b 0.996, c 0.002')


def test_both_examples_say_the_same():
    source = [(export_stablehlo.Path(load_exported.__file__).with_name(name)).read_text()
              for name in ('load_exported.py', 'load_onnx.py')]
    said = [text[text.index('def said'):text.index("if __name__")] for text in source]
    assert said[0] == said[1]


def test_an_onnx_file_holds_the_answers(tmp_path):
    for name in export_onnx.NEEDED:
        pytest.importorskip(name, reason='needs what requirements-onnx.txt lists')
    trained = tagged(tmp_path, thresholds={'trees': THRESHOLDS})
    out = tmp_path / 'out'
    out.mkdir()
    export_onnx.write(trained, out)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(picture).save(out / 'a.png')
    np.save(out / 'a.npy', picture)
    done = subprocess.run([sys.executable, '-c', '''
import json, onnxruntime, numpy, sys
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
print(json.dumps(session.get_modelmeta().custom_metadata_map))
logits, = session.run(None, {"images": numpy.load("a.npy")[None]})
print(logits[0].tolist())
sys.argv = ["load.py", "a.png"]
sys.path.insert(0, "")
import load
load.main(["a.png"])
'''], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    about, logits, said = done.stdout.splitlines()
    found = json.loads(about)
    assert found['activation'] == 'sigmoid' and found['multi_label'] == 'true'
    assert found['head'] == 'trees' and json.loads(found['labels']) == list(THRESHOLDS)
    assert json.loads(found['thresholds']) == THRESHOLDS
    probs = dict(zip(THRESHOLDS, sigmoid(np.array(json.loads(logits)))))
    wanted = [f'{name} {p:.3f}' for name, p in probs.items() if p >= THRESHOLDS[name]]
    assert said == f'a.png: {", ".join(wanted) or "(no label)"}' and 0 < len(wanted) < 4
