"""What the verbs say is at most 80 columns wide; only a path may be longer, behind its word."""

import logging
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

import main
from input_pipeline.errors import counted
from input_pipeline.missing_files import refuse_all_missing
from train_lib.runtime import progress
from train_lib.runtime.progress import COLUMNS, InColumns, epochs, in_columns

HOME = Path(__file__).parents[3]
LONG = 'a_folder_with_a_long_name_such_as_people_give_to_the_runs_of_their_experiments'
TINY = ['--config.image.size=16', '--config.curriculum=()', '--config.duration.steps=4',
        '--config.batch_size=8', '--config.log.every.steps=2', '--config.report.heat_maps=False',
        '--config.model=dict(name="small_cnn", width=4, stages=2)']


def too_wide(text):
    """Lines that are too long, except for a path that stands alone behind words."""
    return [line for line in text.splitlines() if len(line) > COLUMNS
            and not re.fullmatch(r'[\w .-]{0,40}?(--?[\w.]+=)?\(?[^ ]*/[^ ]*', line)
            and not line.startswith('main.py: ')]


def test_wide_lines_are_found():
    path = f'/{LONG}/{LONG}/report.html'
    assert too_wide(f'report   {path}\n         --config.data.packed={path}\n{"word " * 16}') == []
    assert len(too_wide(f'table {path}; correct it\n{"word " * 17}')) == 2


def test_a_line_of_the_log_is_broken_between_words_and_never_inside_a_path():
    path = f'/{LONG}/x.html'
    assert in_columns('short') == ['short']
    assert in_columns(f'report   {path}') == [f'report   {path}']
    assert in_columns(f'start    as in {path}') == [f'start    as in {path}']
    lines = in_columns(f'start    as in the run {path} and {"so " * 30}on')
    assert lines[:2] == ['start    as in the run', f'         {path}']
    assert max(len(line) for line in lines[2:]) <= COLUMNS < sum(map(len, lines[2:]))
    spaced = '/home/My Pictures/' + 'a long name ' * 9
    assert in_columns(f'report   {spaced}') == [f'report   {spaced}']


def test_a_message_is_broken_on_a_terminal_only(monkeypatch):
    """In a file it stays in one line, where `grep` finds it."""
    text = 'model    ' + 'resnet_inception, ' * 6
    record = logging.makeLogRecord(dict(msg=text))
    assert InColumns('%(message)s').format(record) == text
    monkeypatch.setattr(progress, 'to_terminal', lambda: True)
    assert too_wide(InColumns('%(message)s').format(record)) == []


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(progress, 'to_terminal', lambda: True)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp('wide') / LONG
    rng = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (root / 'data' / name).mkdir(parents=True)
        for number in range(12):
            image = rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)
            cv2.imwrite(str(root / f'data/{name}/{name}{number}.png'), image)
    return root


def said(capfd, *argv, code=0):
    capfd.readouterr()
    assert main.main([*argv]) == code
    out, err = capfd.readouterr()
    assert too_wide(out) == [] and too_wide(err) == []
    return out + err


@pytest.mark.slow  # nine commands
def test_the_verbs_keep_to_the_columns(place, capfd, terminal):
    config = f'--config={HOME}/configs/sketch_vit.py:folder={place}/data'
    run = f'--workdir={place}/runs/train'
    text = said(capfd, config, run, *TINY)
    order = [text.index(f'\n{word} ') for word in ('plan', 'start', 'compile', 'step')]
    assert order == sorted(order)
    assert re.search(r'^plan     4 steps of 8, 2\.0 epochs$', text, re.M)
    assert re.search(r'^data .* 2 classes$', text, re.M)
    said(capfd, config, run, *TINY)  # finished
    said(capfd, 'report', run)
    said(capfd, 'predict', run, '--config.predict.views=identity,hflip')
    said(capfd, 'predict', run, '--config.predict.views=identity,hflip')  # reused
    said(capfd, 'vote', f'--config={HOME}/configs/vote/digits.py', f'--workdir={place}/runs/vote',
         f'--config.members={place}/runs/*')
    said(capfd, 'lr_find', config, f'--workdir={place}/runs/lr', *TINY, '--config.lr_find.steps=10')
    said(capfd, config, '--config.plan_only=True', *TINY)
    said(capfd, 'models', 'resnet*')


def test_looking_and_packing_keep_to_the_columns(place, capfd, terminal):
    config = f'--config={HOME}/configs/sketch_vit.py:folder={place}/data'
    said(capfd, 'explore', config, f'--workdir={place}/runs/look',
         f'--config.explore.beside={place}/data/cat')
    text = said(capfd, 'curate', config, f'--workdir={place}/runs/clean')
    decisions = re.search(r'^ +--config\.data\.decisions=(.*)$', text, re.M)[1]
    assert Path(decisions).is_file()
    text = said(capfd, 'pack', config, f'--config.pack.folder={place}/packed')
    assert 'packed   24 images, verified\n' in text
    assert re.search(rf'^ +--config\.data\.packed={place}/packed$', text, re.M)


@pytest.mark.parametrize(('count', 'text'), [
    (0, '0 images'), (1, '1 image'), (1200, '1,200 images')])
def test_one_is_singular(count, text):
    assert counted(count, 'image') == text
    assert counted(1, 'class', 'classes') == '1 class' and counted(2, 'x is', 'x are') == '2 x are'


def test_a_table_of_one_missing_picture(tmp_path):
    with pytest.raises(ValueError, match=r"^The only image, 'a\.png', is missing in "):
        refuse_all_missing(str(tmp_path), ['a.png'])
    with pytest.raises(ValueError, match=r'^All 2 images are missing in '):
        refuse_all_missing(str(tmp_path), ['a.png', 'b.png'])


@pytest.mark.parametrize(('value', 'text'), [
    (20.000000000004, '20.0'), (19.9999, '20.0'), (20, '20.0'), (0.0123, '0.012'), (0, '0.0'),
    (0.25, '0.2')])
def test_epochs_have_one_decimal(value, text):
    assert epochs(value) == text
