"""The command line: overrides, units of durations, and one helpful sentence for each mistake."""

import json

import pytest

from configs import common
from train_lib.commands.command_line import parse
from train_lib.run_dir import overrides
from train_lib.runtime.errors import ConfigError

SKETCH = '--config=configs/sketch_vit.py'


def test_overrides_take_the_type_of_the_default():
    config = parse([SKETCH, '--config.schedule.lr=1e-2', '--config.batch_size', '32',
                    '--config.optimizer.nesterov=false', '--config.data.group_regex=_(\\d+)\\.',
                    '--config.split.test_groups=17,18', '--config.image.mean=0.1,0.2,0.3',
                    '--config.split.fold=all']).config
    assert config.schedule.lr == 0.01
    assert config.batch_size == 32
    assert config.optimizer.nesterov is False
    assert config.data.group_regex == r'_(\d+)\.'
    assert config.split.test_groups == ('17', '18')
    assert config.image.mean == (0.1, 0.2, 0.3)
    assert config.split.fold == 'all'


def test_a_duration_may_change_its_unit():
    config = parse([SKETCH, '--config.duration.steps=100', '--config.eval.every.percent=12.5',
                    '--config.early_stopping.patience.epochs=3']).config
    assert config.duration.to_dict() == {'steps': 100}
    assert config.early_stopping.patience == {'epochs': 3}  # None before
    assert config.eval.every.to_dict() == {'percent': 12.5}


def test_the_curriculum_can_be_written_on_the_command_line():
    config = parse([SKETCH, '--config.curriculum=[dict(until=dict(epochs=2)), '
                            'dict(transforms=["hflip", dict(kind="rotate", degrees=20)])]']).config
    assert config.curriculum[1]['transforms'][1] == {'kind': 'rotate', 'degrees': 20}
    config = parse([SKETCH, '--config.curriculum=()']).config
    assert len(config.curriculum) == 0


def test_model_settings_may_be_added():
    assert parse([SKETCH, '--config.model.drop_rate=0.5']).config.model.drop_rate == 0.5


@pytest.mark.parametrize('argv, words', [
    (['trian', SKETCH], ["'trian'", 'train']),
    (['train', SKETCH, '--workers=2'], ['--workers', 'study']),
    (['--config=configs/common.py:folder=x'], ['nothing after its colon', "'folder=x'"]),
    (['vote', SKETCH], ['config of a vote', 'configs/vote/']),
    (['train', '--config=configs/vote/digits.py'], ['verb train', 'configs/vote/']),
    ([SKETCH, '--config.schedul.lr=1'], ["'schedul'", 'schedule.lr']),
    ([SKETCH, '--config.schedule.learning_rate=1'], ["'learning_rate'"]),
    ([SKETCH, '--config.label_smoothing=0.1'], ['config.loss.label_smoothing']),
    ([SKETCH, '--config.batch_size=many'], ['batch_size', "'many'", 'whole number']),
    ([SKETCH, '--config.batch_size=1.5'], ['batch_size', '1.5']),
    ([SKETCH, '--config.data.allow_outside=maybe'], ['True or False']),
    ([SKETCH, '--config.duration.epoch=5'], ["'epoch'", 'epochs']),
    ([SKETCH, '--config.batch_size=8', '--config.batch_size=16'], ['twice']),
    ([SKETCH, '--config.schedule=dict(lr=1)', '--config.schedule.lr=1'], ['overlap']),
    ([SKETCH, '--wrkdir=x'], ['wrkdir', '--workdir']),
    ([SKETCH, 'train', 'now'], ["'now'"]),
    (['--config=configs/sketch_vti.py'], ['sketch_vti.py', 'sketch_vit.py']),
    ([SKETCH + ':data=doodle'], ['doodle', 'doodles']),
    ([SKETCH + ':fodler=x'], ['fodler', 'folder']),
    ([SKETCH + ':folder=a,packed=b'], ['folder=', 'packed=']),
    ([SKETCH + ':folder=a,csv=b'], ['folder=', 'csv=']),
    ([], ['--config is missing']),
])
def test_mistakes_are_named_in_one_sentence(argv, words):
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    message = str(caught.value)
    assert '\n' not in message
    for word in words:
        assert word in message


def test_a_key_that_a_config_file_invents_is_refused(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text('from configs import common\n'
                    'def get_config(arg=None):\n'
                    '    config = common.get_config().lock()\n'
                    '    config.lernrate = 1\n'
                    '    return config\n')
    with pytest.raises(ConfigError, match='lernrate'):
        parse([f'--config={file}'])


def test_paths_in_config_arguments_may_hold_commas():
    args = common.parse_arg('csv=/data/a,b.csv,images=/data/c,d')
    assert args['csv'] == '/data/a,b.csv'
    assert args['images'] == '/data/c,d'


@pytest.mark.parametrize('text', ['__import__("os")', 'dict(1)', 'open("x")', 'a.b', '1 +'])
def test_literals_are_not_evaluated(text):
    with pytest.raises((ValueError, SyntaxError)):
        overrides.literal(text)


def test_predict_takes_the_config_of_the_run_but_not_its_machine(tmp_path):
    config = common.get_config()
    config.duration = dict(steps=7)
    with config.ignore_type():
        config.image.mean = (0.1, 0.2, 0.3)
    config.model = dict(name='small_cnn', width=8)
    config.mesh.data = 64
    saved = json.loads(config.to_json())
    del saved['predict'], saved['loader']['prefetch']  # an older version's
    (tmp_path / 'config.json').write_text(json.dumps(saved | dict(data_digest='abc')))
    command = parse(['predict', f'--workdir={tmp_path}', '--config.predict.views=hflip,vflip',
                     '--config.image.cache_mb=5'])
    assert command.config.duration.to_dict() == dict(steps=7)
    assert command.config.model.to_dict() == dict(name='small_cnn', width=8)
    assert tuple(command.config.image.mean) == (0.1, 0.2, 0.3)
    assert command.config.predict.views == ('hflip', 'vflip')
    assert command.config.loader.prefetch == common.get_config().loader.prefetch
    assert command.config.mesh.data == -1 and command.config.image.cache_mb == 5
    with pytest.raises(ConfigError, match='--workdir is missing'):
        parse(['predict'])
