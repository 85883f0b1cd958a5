"""train_lib.load: a run answers for any picture as for its own, and from its workdir alone."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import train_lib
from input_pipeline.errors import DataError
from main import main
from tests.train_lib.serving.served_runs import CLASSES, make_folder, picture, stored, train, write
from train_lib.metrics.scores import softmax
from train_lib.predictions.answers import log_mean
from train_lib.probing.feature_file import write_features
from train_lib.runtime.errors import ConfigError
from train_lib.serving.loaded_run import LoadedRun

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope='module')
def moved(tmp_path_factory):
    """(workdir, pictures) of a run that was copied elsewhere, and whose data are gone."""
    base = tmp_path_factory.mktemp('moved')
    data = make_folder(base / 'data')
    workdir = train(base / 'run', f'configs/sketch_cnn.py:folder={data}',
                    '--config.image.size=(16,24)', '--config.ema.decay=0.8',
                    '--config.eval.adjust_tau=0.7', '--config.image.resize=pad')
    shutil.copytree(data, base / 'copied pictures')
    shutil.copytree(workdir, base / 'copied run')
    shutil.rmtree(data)
    shutil.rmtree(workdir)
    return base / 'copied run', base / 'copied pictures'


@pytest.fixture(scope='module')
def run(moved):
    return train_lib.load(moved[0])


@pytest.fixture(scope='module')
def some(moved):
    """Paths of pictures of every form."""
    return sorted(moved[1].rglob('*.*'))[:10]


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_it_answers_to_the_bit_as_the_run_did(moved, run, split):
    workdir, pictures = moved
    own = stored(workdir, split)
    # The run evaluated batches of its 9 validation rows: XLA rounds each size otherwise.
    frame = run.predict([pictures / name for name in own['ids']], probabilities=True, batch_size=9)
    wanted = softmax(own['logits'])
    np.testing.assert_array_equal(frame[list(run.classes)].to_numpy(), wanted.astype(np.float32))
    assert frame['prediction'].tolist() == own['classes'][own['logits'].argmax(1)].tolist()
    np.testing.assert_array_equal(frame['probability'], wanted.max(1).astype(np.float32))
    table = pd.read_csv(workdir / f'predictions/{split}.csv', dtype={'probability': np.float32})
    assert list(table) == ['id', 'label', 'prediction', 'probability']
    assert table['id'].tolist() == own['ids'].tolist()
    assert table['label'].tolist() == [name.rpartition('/')[0] for name in own['ids'].tolist()]
    pd.testing.assert_frame_equal(table[['prediction', 'probability']],
                                  frame[['prediction', 'probability']], check_dtype=False)


def test_what_it_knows(run, moved):
    assert run.classes == CLASSES and run.config.model.name == 'small_cnn'
    run.config.model.name = 'other'  # a copy
    assert run.config.model.name == 'small_cnn'
    assert run.models == (run.model,) and 'small_cnn' in repr(run) and '3 classes' in repr(run)
    assert jax.eval_shape(run.model, np.zeros((1, 16, 24, 3), np.float32)).shape == (1, 3)
    assert type(train_lib.load(str(moved[0]))) is LoadedRun


def test_every_kind_of_picture_is_read_alike(run, some):
    by_path = run.predict(some, probabilities=True)
    classes = list(run.classes)
    assert by_path['id'].tolist() == [str(path) for path in some]
    contents = [path.read_bytes() for path in some]
    of_bytes = run.predict(contents, probabilities=True)
    assert of_bytes['id'].tolist() == list(range(10))
    np.testing.assert_array_equal(of_bytes[classes], by_path[classes])
    opened = run.predict((Image.open(io.BytesIO(data)) for data in contents), probabilities=True)
    # Pillow's decoder of JPEG differs from OpenCV's by a grey level here and there.
    np.testing.assert_allclose(opened[classes], by_path[classes], atol=2e-3)
    exact = [row for row, path in enumerate(some) if path.suffix == '.png']
    assert len(exact) >= 4
    np.testing.assert_array_equal(opened[classes].iloc[exact], by_path[classes].iloc[exact])
    mixed = run.predict([some[0], contents[1], Image.open(some[2]), *contents[3:]])
    assert mixed['id'].tolist() == [str(some[0]), *range(1, 10)]
    assert mixed['prediction'].tolist() == by_path['prediction'].tolist()


def test_arrays_are_whole_pictures(run):
    rng = np.random.default_rng(1)
    image = picture(rng, 1)
    encoded = cv2.imencode('.png', image[..., ::-1])[1].tobytes()
    classes = list(run.classes)
    wanted = run.predict(encoded, probabilities=True)[classes].to_numpy()
    for same in (image, [image], image[None], np.asfortranarray(image)):
        found = run.predict(same, probabilities=True)
        assert found['id'].tolist() == [0]
        np.testing.assert_array_equal(found[classes].to_numpy(), wanted)
    grey = image[..., 0]
    three = run.predict(np.stack([grey] * 3, -1), probabilities=True)
    for same in (grey, grey[..., None]):
        pd.testing.assert_frame_equal(run.predict(same, probabilities=True), three)
    clear = np.dstack([image, np.zeros(grey.shape, np.uint8)])  # laid over white
    white = run.predict(np.full_like(image, 255), probabilities=True)
    pd.testing.assert_frame_equal(run.predict(clear, probabilities=True), white)


def test_a_file_name_that_is_not_utf8(run, some, tmp_path):
    name = os.fsdecode(bytes(tmp_path) + b'/\xff.png')
    shutil.copyfile(some[1], name)
    assert run.predict([name])['id'].tolist() == [name]


def test_a_generator_may_use_its_array_again(run):
    rng = np.random.default_rng(2)
    pictures = rng.integers(0, 256, (30, 20, 20, 3), np.uint8)

    def drawn():
        buffer = np.empty((20, 20, 3), np.uint8)
        for one in pictures:
            buffer[:] = one
            yield buffer

    pd.testing.assert_frame_equal(run.predict(drawn(), batch_size=4),
                                  run.predict(pictures, batch_size=4))


def test_no_picture_gives_an_empty_table(run, some):
    full, empty = (run.predict(images, probabilities=True) for images in (some[:2], []))
    assert len(empty) == 0 and list(empty) == list(full)
    assert empty.dtypes.tolist() == full.dtypes.tolist()
    assert run.features([]).shape == (0, run.features(some[:1]).shape[1])


def test_views_are_averaged_as_by_predict(moved, run, some):
    alone = [run.predict(some, views=view, probabilities=True) for view in ('identity', 'hflip')]
    both = run.predict(some, views=('identity', 'hflip'), batch_size=4, probabilities=True)
    classes = list(run.classes)
    np.testing.assert_allclose(both[classes], (alone[0][classes] + alone[1][classes]) / 2,
                               atol=1e-6)
    assert (alone[0]['probability'] != alone[1]['probability']).any()
    workdir, pictures = moved
    assert main(['predict', f'--workdir={workdir}', '--config.predict.source=data',
                 '--config.predict.dtype=float32', '--config.predict.labelled=False',
                 f'--config.data.folder={pictures}', '--config.predict.name=again',
                 "--config.predict.views=('identity','hflip','scale1.2')"]) == 0
    own = stored(workdir, 'again')
    found = run.predict([pictures / name for name in own['ids'].tolist()],
                        views=('identity', 'hflip', 'scale1.2'), probabilities=True)
    np.testing.assert_array_equal(found[classes].to_numpy(),
                                  softmax(own['logits']).astype(np.float32))
    table = pd.read_csv(workdir / 'predictions/again.csv')
    assert table['prediction'].tolist() == found['prediction'].tolist()
    assert table['label'].isna().all()


def test_nothing_is_compiled_anew_for_the_last_batch(run, some):
    run.predict(some * 3, batch_size=8)
    compiled = run._eval_step._cache_size()
    run.predict(some * 2 + some[:1], batch_size=8)
    run.predict(some, batch_size=8, views='flips')
    assert run._eval_step._cache_size() == compiled


def test_batches_do_not_change_the_answers(run, some):
    whole = run.predict(some * 4)
    for size in (3, 64):
        part = run.predict(iter(some * 4), batch_size=size)
        assert part['prediction'].tolist() == whole['prediction'].tolist()
        np.testing.assert_allclose(part['probability'], whole['probability'], atol=1e-6)


def test_a_generator_is_not_read_far_ahead(run):
    """100,000 paths, or pictures that are made on the way, need no more memory than a few
    batches."""
    taken = []

    def many():
        for number in range(200):
            taken.append(number)
            yield 'missing.png' if number == 60 else np.zeros((4, 4, 3), np.uint8)

    with pytest.raises(DataError, match=r'missing\.png'):
        run.predict(many(), batch_size=8)
    assert len(taken) <= 64 + 4 * 8


def test_features_are_what_the_head_sees(run, some):
    features = run.features(some, batch_size=4)
    assert features.shape == (10, run.model.num_features) and features.dtype == np.float32
    logits = np.asarray(run.model.head(features)) + run._offsets[0]['class']
    np.testing.assert_allclose(softmax(logits), run.predict(some, probabilities=True)[
        list(run.classes)], atol=1e-6)


@pytest.mark.parametrize(('images', 'words'), [
    (['nowhere.jpg'], r"'nowhere\.jpg' is missing.*leave it out"),
    ([b'', b'x'], r"'images\[0\]' is empty"),
    ([np.zeros((4, 4, 3), np.uint8), b'\xff\xd8\xff\xe0 and no more'], r'images\[1\]'),
    (np.zeros((4, 4, 3)), r'images is an array of float64: give uint8, 0 to 255, such as'),
    ([np.zeros((4, 4, 3), np.uint16)], r'images\[0\] is an array of uint16'),
    (np.zeros((3, 5, 5), np.uint8), r'shape \(3, 5, 5\).*channels last'),
    ([np.zeros((0, 4, 3), np.uint8)], r'shape \(0, 4, 3\).*at least one pixel'),
    (np.zeros((2, 4, 4, 2), np.uint8), r'images\[0\].*\(4, 4, 2\)'),
    ([None], r'images\[0\] is None: give a path'),
    (io.BytesIO(b'\xff\xd8\n\n'), r'images is a BytesIO: give its bytes, as in images.read\(\)'),
    (None, 'images is None'), (3, 'images is an int'),
    (pd.DataFrame({'path': ['x']}), 'the column with the paths'),
    ([Image.new('F', (4, 4))], r'images\[0\].*floating-point'),
    ([Image.fromarray(np.full((4, 4), 70000, np.int32))], r'images\[0\].*0 to 65535'),
    (str(ROOT), r'is a folder: give its pictures')])
def test_what_is_no_picture_is_named(run, images, words):
    with pytest.raises(DataError, match=words) as raised:
        run.predict(images)
    assert '--config' not in str(raised.value) and '\n' not in str(raised.value)


@pytest.mark.parametrize(('options', 'words'), [
    (dict(views='hflop'), "views: there is no view 'hflop'; did you mean hflip"),
    (dict(views=[3]), 'views: 3 is not the name of a view'),
    (dict(views=None), 'views: None is not the name of a view'),
    (dict(views=()), r'views = \(\)'), (dict(batch_size=0), 'batch_size = 0'),
    (dict(batch_size=2.5), 'batch_size = 2.5')])
def test_wrong_options_are_one_sentence(run, options, words):
    with pytest.raises(ConfigError, match=words):
        run.predict(np.zeros((4, 4, 3), np.uint8), **options)


@pytest.fixture(scope='module')
def two_heads(tmp_path_factory):
    """(workdir of two folds of grey pictures from a CSV with two heads, pictures)"""
    base = tmp_path_factory.mktemp('heads')
    rng = np.random.default_rng(3)
    rows = []
    for number in range(40):
        shape, bright = number % 3, number % 2
        image = picture(rng, shape) // (1 if bright else 2)
        write(base / f'pictures/{number}', image, 1)
        rows.append((number, f'{number}.png', CLASSES[shape], 'light' if bright else 'dark'))
    pd.DataFrame(rows, columns=['ID', 'file', 'shape', 'tone']).to_csv(base / 't.csv', index=False)
    return train(base / 'run', f'configs/sketch_cnn.py:csv={base / "t.csv"},'
                 f'images={base / "pictures"}',
                 '--config.data.columns.labels=shape,tone', '--config.data.columns.id=ID',
                 '--config.data.columns.image=file',
                 '--config.split.kind=kfold', '--config.split.folds=2',
                 '--config.split.fold=all', '--config.image.size=16', channels=1), base / 'pictures'


def test_folds_and_heads(two_heads):
    workdir, pictures = two_heads
    run = train_lib.load(workdir)
    assert run.classes == dict(shape=CLASSES, tone=('dark', 'light'))
    own = [stored(workdir / f'fold_{fold}', 'test') for fold in (0, 1)]
    assert own[0]['ids'].tolist() == own[1]['ids'].tolist()
    paths = [pictures / f'{name}.png' for name in own[0]['ids'].tolist()]
    frame = run.predict(paths, probabilities=True)
    assert list(frame) == ['id', 'prediction/shape', 'prediction/tone', 'probability/shape',
                           'probability/tone', *(f'shape/{name}' for name in CLASSES),
                           'tone/dark', 'tone/light']
    for head, names in run.classes.items():
        mean = log_mean([one[f'logits/{head}'] for one in own])
        np.testing.assert_array_equal(frame[[f'{head}/{name}' for name in names]].to_numpy(),
                                      softmax(mean).astype(np.float32))
    for refused in (lambda: run.model, lambda: run.features(paths)):
        with pytest.raises(ConfigError, match=r'2 models, one per fold.*fold_0'):
            refused()
    one = train_lib.load(workdir / 'fold_1')
    np.testing.assert_array_equal(one.predict(paths, probabilities=True)['tone/light'],
                                  softmax(own[1]['logits/tone'])[:, 1].astype(np.float32))
    assert one.features(paths).shape[0] == len(paths)
    for path in (workdir / 'fold_0/predictions/val.csv', workdir / 'predictions/out_of_fold.csv'):
        table = pd.read_csv(path)
        assert list(table) == ['id', *(f'{what}/{head}' for what in
                                       ('label', 'prediction', 'probability')
                                       for head in ('shape', 'tone'))]


def test_pictures_go_through_what_the_packed_ones_went_through(tmp_path, capsys):
    """Steps such as face or denoise, resizing and encoding, from the workdir alone."""
    data = make_folder(tmp_path / 'data', 36)
    source = f'--config=configs/sketch_cnn.py:folder={data}'
    assert main(['pack', source, f'--config.pack.folder={tmp_path / "packed"}',
                 '--config.pack.preprocess=denoise', '--config.pack.size=28',
                 '--config.pack.quality=80']) == 0
    workdir = train(tmp_path / 'run', f'configs/sketch_cnn.py:packed={tmp_path / "packed"}',
                    '--config.image.size=16')
    shutil.rmtree(tmp_path / 'packed')
    own, run = stored(workdir, 'train'), train_lib.load(workdir)
    paths = [data / name for name in own['ids'].tolist()]
    wanted = softmax(own['logits']).astype(np.float32)
    size = max(len(stored(workdir, name)['ids']) for name in ('val', 'test'))
    classes = list(run.classes)
    for images in (paths, [path.read_bytes() for path in paths]):
        found = run.predict(images, probabilities=True, batch_size=size)[classes]
        np.testing.assert_array_equal(found.to_numpy(), wanted)
    png = [row for row, path in enumerate(paths) if path.suffix == '.png']
    opened = run.predict([Image.open(paths[row]) for row in png], probabilities=True)
    np.testing.assert_allclose(opened[classes], wanted[png], atol=1e-6)
    result = json.loads((workdir / 'result.json').read_text())
    del result['packed_as']
    (workdir / 'result.json').write_text(json.dumps(result))
    train_lib.load(workdir)  # of an older version
    said = [line for line in capsys.readouterr().err.splitlines() if 'gone' in line]
    assert len(said) == 1 and len(said[0]) <= 80
    result['packed_as'] = dict(size=0, side='', quality=80,
                               preprocess=[dict(kind='denoise', version=99)])
    (workdir / 'result.json').write_text(json.dumps(result))
    with pytest.raises(DataError, match=r'preprocessed \(denoise\)'):
        train_lib.load(workdir)


def test_a_fresh_process_needs_nothing_else(moved, some, tmp_path):
    """Neither main.py nor the folder of the project as the current one."""
    code = ('import sys, train_lib; run = train_lib.load(sys.argv[1]); '
            'print(run.predict(sys.argv[2:]).to_csv(index=False))')
    done = subprocess.run([sys.executable, '-c', code, str(moved[0]), *map(str, some[:2])],
                          capture_output=True, text=True, cwd=tmp_path,
                          env=dict(PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu',
                                   XDG_CACHE_HOME=str(tmp_path)))
    assert done.returncode == 0 and done.stderr == ''
    assert len(pd.read_csv(io.StringIO(done.stdout))) == 2


def test_the_page_of_the_manual_runs(moved, some, tmp_path, monkeypatch):
    """Its code, from top to bottom."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'new').mkdir()
    (tmp_path / 'runs').mkdir()
    (tmp_path / 'runs/a').symlink_to(moved[0])
    write_features(Path('features.parquet'), {'id': ['a', 'b']}, np.zeros((2, 3), np.float32),
                   dict(model='resnet18', tag='', weights='', prepared={}))
    shutil.copyfile(next(path for path in some if path.suffix == '.png'), 'new/0.png')
    shutil.copyfile(next(path for path in some if path.suffix == '.jpg'), 'new/1.jpg')
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/python.md').read_text('utf-8'),
                        flags=re.S)
    names: dict = {}
    for block in blocks:
        exec(compile(block, 'docs/python.md', 'exec'), names)
    assert len(blocks) == 3 and names['table']['id'].tolist() == ['new/0.png', 'new/1.jpg']
    assert len(names['features']) == len(names['embeddings']) == 2


def test_a_class_called_like_a_column_is_said(run, some):
    taken = LoadedRun.__new__(LoadedRun)
    taken._heads = {'class': ('id', 'other')}
    with pytest.raises(ConfigError, match="two columns 'id'"):
        taken._class_columns()
