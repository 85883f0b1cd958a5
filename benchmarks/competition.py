"""A competition whose hidden answers are known, from Omniglot (docs/competition.md) or from digits.

    python benchmarks/competition.py make --source=omniglot_sketches.zip --folder=omniglot
    python benchmarks/competition.py make --source=digits --folder=digits
    python benchmarks/competition.py score --submission=submission.csv --truth=omniglot_truth.csv

`make` writes train/ and test/ (flat pictures with neutral names), train.csv, sample_submission.csv
and, beside the folder, FOLDER_truth.csv, which no command of the competition may read. The test has
the pictures of drawers 17 to 20 of every character, or every fifth of scikit-learn's digits, which
do not say who wrote them. `score` prints the accuracy of a submission with its 95 % intervals, for
new pictures and, where drawers are known, for new drawers.
"""

import argparse
import dataclasses
import re
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).parents[1]))

from train_lib.metrics.intervals import accuracy_interval

HIDDEN = (17, 18, 19, 20)  # drawers
_NAME = re.compile(r'(?P<alphabet>[^/]+)/character(?P<character>\d+)/\d+_(?P<drawer>\d+)\.png$')


def truth_path(folder: Path) -> Path:
    """Where the hidden answers of the competition in `folder` are: beside it, not in it."""
    return folder.with_name(f'{folder.name}_truth.csv')


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture of the competition: its PNG file, its class, whether it is of the test, and who
    drew it ('': not known)."""

    png: bytes
    target: str
    hidden: bool
    drawer: str = ''


def from_omniglot(source: Path) -> list[Picture]:
    """The pictures of a .zip with ALPHABET/characterNN/CHARACTER_DRAWER.png, in a fixed order."""
    found = []
    with zipfile.ZipFile(source) as archive:
        for name in sorted(archive.namelist()):
            if part := _NAME.search(name):
                found.append(Picture(
                    archive.read(name), f'{part["alphabet"]}_{part["character"]}',
                    int(part['drawer']) in HIDDEN, str(int(part['drawer']))))
    return found


def from_digits() -> list[Picture]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, dark on white."""
    pictures, labels = load_digits(return_X_y=True)
    grey = (255 - pictures.reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)
    return [Picture(cv2.imencode('.png', picture)[1].tobytes(), str(label), row % 5 == 4)
            for row, (picture, label) in enumerate(zip(grey, labels))]


def make(pictures: list[Picture], folder: Path, seed: int = 0) -> dict[str, int]:
    """Writes the competition.

    Args:
        pictures: what it is made of.
        folder: where it is written; must not exist.
        seed: of the order of the pictures, which their names go by.

    Returns:
        The number of training and of test pictures, and of classes.
    """
    folder.mkdir(parents=True)
    rows = {'train': [], 'test': []}
    for number in np.random.default_rng(seed).permutation(len(pictures)):
        picture = pictures[number]
        part = 'test' if picture.hidden else 'train'
        name = f'{part.upper()}_{len(rows[part]):04}'
        path = folder / part / f'{name}.png'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture.png)
        rows[part].append(dict(ID=name, image_path=f'{part}/{name}.png', target=picture.target)
                          | (dict(drawer=picture.drawer) if picture.drawer else {}))
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
    found = dict(accuracy=float(right.mean()), rows=len(right),
                 by_picture=accuracy_interval(right))
    if 'drawer' in joined:
        found['by_drawer'] = accuracy_interval(right, joined['drawer'].to_numpy())
        found['drawers'] = joined.assign(right=right).groupby('drawer')['right'].mean().to_dict()
    return found


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
        pictures = (from_digits() if str(args.source) == 'digits' else from_omniglot(args.source))
        counts = make(pictures, args.folder)
        print(f'{counts["train"]:,} training and {counts["test"]:,} test pictures of '
              f'{counts["classes"]} classes in {args.folder}; the hidden answers are '
              f'{truth_path(args.folder)}')
        return
    found = score(args.submission, args.truth)
    low, high = found['by_picture']
    print(f'accuracy {found["accuracy"]:.4f} (n {found["rows"]}), 95 % for new pictures '
          f'[{low:.3f}, {high:.3f}]')
    if 'drawers' in found:
        low, high = found['by_drawer']
        print(f'95 % for new drawers [{low:.3f}, {high:.3f}]; by drawer ' + ', '.join(
            f'{name}: {share:.3f}' for name, share in sorted(found['drawers'].items())))


if __name__ == '__main__':
    main(sys.argv[1:])
