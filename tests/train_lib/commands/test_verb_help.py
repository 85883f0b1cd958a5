"""The help of main.py, and paths where a flag is meant."""

import dataclasses
import shlex
from pathlib import Path

import pytest

import main
from input_pipeline.manifest import SPLITS
from train_lib.commands import verb_help
from train_lib.commands.command_line import parse
from train_lib.commands.misplaced_words import meant
from train_lib.commands.verb_help import HELPS, WIDTH, knobs, of_verb
from train_lib.commands.verbs import VERBS, Verb
from train_lib.runtime.errors import ConfigError

ROOT = Path(__file__).parents[3]
NEW = Verb('weigh the pictures', 'train_lib.commands.train:train', workdir='a trained run',
           words=None, flags=dict(scales='a file of scales, one line per picture ' * 3))


def printed(capsys, *argv):
    with pytest.raises(SystemExit) as ended:
        main.main([*argv])
    assert not ended.value.code
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= WIDTH == 80
    return text


def test_help_is_printed_by_every_way_to_ask_for_it(capsys):
    general = printed(capsys, 'help')
    assert printed(capsys, '--help') == general == printed(capsys, '-h')
    assert all(f'\n  {name} ' in general for name in VERBS)
    for name in VERBS:
        assert printed(capsys, 'help', name) == printed(capsys, name, '--help')


@pytest.mark.parametrize('name', VERBS)
def test_every_verb_has_its_help(name, capsys):
    verb, text = VERBS[name], printed(capsys, 'help', name)
    for word in (f'python main.py {name}', 'Usage:', 'Example:', 'Manual: docs/',
                 *(f'--{flag}' for flag in verb.flags)):
        assert word in text
    page = text.rpartition('Manual: ')[2].partition(';')[0]
    assert (ROOT / page).is_file()
    assert verb.workdir == '' or ' --workdir=DIR' in text


@pytest.mark.parametrize('name', HELPS)
def test_the_keys_that_a_help_names_are_keys_with_comments(name):
    assert name in VERBS
    known, named = knobs(VERBS[name]), HELPS[name].knobs
    assert len(named) == (0 if VERBS[name].config == 'refused' else verb_help.SHOWN)
    for key in named:
        default, comment = known[key]
        assert default and comment
        assert ' '.join(f'--config.{key} (default: {default}) {comment}'.split()) in ' '.join(
            of_verb(name).split())


@pytest.mark.parametrize('name', HELPS)
def test_the_example_of_a_verb_is_understood(name):
    words = shlex.split(' '.join(line.removesuffix('\\') for line in HELPS[name].example))
    assert words[:2] == ['python', 'main.py']
    verb = VERBS[name]
    given = any(word.startswith('--config=') for word in words)
    if verb.workdir and verb.config != 'refused' and not given:
        words.append('--config=configs/sketch_vit.py')  # instead of that of the run
    assert parse(words[2:]).verb == name


def test_a_new_verb_has_a_help_without_an_entry(monkeypatch):
    monkeypatch.setitem(VERBS, 'predict', NEW)
    monkeypatch.delitem(HELPS, 'predict')
    text = of_verb('predict')
    assert text.startswith('Weigh the pictures.\n')
    assert max(map(len, text.splitlines())) <= WIDTH
    for word in ('[WORD ...]', '--scales', '--workdir=runs/mine', '--config.predict.source'):
        assert word in text


def test_a_verb_that_is_nearly_help():
    with pytest.raises(ConfigError, match=r"did you mean 'help'[?]"):
        parse(['hlep'])
    with pytest.raises(ConfigError, match=r"no verb 'trian'; did you mean 'train'[?]"):
        parse(['help', 'trian'])
    with pytest.raises(SystemExit):
        parse(['help', 'help'])
    with pytest.raises(ConfigError, match=r'`python main[.]py help` shows'):
        parse([])


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ('pictures', 'packed', 'runs/a'):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / 'packed/0.array_record').write_bytes(b'')
    (tmp_path / 'runs/a/config.json').write_text('{}')


SKETCH = '--config=configs/sketch_vit.py:'


@pytest.mark.parametrize(('argv', 'flag'), [
    (['pictures'], f'{SKETCH}folder=pictures'),
    (['train', 'pictures'], f'{SKETCH}folder=pictures'),
    (['explore', 'no/where/'], f'{SKETCH}folder=no/where'),
    (['train', 'labels.csv'], f'{SKETCH}csv=labels.csv'),
    (['train', 'labels.parquet'], f'{SKETCH}csv=labels.parquet'),
    (['pictures.zip'], f'{SKETCH}folder=pictures.zip'),
    (['packed'], f'{SKETCH}packed=packed'),
    (['packed/0.array_record'], f'{SKETCH}packed=packed'),
    (['pictures/cat.png'], f'{SKETCH}folder=pictures'),
    (['--config=configs/mask_cnn.py:size=32', 'pictures'],
     '--config=configs/mask_cnn.py:size=32,folder=pictures'),
    (['configs/mask_cnn.py:size=tiny'], '--config=configs/mask_cnn.py:size=tiny'),
    (['study', 'pictures'], '--config=configs/studies/digits.py:folder=pictures'),
    (['vote', 'runs/a', 'runs/b'], '--config=configs/vote/digits.py:members=runs/a,runs/b'),
    (['submit', 'runs/a', 'runs/b'], '--workdirs=runs/a,runs/b'),
    (['submit', '--workdirs', 'runs/a', 'runs/b'], '--workdirs=runs/b'),
    (['submit', 'sample.csv'], '--sample=sample.csv'),
    (['submit', 'pictures'], '--images=pictures'),
    (['submit', 'test.zip'], '--images=test.zip'),
    (['report', 'runs/a'], '--workdir=runs/a'),
    (['train', 'runs/a'], '--workdir=runs/a'),
    (['predict', 'runs/a'], '--workdir=runs/a'),
    (['predict', 'pictures'], '--config.data.folder=pictures'),
])
def test_a_path_names_the_flag_that_takes_it(places, argv, flag):
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    message = str(caught.value)
    assert '\n' not in message and message.endswith(f'{flag}?')


def test_a_word_that_is_no_path_is_none(places):
    for word in (*SPLITS, 'now', 'trian'):
        assert meant([word], 'train', VERBS['train'], None) == ''
    both = dataclasses.replace(VERBS['train'], workdir='a trained run')
    assert meant(['pictures'], 'train', both, None).endswith('--workdir=pictures?')


@pytest.mark.parametrize('argv', [['compare', 'runs/a'], ['export', '--workdir=runs/a']])
def test_a_verb_without_a_config_does_not_ask_for_one(argv):
    with pytest.raises(ConfigError, match=r'--config.rule: the verb .* takes no config: leave it'):
        parse([*argv, '--config.rule=hard'])
