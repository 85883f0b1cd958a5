"""A start that is refused leaves nothing behind, neither a workdir nor `runs`, in every verb."""

from pathlib import Path

import cv2
import numpy as np
import pytest

import main

HOME = Path(__file__).parents[3]
TINY = ['--config.image.size=16', '--config.model=dict(name="small_cnn", width=8, stages=2)',
        '--config.curriculum=()', '--config.duration.steps=2', '--config.batch_size=8',
        '--config.compile_cache=False']
VERBS = ('train', 'explore', 'curate', 'pack', 'lr_find')
WRONG = {
    'a key': ['--config.nonsense=1'],
    'a value': ['--config.split.val=7', '--config.curate.most=7', '--config.lr_find.steps=0',
                '--config.pack.quality=777', '--config.study.metric=test.nonsense',
                '--config.explore.beside=nowhere'],
    'no such folder': [':folder=nowhere'],
    'no such table': [':csv=nowhere.csv'],
    'no pictures': [':folder=empty'],
    'a broken picture': [':folder=broken', '--config.explore.beside=nowhere'],
    'no decisions': ['--config.data.decisions=nowhere.csv'],
    'no such run': ['--config.init.from=nowhere', '--config.curate.detectors=labels',
                    '--config.curate.features=model', '--config.explore.beside=nowhere',
                    '--config.data.decisions=nowhere.csv'],
}


def pictures(folder, count=6):
    rng = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)
            cv2.imwrite(str(folder / name / f'{number}.png'), image)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*'))


@pytest.fixture
def place(tmp_path, monkeypatch):
    pictures(tmp_path / 'good')
    pictures(tmp_path / 'broken')
    (tmp_path / 'broken/cat/0.png').write_bytes(b'')
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(verb, wrong, *more, workdir):
    source = [word for word in wrong if word.startswith(':')] or [':folder=good']
    file = HOME / ('configs/studies/digits.py' if verb == 'study' else 'configs/sketch_vit.py')
    tiny = [word for word in TINY if not more or word[:15] != more[-1][:15]]
    argv = [verb, f'--config={file}{source[0]}', *tiny, *more,
            *(word for word in wrong if not word.startswith(':'))]
    if workdir:
        argv.append('--workdir=deep/er/run')
    elif verb == 'pack':
        argv.append('--config.pack.folder=deep/er/run')
    return main.main(argv)


CASES = [(verb, wrong) for verb in VERBS for wrong in WRONG]


# Every verb and every mistake, but not each with each, which takes a minute.
@pytest.mark.parametrize(('verb', 'wrong'), [
    pytest.param(*case, marks=[pytest.mark.slow] if (number + number // len(WRONG)) % 4 else [])
    for number, case in enumerate(CASES)])
def test_nothing_is_left_of_a_refused_start(place, verb, wrong, capsys):
    before = files(place)
    # Half of the starts name their workdir; the others make one in `runs`.
    assert start(verb, WRONG[wrong], workdir=CASES.index((verb, wrong)) % 2) == 2
    assert 'Traceback' not in capsys.readouterr().err
    assert files(place) == before


def test_nothing_is_left_of_a_refused_vote(place, capsys):
    config = f'--config={HOME}/configs/vote/digits.py'
    before = files(place)
    for more in ([], ['--config.bootstrap=0'], ['--config.rule=nonsense'], ['--config.members=x']):
        assert main.main(['vote', config, '--workdir=deep/er/vote', *more]) == 2
        assert main.main(['vote', config, *more]) == 2
        assert files(place) == before


@pytest.mark.parametrize('more', [
    pytest.param(['--config.model=dict(name="small_cnn", width=8, stages=2, in_channels=4)'],
                 marks=pytest.mark.slow),
    ['--config.split.kind=given'],
    ['--config.split.kind=kfold', '--config.split.fold=9'],
    ['--config.split.kind=kfold', '--config.split.fold=all', '--config.split.folds=99'],
    pytest.param(['--config.split.kind=kfold', '--config.split.fold=all',
                  '--config.model=dict(name="small_cnn", width=8, stages=2, in_channels=4)'],
                 marks=pytest.mark.slow),
    ['--config.schedule.name=nonsense'], ['--config.model=dict(name="nonsense")'],
    ['--config.curriculum=[dict(transforms=["nonsense"])]'], ['--config.mesh.data=99'],
    ['--config.probe.heads=[dict(name="a", head="nonsense")]', '--config.split.kind=kfold',
     '--config.split.fold=all'],
])
def test_nothing_is_left_of_a_run_that_is_refused_late(place, more, capsys):
    before = files(place)
    assert start('train', [], *more, workdir=True) == 2
    assert 'Traceback' not in capsys.readouterr().err
    assert files(place) == before


@pytest.mark.slow  # a worker process finds out
def test_nothing_is_left_of_a_refused_study(place):
    before = files(place)
    assert start('study', [':folder=empty'], workdir=True) == 2
    assert files(place) == before


def test_a_folder_that_was_there_stays(place):
    (place / 'deep').mkdir()
    assert start('train', [':folder=empty'], workdir=True) == 2
    assert files(place / 'deep') == [] and (place / 'deep').is_dir()
