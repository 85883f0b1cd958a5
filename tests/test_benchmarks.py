"""The benchmarks still run, and what their tables are computed from."""

import argparse
import os

import pytest

from benchmarks import export_table, load_predict, start_up, train_loop, train_step


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
