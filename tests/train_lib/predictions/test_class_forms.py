"""Class names in NFC and NFD are the same to whatever joins predictions."""

import csv
import unicodedata

import numpy as np

from input_pipeline.manifest import make_manifest
from tests.train_lib.commands.stored_runs import TEST, TRAIN, kfold, refused, vote, write
from train_lib.metrics.out_of_fold import read_probabilities
from train_lib.predictions import store

NFC = ('강아지', 'café', 'x')
NFD = tuple(unicodedata.normalize('NFD', name) for name in NFC)


def test_an_older_run_votes_with_one_of_today(tmp_path, capsys):
    for run, classes in (('older', NFD), ('today', NFC)):
        kfold(tmp_path / run, 1)
        for fold in range(3):
            held = [name for k, name in enumerate(TRAIN) if k % 12 % 3 == fold]
            for source, ids in (('val', held), ('test', TEST)):
                write(tmp_path / f'{run}/fold_{fold}', source, ids, seed=fold, classes=classes)
    member, = store.members_of(tmp_path / 'older/fold_0', 'test')
    assert member.classes['class'] == NFC
    runs = [tmp_path / f'{run}/fold_{k}' for run in ('older', 'today') for k in range(3)]
    assert vote(runs, tmp_path / 'v') == 0
    with open(tmp_path / 'v/submission.csv', encoding='utf-8') as file:
        rows = list(csv.reader(file))
    assert {row[2] for row in rows[1:]} <= set(NFC)
    write(tmp_path / 'today/fold_0', 'test', TEST, seed=0, classes=NFC[::-1])
    assert 'as number 0' in refused(capsys, runs, tmp_path / 'w')


def test_out_of_fold_predictions_are_joined(tmp_path):
    logits = np.log([[0.7, 0.2, 0.1]])
    np.savez(tmp_path / 'p.npz', ids=['1'], labels=[0], logits=logits, classes=NFD)
    manifest = make_manifest({'id': ['1'], 'location': ['a'], 'label/class': [0]},
                             {'class': NFC[::-1]})
    np.testing.assert_allclose(read_probabilities(tmp_path / 'p.npz', manifest, 'class'),
                               [[0.1, 0.2, 0.7]])
