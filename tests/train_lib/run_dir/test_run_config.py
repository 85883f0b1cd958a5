"""A run that goes on reads its data as it did when it was started."""

import json

import pytest

from configs import common
from train_lib.commands.command_line import parse
from train_lib.run_dir import workdirs
from train_lib.run_dir.run_config import config_of_run
from train_lib.runtime.errors import ConfigError

CONFIG = '--config=configs/sketch_vit.py'


def rules(*argv):
    return parse([*argv]).config.data.rules


@pytest.fixture
def older(tmp_path):
    """The workdir of a run that was started before there were rules."""
    workdirs.claim(tmp_path / 'older', parse(['train', CONFIG]).config, 'data')
    path = tmp_path / 'older/config.json'
    saved = json.loads(path.read_text())
    del saved['sha256'], saved['data']['rules'], saved['image']['range16']
    del saved['split']['tolerance'], saved['saved_activations']
    path.write_text(json.dumps(saved))
    return tmp_path / 'older'


def test_an_older_run_keeps_its_rules(older, tmp_path):
    assert rules('train', CONFIG, f'--workdir={tmp_path}/new') == 2
    assert rules('train', CONFIG, f'--workdir={older}') == 1
    assert rules('predict', f'--workdir={older}') == 1
    assert rules('report', CONFIG, f'--workdir={older}') == 1
    assert rules('train', CONFIG, f'--workdir={tmp_path}/new',
                 f'--config.init.resume_from={older}') == 1
    assert config_of_run(older).data.rules == 1
    config = parse(['train', CONFIG, f'--workdir={older}']).config
    workdirs.claim(older, config, 'data')  # as a later start does, which writes it down
    assert json.loads((older / 'config.json').read_text())['data']['rules'] == 1
    assert rules('train', CONFIG, f'--workdir={older}') == 1


def test_an_older_run_or_study_keeps_its_splits(older, tmp_path):
    """Seeds broke ties only; today they draw among near-optimal splits."""
    (tmp_path / 'study').mkdir()
    (tmp_path / 'study/study.json').write_text(json.dumps(dict(arms=dict(a={'seed': 0}))))
    study = '--config=configs/studies/digits.py'
    for argv, wanted in [(['train', CONFIG, f'--workdir={tmp_path}/new'], 0.3),
                         (['train', CONFIG, f'--workdir={older}'], 0.0),
                         (['predict', f'--workdir={older}'], 0.0),
                         (['study', study, f'--workdir={tmp_path}/study'], 0.0),
                         (['study', study, f'--workdir={tmp_path}/other'], 0.3)]:
        assert parse(argv).config.split.tolerance == wanted
    assert config_of_run(older).split.tolerance == 0.0


def test_an_older_run_keeps_the_layers_of_its_adapters(older):
    """The default was a regex; its config.json has it, two sections deep."""
    path, regex = older / 'config.json', workdirs.BEFORE['finetune.lora.layers']
    assert parse(['train', CONFIG]).config.finetune.lora.layers == 'auto'
    saved = json.loads(path.read_text())
    for lora in (saved['finetune']['lora'] | dict(layers=regex), {'rank': 0}):
        saved['finetune']['lora'] = lora
        path.write_text(json.dumps(saved))
        assert parse(['train', CONFIG, f'--workdir={older}']).config.finetune.lora.layers == regex
        assert config_of_run(older).finetune.lora.layers == regex
    given = ['train', CONFIG, f'--workdir={older}', '--config.finetune.lora.layers=auto']
    assert parse(given).config.finetune.lora.layers == 'auto'


def test_a_key_outside_of_the_sections_is_kept_too(older, tmp_path):
    for argv, wanted in [([], 'all'), (['--config.saved_activations=products'], 'products')]:
        config = parse(['train', CONFIG, f'--workdir={older}', *argv]).config
        assert config.saved_activations == wanted
    assert config_of_run(older).saved_activations == 'all'
    assert parse(['train', CONFIG, f'--workdir={tmp_path}']).config.saved_activations == 'products'


def test_a_user_may_say_otherwise_and_is_told(older):
    assert rules('train', CONFIG, f'--workdir={older}', '--config.data.rules=2') == 2
    config = parse(['train', CONFIG, f'--workdir={older}', '--config.data.rules=2']).config
    with pytest.raises(ConfigError, match=r'config\.data\.rules = 1, and .* 2'):
        workdirs.check_same(older, config, 'data')


def test_a_run_of_today_keeps_its_rules(tmp_path):
    workdirs.claim(tmp_path, common.get_config(), 'data')
    assert rules('train', CONFIG, f'--workdir={tmp_path}') == 2


@pytest.mark.parametrize('arm, wanted', [({'seed': 0}, 1), ({'data.rules': 2}, 2),
                                         ({'data.rules': 1}, 1)])
def test_so_does_a_study(tmp_path, arm, wanted):
    (tmp_path / 'study.json').write_text(json.dumps(dict(arms=dict(a=arm))))
    assert rules('study', '--config=configs/studies/digits.py', f'--workdir={tmp_path}') == wanted


@pytest.mark.parametrize('text', ['', '[]', '{"format": 99}', '{"data": {"rules": "x"}}'])
def test_a_damaged_run_is_left_to_who_reads_it(tmp_path, text):
    (tmp_path / 'config.json').write_text(text)
    assert rules('train', CONFIG, f'--workdir={tmp_path}') == 2


def test_rows_are_described_as_by_the_run_until_others_are_given(tmp_path):
    """Empty tuples come back from config.json as lists, which are no other data."""
    workdir = tmp_path / 'run'
    given = ['--config.data.group_regex=_(x)', '--config.data.long_tail.imbalance=3']
    workdirs.claim(workdir, parse(['train', CONFIG, *given]).config, 'data')
    for verb, flags in (('predict', ()), ('features', ['--out=f.parquet'])):
        data = parse([verb, f'--workdir={workdir}', *flags]).config.data
        assert data.group_regex == '_(x)' and data.long_tail.imbalance == 3
        data = parse([verb, f'--workdir={workdir}', *flags, '--config.data.source=folder',
                      '--config.data.folder=x']).config.data
        assert data.group_regex == '' and data.long_tail.imbalance == 1
