"""The benchmarks still run, and what their tables are computed from."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    blur_levels,
    export_table,
    input_pipeline,
    load_predict,
    pipeline_measures,
    scaling,
    start_up,
    train_loop,
    train_step,
)
from benchmarks.scaling import Way
from input_pipeline.encode import encode
from train_lib.planning.chips import CHIPS

ROOT = Path(__file__).parents[1]


def test_a_training_step_is_measured(capsys):
    assert train_step.main(['--models=small_cnn', '--size=32', '--batch=4', '--steps=2',
                            '--precision=float32', '--peer=none']) == 0
    said, _, _, row, *notes = capsys.readouterr().out.splitlines()
    assert said.startswith('no accelerator here')
    name, size, batch, precision, peak, _, rate, milliseconds, share, *_ = row.split()
    assert (name, size, batch, precision) == ('small_cnn', '32', '4', 'float32')
    assert float(rate) * float(milliseconds) / 1e3 == pytest.approx(4, rel=0.02)
    flops = 3 * train_step.forward_flops('small_cnn', 32) * float(rate)
    expected = 100 * flops / (float(peak.rstrip('T')) * 1e12)
    assert float(share.rstrip('%')) == pytest.approx(expected, rel=0.01, abs=0.051)
    assert any('matrix product' in note for note in notes)


def test_the_input_pipeline_is_measured_and_compared_with_a_checkout_from_before(
        tmp_path, monkeypatch):
    (tmp_path / 'all').mkdir()
    for i in range(3):
        picture = np.random.default_rng(i).integers(0, 256, (60, 80, 3), np.uint8)
        (tmp_path / f'all/{i}.jpg').write_bytes(encode(picture, 90))
    for request in (dict(measure='batches', p=None, threads=1, count=1),
                    dict(measure='decoded', p=1)):
        pictures, by_cpu = pipeline_measures.answer(
            dict(path=str(tmp_path), specs=[dict(kind='rotate')], **request))
        assert pictures > 10 and by_cpu > 10
    parts = pipeline_measures.answer(dict(measure='profile', path=str(tmp_path), p=None, rounds=1,
                                          specs=[dict(kind='elastic')]))
    assert sum(parts.values()) == pytest.approx(2 * parts['all'])
    assert min(parts[one] for one in ('reading', 'decoding', 'drawing', 'map', 'look-up')) > 0
    monkeypatch.setattr(input_pipeline, 'ROWS', [])
    input_pipeline.row('a: b', [(300, 150), (120, 90)], (60, 45), 6)
    input_pipeline.limit_row('c', [59.5, 61], 60, ' us')
    assert input_pipeline.ROWS == [
        ('a: b', '120', '300', '60', '2.00', '2.00', '5.00', '3.33', 'MISSED >= 6'),
        ('c', '61.00 us', '59.50 us', '', '', '', '', '', '< 60')]


def test_flops_follow_the_size():
    known, larger = (train_step.forward_flops('small_cnn', size) for size in (64, 128))
    assert known == pytest.approx(0.117e9)
    assert 3.9 < larger / known < 4.6  # padding counts for less, and the head does not grow


@pytest.mark.parametrize('kind, precision, peak', [
    ('NVIDIA A100-SXM4-80GB', 'bfloat16', 312e12),
    ('NVIDIA H100 80GB HBM3', 'bfloat16', 989e12),
    ('NVIDIA H100 PCIe', 'bfloat16', 756e12),
    ('NVIDIA L4', 'float32', 60e12),
    ('NVIDIA L40S', 'bfloat16', 362e12),
    ('TPU v5 lite', 'bfloat16', 197e12),
    ('TPU v5', 'bfloat16', 459e12),
    ('cpu', 'float32', None),
])
def test_peaks_by_kind_of_device(kind, precision, peak):
    assert train_step.known_peak(kind, precision) == peak


@pytest.mark.parametrize('flags, words', [
    (['--models=resnet19'], "'resnet19' is not known"),
    (['--models=vit_tiny_patch16_224', '--size=65'], 'img_size=65'),
])
def test_mistakes_in_one_sentence(flags, words, capsys):
    assert train_step.main(flags) == 2
    said = capsys.readouterr()
    assert said.out == '' and said.err.count('\n') == 1 and words in said.err


def test_a_measurement_that_fails_says_why():
    row = train_step.in_a_process(dict(os.environ), only='jax', precision='float16')
    assert list(row) == ['error'] and '--precision=float16 is not known' in row['error']


def test_both_loops_are_measured():
    options = argparse.Namespace(model='small_cnn', size=16, batch=8, steps=3, rounds=1,
                                 precision='float32')
    found = train_loop.measure(options, augment=False)
    assert found['ratio'] == pytest.approx(found['bare'] / found['real'], rel=0.01)
    assert found['cpu_ratio'] > 0 and 0 <= found['data'] + found['other'] < 1


def test_a_start_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match='no such file'):
        start_up.seconds_to_first_step(['--config=nowhere.py'], str(tmp_path))


@pytest.mark.slow
def test_predict_is_measured_beside_the_evaluation(capsys):
    load_predict.main(['--pictures=40', '--size=16', '--batch=16', '--repeats=2'])
    evaluation, predict, ratio = capsys.readouterr().out.splitlines()[-3:]
    assert evaluation.startswith('evaluation') and predict.startswith('load.predict')
    assert 0.1 < float(ratio.split()[3]) < 10 and '2 pairs' in ratio


def test_an_export_is_compared_with_its_evaluation(capsys, monkeypatch):
    load, packages = export_table.FORMATS['stablehlo']
    wrong = lambda folder: lambda images: load(folder)(images) + 1
    monkeypatch.setattr(export_table, 'FORMATS', {
        'stablehlo': (load, packages), 'wrong': (wrong, ()), 'absent': (load, ('no_such_one',))})
    monkeypatch.setitem(export_table.WRITERS, 'wrong', export_table.WRITERS['stablehlo'])
    assert export_table.main(['--models=small_cnn', '--size=16', '--batch=2',
                              '--formats=stablehlo,wrong,absent']) == 0
    missing, _, _, right, wrong = capsys.readouterr().out.splitlines()
    assert missing == 'absent is left out: no_such_one is not installed.'
    _, name, form, difference, size, *_ = (cell.strip() for cell in right.split('|'))
    assert (name, form, difference) == ('small_cnn', 'stablehlo', 'none') and float(size) > 1
    assert float(wrong.split('|')[3]) > 0.01


# --- where the recipes fit -----------------------------------------------------------------------

GIB = 1 << 30


def planned(name: str, target: str, way: Way, gib: float, room: float | None = None
            ) -> scaling.Plan:
    room = CHIPS[scaling.kind_of(target)].memory if room is None else room * GIB
    content = dict(batch_size=64, mesh=dict(data=1, fsdp=scaling.devices_of(target)),
                   memory_per_device_bytes=int(gib * GIB), hbm_bytes=int(room),
                   usable_bytes=int(room), fits=gib * GIB <= room, flops_per_step=1e13,
                   compile_seconds=9.0)
    return scaling.Plan(name, target, way, 'python main.py plan', content, dict(jax='0.10.2'))


def found(total: float, copied: float = 0.0, name: str = 'eva02_full', on: str = 'tpu',
          remat: float = 0.1) -> list[tuple]:
    """(target, fsdp, remat, fits) of a search where a recipe takes `total` GiB together, of which
    `copied` are on each device without FSDP, and `remat` times as much with it."""
    def plan(name, target, way, seconds):
        count = scaling.devices_of(target)
        size = (total - copied) * (remat if way.remat else 1) / count
        return planned(name, target, way, size + copied / (count if way.fsdp else 1))

    return [(each.target, each.way.fsdp, each.way.remat, each.fits)
            for each in scaling.search(name, scaling.TARGETS[on], 1.0, plan)]


def test_the_smallest_target_is_found_and_no_hopeless_one_is_tried():
    assert found(10) == [('v5e:1x1', False, False, True)]
    assert found(20, name='densenet121') == [('v5e:1x1', False, False, False),
                                             ('v6e:1x1', False, False, True)]
    assert found(200, name='densenet121') == [
        ('v5e:1x1', False, False, False), ('v6e:2x4', False, False, True)]


def test_weights_are_split_where_copies_do_not_fit():
    assert found(60, copied=40, name='densenet121') == [
        ('v5e:1x1', False, False, False), ('v5e:2x2', False, False, False),
        ('v5e:2x2', True, False, True)]


def test_activations_are_recomputed_on_smaller_targets_at_last():
    assert found(200) == [('v5e:1x1', False, False, False), ('v6e:2x4', False, False, True),
                          ('v5e:1x1', False, True, False), ('v6e:1x1', False, True, True)]
    assert [each[2] for each in found(2000, name='densenet121')] == [False]


def test_a_gpu_without_flash_attention_says_nothing_of_the_others():
    def plan(name, target, way, seconds):
        return planned(name, target, way, 500 if target.startswith('t4') else 5)

    targets = ('t4:1x1x1', 'a100:1x1x1') if 't4' in CHIPS else ('a100:1x1x1',)
    made = scaling.search('eva02_mlp', targets, 1.0, plan)  # in the end the T4 again, with remat
    assert [each.target for each in made if each.fits] == ['a100:1x1x1']
    assert list(scaling.search('eva02_mlp', ('nothing:1x1',), 1.0, plan)) == []


def test_what_a_program_may_use_of_a_memory_rules_targets_out():
    def plan(name, target, way, seconds):
        made = planned(name, target, way, 26 / scaling.devices_of(target))
        content = made.content | dict(usable_bytes=made.content['hbm_bytes'] // 2, fits=False)
        return dataclasses.replace(made, content=content)

    tried = scaling.search('densenet121', ('v5e:1x1', 'v6e:1x1', 'v5e:2x2'), 1.0, plan)
    assert [each.target for each in tried] == ['v5e:1x1', 'v5e:2x2', 'v5e:2x2']


def test_a_compilation_that_takes_too_long_ends_the_search():
    def plan(name, target, way, seconds):
        return scaling.Plan(name, target, way, '', {}, {}, f'{scaling.LATE} {seconds:g} s')

    assert len(list(scaling.search('eva02_full', scaling.TARGETS['tpu'], 9.0, plan))) == 1


@pytest.mark.slow
def test_a_recipe_is_planned_in_a_process_of_its_own(monkeypatch):
    tiny = scaling.Recipe('tiny', 'configs/people_multihead.py:csv=faces.csv,pretrained=,model=b,'
                          'size=tiny', ('--config.compile_cache=False',), remat=False)
    monkeypatch.setattr(scaling, 'RECIPES', dict(tiny=tiny))
    made = scaling.plan('tiny', 'cpu', Way(), 300)
    assert made.error == '' and made.fits and made.content['flops_per_step'] > 1e6
    assert made.command.startswith('python main.py plan --config=configs/people_multihead.py')
    assert made.made['jax'] and made.needed > 0


@pytest.mark.parametrize(('flag', 'words'), [
    ('--on=gpus', 'choose from gpu, tpu'), ('--target=v5litepod-16', 'give one such as v5e:2x4'),
    ('--target=v5e:4x4*2', 'give one such as v5e:2x4')])
def test_scaling_refuses_what_it_cannot_lay_out(capsys, flag, words):
    with pytest.raises(SystemExit):
        scaling.main([flag, '--page'])
    assert words in capsys.readouterr().err


def test_an_error_is_the_sentence_of_its_exception():
    assert scaling.error_of('a.b.SomeError: wrong\n  File "x"\n---\n') == 'a.b.SomeError: wrong'
    assert scaling.error_of('one\nconfig.x = 3: choose 2.\n\n') == 'config.x = 3: choose 2.'
    assert scaling.error_of('') == 'no message'


def test_the_table_names_the_smallest_target_of_each_platform(tmp_path):
    results = {'eva02_full': [
        planned('eva02_full', 'v5e:2x2', Way(fsdp=True), 20, room=15.75),
        planned('eva02_full', 'v5e:2x4', Way(fsdp=True), 10, room=15.75),
        planned('eva02_full', 'a100:1x1x1', Way(), 99, room=80)]}
    scaling.write_results(tmp_path / 'results.json', results)
    assert scaling.read_results(tmp_path / 'results.json') == results
    page = tmp_path / 'page.md'
    page.write_text(f'before\n{scaling.MARKS[0]}\nold\n{scaling.MARKS[1]}\nafter\n')
    for _ in range(2):  # once more changes nothing
        scaling.write_page(page, results)
        lines = page.read_text().splitlines()
        assert lines[0] == 'before' and lines[-1] == 'after' and 'old' not in lines
        gpu, tpu = [line for line in lines if 'eva02_full' in line]
        assert 'none' in gpu and 'a100:1x1x1 would need 99.0 GiB' in gpu
        assert [cell.strip() for cell in tpu.split('|')[3:-1]] == [
            'v5e:2x4', '64', 'fsdp 8', '10.00', '15.75 of 15.75', '1e+13', '9']
    page.write_text('no marks')
    with pytest.raises(SystemExit, match='lacks the marks'):
        scaling.write_page(page, results)


def test_the_page_shows_the_results_that_were_kept():
    assert scaling.table(scaling.read_results(scaling.RESULTS)) in scaling.PAGE.read_text('utf-8')


def test_an_unknown_recipe_is_refused(capsys):
    with pytest.raises(SystemExit):
        scaling.main(['eva03', '--page'])
    assert "'eva03' is not a recipe" in capsys.readouterr().err


def test_photographs_are_blurred_once_each(tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / 'photos').mkdir()
    for number in range(20):
        picture = rng.integers(0, 256, (50, 70, 3), np.uint8)
        (tmp_path / f'photos/{number}.png').write_bytes(encode(picture, 'lossless'))
    for _ in range(2):  # the level is a function of the name
        assert blur_levels.main([f'--photos={tmp_path / "photos"}', '--count=18',
                                 f'--out={tmp_path / "out"}']) == 0
    counts = [int(line.split()[-1]) for line in capsys.readouterr().out.splitlines()[1:6]]
    found = sorted(tmp_path.glob('out/*/*.png'))
    assert sum(counts) == len(found) == 18
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 20:] = 255
    edges = [np.abs(np.diff(blur_levels.blurred(image, level)[..., 0].astype(int), axis=1)).max()
             for level in range(5)]
    assert edges == sorted(edges, reverse=True) and len(set(edges)) == 5


def imported(modules: list[str]) -> list:
    """Levels of our loggers, and what a CPU is told in the environment, after these imports."""
    code = ('import importlib, json, logging, os, sys\n'
            'for name in sys.argv[1:]:\n'
            '    importlib.import_module(name)\n'
            'print(json.dumps([logging.getLogger(name).level for name in '
            '("input_pipeline", "train_lib", "models")] + '
            '[os.environ.get("JAX_CPU_ENABLE_ASYNC_DISPATCH"), os.environ.get("XLA_FLAGS")]))')
    left = {key: value for key, value in os.environ.items()
            if key not in ('JAX_CPU_ENABLE_ASYNC_DISPATCH', 'XLA_FLAGS')}
    done = subprocess.run([sys.executable, '-c', code, *modules], cwd=ROOT, env=left, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_benchmarks_leaves_a_program_as_it_is():
    """Their loggers, flags and allocator are those of the processes that measure; those that
    import main have what main.py sets up."""
    files = sorted((ROOT / 'benchmarks').glob('*.py'))
    assert imported([f'benchmarks.{file.stem}' for file in files])[:3] == [0, 0, 0]
    alone = [f'benchmarks.{file.stem}' for file in files if 'import main' not in file.read_text()]
    assert len(alone) > 20 and imported(alone)[3:] == [None, None]
