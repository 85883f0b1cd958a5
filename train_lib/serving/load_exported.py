"""python load.py PICTURE [PICTURE ...]: what the model in this folder says of pictures."""

import json
import sys
from pathlib import Path

import numpy as np
from jax import export

from train_lib.serving.preparing import prepare

HERE = Path(__file__).parent


def main(paths: list[str]) -> None:
    """Prints what the model says of each picture, head by head."""
    classes = json.loads((HERE / 'classes.json').read_text('utf-8'))
    answers = HERE / 'answers.json'  # only where a head has several labels per picture
    about = json.loads(answers.read_text('utf-8')) if answers.exists() else {}
    preparation = json.loads((HERE / 'preparation.json').read_text('utf-8'))
    program = export.deserialize(bytearray((HERE / 'model.stablehlo').read_bytes()))
    weights = dict(np.load(HERE / 'weights.npz', allow_pickle=False))
    images = np.stack([prepare(Path(path).read_bytes(), preparation, name=path) for path in paths])
    answer = program.call(weights, images)
    for head, logits in (answer if isinstance(answer, dict) else {'': answer}).items():
        name = head or next(iter(classes))
        for path, row in zip(paths, logits):
            print(f'{path}: {head}{": " if head else ""}'
                  f'{said(row, classes[name], about.get(name, {}))}')


def said(logits: np.ndarray, names: list[str], about: dict) -> str:
    """What the model says of one picture: its three most probable classes; of a head with several
    labels per picture all labels that reach their thresholds."""
    logits = np.asarray(logits, np.float64)
    if about.get('multi_label'):
        small = np.exp(-np.abs(logits))
        odds = np.where(logits >= 0, 1.0, small) / (1.0 + small)
        chosen = np.flatnonzero(odds >= [about['thresholds'][name] for name in names])
    else:
        odds = np.exp(logits - logits.max())
        odds /= odds.sum()
        chosen = np.argsort(-odds)[:3]
    return ', '.join(f'{names[c]} {odds[c]:.3f}' for c in chosen) or '(no label)'


if __name__ == '__main__':
    main(sys.argv[1:] or sys.exit(__doc__))
