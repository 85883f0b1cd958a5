"""The verb compare on stored runs whose answers are known."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

import main
from configs import common
from input_pipeline.csv_table import read_csv
from train_lib.metrics.intervals import accuracy_interval, difference_interval
from train_lib.metrics.statistics import holm, paired_test
from train_lib.run_dir import workdirs
from train_lib.serving.card_scores import scores_of_run
from train_lib.serving.trained_models import TrainedModel
from train_lib.studies import compare_table
from train_lib.studies.compared_runs import shortened

CLASSES = ('cat', 'dog')
RIGHT = dict(a=0.9, b=0.6, c=0.88)  # the share of pictures that a run has right


def store(workdir: Path, right: dict[str, np.ndarray], *, labels=None, groups=None, changes=(),
          heads=('',), result=None, first=0) -> Path:
    """A finished run: {split: bool [N]} of which pictures are right, named from `first` on."""
    workdir.mkdir(parents=True, exist_ok=True)
    config = json.loads(common.get_config().to_json())
    for key, value in dict(changes).items():
        section, _, name = key.rpartition('.')
        (config[section] if section else config)[name] = value
    (workdir / 'config.json').write_text(json.dumps(config | dict(format=workdirs.FORMAT)))
    (workdir / 'predictions').mkdir(exist_ok=True)
    scores, table = {}, [['id', 'split', *(['group'] if groups is not None else [])]]
    for split, hits in right.items():
        ids = [f'{split}{first + k:03}' for k in range(len(hits))]
        truth = np.arange(len(hits)) % 2 if labels is None else labels
        arrays, of_split = dict(ids=ids), {}
        for head in heads:
            tail = f'/{head}' if head else ''
            guess = np.where(hits, truth, 1 - truth)
            arrays |= {f'labels{tail}': truth, f'classes{tail}': CLASSES,
                       f'logits{tail}': np.eye(2, dtype=np.float32)[guess] * 3}
            of_head = dict(accuracy=float(hits.mean()), f1_macro=0.5, nll=0.4)
            of_split |= {head: of_head} if head else of_head
        np.savez(workdir / 'predictions' / f'{split}.npz', **arrays)
        scores[split] = of_split | dict(n=len(hits), accuracy=float(hits.mean()))
        table += [[name, split, *([groups[k]] if groups is not None else [])]
                  for k, name in enumerate(ids)]
    with open(workdir / 'split.csv', 'w', newline='') as file:
        csv.writer(file).writerows(table)
    (workdir / 'metrics.jsonl').write_text(''.join(
        json.dumps(dict(step=step, epoch=step / 10, split=split, loss=1 / step,
                        accuracy=0.5)) + '\n'
        for step in (10, 20) for split in ('train', 'val')))
    (workdir / 'result.json').write_text(json.dumps(dict(
        status='done', **scores, steps=20, epochs=2.0, parameters=99, trained_parameters=9,
        device='1 x cpu', seconds=dict(step=4.0, total=9.0)) | (result or {})))
    return workdir


def hits(name: str, size: int = 100, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, *name.encode()])
    return rng.permutation(np.arange(size) < round(RIGHT[name] * size))


def compare(folder: Path, *argv) -> tuple[dict[str, dict[str, str]], str]:
    """({name: row of compare.csv}, the page)"""
    out = folder / 'comparison'
    assert main.main(['compare', *map(str, argv), f'--workdir={out}']) == 0
    header, rows, _ = read_csv(str(out / 'compare.csv'))
    return ({row[1]: dict(zip(header, row)) for row in rows},
            (out / 'report.html').read_text('utf-8'))


@pytest.fixture
def three(tmp_path):
    runs = tmp_path / 'runs'
    for name, rate in dict(a=0.1, b=0.2, c=0.1).items():
        store(runs / name, dict(val=hits(name, 60), test=hits(name)),
              changes={'schedule.lr': rate, 'seed': 7 if name == 'c' else 0})
    return runs


def test_the_numbers_are_those_of_the_statistics(three, tmp_path, capsys):
    rows, page = compare(tmp_path, *sorted(three.iterdir()))
    a, b, c = (hits(name) for name in 'abc')
    raw = [paired_test(other, a)['p'] for other in (b, c)]
    for name, other, p in zip('bc', (b, c), holm(raw)):
        low, high = difference_interval(other.astype(float) - a, share=True)
        row = rows[name]
        assert float(row['test_difference']) == pytest.approx(other.mean() - a.mean())
        assert float(row['test_p']) == pytest.approx(p)
        assert [float(row[f'test_difference_{end}']) for end in ('low', 'high')] == pytest.approx(
            [low, high])
    assert [float(rows['a'][f'test_{end}']) for end in ('low', 'high')] == pytest.approx(
        accuracy_interval(a))
    assert rows['a']['test_difference'] == '' and rows['a']['reference'] == 'True'
    assert float(rows['b']['images_per_second']) == pytest.approx(
        20 * common.get_config().batch_size / 4)
    assert {key for key in rows['a'] if key.startswith('config.')} == {
        'config.schedule.lr', 'config.seed'}
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert re.match(r'  2 b +0\.6000 0\.6000  0\.\d+-0\.\d+  -0\.3000 < \.001', lines[2])
    assert '  schedule.lr            0.1 (1, 3) | 0.2 (2)' in lines
    assert page.count('<svg') == 3 and 'schedule.lr' in page


def test_against_another_run_and_by_patterns(three, tmp_path):
    rows, _ = compare(tmp_path, f'--workdirs={three}/a,{three}/[bc]', f'--against={three}/c')
    assert [row['reference'] for row in rows.values()] == ['False', 'False', 'True']
    assert float(rows['a']['test_difference']) == pytest.approx(0.02)


def test_groups_widen_the_interval(tmp_path):
    runs, groups = tmp_path / 'runs', [f'g{k // 10}' for k in range(100)]
    for name in 'ab':
        store(runs / name, dict(test=hits(name)), groups=groups)
    rows, _ = compare(tmp_path, runs / 'a', runs / 'b')
    a, b = hits('a'), hits('b')
    assert [float(rows['b'][f'test_difference_{end}']) for end in ('low', 'high')] == pytest.approx(
        difference_interval(b.astype(float) - a, np.array(groups), share=True))
    assert float(rows['b']['test_p']) == pytest.approx(paired_test(b, a, np.array(groups))['p'])


@pytest.mark.parametrize('grouped', [True, False])
def test_the_card_of_a_run_has_the_interval_of_the_comparison(tmp_path, grouped):
    groups = [f'g{k // 10}' for k in range(100)]
    runs = [store(tmp_path / name, dict(test=hits(name)), groups=groups,
                  changes={'split.grouped': grouped}) for name in 'ab']
    rows, _ = compare(tmp_path, *runs)
    trained = TrainedModel(runs[0], None, {'class': CLASSES}, None, None, {}, 1, '')
    score, = scores_of_run(runs[0], [trained], json.loads((runs[0] / 'result.json').read_text()))
    assert score.groups == 10
    assert score.accuracy_interval == pytest.approx(
        [float(rows['a'][f'test_{end}']) for end in ('low', 'high')])


@pytest.mark.parametrize('groups', [None, [f'g{k // 10}' for k in range(100)]])
def test_without_predictions_only_single_pictures_have_an_interval(tmp_path, groups):
    for name in 'ab':
        run = store(tmp_path / name, dict(test=hits(name)), groups=groups)
        (run / 'predictions/test.npz').unlink()
    rows, _ = compare(tmp_path, tmp_path / 'a', tmp_path / 'b')
    found = [rows['b'][f'test_{end}'] for end in ('low', 'high')]
    assert found == ['', ''] if groups else \
        [float(edge) for edge in found] == pytest.approx(accuracy_interval(hits('b')), abs=1e-6)


def test_runs_with_other_splits_are_paired_on_what_both_held_out(tmp_path, capsys):
    runs = tmp_path / 'runs'
    store(runs / 'a', dict(test=hits('a')))
    store(runs / 'b', dict(test=hits('b')), first=40)
    rows, page = compare(tmp_path, runs / 'a', runs / 'b')
    assert rows['b']['test_pairs'] == '60'
    assert float(rows['b']['test_difference']) == pytest.approx(
        hits('b')[:60].mean() - hits('a')[40:].mean())
    assert 'on 60 in common' in page
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].endswith(' *') and 'only on the pictures that both runs held out' in lines[3]


@pytest.mark.parametrize(('more', 'why'), [
    (dict(first=500), 'no pictures in common'),
    (dict(labels=1 - np.arange(100) % 2), 'other labels'),
    (dict(result=dict(test=dict(accuracy=0.5, n=100))), 'no predictions to pair')])
def test_what_cannot_be_paired_is_said(tmp_path, more, why, capsys):
    runs = tmp_path / 'runs'
    store(runs / 'a', dict(test=hits('a')))
    store(runs / 'b', dict(test=hits('b')), **more)
    rows, page = compare(tmp_path, runs / 'a', runs / 'b')
    assert rows['b']['test_not_paired'] == why and rows['b']['test_p'] == ''
    assert why in page and 'not paired' in capsys.readouterr().out
    if 'result' in more:
        assert 'is not what result.json scores' in rows['b']['notes']


def test_unfinished_runs_and_other_folders_are_named(three, tmp_path, capfd):
    (three / 'b/result.json').unlink()
    (three / 'notes').mkdir()
    (three / 'text.txt').write_text('')
    rows, page = compare(tmp_path, *sorted(three.iterdir()))
    assert rows['b']['status'] == 'unfinished' and 'step 20' in rows['b']['notes']
    said = capfd.readouterr()
    err = ' '.join(said.err.split())  # long lines are broken
    assert f'{three / "notes"} holds no run' in err and 'text.txt holds no run' in err
    assert 'b is not finished' in err and 'not finished' in said.out
    assert str(three / 'notes') in page and 'Not finished' in page


def test_several_heads_have_a_table_each(tmp_path, capsys):
    runs = tmp_path / 'runs'
    for name in 'ab':
        store(runs / name, dict(test=hits(name)), heads=('kind', 'age'))
    rows, page = compare(tmp_path, runs / 'a', runs / 'b')
    assert {'test_kind_difference', 'test_age_difference'} <= set(rows['b'])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if 'val' in line] == ['kind', 'age']
    assert '<h3 class="part name">kind</h3>' in page
    store(runs / 'c', dict(test=hits('c')))
    compare(tmp_path, runs / 'a', runs / 'c')
    assert capsys.readouterr().out.count('not paired') == 1  # c, whose head is another


def test_a_probing_run_is_scored_out_of_fold(tmp_path):
    store(tmp_path / 'a', dict(val=hits('a')))
    store(tmp_path / 'p', dict(out_of_fold=hits('b'), test=hits('b', 40)))
    rows, page = compare(tmp_path, tmp_path / 'a', tmp_path / 'p')
    assert float(rows['p']['val_accuracy']) == pytest.approx(0.6)
    assert float(rows['p']['test_accuracy']) == pytest.approx(0.6)
    assert 'out of fold' in page


def test_folds_are_scored_out_of_fold(tmp_path):
    runs = tmp_path / 'runs'
    store(runs / 'a', dict(val=hits('a')))
    store(runs / 'k', dict(out_of_fold=hits('b')), result=dict(folds=[
        dict(test=dict(accuracy=value, n=10), steps=5, parameters=99) for value in (0.5, 0.7)]))
    for fold in (0, 1):
        store(runs / f'k/fold_{fold}', dict(val=hits('b')))
    arrays = dict(np.load(runs / 'k/predictions/out_of_fold.npz'))
    np.savez(runs / 'k/predictions/out_of_fold.npz', **arrays | dict(
        ids=np.char.replace(arrays['ids'], 'out_of_fold', 'val')))
    rows, page = compare(tmp_path, runs / 'a', runs / 'k')
    assert float(rows['k']['val_accuracy']) == pytest.approx(0.6)
    assert float(rows['k']['val_difference']) == pytest.approx(-0.3)
    assert float(rows['k']['test_accuracy']) == pytest.approx(0.6)
    assert 'out of fold' in page and 'mean of 2 folds' in page


def test_a_study_stands_for_its_cells(tmp_path):
    study = tmp_path / 'study'
    for arm in ('base', 'wide'):
        store(study / arm / 'seed_0', dict(test=hits('a')))
    (study / 'study.json').write_text('{}')
    (study / 'wide/seed_0/cell.json').write_text('{"memory_bytes": 2097152}')
    rows, _ = compare(tmp_path, study)
    assert list(rows) == ['base/seed_0', 'wide/seed_0']
    assert float(rows['wide/seed_0']['memory_mb']) == 2


def test_more_runs_than_colours(tmp_path):
    runs = tmp_path / 'runs'
    for k in range(10):
        store(runs / f'{k}', dict(test=hits('a')))
    _, page = compare(tmp_path, *sorted(runs.iterdir()))
    assert 'The curves are those of the first 8 runs; 2 more have curves' in page


@pytest.mark.parametrize(('argv', 'words'), [
    ((), 'compare needs workdirs: give them as in `main.py compare runs/*`'),
    (('runs/a',), 'compare needs the workdirs of two runs or more, and 1 of 1 paths holds one'),
    (('runs/a', 'runs/bb'), r"There is no runs/bb; did you mean 'runs/b'"),
    (('--workdirs=runs/z*',), "--workdirs: nothing matches 'runs/z*'"),
    (('runs/a', 'runs/b', '--against=d'), '--against=d is none of the runs that are compared')])
def test_refused_in_one_sentence(three, tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    assert main.main(['compare', *argv]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count('\n') == 1
    assert sorted(path.name for path in (tmp_path / 'runs').iterdir()) == ['a', 'b', 'c']


@pytest.mark.parametrize('place', ['runs/c', 'study'])
def test_another_report_is_not_overwritten(three, tmp_path, capsys, place):
    (tmp_path / 'study').mkdir()
    (tmp_path / 'study/study.json').write_text('{}')
    argv = ['compare', f'{three}/a', f'{three}/b', f'--workdir={tmp_path / place}']
    before = sorted((tmp_path / place).iterdir())
    assert main.main(argv) == 2
    assert 'holds the report of something else' in capsys.readouterr().err
    assert sorted((tmp_path / place).iterdir()) == before
    for _ in range(2):  # into an earlier comparison
        assert main.main([*argv[:3], f'--workdir={tmp_path}/comparison']) == 0


def test_a_new_folder_by_default(three, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main(['compare', 'runs/a', 'runs/b']) == 0
    found, = (tmp_path / 'runs').glob('compare-*')
    assert sorted(path.name for path in found.iterdir()) == ['compare.csv', 'report.html']


def test_texts_are_cut_where_they_differ():
    long = 'the same beginning of both, and then '
    assert shortened([f'{long}one', f'{long}another'], 20) == ['…nd then one', '…nd then another']
    assert shortened(['one', 'two'], 3) == ['one', 'two']
    assert compare_table._ranges([1, 2, 3, 5, 7, 8]) == '1-3, 5, 7-8'
