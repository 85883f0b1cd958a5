"""A run goes on with its data at another path, if they are the same; a refused start changes
nothing."""

import csv
import json
import shutil
from pathlib import Path

import pytest

import main
from tests.faults.test_elsewhere import pictures, settings


def start(home: Path, run: Path, *more: str, steps: int = 6) -> int:
    """Trains with the data of `home`; of flags given twice, the last one counts."""
    given = {flag.partition('=')[0] + flag.partition('folder=')[1]: flag
             for flag in (*settings(home, steps), '--config.report.heat_maps=no', *more)}
    return main.main([*given.values(), f'--workdir={run}'])


def copied(source: Path, target: Path) -> Path:
    """Data and run in another place, as after copying them to another machine."""
    shutil.copytree(source / 'data', target / 'data')
    return shutil.copytree(source / 'run', target / 'run')


def config_of(run: Path) -> dict:
    return json.loads((run / 'config.json').read_text())


def forget(run: Path, *keys: str) -> None:
    """As an older version would have written config.json."""
    content = config_of(run)
    for key in ('sha256', *keys):
        del content[key]
    (run / 'config.json').write_text(json.dumps(content))


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*'))
            if path.is_file() and path.name != 'lock'}


@pytest.fixture(scope='module')
def home(tmp_path_factory) -> Path:
    """data/ and a run of four steps on it."""
    folder = tmp_path_factory.mktemp('home')
    pictures(folder, 0, 40)
    assert start(folder, folder / 'run', steps=4) == 0
    return folder


def last_line(capfd) -> str:
    return capfd.readouterr().err.strip().splitlines()[-1]


def test_a_run_goes_on_with_its_data_elsewhere(home, tmp_path, capfd):
    run = copied(home, tmp_path)
    assert start(tmp_path, run) == 0
    log = capfd.readouterr().err
    assert f"changed  config.data.folder: '{home}/data' -> '{tmp_path}/data'" in log
    assert 'moved    the data: ids, labels, sizes and 40 whole files agree' in log
    assert 'resume: from step 4 of 6' in log
    before, after = config_of(home / 'run'), config_of(run)
    assert after['data']['folder'] == f'{tmp_path}/data'
    for digest in ('data_digest', 'split_digest', 'pictures'):
        assert after[digest] == before[digest]
    (tmp_path / 'new').mkdir()
    assert start(tmp_path, tmp_path / 'new/run', f'--config.init.resume_from={home}/run') == 0
    log = capfd.readouterr().err
    assert 'moved    the data' in log and 'resume: from step 4 of 6' in log
    assert (tmp_path / 'new/run/metrics.jsonl').read_bytes() == (
        run / 'metrics.jsonl').read_bytes()


@pytest.mark.parametrize('resized', [False, True])
def test_other_pictures_under_the_same_names_are_refused(home, tmp_path, capfd, resized):
    run = copied(home, tmp_path)
    path = tmp_path / 'data/a/0.png'
    content = path.read_bytes() if resized else (tmp_path / 'data/a/2.png').read_bytes()
    path.write_bytes(content + b'\0' * resized)
    before = content_of(run)
    assert start(tmp_path, run) == 2
    line = last_line(capfd)
    assert 'config.data.folder holds other pictures' in line
    assert "1 of 40 compared files differ ('a/0.png')" in line
    assert content_of(run) == before
    assert start(tmp_path, tmp_path / 'new', f'--config.init.resume_from={run}') == 2
    assert not (tmp_path / 'new/config.json').exists()


def test_sizes_of_files_outside_the_sample_count(home, tmp_path, capfd):
    run = copied(home, tmp_path)
    content = config_of(run)
    del content['sha256'], content['pictures']['sample']['a/0.png']
    (run / 'config.json').write_text(json.dumps(content))
    with open(tmp_path / 'data/a/0.png', 'ab') as file:
        file.write(b'\0')
    assert start(tmp_path, run) == 2
    assert 'the sizes of the 40 files differ' in last_line(capfd)


def test_an_older_run_has_nothing_to_compare_and_that_is_said(home, tmp_path, capfd):
    run = copied(home, tmp_path)
    forget(run, 'pictures')
    assert start(tmp_path, run, steps=4) == 0
    assert 'moved    not checked: the files' in capfd.readouterr().err
    assert config_of(run)['pictures'] == config_of(home / 'run')['pictures']


def test_other_labels_elsewhere_are_other_data(home, tmp_path, capfd):
    run = copied(home, tmp_path)
    (tmp_path / 'data/a/0.png').rename(tmp_path / 'data/b/0.png')
    assert start(tmp_path, run) == 2
    assert 'data have changed' in last_line(capfd)


def test_a_table_and_its_pictures_move(home, tmp_path, capfd):
    """The first has absolute paths, which are the ids; the second says these in a column id."""
    ways, old = {}, tmp_path / 'one/pictures'
    for name in ('one', 'two'):
        folder = tmp_path / name
        shutil.copytree(home / 'data', folder / 'pictures')
        rows = [dict(image=str(path), label=path.parent.name,
                     id=str(old / path.relative_to(folder / 'pictures')))
                for path in sorted((folder / 'pictures').rglob('*.png'))]
        with open(folder / 'table.csv', 'w', newline='') as file:
            columns = ['image', 'label', *(['id'] if name == 'two' else [])]
            csv.writer(file).writerows([columns, *([row[key] for key in columns]
                                                   for row in rows)])
        ways[name] = (f'--config=configs/sketch_vit.py:csv={folder}/table.csv,'
                      f'images={folder}/pictures')
    flags = [flag for flag in settings(home, 4) if not flag.startswith('--config=')]
    run = f'--workdir={tmp_path}/run'
    assert main.main([ways['one'], *flags, run]) == 0
    assert main.main([ways['two'], *flags, run]) == 0
    log = capfd.readouterr().err
    assert 'moved    the data' in log and 'config.data.csv' in log and 'config.data.images' in log


# --- refused starts ------------------------------------------------------------------------------


@pytest.mark.parametrize('flags, words', [
    (('--config.duration.steps=2',), 'beyond the end of this run (2 steps)'),
    (('--config.schedule.lr=7',), 'was started with config.schedule.lr'),
    (('--config.profile.start=dict(moons=3)',), 'profile.start')])
def test_a_refused_start_changes_nothing(home, tmp_path, capfd, flags, words):
    run = shutil.copytree(home / 'run', tmp_path / 'run')
    before = content_of(run)
    assert start(home, run, *flags) == 2
    assert words in last_line(capfd)
    assert content_of(run) == before


def test_a_first_start_that_is_refused_leaves_the_workdir_free(home, tmp_path, capfd):
    """The corrected command is not taken for another run."""
    run = tmp_path / 'run'
    for flag in ('--config.image.mean=(1, 2)', '--config.schedule.name=cosin',
                 f'--config.init.from={tmp_path}/nowhere'):
        assert start(home, run, flag) == 2
    assert not content_of(run)
    folds = ('--config.split.kind=kfold', '--config.split.folds=2', '--config.split.fold=all')
    assert start(home, run, *folds, '--config.image.mean=(1, 2)') == 2
    assert 'config.image.mean' in last_line(capfd)
    assert not content_of(run)


def test_the_weights_of_another_model_claim_nothing(home, tmp_path, capfd):
    model = '--config.model=dict(name="small_cnn", width=16)'
    assert start(home, tmp_path / 'run', model, f'--config.init.from={home}/run') == 2
    assert 'do not fit this model' in last_line(capfd)
    assert not content_of(tmp_path / 'run')
