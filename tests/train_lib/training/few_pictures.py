"""Tiny runs on pictures that the tests write, for those of unlabelled pictures and of teachers."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np

TINY = ['--config.image.size=16', '--config.curriculum=()', '--config.batch_size=8',
        '--config.model=dict(name="small_cnn", width=8, stages=2, drop_rate=0.2)',
        '--config.log.tensorboard=false', '--config.report.heat_maps=false',
        '--config.split.val=0.2', '--config.split.test=0.2', '--config.compile_cache=true',
        '--config.duration.steps=2', '--config.unlabelled.batch_size=8']
FIXMATCH = ['--config.unlabelled.kind=fixmatch', '--config.unlabelled.threshold=0.5']
FEW = '--config.data.long_tail.per_class=4'
FOLDS = ['--config.split.kind=kfold', '--config.split.folds=2', '--config.split.fold=all',
         '--config.split.test=0']


def write(folder: Path, people: int = 30, seed: int = 0) -> Path:
    """Two noisy pictures of one class of each person, who is the group."""
    rng = np.random.default_rng(seed)
    for k in range(2 * people):
        path = folder / 'ab'[k // 2 % 2] / f'{k // 2:03}_{k % 2}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 255, (16, 16, 3), np.uint8))
    return folder


def flags(pictures, *more: str) -> list[str]:
    """The command line for a folder of `write`."""
    given = {flag.partition('=')[0]: flag for flag in (*TINY, *more)}  # the last one counts
    return [f'--config=configs/sketch_cnn.py:folder={pictures}',
            r'--config.data.group_regex=/(\d+)_', *given.values()]


def last_line(capfd) -> str:
    return capfd.readouterr().err.strip().splitlines()[-1]


def rows_of(workdir: Path, name: str = 'metrics.jsonl') -> list[dict]:
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def rows_of_csv(path: Path) -> list[dict]:
    with open(path, newline='') as file:
        return list(csv.DictReader(file))
