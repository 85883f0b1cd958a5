"""The guard against slower code: what it compares, keeps and says."""

import pytest

from benchmarks import evaluation, guard
from benchmarks.guard import Kept


@pytest.fixture
def measured(monkeypatch):
    """{line: ratio} that the parts 'a' and 'b' of the guard give; may be changed."""
    ratios = {'a': {'fast': 2.0, 'steady': 0.5}, 'b': {'noisy': 1.0}}
    monkeypatch.setattr(guard, 'PARTS', {part: lambda part=part: iter(ratios[part].items())
                                         for part in ratios})
    return ratios


def test_what_is_worse_than_its_tolerance_is_named(measured, tmp_path, capsys):
    table = tmp_path / 'kept.csv'
    assert guard.main(['--update', '--runs=2', f'--table={table}']) == 0
    assert guard.main([f'--table={table}']) == 0
    assert capsys.readouterr().out.endswith('nothing got slower\n')
    measured['a'] |= {'fast': 1.81, 'steady': 0.449}  # 9.5 % and 10.2 % less
    assert guard.main([f'--table={table}']) == 1
    *_, said = capsys.readouterr().out.splitlines()
    assert said == 'slower: steady'
    measured['a']['steady'] = float('nan')  # NaN must not pass as a good ratio
    assert guard.main([f'--table={table}', '--only=a']) == 1
    assert guard.main([f'--table={table}', '--only=b']) == 0


def test_tolerances_come_from_the_runs():
    runs = [{'steady': 1.0, 'noisy': 0.8}, {'steady': 1.02, 'noisy': 1.0},
            {'steady': 0.99, 'noisy': 1.1}]
    assert guard.table_of(runs) == {'steady': Kept(1.0, 0.10), 'noisy': Kept(1.0, 0.40)}


def test_the_table_is_read_as_it_was_written(tmp_path):
    table = {'a, with a comma': Kept(0.1234, 0.1), 'b': Kept(12.5, 0.35)}
    guard.write(tmp_path / 'kept.csv', table)
    assert guard.read(tmp_path / 'kept.csv') == table


def test_lines_of_other_parts_stay_and_new_ones_are_said(measured, tmp_path, capsys):
    table = tmp_path / 'kept.csv'
    guard.write(table, {'of a peer': Kept(3.0, 0.1), 'noisy': Kept(0.5, 0.1)})
    assert guard.main([f'--table={table}']) == 0
    said = capsys.readouterr().out
    assert 'not measured: of a peer' in said and 'not kept yet: fast' in said
    assert guard.main(['--update', '--runs=1', '--only=b', f'--table={table}']) == 0
    assert guard.read(table) == {'of a peer': Kept(3.0, 0.1), 'noisy': Kept(1.0, 0.1)}


@pytest.mark.parametrize('flags, words', [
    (['--only=votes'], '--only=votes is not known'),
    (['--table=nowhere.csv'], 'nowhere.csv is missing'),
])
def test_mistakes_in_one_sentence(flags, words, capsys):
    assert guard.main(flags) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.count('\n') == 1 and words in said.err


def test_the_kept_table_names_lines_of_every_part():
    """The lines of peers are missing where it was written without them."""
    words = {name.split()[0].rstrip(':') for name in guard.read(guard.TABLE)}
    assert words >= {'step', 'pipeline', 'evaluation', 'prediction', 'vote', 'first', 'second'}


def test_an_evaluation_is_measured_beside_its_forward_step(capsys):
    assert evaluation.main(['--model=small_cnn', '--size=16', '--batch=32', '--pictures=96',
                            '--files=40', '--rounds=1']) == 0
    *_, memory, _, files, predicted = capsys.readouterr().out.splitlines()
    for line, words in ((memory, ['96', 'in', 'memory', 'evaluation']),
                        (files, ['40', 'files', 'evaluation']),
                        (predicted, ['40', 'files', 'prediction'])):
        assert line.split()[:len(words)] == words
        alone, whole, ratio, _ = map(float, line.split()[len(words):])
        assert ratio == pytest.approx(alone / whole, abs=0.02 * ratio + 0.05 / whole)
