"""A mistyped workdir is answered with the runs nearby, wherever a workdir is given."""

from pathlib import Path

import pytest

from configs import common
from input_pipeline.manifest import Manifest
from train_lib.commands.command_line import parse
from train_lib.metrics.out_of_fold import read_probabilities
from train_lib.predictions.members import find_members
from train_lib.run_dir.unknown_workdir import neighbours
from train_lib.runtime.errors import ConfigError
from train_lib.training import init
from train_lib.training.preprocess_spec import preprocess_spec


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('runs/mine', 'runs/sketch_vit', 'other/run_1', 'pictures'):
        Path(name).mkdir(parents=True)
        if name != 'pictures':
            Path(name, 'config.json').write_text('{}')


@pytest.mark.parametrize(('given', 'end'), [
    ('runs/mnie', "did you mean 'runs/mine'?"),
    ('runs/mine2/', "did you mean 'runs/mine'?"),
    ('rusn/mine', "did you mean 'runs/mine'?"),
    ('rusn/mnie', "did you mean 'runs'?"),
    ('run/mine/fold_0', "did you mean 'runs'?"),
    ('runs/zzz', 'in runs there are mine, sketch_vit.'),
    ('runs', 'in runs there are mine, sketch_vit.'),
    ('other', "did you mean 'other/run_1'?"),
    ('mine', 'give the workdir of a run.'),
    ('zzz/at/all', 'give the workdir of a run.'),
])
def test_the_runs_nearby_are_named(runs, given, end):
    assert neighbours(given) == end
    assert neighbours(Path(given)) == end


def test_neither_a_file_nor_many_runs_break_the_sentence(runs):
    Path('file').write_text('')
    assert neighbours('file/x', 'no') == 'no'
    for number in range(9):
        Path(f'many/run_{number}').mkdir(parents=True)
        Path(f'many/run_{number}/config.json').write_text('{}')
    assert neighbours('many').endswith('run_0, run_1, run_2, run_3, run_4, ...')


def refused(function, *args):
    with pytest.raises(ConfigError) as caught:
        function(*args)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def config(**start):
    found = common.get_config()
    found.init.update({key.rstrip('_'): value for key, value in start.items()})
    return found


@pytest.mark.parametrize('verb', ['predict', 'report'])
def test_workdirs_of_verbs(runs, verb):
    words = [verb, '--workdir=runs/mnie']
    if verb == 'report':
        from train_lib.commands.report import report
        message = refused(lambda: report(parse(words)))
    else:
        message = refused(parse, words)
    assert message.endswith("did you mean 'runs/mine'?")


def test_members_of_a_vote(runs):
    for given in ('runs/mnie', 'runs/mnie*'):
        assert refused(find_members, [given], 'test').endswith("did you mean 'runs/mine'?")
    assert refused(find_members, ['runs'], 'test').endswith('there are mine, sketch_vit.')
    assert 'train and predict first' in refused(find_members, ['zzz/*/x'], 'test')


def test_starts_from_another_run(runs):
    assert refused(init.best_of, Path('runs/mnie')).endswith("did you mean 'runs/mine'?")
    assert refused(init.inherit, config(resume_from='runs/mnie'), Path('new')).endswith(
        "did you mean 'runs/mine'?")
    assert refused(preprocess_spec, config(from_='runs')).endswith('there are mine, sketch_vit.')


def test_predictions_for_curate(runs):
    rows: Manifest = None  # not read
    assert refused(read_probabilities, Path('runs/mnie'), rows, 'label').endswith(
        "did you mean 'runs/mine'?")
