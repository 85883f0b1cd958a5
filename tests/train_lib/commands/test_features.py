"""The verb features through main.py: what it writes, for runs and without one, and its scores."""

import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

import main
import train_lib
from input_pipeline import sources
from train_lib.probing import feature_cache
from train_lib.probing.feature_file import check_scores, load_features
from train_lib.run_dir import workdirs
from train_lib.runtime.signals import STOPPED

TINY = ['--config.image.size=16', '--config.batch_size=8', '--config.duration.steps=3',
        '--config.curriculum=()', '--config.report.heat_maps=False',
        '--config.log.tensorboard=False',
        '--config.model=dict(name="vit_tiny_patch16_224", patch_size=8, embed_dim=8, depth=1, '
        'num_heads=2)', '--config.schedule.lr=0.01']
LORA = ['--config.finetune.lora.rank=2', '--config.ema.decay=0.5']


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """A folder of 48 drawings of three classes by 8 writers, and a run on it with adapters and an
    average of the weights."""
    base = tmp_path_factory.mktemp('features')
    manifest = sources.load_source({'source': 'doodles', 'doodles': dict(
        classes=3, per_class=16, writers=8, size=24)})
    for row, location in enumerate(manifest.table['location']):
        name = 'abc'[manifest.table['label/class'][row]]
        path = base / 'data' / name / f'{manifest.table["group"][row]}_{row:02}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sources.read_bytes('', location))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(base / 'cache'))
        assert main.main([config_of(base), *TINY, *LORA, f'--workdir={base / "run"}',
                          r'--config.data.group_regex=(w\d+)_']) == 0
    return base


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def config_of(base):
    return f'--config=configs/sketch_vit.py:folder={base / "data"}'


def run(*argv):
    return main.main(['features', *map(str, argv)])


def test_a_run_gives_its_best_weights_merged_and_its_own_splits(base, tmp_path):
    out = tmp_path / 'f.parquet'
    assert run(f'--workdir={base / "run"}', f'--out={out}') == 0
    table = pd.read_parquet(out)
    split = pd.read_csv(base / 'run/split.csv').set_index('id')
    assert table['split'].tolist() == split.loc[table['id'], 'split'].tolist()
    assert table['group'].tolist() == split.loc[table['id'], 'group'].tolist()
    assert table['label/class'].tolist() == [name.partition('/')[0] for name in table['id']]
    ids, embeddings, meta = load_features(out)
    assert ids.tolist() == table['id'].tolist() and embeddings.dtype == np.float32
    # Another path through the code: adapters beside their kernels, whole model.
    loaded = train_lib.load(base / 'run').features([str(base / 'data' / name) for name in ids])
    np.testing.assert_allclose(embeddings, loaded, atol=2e-5 * loaded.std())
    assert embeddings.std(axis=0).min() > 0
    assert meta['run'] == str(base / 'run') and meta['checkpoint'] and meta['width'] == 8
    assert meta['prepared']['size'] == 16 and meta['model'] == 'vit_tiny_patch16_224'
    assert meta['data'] == workdirs.data_digest(base / 'run')


def test_half_precision_and_other_pictures(base, tmp_path):
    whole, other, packed = (tmp_path / f'{name}.parquet' for name in ('whole', 'other', 'packed'))
    assert run(f'--workdir={base / "run"}', f'--out={whole}') == 0
    shutil.make_archive(str(tmp_path / 'pictures'), 'zip', base / 'data')
    assert run(f'--workdir={base / "run"}', f'--out={other}', '--config.features.dtype=float16',
               f'--images={tmp_path / "pictures.zip"}') == 0
    table = pd.read_parquet(other)
    assert list(table) == ['id', 'embedding']
    ids, embeddings, _ = load_features(other)
    assert embeddings.dtype == np.float16
    known = dict(zip(*load_features(whole)[:2]))
    for name, values in zip(ids, embeddings):
        assert (values == known[name].astype(np.float16)).all()
    assert main.main(['pack', config_of(base), f'--config.pack.folder={tmp_path / "packed"}']) == 0
    assert run(f'--workdir={base / "run"}', f'--out={packed}',
               f'--images={tmp_path / "packed"}') == 0
    assert sorted(load_features(packed)[0]) == sorted(ids)


def test_a_broken_picture_is_refused_or_left_out_by_name(base, tmp_path, capsys):
    folder = tmp_path / 'pictures'
    shutil.copytree(base / 'data/a', folder)
    broken = sorted(folder.iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:60])
    argv = [f'--workdir={base / "run"}', f'--out={tmp_path / "f.parquet"}', f'--images={folder}']
    assert run(*argv) == 2
    said = capsys.readouterr().err
    assert broken.name in said and 'unreadable=drop' in said
    assert not (tmp_path / 'f.parquet').exists()
    assert run(*argv, '--config.data.unreadable=drop') == 0
    assert broken.name not in load_features(tmp_path / 'f.parquet')[0]
    assert len(load_features(tmp_path / 'f.parquet')[0]) == 15
    mine = sorted((base / 'data/b').iterdir())[0]  # one of the run's own, which broke since
    whole = mine.read_bytes()
    try:
        mine.write_bytes(whole[:60])
        assert run(argv[0], argv[1]) == 2
        assert mine.name in capsys.readouterr().err
        assert run(argv[0], argv[1], '--config.data.unreadable=drop') == 0
    finally:
        mine.write_bytes(whole)
    table = pd.read_parquet(tmp_path / 'f.parquet')
    assert len(table) == 47 and f'b/{mine.name}' not in set(table['id'])
    assert set(table['split']) == {'train', 'val', 'test'}


def test_the_scores_and_their_file(base, tmp_path, capsys):
    out = tmp_path / 'f.parquet'
    argv = [config_of(base), *TINY, f'--out={out}', '--config.features.evaluate=True',
            r'--config.data.group_regex=(w\d+)_', '--config.features.neighbours=(1, 3)']
    assert run(*argv) == 0
    scores = json.loads((tmp_path / 'f.json').read_text())
    check_scores(tmp_path / 'f.json')  # its own may be replaced
    table = pd.read_parquet(out)
    found = scores['heads']['class']
    assert found['classes'] == 3 and found['train'] == (table['split'] == 'train').sum()
    for method in ('knn', 'linear'):
        for side in ('val', 'test'):
            one = found[method][side]
            assert one['n'] == (table['split'] == side).sum()
            assert one['accuracy_low'] <= one['accuracy'] <= one['accuracy_high']
        assert found[method]['val']['accuracy'] == max(found[method]['tried'].values())
    assert set(found['knn']['tried']) == {'1', '3'}
    assert not set(table['group'][table['split'] == 'train']) & set(
        table['group'][table['split'] == 'test'])
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith('class ') for line in lines) == 4
    assert all(len(line) <= 80 for line in lines if line.startswith(('class ', 'head ')))


def test_what_was_interrupted_is_completed(base, tmp_path, monkeypatch):
    calls, store = [], feature_cache._store

    def counted(files, view, number, values):
        calls.append(number)
        store(files, view, number, values)

    class StopsAfterTwo:
        def __enter__(self):
            return lambda: len(calls) >= 2

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(feature_cache, '_store', counted)
    argv = [config_of(base), *TINY, f'--out={tmp_path / "f.parquet"}',
            '--config.eval.batch_size=8']
    with monkeypatch.context() as patch:
        patch.setattr('train_lib.commands.features.StopSignal', StopsAfterTwo)
        assert run(*argv) == STOPPED
    assert not (tmp_path / 'f.parquet').exists() and calls == [0, 1]
    assert run(*argv) == 0
    assert calls == [0, 1, 2, 3, 4, 5]
    assert len(load_features(tmp_path / 'f.parquet')[0]) == 48


def test_rows_that_the_backbone_was_trained_on_are_not_scored(base, tmp_path, capsys):
    argv = [config_of(base), *TINY, f'--out={tmp_path / "f.parquet"}',
            '--config.features.evaluate=True', '--config.split.seed=5']
    assert run(*argv, f'--workdir={base / "run"}', r'--config.data.group_regex=(w\d+)_') == 0
    assert (pd.read_parquet(tmp_path / 'f.parquet')['split'].tolist() == pd.read_csv(
        base / 'run/split.csv').set_index('id').loc[
            pd.read_parquet(tmp_path / 'f.parquet')['id'], 'split'].tolist())
    for backbone in (f'--workdir={base / "run"}', f'--config.init.from={base / "run"}'):
        assert run(*argv, backbone) == 2  # the rows have no groups: other data
        assert 'trained on' in capsys.readouterr().err


def test_changed_data_are_refused(base, tmp_path, capsys):
    folder = tmp_path / 'moved'
    shutil.copytree(base / 'run', folder)
    data = tmp_path / 'data'
    shutil.copytree(base / 'data', data)
    argv = [f'--workdir={folder}', f'--out={tmp_path / "f.parquet"}']
    moved = [*argv, f'--config.data.folder={data}', r'--config.data.group_regex=(w\d+)_']
    assert run(*moved) == 0  # the same data at another place keep their splits
    before = pd.read_parquet(tmp_path / 'f.parquet')
    assert set(before['split']) == {'train', 'val', 'test'}
    victim = next(name for name in before['id'] if name.startswith('a/'))
    kept = (base / 'data' / victim).read_bytes()
    (base / 'data' / victim).unlink()
    try:
        assert run(*argv) == 2
        assert 'have changed' in capsys.readouterr().err
    finally:
        (base / 'data' / victim).write_bytes(kept)


@pytest.mark.parametrize(('argv', 'words'), [
    ([], ['--workdir=RUN', '--config=FILE']),
    (['CONFIG'], ['--out is missing']),
    (['CONFIG', '--out=f.npz'], ['.parquet']),
    (['CONFIG', '--out=no/where/f.parquet'], ['no/where', 'not there']),
    (['CONFIG', '--out=f.parquet', '--config.features.dtype=int8'], ["'int8'", 'float16']),
    (['CONFIG', '--out=f.parquet', '--config.features.neighbours=(0,)'], ['neighbours', '1 or']),
    (['CONFIG', '--out=f.parquet', '--config.features.strengths=(-1.0,)'], ['strengths']),
    (['CONFIG', '--out=f.parquet', '--images=x', '--config.features.evaluate=True'],
     ['no labels']),
    (['--workdir=runs/nothing', '--out=f.parquet'], ['runs/nothing']),
    (['CONFIG', '--out=f.parquet', '--config.features.evaluate=True', '--config.split.val=0.0'],
     ['no validation rows', 'split.val'])])
def test_a_mistake_is_one_sentence(base, tmp_path, monkeypatch, capsys, argv, words):
    given = [config_of(base) if word == 'CONFIG' else word.replace('=f', f'={tmp_path}/f')
             for word in argv]
    if 'CONFIG' in argv:
        given += TINY
    assert run(*given) == 2
    said = capsys.readouterr().err
    assert said.count('main.py: ') == 1 and all(word in said for word in words)


def test_another_file_is_not_replaced(base, tmp_path, capsys):
    out = tmp_path / 'mine.parquet'
    pd.DataFrame(dict(a=[1])).to_parquet(out)
    before = out.read_bytes()
    assert run(config_of(base), *TINY, f'--out={out}') == 2
    assert 'another file' in capsys.readouterr().err and out.read_bytes() == before
    mine = tmp_path / 'f.json'
    argv = [config_of(base), *TINY, f'--out={tmp_path / "f.parquet"}',
            '--config.features.evaluate=True']
    for content in ('{"name": "my settings"}', '[1]', 'no JSON'):
        mine.write_text(content)
        assert run(*argv) == 2
        assert 'f.json is another file' in capsys.readouterr().err
        assert mine.read_text() == content and not (tmp_path / 'f.parquet').exists()


def test_folds_are_refused_and_one_of_them_is_taken(base, tmp_path, capsys):
    folds = tmp_path / 'folds'
    for fold in range(2):
        shutil.copytree(base / 'run', folds / f'fold_{fold}')
    shutil.copy(base / 'run/config.json', folds)
    assert run(f'--workdir={folds}', f'--out={tmp_path / "f.parquet"}') == 2
    assert 'fold_0' in capsys.readouterr().err
    assert run(f'--workdir={folds / "fold_1"}', f'--out={tmp_path / "f.parquet"}') == 0


def test_curate_and_explore_take_the_file(base, tmp_path, capsys):
    data = tmp_path / 'data'
    shutil.copytree(base / 'data', data)
    for name in 'ab':  # copies that coincide with their origin
        path = sorted((data / name).iterdir())[0]
        cv2.imwrite(str(path.with_name('copy.jpg')), cv2.imread(str(path)))
    config = f'--config=configs/sketch_vit.py:folder={data}'
    out = tmp_path / 'f.parquet'
    assert run(config, *TINY, f'--out={out}') == 0
    detectors = '--config.curate.detectors=duplicates,labels,photographs'
    common = [config, *TINY, detectors, '--config.probe.dtype=float32']
    for name, features in (('file', out), ('model', 'model')):
        assert main.main(['curate', *common, f'--workdir={tmp_path / name}',
                          f'--config.curate.features={features}']) == 0
    by_file, by_model = (pd.read_csv(tmp_path / name / 'decisions.csv')
                         for name in ('file', 'model'))
    pd.testing.assert_frame_equal(by_file, by_model)
    assert main.main(['curate', *common, f'--workdir={tmp_path / "plain"}']) == 0
    plain = pd.read_csv(tmp_path / 'plain/decisions.csv')
    assert (plain['score/labels'] - by_file['score/labels']).abs().max() > 1e-3
    second = f'--config.explore.beside={base / "data/c"}'
    for name, features in (('a', [out]), ('b', ['model', second])):
        assert main.main(['explore', *common, f'--workdir={tmp_path / name}',
                          f'--config.curate.features={features[0]}', *features[1:]]) == 0
    a, b = (pd.read_csv(tmp_path / name / 'explore.csv') for name in 'ab')
    pd.testing.assert_frame_equal(a, b.drop(columns='second_set'))
    assert 'features of a model' in (tmp_path / 'b/explore.html').read_text()
    capsys.readouterr()
    (data / 'a/new.png').write_bytes((data / 'b/copy.jpg').read_bytes())
    for argv, words in (
            ([*common, f'--config.curate.features={out}'], ['lack 1 of 51', 'a/new.png']),
            ([*common, '--config.curate.features=mdel'], ["'mdel'", 'descriptor']),
            ([*common, '--config.curate.features=no.parquet'], ['no.parquet', 'not there']),
            ([*common, f'--config.curate.features={out}', second],
             ['no features of', 'features=model'])):
        verbs = ('explore',) if 'beside' in str(argv) else ('curate', 'explore')
        for verb in verbs:
            assert main.main([verb, *argv, f'--workdir={tmp_path / "x"}']) == 2
            said = capsys.readouterr().err
            assert all(word in said for word in words), said
