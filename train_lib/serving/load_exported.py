"""python load.py PICTURE [PICTURE ...]: the most probable classes, by the model in this folder."""

import json
import sys
from pathlib import Path

import numpy as np
from jax import export

from train_lib.serving.preparing import prepare

HERE = Path(__file__).parent


def main(paths: list[str]) -> None:
    """Prints the three most probable classes of each picture and head."""
    classes = json.loads((HERE / 'classes.json').read_text('utf-8'))
    preparation = json.loads((HERE / 'preparation.json').read_text('utf-8'))
    program = export.deserialize(bytearray((HERE / 'model.stablehlo').read_bytes()))
    weights = dict(np.load(HERE / 'weights.npz', allow_pickle=False))
    images = np.stack([prepare(Path(path).read_bytes(), preparation, name=path) for path in paths])
    answer = program.call(weights, images)
    for head, logits in (answer if isinstance(answer, dict) else {'': answer}).items():
        names = classes[head or next(iter(classes))]
        odds = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
        for path, row in zip(paths, odds / odds.sum(-1, keepdims=True)):
            best = ', '.join(f'{names[c]} {row[c]:.3f}' for c in np.argsort(-row)[:3])
            print(f'{path}: {head}{": " if head else ""}{best}')


if __name__ == '__main__':
    main(sys.argv[1:] or sys.exit(__doc__))
