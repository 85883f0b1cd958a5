"""A competition made from Omniglot, whose hidden answers are known: docs/competition.md.

    python benchmarks/competition.py make --source=omniglot_sketches.zip --folder=omniglot
    python benchmarks/competition.py score --submission=submission.csv --truth=omniglot_truth.csv

`make` writes train/ and test/ (flat pictures with neutral names), train.csv, sample_submission.csv
and, beside the folder, FOLDER_truth.csv, which no command of the competition may read. The pictures
of drawers 17 to 20 of every character are the test. `score` prints the accuracy of a submission with
its 95 % intervals, for new pictures and for new drawers.
"""

import argparse
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from train_lib.metrics.intervals import accuracy_interval

HIDDEN = (17, 18, 19, 20)  # drawers
_NAME = re.compile(r'(?P<alphabet>[^/]+)/character(?P<character>\d+)/\d+_(?P<drawer>\d+)\.png$')


def truth_path(folder: Path) -> Path:
    """Where the hidden answers of the competition in `folder` are: beside it, not in it."""
    return folder.with_name(f'{folder.name}_truth.csv')


def make(source: Path, folder: Path, hidden: tuple[int, ...] = HIDDEN, seed: int = 0
         ) -> dict[str, int]:
    """Writes the competition.

    Args:
        source: the .zip: ALPHABET/characterNN/CHARACTER_DRAWER.png.
        folder: where it is written; must not exist.
        hidden: drawers whose pictures are the test.
        seed: of the order of the pictures, which their names go by.

    Returns:
        The number of training and of test pictures, and of classes.
    """
    folder.mkdir(parents=True)
    rows = {'train': [], 'test': []}
    with zipfile.ZipFile(source) as archive:
        names = sorted(name for name in archive.namelist() if _NAME.search(name))
        for name in np.random.default_rng(seed).permutation(names):
            found = _NAME.search(name)
            part = 'test' if int(found['drawer']) in hidden else 'train'
            (folder / part).mkdir(exist_ok=True)
            number = f'{part.upper()}_{len(rows[part]):04}'
            path = f'{part}/{number}.png'
            (folder / path).write_bytes(archive.read(name))
            rows[part].append(dict(
                ID=number, image_path=path, target=f'{found["alphabet"]}_{found["character"]}',
                drawer=int(found['drawer'])))
    train, test = (pd.DataFrame(rows[part]) for part in ('train', 'test'))
    train.to_csv(folder / 'train.csv', index=False)
    test.to_csv(truth_path(folder), index=False)
    test[['ID', 'image_path']].assign(target=train['target'].min()).to_csv(
        folder / 'sample_submission.csv', index=False)
    return dict(train=len(train), test=len(test), classes=train['target'].nunique())


def score(submission: Path, truth: Path) -> dict:
    """The accuracy of a submission, its intervals and its rows.

    Raises:
        ValueError: the submission has not one row for each picture of the test.
    """
    answers = pd.read_csv(submission, dtype=str, keep_default_na=False)
    hidden = pd.read_csv(truth, dtype=str, keep_default_na=False)
    if sorted(answers['ID']) != sorted(hidden['ID']):
        raise ValueError(f'{submission} has not exactly one row for each of the {len(hidden):,} '
                         f'IDs of {truth}.')
    joined = hidden.merge(answers[['ID', 'target']], on='ID', suffixes=('', '_answer'))
    right = (joined['target'] == joined['target_answer']).to_numpy()
    return dict(accuracy=float(right.mean()), rows=len(right), by_picture=accuracy_interval(right),
                by_drawer=accuracy_interval(right, joined['drawer'].to_numpy()),
                drawers=joined.assign(right=right).groupby('drawer')['right'].mean().to_dict())


def main(argv: list[str]) -> None:
    """Makes or scores."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest='verb', required=True)
    making = verbs.add_parser('make')
    scoring = verbs.add_parser('score')
    for found, names in ((making, ('source', 'folder')), (scoring, ('submission', 'truth'))):
        for name in names:
            found.add_argument(f'--{name}', type=Path, required=True)
    args = parser.parse_args(argv)
    if args.verb == 'make':
        counts = make(args.source, args.folder)
        print(f'{counts["train"]:,} training and {counts["test"]:,} test pictures of '
              f'{counts["classes"]} classes in {args.folder}; the hidden answers are '
              f'{truth_path(args.folder)}')
        return
    found = score(args.submission, args.truth)
    low, high = found['by_picture']
    print(f'accuracy {found["accuracy"]:.4f} (n {found["rows"]}), 95 % for new pictures '
          f'[{low:.3f}, {high:.3f}], for new drawers '
          f'[{found["by_drawer"][0]:.3f}, {found["by_drawer"][1]:.3f}]')
    print('by drawer ' + ', '.join(f'{name}: {share:.3f}'
                                   for name, share in sorted(found['drawers'].items())))


if __name__ == '__main__':
    main(sys.argv[1:])
