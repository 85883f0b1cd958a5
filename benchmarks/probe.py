"""Twenty heads in one program, or one after another: 5 folds x 4 learning rates of an mlp.

    python benchmarks/probe.py [--pictures=15000] [--features=1024] [--classes=500] [--epochs=1]

The features are random numbers around class centres, since only the time and the agreement of
the heads are measured. One after another, each run compiles its own program, as 20 commands would.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

from configs import common
from input_pipeline.manifest import make_manifest
from train_lib.probing.feature_cache import Features
from train_lib.probing.head_training import train_heads
from train_lib.probing.probe_folds import make_folds
from train_lib.probing.probe_spec import read_probe_spec
from train_lib.probing.stacked_heads import HeadKind

RATES = (3e-3, 1e-3, 3e-4, 1e-4)


def make(pictures: int, width: int, classes: int, epochs: int):
    """(config, folded data, features)"""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, pictures)
    centres = rng.standard_normal((classes, width))
    views = (centres[labels] + 4 * rng.standard_normal((2, pictures, width))).astype(np.float16)
    names = [str(i) for i in range(pictures)]
    manifest = make_manifest({'id': names, 'location': names, 'label/class': labels},
                             {'class': [f'{i:04}' for i in range(classes)]})
    config = common.get_config()
    config.split.kind, config.split.fold, config.split.test = 'kfold', 'all', 0.1
    config.duration = dict(epochs=epochs)
    return config, make_folds(config, manifest), Features(views, Path())


def main(argv: list[str]) -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (('pictures', 15000), ('features', 1024), ('classes', 500),
                          ('hidden', 1024), ('epochs', 1)):
        parser.add_argument(f'--{name}', type=int, default=default)
    args = parser.parse_args(argv)
    config, data, features = make(args.pictures, args.features, args.classes, args.epochs)
    spec = dataclasses.replace(read_probe_spec(config), heads=(
        HeadKind('mlp', dict(head='mlp', head_hidden=args.hidden)),))

    def train(rates, folds):
        trained = train_heads(config, dataclasses.replace(spec, rates=rates),
                              dataclasses.replace(data, folds=folds), features)
        return jax.block_until_ready(trained.params['mlp'])

    def timed(rates, folds):
        begin = time.perf_counter()
        params = train(rates, folds)
        return params, time.perf_counter() - begin

    together, whole = timed(RATES, data.folds)
    lone, difference, seconds = {}, 0.0, []
    for i, rate in enumerate(RATES):
        for k, fold in enumerate(data.folds):
            lone[i, k], one = timed((rate,), (fold,))
            seconds.append(one)
            ours = jax.tree.map(lambda leaf, i=i, k=k: leaf[i, k], together)
            theirs = jax.tree.map(lambda leaf: leaf[0, 0], lone[i, k])
            for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
                difference = max(difference, float(np.abs(a - b).max() / np.abs(b).max()))
    device = jax.devices()[0].device_kind
    print(f'{args.pictures:,} pictures, {args.features} features, mlp of {args.hidden}, '
          f'{args.classes} classes, {args.epochs} epochs, {device}, jax {jax.__version__}')
    print(f'20 heads in one program      {whole:8.1f} s')
    print(f'one after another            {sum(seconds):8.1f} s')
    print(f'ratio                        {sum(seconds) / whole:8.2f}')
    print(f'largest difference of a parameter, of the largest of its array: {difference:.1e}')


if __name__ == '__main__':
    main(sys.argv[1:])
