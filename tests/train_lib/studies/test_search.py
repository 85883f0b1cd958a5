"""Searches: what is proposed, stopped and announced; whoever runs them, however often."""

import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.train_lib.training.test_phases import run_config, stored
from train_lib.commands.command_line import parse
from train_lib.commands.study import study_of
from train_lib.run_dir import checkpoints
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.signals import Paused
from train_lib.studies import ledger, search_space, worker
from train_lib.studies.search import Trial, best_of, judge_rungs, trials_of
from train_lib.studies.search_space import PROPOSERS, Known, Range
from train_lib.studies.study_file import claim
from train_lib.studies.tables import write_tables
from train_lib.training import run
from train_lib.training.data import load_data

FILE = '''
from configs.studies import digits

def get_config(arg=None):
    config = digits.get_config(arg)
    config.study.search.update(trials=9, rungs=(25, 50), factor=3.0)
    return config

def search():
    return {space}
'''
SPACE = "{'schedule.lr': (1e-4, 1e-1, 'log'), 'model.width': [4, 8], 'accumulate': (1, 4, 'whole')}"


def study_in(folder: Path, *more: str, space: str = SPACE):
    path = folder / 'mine.py'
    path.write_text(FILE.format(space=space))
    return study_of(parse(['study', f'--config={path}', *more]))


@pytest.mark.parametrize(('space', 'message'), [
    ('{}', r'give \{dotted\.path'),
    ("{'schedule.lr': (1e-1, 1e-4)}", 'low must be below high'),
    ("{'schedule.lr': (0.0, 1.0, 'log')}", 'above 0'),
    ("{'accumulate': (1.5, 4, 'whole')}", 'both be whole numbers'),
    ("{'schedule.lr': (1e-4, 1e-1, 'logg')}", 'give .low, high., '),
    ("{'schedule.lr': (1e-4, float('inf'))}", 'give .low, high., '),
    ("{'schedule.lr': 0.1}", 'give .low, high., '),
    ("{'schedule.lr': [0.1]}", 'two or more different values'),
    ("{'schedule.lr': [0.1, 0.1]}", 'two or more different values'),
    ("{'schedule.rate': [0.1, 0.2]}", 'schedule.rate'),
    ("{'accumulate': (1, 4)}", 'accumulate'),
    ("{'seed': [1, 2]}", 'belongs to the whole study'),
    ("{'duration.epochs': [1, 2]}", 'the same rows at the same share'),
    ("{'split.val': (0.1, 0.2)}", 'the same rows at the same share')])
def test_a_wrong_space_is_refused_in_one_sentence(tmp_path, space, message):
    with pytest.raises(ConfigError, match=message) as caught:
        study_in(tmp_path, space=space)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('flag', 'message'), [
    ('search.trials=1', 'trials = 1'), ('search.factor=1.0', r'factor = 1\.0'),
    ('search.rungs=(50,20)', 'ascending'), ('search.rungs=(0,20)', 'ascending'),
    ('search.proposer=tpe', "proposer = 'tpe'"), ('search.proposer=grid', 'schedule.lr has none'),
    ('search.seed=1', 'none of config.study.seeds'), ('search.per_bracket=1', 'per_bracket = 1'),
    ('metric=val.accuracy', 'a score of the test'), ('metric=test.nll', 'score accuracy'),
    ('baseline=plain', 'not for a search'), ('stop.after=2', 'not for a search')])
def test_a_wrong_setting_is_refused(tmp_path, flag, message):
    with pytest.raises(ConfigError, match=message):
        study_in(tmp_path, f'--config.study.{flag}')


def test_a_file_has_a_study_or_a_search(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(FILE.format(space=SPACE) + '\ndef study():\n    return {}\n')
    with pytest.raises(ConfigError, match='keep one of them'):
        study_of(parse(['study', f'--config={path}']))


VALUES = {'log': Range('log', 1e-5, 1e-1), 'linear': Range('linear', -1.0, 0.12345),
          'whole': Range('whole', 1, 4), 'choice': Range('choice', values=((1, 2), 'b', None))}


def of_space(proposals) -> bool:
    return all(VALUES[key].low <= value <= VALUES[key].high if key != 'choice'
               else value in VALUES[key].values
               for one in proposals for key, value in one.items())


def test_proposals_are_a_function_of_the_seed_and_of_what_is_known():
    propose = PROPOSERS['random']
    first = propose(VALUES, 3, [], 64)
    assert of_space(first) and first == propose(VALUES, 3, [], 64) != propose(VALUES, 4, [], 64)
    known = [Known(one, 0.5, {}) for one in first[:10]]
    assert propose(VALUES, 3, known, 6) == first[10:16]
    assert {one['whole'] for one in first} == {1, 2, 3, 4}
    assert {str(one['choice']) for one in first} == {'(1, 2)', 'b', 'None'}
    below = np.mean([one['log'] < 1e-3 for one in first])
    assert 0.4 < below < 0.6  # evenly in the logarithm


def test_a_grid_is_every_combination_once(tmp_path):
    space = {'a': Range('choice', values=(1, 2, 3)), 'b': Range('choice', values=('x', 'y'))}
    propose = PROPOSERS['grid']
    found = propose(space, 0, [], 4)
    found += propose(space, 0, [Known(one, None, {}) for one in found], 4)
    assert len(found) == 6 == len({str(one) for one in found})
    assert propose(space, 0, [Known(one, None, {}) for one in found], 4) == []
    study = study_in(tmp_path, '--config.study.search.proposer=grid',
                     '--config.study.search.trials=0',
                     space="{'schedule.lr': [0.1, 0.2], 'model.width': [4, 8]}")
    assert study.search.trials == 4


def test_optuna_proposes_from_what_is_known():
    pytest.importorskip('optuna')
    propose = PROPOSERS['optuna']
    begun = propose(VALUES, 0, [], 8)
    assert of_space(begun) and begun == propose(VALUES, 0, [], 8)
    known = [Known(one, -abs(math.log10(one['log']) + 2), {1: 0.1}) for one in begun]
    known[0] = Known(begun[0], None, {1: -9.0})  # stopped
    known[1] = Known(begun[1], None, {})  # failed
    for _ in range(4):
        more = propose(VALUES, 0, known, 8)
        assert of_space(more) and more == propose(VALUES, 0, known, 8)
        known += [Known(one, -abs(math.log10(one['log']) + 2), {}) for one in more]
    errors = [abs(math.log10(one.changes['log']) + 2) for one in known]
    assert np.mean(errors[-8:]) < 0.7 * np.mean(errors[:8])  # it learns where the best is


def test_without_optuna_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(ConfigError, match=r'pip install -r requirements-search\.txt'):
        PROPOSERS['optuna'](VALUES, 0, [], 2)


def trial(bracket, *rungs, status='', score=math.nan):
    return Trial(None, bracket, rungs, status, score)


def test_the_best_of_a_bracket_go_on_once_all_have_come_to_a_rung():
    waiting = [trial(0, 0.5), trial(0, 0.9), trial(0), trial(0, 0.7)]
    verdict = judge_rungs(waiting, 2, 2.0, False)
    assert verdict.open == (waiting[2],) and not verdict.stopped
    there = [trial(0, 0.5), trial(0, 0.9), trial(0, 0.8), trial(0, math.nan), trial(0, 0.7)]
    verdict = judge_rungs(there, 2, 2.0, False)
    assert [one.rungs[0] for one in verdict.open] == [0.9, 0.8, 0.7]
    assert [(there.index(one), rung) for one, rung in verdict.stopped] == [(0, 1), (3, 1)]
    verdict = judge_rungs(there, 2, 2.0, True)  # an error
    assert [one.rungs[0] for one in verdict.open] == [0.5, 0.8, 0.7]
    later = [trial(0, 0.9, 0.1), trial(0, 0.8, 0.4), trial(0, 0.1, status='stopped'),
             trial(1, 0.2), trial(1)]
    verdict = judge_rungs(later, 2, 2.0, False)
    assert [one.rungs for one in verdict.open] == [(0.8, 0.4), ()]
    assert [one.rungs for one, _ in verdict.stopped] == [(0.9, 0.1)]


def test_a_failure_after_a_rung_does_not_change_who_was_stopped_there():
    before = [trial(0, 0.9), trial(0, 0.8), trial(0, 0.7), trial(0, 0.6)]
    assert [one.rungs[0] for one, _ in judge_rungs(before, 1, 2.0, False).stopped] == [0.7, 0.6]
    after = [trial(0, 0.9, status='failed'), *before[1:]]
    verdict = judge_rungs(after, 1, 2.0, False)
    assert [one.rungs[0] for one, _ in verdict.stopped] == [0.7, 0.6]
    assert [one.rungs[0] for one in verdict.open] == [0.8]
    # One that failed before the rung is not waited for.
    early = [trial(0, status='failed'), trial(0, 0.9), trial(0, 0.1)]
    assert [one.rungs[0] for one in judge_rungs(early, 1, 2.0, False).open] == [0.9]


# --- runs whose scores are made up ----------------------------------------------------------


class Dies(Exception):
    """As SIGKILL would end a worker."""


class MadeUp:
    """A run_cell whose scores are a function of the config alone. `dies`: how often its process
    ends in the middle of a call, of the next calls; `metric`: what they are called."""

    def __init__(self, dies: int = 0, metric: str = 'accuracy'):
        self.dies, self.metric, self.calls, self.steps = dies, metric, 0, 0

    def __call__(self, config, manifest, folder, pause=None):
        self.calls += 1
        noise = random.Random(f'{config.seed} {config.schedule.lr} {config.model.width}')
        if config.schedule.lr > 0.01:
            raise RuntimeError('it diverges')
        at = 8 if pause is None else round(8 * pause / 100)
        done = (folder / 'metrics.jsonl').read_text().splitlines() \
            if (folder / 'metrics.jsonl').exists() else []
        for step in range(len(done) + 1, at + 1):
            self.steps += 1
            done.append(json.dumps({'split': 'val', 'step': step, self.metric: noise.random()}))
            (folder / 'metrics.jsonl').write_text('\n'.join(done) + '\n')
            if self.dies and step == at:
                self.dies -= 1
                raise Dies
        (folder / 'config.json').write_text('{}')
        if pause is not None:
            raise Paused(at, 8)
        (folder / 'result.json').write_text(json.dumps(dict(
            val={self.metric: noise.random()}, test={self.metric: noise.random()})))


@pytest.fixture
def quick(monkeypatch):
    """Neither arms nor data are read; a death is not taken for the failure of a cell."""
    monkeypatch.setattr(worker, 'check_arms', lambda *_: None)
    monkeypatch.setattr(worker, 'load_data', lambda *_: None)
    monkeypatch.setattr(worker.gc, 'collect', lambda: 0)
    usual = worker._run

    def run_or_die(cell, folder, run_cell):
        outcome = usual(cell, folder, run_cell)
        if outcome and 'Dies' in outcome.get('error', ''):
            raise Dies
        return outcome

    monkeypatch.setattr(worker, '_run', run_or_die)


def search(study, workdir: Path, run_cell: MadeUp) -> dict[str, bytes]:
    """Runs it to the end, however often its process dies, and returns its tables."""
    claim(study, workdir)
    for _ in range(50):
        try:
            assert worker.work(study, workdir, run_cell) == 0
            break
        except Dies:
            continue
    write_tables(study, workdir, page=False)
    return {name: (workdir / name).read_bytes() for name in (
        'search.md', 'search.csv', 'table.md', 'table.csv', 'search/bracket_0.json')}


@pytest.mark.parametrize('metric', ['mae', 'qwk'])
def test_a_search_by_a_score_of_the_order(quick, tmp_path, metric):
    study = study_in(tmp_path, f'--config.study.metric=test.{metric}',
                     f'--config.eval.metric={metric}')
    search(study, tmp_path / 'run', MadeUp(metric=metric))
    sign = -1 if metric == 'mae' else 1
    trials = [one for one in trials_of(study, tmp_path / 'run') if one.status != 'failed']
    first = [sign * one.rungs[0] for one in trials if len(one.rungs) > 1]
    assert min(first) > max(sign * one.rungs[0] for one in trials if len(one.rungs) == 1)
    with pytest.raises(ConfigError, match=f'metric = .test.{metric}.: validations during a run'):
        study_in(tmp_path, f'--config.study.metric=test.{metric}')


def test_a_search_from_its_trials_to_the_comparison(quick, tmp_path):
    study = study_in(tmp_path)
    made_up = MadeUp()
    tables = search(study, tmp_path / 'run', made_up)
    trials = trials_of(study, tmp_path / 'run')
    ends = [one.status for one in trials]
    failed = ends.count('failed')
    assert len(ends) == 9 and failed and ends.count('done') == 1
    assert ends.count('stopped') == 8 - failed
    for one in trials:
        if one.status == 'stopped':
            record = ledger.record(tmp_path / 'run' / one.cell.folder)
            assert record['rung'] == len(one.rungs) and record['score'] == one.rungs[-1]
    text = tables['search.md'].decode()
    assert f'1 to the end, {8 - failed} stopped early, {failed} failed' in text
    assert 'the winner' in text and 'it diverges' in text
    best = best_of(study, trials)
    table = tables['table.md'].decode()
    assert f'best of 9 trials (random, {8 - failed} stopped early)' in table
    assert f'winner ({best.cell.arm.name})' in table
    # What is announced is the mean of fresh runs, and neither a trial's score nor the largest.
    fresh = [json.loads((tmp_path / f'run/winner/seed_{seed}/result.json').read_text())
             ['test']['accuracy'] for seed in study.seeds]
    assert f'{np.mean(fresh):.4f}' in table
    assert study.search.seed not in study.seeds
    splits = {one.cell.config().split.seed for one in trials} | {
        cell.config().split.seed for cell in study.cells()}
    assert splits == {study.search.seed}  # one split: the test rows chose nothing
    # Only the winner saw every step of a trial.
    assert made_up.steps == 2 * (9 - failed) + 2 * 3 + 4 + 2 * 3 * 8


def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(quick, tmp_path):
    study = study_in(tmp_path)
    whole, broken = (search(study, tmp_path / name, MadeUp(dies))
                     for name, dies in (('whole', 0), ('broken', 7)))
    assert whole == broken


def test_brackets_wait_for_those_before_and_are_kept(quick, tmp_path, monkeypatch):
    study = study_in(tmp_path, '--config.study.search.per_bracket=4')
    seen = []
    usual = PROPOSERS['random']

    def noted(space, seed, known, n):
        seen.append((len(known), n, all(one.value is not None or one.rungs or True
                                        for one in known)))
        return usual(space, seed, known, n)

    monkeypatch.setitem(search_space.PROPOSERS, 'random', noted)
    search(study, tmp_path / 'run', MadeUp())
    assert [(known, n) for known, n, _ in seen] == [(0, 4), (4, 4), (8, 1)]
    monkeypatch.setitem(search_space.PROPOSERS, 'random', lambda *_: [{}])
    names = [one.cell.arm.changes for one in trials_of(study, tmp_path / 'run')]
    monkeypatch.undo()
    assert names == usual(study.search.space, study.search.seed, [], 9)


def test_another_search_in_the_same_workdir_is_refused(quick, tmp_path):
    claim(study_in(tmp_path), tmp_path / 'run')
    claim(study_in(tmp_path), tmp_path / 'run')
    with pytest.raises(ConfigError, match='started with other trials'):
        claim(study_in(tmp_path, '--config.study.search.trials=12'), tmp_path / 'run')


def test_where_all_trials_fail_the_reason_is_said(quick, tmp_path):
    study = study_in(tmp_path, space="{'schedule.lr': (0.06, 0.1)}")
    with pytest.raises(ConfigError, match=r'All trials of .* have failed, the first by .*diverges'):
        search(study, tmp_path / 'run', MadeUp())


# --- real runs ------------------------------------------------------------------------------


def test_a_run_that_pauses_goes_on_bit_for_bit(tmp_path):
    config = run_config(**{'finetune.unfreeze': dict(epochs=0)})
    config.model = dict(name='small_cnn', width=4, stages=1)
    manifest = load_data(config)
    run.train_one(config, manifest, tmp_path / 'whole')
    for percent, step in ((50, 4), (50, 4)):  # the second time, as after a kill, it is there
        with pytest.raises(Paused) as caught:
            run.train_one(config, manifest, tmp_path / 'paused', pause=percent)
        assert (caught.value.step, caught.value.steps) == (step, 8)
        assert checkpoints.committed_steps(tmp_path / 'paused/checkpoints')[-1] == step
    run.train_one(config, manifest, tmp_path / 'paused', pause=90)  # beyond the last evaluation
    one, other = (stored(tmp_path / name, 8) for name in ('whole', 'paused'))
    assert not [name for name in one if not np.array_equal(one[name], other[name])]
    rows = [(tmp_path / name / 'metrics.jsonl').read_bytes() for name in ('whole', 'paused')]
    assert rows[0] == rows[1]
