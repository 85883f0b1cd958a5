"""Average precision of finding 5 % planted wrong labels.

    python benchmarks/label_errors.py [--seeds=3] [--run=WORKDIR]

    python benchmarks/label_errors.py --folder=ZIP [--pictures=1000] [--features=WEIGHTS]

By the logistic regression that `main.py curate` fits without predictions, on digits and doodles;
and, with --run, by the out-of-fold predictions of a k-fold run such as

    python main.py --config=configs/sketch_cnn.py --workdir=WORKDIR \\
        --config.data.doodles.wrong_labels=0.05 --config.split.kind=kfold \\
        --config.split.fold=all --config.split.test=0.0 --config.duration.epochs=8

With --folder, of a folder of classes or a zip archive of one, by the descriptor and with --features
(see backbone_features.py) by those of a backbone.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.backbone_features import add_flags, embedder
from input_pipeline import sources
from input_pipeline.curation.label_errors import SCORES, find_label_errors, out_of_fold
from input_pipeline.descriptors import describe_all
from train_lib.metrics.out_of_fold import read_probabilities

SHARE = 0.05


def report(name: str, labels: np.ndarray, truth: np.ndarray, probabilities: np.ndarray) -> None:
    """One line of the table."""
    judged = np.isfinite(probabilities).all(axis=1)  # of a class with one picture nothing is said
    labels, truth, probabilities = labels[judged], truth[judged], probabilities[judged]
    wrong = labels != truth
    found = {score: find_label_errors(labels, probabilities, score=score) for score in SCORES}
    precisions = '  '.join(f'{average_precision_score(wrong, one.score):8.4f}'
                           for one in found.values())
    flagged = found['margin'].wrong
    area = roc_auc_score(wrong, found['margin'].score)
    print(f'{name:24} {np.mean(probabilities.argmax(1) == truth):8.4f}  {precisions}  '
          f'{flagged.sum():7}  {wrong[flagged].mean():9.3f}  '
          f'{wrong[flagged].sum() / wrong.sum():6.3f}  {area:6.3f}', flush=True)


def in_folder(args) -> None:
    """The lines of --folder."""
    manifest = sources.load_source({'source': 'folder', 'folder': args.folder})
    if 0 < args.pictures < len(manifest):
        order = np.random.default_rng(0).permutation(len(manifest))
        manifest = manifest.select(np.sort(order[:args.pictures]))
    truth, names = manifest.labels('class'), manifest.classes['class']
    kinds, embed = {'descriptor': describe_all(manifest)}, embedder(args)
    if embed:
        kinds['features'] = embed(sources.read_image(manifest.root, location)
                                  for location in manifest.table['location'])
    print(f'{len(truth):,} pictures, {len(names)} classes')
    for seed in range(args.seeds):
        rng = np.random.default_rng(seed)
        labels, rows = truth.copy(), rng.permutation(len(truth))[:round(SHARE * len(truth))]
        labels[rows] = (labels[rows] + rng.integers(1, len(names), len(rows))) % len(names)
        for kind, features in kinds.items():
            report(f'{kind}, seed {seed}', labels, truth,
                   out_of_fold(features, labels, classes=len(names), seed=seed))


def main(argv: list[str]) -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--run', default='')
    parser.add_argument('--folder', default='')
    parser.add_argument('--pictures', type=int, default=0, help='so many of them (0: all)')
    add_flags(parser)
    args = parser.parse_args(argv)
    print(f'{"":25}accuracy    margin      self  flagged  precision  recall     AUC')
    if args.folder:
        return in_folder(args)
    digits = sources.load_source({'source': 'digits'})
    features, truth = describe_all(digits), digits.labels('class')
    for seed in range(args.seeds):
        rng = np.random.default_rng(seed)
        labels = truth.copy()
        rows = rng.permutation(len(labels))[:round(SHARE * len(labels))]
        labels[rows] = (labels[rows] + rng.integers(1, 10, len(rows))) % 10
        report(f'digits, seed {seed}', labels, truth,
               out_of_fold(features, labels, classes=10, seed=seed))
    doodles = sources.load_source({'source': 'doodles', 'doodles': dict(wrong_labels=SHARE)})
    labels, truth = doodles.labels('class'), doodles.table['truth/class'].to_numpy()
    report('doodles', labels, truth, out_of_fold(describe_all(doodles), labels, classes=48))
    if args.run:
        report('doodles, k-fold run', labels, truth,
               read_probabilities(Path(args.run), doodles, 'class'))


if __name__ == '__main__':
    main(sys.argv[1:])
