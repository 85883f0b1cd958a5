"""Arms, their names and folders, what differs between them, and the mistakes in them."""

import json

import pytest

from train_lib.commands.command_line import parse
from train_lib.commands.study import study_of
from train_lib.runtime.errors import ConfigError
from train_lib.studies import study_file
from train_lib.studies.identity import differences
from train_lib.studies.naming import folder_name, short

FILE = '''
from configs import common
from configs.studies import designs

def get_config(arg=None):
    return common.get_config()

def study({argument}):
    {body}
'''


@pytest.fixture
def make(tmp_path):
    """body of study() -> the study"""
    def make(body, *overrides, argument=''):
        path = tmp_path / 'mine.py'
        path.write_text(FILE.format(body=body, argument=argument))
        return study_of(parse(['study', f'--config={path}', *overrides]))
    return make


def test_arms_are_named_by_hand_or_by_what_they_say(make):
    study = make("return [{}, ('big', {'config.batch_size': 128}), {'schedule.lr': 0.01, "
                 "'curriculum': [dict(transforms=['hflip', dict(kind='rotate', degrees=10)])]}]")
    assert [arm.name for arm in study.arms] == [
        'base', 'big', 'schedule.lr=0.01, curriculum=[(transforms=[hflip, rotate(degrees=10)…']
    assert study.baseline == 'base'
    assert study.arm('big').config.batch_size == 128
    assert study.arms[2].config.curriculum[0]['transforms'][1]['degrees'] == 10
    assert study.arms[0].config.batch_size == 64
    assert differences(study.arms[1].config, study.arms[0].config) == {'batch_size': 128}


def test_the_base_may_be_seen_but_not_changed(make):
    study = make("config.seed = 9; return {'double': {'batch_size': 2 * config.batch_size}, "
                 "'same': {}}", '--config.batch_size=10', argument='config')
    assert [arm.config.batch_size for arm in study.arms] == [20, 10]
    assert study.arms[1].config.seed == 0


def test_cells_are_every_arm_of_a_seed_then_the_next(make):
    study = make("return {'a': {}, 'b': {'batch_size': 8}}", '--config.study.seeds=3,5',
                 '--config.study.folds=0,1', '--config.split.kind=kfold')
    cells = study.cells()
    assert [cell.folder for cell in cells] == [
        f'{arm}/seed_{seed}_fold_{fold}' for seed in (3, 5) for fold in (0, 1) for arm in 'ab']
    config = cells[3].config()
    assert (config.seed, config.split.fold, config.batch_size) == (3, 1, 8)
    assert cells[3].arm.config.seed == 0


def test_durations_change_their_unit_and_sections_keep_the_rest(make):
    arms = make("return {'base': {}, 'short': {'duration': dict(steps=5), 'schedule': "
                "dict(name='step', every=dict(percent=30))}, 'unit': {'duration.steps': 7}, "
                "'model': {'model': dict(name='small_cnn', width=4)}}").arms
    assert arms[1].config.duration.to_dict() == dict(steps=5)
    assert arms[1].config.schedule.every.to_dict() == dict(percent=30)
    assert arms[1].config.schedule.lr == arms[0].config.schedule.lr
    assert arms[2].config.duration.to_dict() == dict(steps=7)
    assert arms[3].config.model.to_dict() == dict(name='small_cnn', width=4)
    assert differences(arms[2].config, arms[0].config) == {'duration': {'steps': 7}}


def test_designs(make):
    factors = "{'batch_size': (32, 64), 'schedule.name': ('cosine', 'step')}"
    names = lambda study: [arm.name for arm in study.arms]
    # What the base has anyway is not an arm of its own.
    assert names(make(f'yield from designs.one_factor_at_a_time({factors})')) == [
        'base', 'batch_size=32', 'schedule.name=step']
    assert names(make(f'yield from designs.grid({factors})')) == [
        'base', 'batch_size=32, schedule.name=cosine', 'batch_size=32, schedule.name=step',
        'batch_size=64, schedule.name=step']
    assert names(make("return designs.pairs({'a': {'batch_size': 8}, 'b': {'accumulate': 2}, "
                      "'c': {'precision': 'bfloat16'}})")) == [
        'base', 'a', 'b', 'c', 'a + b', 'a + c', 'b + c']
    ranges = ("{'schedule.lr': designs.logarithmic(1e-4, 1e-2), 'batch_size': "
              "designs.choice(8, 16), 'optimizer.b1': designs.linear(0.8, 0.9), 'accumulate': "
              "designs.whole(1, 3)}")
    for kind in ('random_search', 'quasi_random'):
        arms = make(f'yield from designs.{kind}({ranges}, 40)').arms[1:]
        rates = [arm.config.schedule.lr for arm in arms]
        assert len(rates) == 40 and 1e-4 <= min(rates) < 3e-4 and 4e-3 < max(rates) <= 1e-2
        assert sum(rate < 1e-3 for rate in rates) == pytest.approx(20, abs=7)
        assert {arm.config.batch_size for arm in arms} == {8, 16}
        assert {arm.config.accumulate for arm in arms} == {1, 2, 3}
        fewer = make(f'yield from designs.{kind}({ranges}, 10)').arms[1:]
        assert names_equal(fewer, arms)


def names_equal(fewer, arms):
    return [arm.name for arm in fewer] == [arm.name for arm in arms[:len(fewer)]]


@pytest.mark.parametrize('body, words', [
    ("return {'x': {'schedule.nme': 'step'}}", ["'x'", 'nme', 'name']),
    ("return {'x': {'batch_size': '64'}}", ["'x'", 'batch_size', "'64'", 'int']),
    ("return {'x': {'batch_size': True}}", ["'x'", 'True']),
    ("return {'x': {'schedule': dict(lr='big')}}", ["'x'", 'schedule.lr', 'big']),
    ("return {'x': {'duration': 5}}", ["'x'", 'duration']),
    ("return {'x': {'seed': 1}}", ["'x'", 'config.seed', 'study.seeds']),
    ("return {'x': {'study.metric': 'val.nll'}}", ["'x'", 'study.metric']),
    ("return {'x': {}, 'y': {'batch_size': 64}}", ["'x'", "'y'", 'same']),
    ("return {'x': {}, 'X': {'batch_size': 8}}", ["'x'", "'X'", 'folder']),
    ("return [('x', {}), ('x', {'batch_size': 8})]", ["'x'", 'name']),
    ("return [{'batch_size': 8}, 'wrong']", ["'wrong'"]),
    ("return {'x': 5}", ['5']),
    ("return {}", ['no arm']),
    ("raise ValueError('no such thing')", ['study()', 'no such thing']),
])
def test_mistakes_name_the_arm(make, body, words):
    with pytest.raises(ConfigError) as caught:
        make(body)
    assert '\n' not in str(caught.value)
    for text in words:
        assert text in str(caught.value)


@pytest.mark.parametrize('override, words', [
    ('baseline=z', ["'z'", 'a, b']), ('seeds=1,1', ['(1, 1)']), ('seeds=()', ['seeds']),
    ('folds=0,1', ["'kfold'"]), ('metric=accuracy', ["'accuracy'", 'test.accuracy'])])
def test_mistakes_in_the_settings(make, override, words):
    with pytest.raises(ConfigError) as caught:
        make("return {'a': {}, 'b': {'batch_size': 8}}", f'--config.study.{override}')
    for text in words:
        assert text in str(caught.value)


def test_a_config_without_a_study_is_refused():
    with pytest.raises(ConfigError, match='no function study'):
        study_of(parse(['study', '--config=configs/sketch_cnn.py']))


def test_folder_names_are_safe_and_their_own():
    names = ['a/b', 'a b', 'a:b', 'a_b', '../x', '', 'ä', 'a' * 300, 'b' * 300, 'logs', 'lr=1e-3']
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    assert folders[-1] == 'lr=1e-3' and folders[3] == 'a_b'
    assert all('/' not in name and not name.startswith('.') and 0 < len(name) < 100
               for name in folders)


def test_values_in_words():
    assert short({'epochs': 5}) == '5 epochs'
    assert short(1e-05) == '1e-05'
    assert short(['hflip', {'kind': 'rotate', 'degrees': 10}]) == '[hflip, rotate(degrees=10)]'
    assert short('x' * 50) == 'x' * 39 + '…'


def test_arms_may_be_added_but_neither_changed_nor_dropped(make, tmp_path):
    workdir = tmp_path / 'study'
    claim = lambda body, *overrides: study_file.claim(make(body, *overrides), workdir)
    claim("return {'a': {}, 'b': {'batch_size': 8}}")
    claim("return {'a': {}, 'c': {'batch_size': 9}, 'b': {'batch_size': 8}}",
          '--config.study.seeds=0,1,2,3', '--config.loader.threads=7')
    assert list(json.loads((workdir / 'study.json').read_text())['arms']) == ['a', 'c', 'b']
    with pytest.raises(ConfigError, match=r"'b'.*batch_size = 8.*10"):
        claim("return {'a': {}, 'c': {'batch_size': 9}, 'b': {'batch_size': 10}}")
    with pytest.raises(ConfigError, match=r"'c'.*no longer in the study"):
        claim("return {'a': {}, 'b': {'batch_size': 8}}")
    with pytest.raises(ConfigError, match=r"'a'.*schedule.lr"):
        claim("return {'a': {}, 'c': {'batch_size': 9}, 'b': {'batch_size': 8}}",
              '--config.schedule.lr=1')
    # A key that is newer than the study does not change it.
    content = json.loads((workdir / 'study.json').read_text())
    for arm in content['arms'].values():
        del arm['accumulate']
    (workdir / 'study.json').write_text(json.dumps(content))
    claim("return {'a': {}, 'c': {'batch_size': 9}, 'b': {'batch_size': 8}}")


def test_seen_rows_may_be_accepted_where_the_start_was_refused_for_them(make, tmp_path):
    body = "return {'a': {}, 'b': {'batch_size': 8}}"
    study_file.claim(make(body), tmp_path / 'study')
    study_file.claim(make(body, '--config.init.seen=accept'), tmp_path / 'study')


def test_a_workdir_of_a_run_is_refused(make, tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(ConfigError, match='holds a run'):
        study_file.claim(make('return {"a": {}}'), tmp_path)


def test_a_study_that_goes_on_keeps_the_values_of_today(make, tmp_path, capfd):
    """Each of its processes reads study.json, so older values there would be those of a study that
    began a moment ago."""
    workdir = tmp_path / 'study'
    body = "return {'a': {'loss.counts': 'data'}, 'b': {}}"
    study_file.claim(make(body), workdir)
    study = make(body, f'--workdir={workdir}')
    assert [arm.config.loss.counts for arm in study.arms] == ['data', 'shown']
    assert [arm.config.mesh.gradients for arm in study.arms] == ['float32', 'float32']
    study_file.claim(study, workdir)
    assert 'rules' not in capfd.readouterr().err
