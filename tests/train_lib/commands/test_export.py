"""The verb export through main: what it writes, that it works without this project, and what it
refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from jax import export

from input_pipeline import loader
from input_pipeline.resize import resize
from main import main
from train_lib.commands import export as verb
from train_lib.predictions import store
from train_lib.run_dir import lock
from train_lib.runtime.errors import ConfigError
from train_lib.serving import exported_program
from train_lib.serving.trained_models import read_models
from train_lib.training.data import load_data
from train_lib.training.row_splits import split_rows

ROOT = Path(__file__).parents[3]
TRAIN = ['--config=configs/sketch_cnn.py:data=doodles', '--config.data.doodles.classes=4',
         '--config.data.doodles.per_class=20', '--config.data.doodles.heads=("class", "tool")',
         '--config.image.size=16', '--config.curriculum=()', '--config.duration.steps=6',
         '--config.model=dict(name="small_cnn", width=4, stages=1)', '--config.batch_size=32',
         '--config.log.tensorboard=false', '--config.report.heat_maps=false',
         '--config.ema.decay=0.7', '--config.eval.adjust_tau=0.5', '--config.eval.batch_size=8']
CHECKED = '''
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
ours = {name.partition(".")[0] for name in sys.modules}
assert not ours & {"train_lib", "models", "input_pipeline", "configs", "flax"}, ours
'''


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('exported') / 'my-run'
    assert main([*TRAIN, f'--workdir={workdir}']) == 0
    assert main(['export', f'--workdir={workdir}', '--format=stablehlo']) == 0
    return workdir


@pytest.fixture
def quick(monkeypatch):
    """The format is as good as any: it writes one file, and tells that it was called."""
    def write(trained, folder):
        (folder / 'model.bin').write_text(trained.digest)
        return {'model.bin': 'a stand-in'}

    monkeypatch.setattr(verb, '_load', lambda target: write)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}


def load(folder: Path):
    """(the program, its weights)"""
    program = export.deserialize(bytearray((folder / 'model.stablehlo').read_bytes()))
    return program, dict(np.load(folder / 'weights.npz', allow_pickle=False))


def test_the_logits_are_bit_for_bit_those_of_the_run(run):
    program, weights = load(run / 'export/stablehlo')
    trained, = read_models(run)
    rows = split_rows(trained.config, load_data(trained.config, run), run)
    own = store.open_member(run / 'predictions/val.npz')
    part = rows.select(rows.table['id'].isin(own.ids.tolist()).to_numpy())
    batches = loader.eval_dataset(part, trained.preprocess, shard=loader.Shard(),
                                  batch_size=trained.config.eval.batch_size)
    answers = [program.call(weights, batch['image']) for batch in batches(0)]
    assert part.table['id'].tolist() == own.ids.tolist() and len(answers) > 1
    for head, logits in own.logits.items():
        found = np.concatenate([answer[head] for answer in answers])[:len(part)]
        assert np.array_equal(found, logits)
        assert trained.offsets[head].any()


def test_an_example_runs_without_this_project(run, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), picture)
    cv2.imwrite(str(tmp_path / 'b.jpg'), picture)
    moved = tmp_path / 'moved'
    shutil.copytree(run / 'export/stablehlo', moved)
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, '-c', CHECKED, str(moved / 'load.py'), 'a.png', 'b.jpg'],
                          cwd=tmp_path, capture_output=True, text=True,
                          env=environment | dict(JAX_PLATFORMS='cpu'))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(' ')[:2] for line in lines] == [
        ['a.png:', 'class:'], ['b.jpg:', 'class:'], ['a.png:', 'tool:'], ['b.jpg:', 'tool:']]
    program, weights = load(moved)
    small = resize(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), (16, 16))
    logits = np.asarray(program.call(weights, small[None])['class'])[0]
    odds = np.exp(logits) / np.exp(logits).sum()
    classes = json.loads((moved / 'classes.json').read_text())['class']
    assert lines[0].split(': ')[2].split(',')[0] == f'{classes[odds.argmax()]} {odds.max():.3f}'


def test_nothing_in_an_export_tells_of_this_machine(run):
    folder = run / 'export/stablehlo'
    assert files_of(folder) == {
        'README.md', 'classes.json', 'export.json', 'load.py', 'model.stablehlo',
        'preparation.json', 'weights.npz', *(f'pictures/{name}.py' for name in (
            '__init__', 'decode', 'diagnosis', 'errors', 'image_headers', 'preparing', 'resize',
            'sixteen_bits'))}
    assert files_of(folder) == set(json.loads((folder / 'export.json').read_text())['files'])
    for name in files_of(folder):
        content = (folder / name).read_bytes()
        for place in (run.parent, ROOT, Path.home()):
            assert os.fsencode(place) + b'/' not in content, name


def test_the_card_says_what_the_model_is(run):
    card = (run / 'export/stablehlo/README.md').read_text()
    result = json.loads((run / 'result.json').read_text())
    assert 'run `my-run`' in card and result['data_digest'] in card
    for head in ('class', 'tool'):
        for split in ('val', 'test'):
            values = result[split][head]
            row, = [line for line in card.splitlines()
                    if line.startswith(f'| {split} | {head} |')]
            assert f'| {values["n"]} | {values["accuracy"]:.3f} (' in row
            assert f'{values["f1_macro"]:.3f} (' in row and f' {values["nll"]:.3f} |' in row
    assert 'new groups of pictures' in card
    assert 'random weights' in card and 'with tau 0.5' in card
    assert '- class: 4: house' in card
    assert "python load.py PICTURE" in card
    assert '`data.doodles.classes` | 4 | 48 |' in card


def test_folds_have_folders_and_one_card(run, tmp_path, quick):
    workdir = tmp_path / 'folds'
    for fold in (0, 1):
        shutil.copytree(run, workdir / f'fold_{fold}')
    for name in ('config.json', 'result.json'):
        shutil.copy(run / name, workdir / name)
    assert main(['export', f'--workdir={workdir}', '--format=timm', f'--out={tmp_path}/out']) == 0
    assert files_of(tmp_path / 'out') == {'README.md', 'export.json', 'fold_0/model.bin',
                                          'fold_1/model.bin'}
    card = (tmp_path / 'out/README.md').read_text()
    assert 'the mean of their probabilities' in card
    assert 'In each of the folders `fold_0/`, `fold_1/`' in card


@pytest.mark.parametrize('argv, wanted', [
    ([], ['--format is missing', 'stablehlo, timm, onnx']),
    (['--format=stablhlo'], ['stablhlo', "did you mean stablehlo"]),
    (['--format=timm', '--config=configs/sketch_cnn.py'], ['leave out --config']),
    (['--format=timm', '--out=FILE'], ['is a file']),
    (['--format=timm', '--out=FULL'], ['neither empty', 'nor an export']),
    (['--format=timm', '--out=NESTED'], ['neither empty', 'nor an export']),
    (['--format=timm', '--out=FILE/deeper'], ['cannot be made']),
])
def test_a_wrong_start_is_one_sentence(run, tmp_path, quick, capsys, argv, wanted):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/notes.txt').write_text('mine')
    (tmp_path / 'nested/empty').mkdir(parents=True)
    argv = [arg.replace('FILE', f'{tmp_path}/file').replace('FULL', f'{tmp_path}/full')
            .replace('NESTED', f'{tmp_path}/nested') for arg in argv]
    assert main(['export', f'--workdir={run}', *argv]) == 2
    said, = capsys.readouterr().err.strip().splitlines()
    assert all(word in said for word in wanted), said
    assert files_of(tmp_path) == {'file', 'full/notes.txt'}


def test_a_folder_that_is_no_run_gets_nothing(tmp_path, capsys):
    assert main(['export', f'--workdir={tmp_path}/none', '--format=stablehlo']) == 2
    assert 'none' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_export_replaces_its_own_files_only(run, tmp_path, quick, capsys):
    out = tmp_path / 'out'
    argv = ['export', f'--workdir={run}', '--format=onnx', f'--out={out}']
    assert main(argv) == 0
    (out / 'model.bin').write_text('old')
    (tmp_path / 'link').symlink_to(out)
    assert main([*argv[:-1], f'--out={tmp_path}/link']) == 0
    assert (tmp_path / 'link').is_symlink()
    assert (out / 'model.bin').read_text() == read_models(run)[0].digest
    (out / 'thoughts.txt').write_text('mine')
    assert main(argv) == 2
    assert 'thoughts.txt' in capsys.readouterr().err
    assert (out / 'thoughts.txt').read_text() == 'mine'
    assert {path.name for path in tmp_path.iterdir()} == {'out', 'link'}


def test_an_export_that_ends_on_the_way_leaves_the_old_one(run, tmp_path, monkeypatch, quick):
    out, argv = tmp_path / 'out', ['export', f'--workdir={run}', '--format=onnx']
    half = tmp_path / 'out.tmp/new'
    half.mkdir(parents=True)
    (half / 'left.bin').write_text('by a killed export')
    assert main([*argv, f'--out={out}']) == 0
    assert 'left.bin' not in files_of(out)
    before = files_of(out)

    def fails(trained, folder):
        (folder / 'half.bin').write_text('')
        raise ConfigError('It does not work.')

    monkeypatch.setattr(verb, '_load', lambda target: fails)
    for place in (out, tmp_path / 'new'):
        assert main([*argv, f'--out={place}']) == 2
    assert files_of(out) == before
    (tmp_path / 'out.tmp').mkdir()
    out.rename(tmp_path / 'out.tmp/old')  # killed while it replaced the old one
    assert main([*argv, f'--out={out}']) == 2
    assert files_of(out) == before
    assert {path.name for path in tmp_path.iterdir()} == {'out'}


def test_a_missing_package_is_named(run, tmp_path, monkeypatch, capsys):
    def serialize(self):
        raise ImportError('no flatbuffers')

    monkeypatch.setattr(export.Exported, 'serialize', serialize)
    monkeypatch.setattr(exported_program, 'PLATFORMS', ('cpu',))
    assert main(['export', f'--workdir={run}', '--format=stablehlo', f'--out={tmp_path}/out']) == 2
    assert 'pip install flatbuffers' in capsys.readouterr().err


def test_a_place_that_cannot_be_made_is_named_by_its_own_flag(run, tmp_path, capsys):
    (tmp_path / 'out.tmp').write_text('')
    assert main(['export', f'--workdir={run}', '--format=stablehlo', f'--out={tmp_path}/out']) == 2
    said = capsys.readouterr().err
    assert f'{tmp_path}/out.tmp cannot be made' in said and 'give another --out' in said
    assert '--workdir' not in said


def test_two_exports_into_one_place_are_one_after_the_other(run, tmp_path, capsys):
    with lock.held(tmp_path / 'out.tmp'):
        assert main(['export', f'--workdir={run}', '--format=timm', f'--out={tmp_path}/out']) == 2
    said = capsys.readouterr().err
    assert 'is in use by' in said and 'give another --out' in said and '--workdir' not in said


def test_nothing_is_left_of_a_model_that_a_format_cannot_hold(run, tmp_path, capsys):
    assert main(['export', f'--workdir={run}', '--format=timm',
                 f'--out={tmp_path}/deep/er/out']) == 2
    assert 'stablehlo' in capsys.readouterr().err and not (tmp_path / 'deep').exists()
