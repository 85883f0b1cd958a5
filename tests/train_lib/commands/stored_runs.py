"""Runs that only have stored predictions, and votes on them through main."""

import csv
import json

import numpy as np

import main
from train_lib.predictions import store

NAMES = ('<b>cat</b>', 'dog', 'eel')
TEST = [f'test/{k:02d}.png' for k in range(24)]
TRAIN = [f'train/{k:02d}.png' for k in range(36)]
TRUTH = {name: k % 3 for k, name in enumerate(TEST + TRAIN)}
GROUPS = {name: f'person {k % 12}' for k, name in enumerate(TRAIN)} | {
    name: f'visitor {k % 6}' for k, name in enumerate(TEST)}
FAST = ['--config.bootstrap=50']


def write(workdir, source, ids, *, seed, strength=1.5, classes=NAMES, labels=None, order=None):
    """One folder of the store; the rows of an id do not depend on their order."""
    logits = np.stack([np.random.default_rng((seed, *name.encode())).normal(size=3) * 1.5
                       for name in ids])
    truth = np.array([TRUTH[name] for name in ids], np.int32)
    logits[np.arange(len(ids)), truth] += strength
    order = np.arange(len(ids)) if order is None else order
    ids, truth, logits = np.array(ids)[order], truth[order], logits[order].astype(np.float32)
    writer = store.Writer(workdir / 'predictions' / source / 'identity',
                          dict(model='tiny', step=5, digest=f'{seed}', data='', view='identity'),
                          ids, {'class': truth if labels is None else labels},
                          {'class': classes}, 'float32')
    writer.write(np.arange(len(ids)), {'class': logits})
    writer.commit()
    return logits


def split(workdir, roles):
    rows = [[name, role, GROUPS[name], ''] for name, role in roles.items()]
    with open(workdir / 'split.csv', 'w', newline='', encoding='utf-8') as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
            [['id', 'split', 'group', 'label/class'], *rows])


def kfold(root, seed, folds=3, strength=1.5):
    """A k-fold run, persons kept on one side."""
    for fold in range(folds):
        workdir = root / f'fold_{fold}'
        held = [name for k, name in enumerate(TRAIN) if k % 12 % folds == fold]
        write(workdir, 'val', held, seed=10 * seed + fold, strength=strength)
        write(workdir, 'test', TEST, seed=10 * seed + fold, strength=strength)
        split(workdir, {name: 'val' if name in held else 'train' for name in TRAIN}
              | dict.fromkeys(TEST, 'test'))
        (workdir / 'config.json').write_text(json.dumps(dict(split=dict(folds=folds))))
    return root


def vote(members, workdir, *flags, config='digits'):
    given = members if isinstance(members, str) else ','.join(map(str, members))
    return main.main(['vote', f'--config=configs/vote/{config}.py', f'--workdir={workdir}',
                      f'--config.members={given}', *FAST, *flags])


def refused(capsys, *args) -> str:
    """Votes, and returns the one sentence with which it ends."""
    assert vote(*args) == 2
    line, = [line for line in capsys.readouterr().err.strip().splitlines()
             if line.startswith('main.py: ')]
    return line


def result_of(workdir):
    return json.loads((workdir / 'vote.json').read_text())


def single_folds(folder, name, seed, folds=3, strength=1.5, **settings):
    """The folds of one split in workdirs of their own: folder/name0, folder/name1, ..."""
    kfold(folder / 'source', seed, folds, strength)
    paths = []
    for fold in range(folds):
        path = folder / f'{name}{fold}'
        (folder / f'source/fold_{fold}').rename(path)
        (path / 'config.json').write_text(json.dumps(dict(
            seed=0, split=dict(kind='kfold', folds=folds, fold=fold), **settings)))
        paths.append(path)
    return paths
