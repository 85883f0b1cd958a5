"""python load.py PICTURE [PICTURE ...]: the most probable classes, by the model in this folder."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from train_lib.serving.preparing import prepare

HERE = Path(__file__).parent


def main(paths: list[str]) -> None:
    """Prints the three most probable classes of each picture."""
    names, = json.loads((HERE / 'classes.json').read_text('utf-8')).values()
    preparation = json.loads((HERE / 'preparation.json').read_text('utf-8'))
    session = onnxruntime.InferenceSession(HERE / 'model.onnx',
                                           providers=['CPUExecutionProvider'])
    images = np.stack([prepare(Path(path).read_bytes(), preparation, name=path) for path in paths])
    logits, = session.run(None, {'images': images})
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    for path, row in zip(paths, odds / odds.sum(-1, keepdims=True)):
        print(f'{path}: {", ".join(f"{names[c]} {row[c]:.3f}" for c in np.argsort(-row)[:3])}')


if __name__ == '__main__':
    main(sys.argv[1:] or sys.exit(__doc__))
