"""Answers by name, and predictions/<split>.csv beside the .npz."""

import csv

import numpy as np
import pandas as pd
import pytest

from input_pipeline.manifest import make_manifest
from train_lib.metrics.scores import softmax
from train_lib.predictions.answers import answers, log_mean, write_answers
from train_lib.training.evaluate import save_predictions

IDS = ['a.png', 'b, c/d.png', 'quote".png', 'caf\u00e9.png', 'd.png']
CLASSES = ('cat, small', 'dog')


def rows_of(path) -> list[list[str]]:
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.reader(file))


def test_the_table_says_what_the_logits_say(tmp_path):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 2)).astype(np.float32), np.array([0, 1, -1, 0, 1])
    manifest = make_manifest({'id': IDS, 'location': IDS, 'label/class': labels},
                             {'class': CLASSES})
    save_predictions(tmp_path / 'run/predictions/val.npz', manifest, {'class': logits})
    header, *rows = rows_of(tmp_path / 'run/predictions/val.csv')
    assert header == ['id', 'label', 'prediction', 'probability']
    assert [row[0] for row in rows] == IDS
    assert [row[1] for row in rows] == ['cat, small', 'dog', '', 'cat, small', 'dog']
    assert [row[2] for row in rows] == [CLASSES[k] for k in logits.argmax(1)]
    # Digits enough to give the same float32 again.
    np.testing.assert_array_equal(np.array([row[3] for row in rows], np.float32),
                                  softmax(logits).max(1).astype(np.float32))
    before = (tmp_path / 'run/predictions/val.csv').read_bytes()
    save_predictions(tmp_path / 'run/predictions/val.npz', manifest, {'class': logits})
    assert (tmp_path / 'run/predictions/val.csv').read_bytes() == before
    assert not list(tmp_path.rglob('*.tmp'))


def test_several_heads_have_columns_each(tmp_path):
    classes = dict(animal=CLASSES, age=('old', 'young'))
    logits = dict(animal=np.eye(2, dtype=np.float32), age=-np.eye(2, dtype=np.float32))
    labels = dict(animal=np.array([0, -1]), age=np.array([1, 1]))
    write_answers(tmp_path / 'x.csv', ['1', '2'], labels, logits, classes)
    table = pd.read_csv(tmp_path / 'x.csv', keep_default_na=False)
    assert list(table) == ['id', 'label/animal', 'label/age', 'prediction/animal',
                           'prediction/age', 'probability/animal', 'probability/age']
    assert table['label/animal'].tolist() == ['cat, small', '']
    assert table['prediction/age'].tolist() == ['young', 'old']


@pytest.mark.parametrize('names', [['a\rb', 'c'], ['a\nb', 'c']])
def test_a_line_break_in_a_name_stays_in_its_field(tmp_path, names):
    write_answers(tmp_path / 'x.csv', names, {'class': np.array([0, 1])},
                  {'class': np.eye(2)}, {'class': CLASSES})
    assert [row[0] for row in rows_of(tmp_path / 'x.csv')] == ['id', *names]
    assert pd.read_csv(tmp_path / 'x.csv')['id'].tolist() == names


def test_equal_logits_and_no_rows():
    said = answers(np.zeros((1, 2), np.float32), CLASSES)
    assert said.names.tolist() == ['cat, small'] and said.probability.tolist() == [0.5]
    none = answers(np.zeros((0, 2), np.float32), CLASSES)
    assert len(none.names) == len(none.probability) == 0


def test_the_mean_is_that_of_probabilities():
    logits = [np.array([[0, 3.0]], np.float32), np.array([[100.0, 0]], np.float32)]
    np.testing.assert_allclose(np.exp(log_mean(logits)),
                               (softmax(logits[0]) + softmax(logits[1])) / 2, rtol=1e-6)
    assert log_mean(logits[:1]) is logits[0]
