"""Whose a workdir is: the same settings, in the words of today's configs/common.py."""

import json

import pytest

from configs import common
from train_lib.run_dir import workdirs
from train_lib.run_dir.code_digest import code_digest
from train_lib.runtime.errors import ConfigError


@pytest.fixture
def run(tmp_path):
    """(workdir, config) of a run that has begun."""
    config = common.get_config()
    config.schedule.lr = 0.5
    with config.ignore_type():
        config.resample.multipliers = {'a': 2.0}
        config.model = dict(name='small_cnn', width=8)
        config.schedule.warmup = dict(epochs=2)
        config.curriculum = ({'transforms': [{'kind': 'flip'}]},)
    workdirs.claim(tmp_path, config, 'data')
    return tmp_path, config


def edit(workdir, change) -> None:
    saved = json.loads((workdir / 'config.json').read_text())
    del saved['sha256']
    change(saved)
    (workdir / 'config.json').write_text(json.dumps(saved))


def test_a_changed_value_is_found(run):
    path = run[0] / 'config.json'
    whole = path.read_text()
    for old, new in (('"seed": 0', '"seed": 1'), ('"width": 8', '"width": 9'),
                     ('"data"', '"dbta"'), ('"sha256"', '"sha257"')):
        assert old in whole
        path.write_text(whole.replace(old, new))
        for read in (lambda: workdirs.saved_config(run[0]),
                     lambda: workdirs.check_same(*run, 'data')):
            with pytest.raises(ConfigError, match=r'config\.json (has changed|has config\.sha257)'):
                read()
    path.write_text('\n'.join(line for line in whole.split('\n') if '"sha256"' not in line).replace(
        '"seed": 0', '"seed": 1'))
    assert workdirs.saved_config(run[0]).seed == 1  # as somebody changes it who is told how
    path.write_text(whole)
    workdirs.check_same(*run, 'data')


def test_a_run_is_its_own(run):
    workdirs.check_same(*run, 'data')
    saved = workdirs.saved_config(run[0])
    assert saved.schedule.lr == 0.5
    assert saved.model.to_dict() == dict(name='small_cnn', width=8)
    assert saved.schedule.warmup.to_dict() == dict(epochs=2)


def test_keys_that_came_later_mean_their_default(run):
    workdir, config = run

    def older(saved):
        del saved['guard'], saved['ema']['warmup'], saved['optimizer']['clip_norm']
        del saved['format'], saved['defaults']

    edit(workdir, older)
    workdirs.check_same(workdir, config, 'data')
    assert workdirs.saved_config(workdir).optimizer.clip_norm == 1.0
    config.optimizer.clip_norm = 2.0
    with pytest.raises(ConfigError, match=r'config\.optimizer\.clip_norm = 1\.0, and .* 2\.0'):
        workdirs.check_same(workdir, config, 'data')


@pytest.mark.parametrize('harm, words', [
    (lambda saved: saved['schedule'].update(momentun=3), r'config\.schedule\.momentun = 3'),
    (lambda saved: saved.update(seee=saved.pop('seed')), r'config\.seee = 0'),
    (lambda saved: saved['data']['columns'].update(old=''), r'config\.data\.columns\.old'),
    (lambda saved: saved.update(format=3), r'config\.json has format 3.*newer code'),
    (lambda saved: saved.update(format='1'), r"config\.json has format '1'")])
def test_keys_that_the_code_does_not_know_are_refused(run, harm, words):
    edit(run[0], harm)
    for look in (lambda: workdirs.check_same(*run, 'data'), lambda: workdirs.saved_config(run[0])):
        with pytest.raises(ConfigError, match=words):
            look()


@pytest.mark.parametrize('change, words', [
    (lambda config: config.model.update(width=16), r'config\.model\.width = 8'),
    (lambda config: config.model.update(depth=3), r'config\.model\.depth = None'),
    (lambda config: config.schedule.update(warmup=dict(steps=2)), r'config\.schedule\.warmup\.'),
    (lambda config: config.resample.update(multipliers={'b': 2.0}), r'config\.resample\.mult'),
    (lambda config: config.update(curriculum=()), r'config\.curriculum')])
def test_free_keys_lists_and_durations_are_compared(run, change, words):
    workdir, config = run
    with config.unlocked(), config.ignore_type():
        change(config)
    with pytest.raises(ConfigError, match=words):
        workdirs.check_same(workdir, config, 'data')


def test_what_differs_from_the_defaults_is_written_down(run):
    saved = json.loads((run[0] / 'config.json').read_text())
    usual = common.get_config()
    assert saved['defaults'] == {
        'schedule.lr': usual.schedule.lr, 'schedule.warmup.epochs': None,
        'resample.multipliers.a': None, 'model.name': usual.model.name, 'model.width': None,
        'curriculum': []}
    assert saved['code_digest'] == code_digest()


def test_what_is_recorded_beside_the_config_hides_none_of_its_keys():
    assert not set(workdirs.START_FACTS) & set(common.get_config())
