"""What unlabelled pictures and the vote of folds add to one small model, on Omniglot.

    python benchmarks/few_labels.py pseudo --source=omniglot_sketches.zip --folder=runs/pseudo
    python benchmarks/few_labels.py distill --source=omniglot_sketches.zip --folder=runs/distill

Of 60 characters, evenly chosen, drawers 17 to 20 are the test. Of the other sixteen drawings of a
character `--labelled` are drawn by the seed and have their label (3; distill: 5), the others are
unlabelled. Every run is configs/few_labels.py, of one length, and so costs the same; seeds are
paired. A call that was stopped goes on. It prints one table: the test accuracy of each arm per
seed, and the mean paired difference to the first arm with Student's 95 % interval. `distill` also
times how long the folds and the student take for the same pictures, in turns.

    plain      the labelled drawings alone
    folds      as many models, each without one fold of them: the mean of their test accuracies
    vote       these models together
    pseudo     plain, and the unlabelled drawings with what the folds and plain say of them, soft
    distilled  plain, and what each fold said of the drawings that it did not train on
    both       both
"""

import argparse
import csv
import json
import statistics
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).parents[1]))

import main as program
import train_lib
from benchmarks.competition import Picture, from_omniglot

ARMS = dict(pseudo=('plain', 'folds', 'vote', 'pseudo'),
            distill=('plain', 'folds', 'vote', 'distilled', 'both'))
LABELLED, FOLDS = dict(pseudo=3, distill=5), dict(pseudo=3, distill=5)


def write_data(pictures: list[Picture], folder: Path, labelled: int, seed: int) -> None:
    """labelled.csv with the columns image, label and split, and unlabelled/, whose names say
    nothing; truth.csv, which no run reads, has the labels of these."""
    rng, rows, truth = np.random.default_rng(seed), [], []
    for name in ('labelled', 'unlabelled'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for target in sorted({one.target for one in pictures}):
        mine = [one for one in pictures if one.target == target]
        shown = [one for one in mine if not one.hidden]
        order = [shown[place] for place in rng.permutation(len(shown))]
        for picture in [*order[:labelled], *(one for one in mine if one.hidden)]:
            file = f'labelled/{target}_{picture.drawer}.png'
            (folder / file).write_bytes(picture.png)
            rows.append((file, target, 'test' if picture.hidden else 'train'))
        for picture in order[labelled:]:
            truth.append((f'{len(truth):05}.png', target))
            (folder / 'unlabelled' / truth[-1][0]).write_bytes(picture.png)
    for name, header, lines in (('labelled.csv', ('image', 'label', 'split'), rows),
                                ('truth.csv', ('image', 'label'), truth)):
        with open(folder / name, 'w', newline='', encoding='utf-8') as file:
            csv.writer(file).writerows([header, *lines])


def chosen(pictures: list[Picture], classes: int) -> list[Picture]:
    """The pictures of so many classes, evenly chosen."""
    names = sorted({one.target for one in pictures})
    kept = {names[place] for place in np.linspace(0, len(names) - 1, classes).astype(int)}
    return [one for one in pictures if one.target in kept]


def run(*argv: str) -> None:
    """One command of main.py.

    Raises:
        SystemExit: it failed.
    """
    if code := program.main([*argv]):
        raise SystemExit(code)


def accuracies(folder: Path, arms: tuple[str, ...], folds: int, seed: int, more: list[str]
               ) -> dict[str, float]:
    """{arm: test accuracy} of one seed, after training what is not there yet."""
    found, table = {}, folder / 'labelled.csv'
    common = [f'--config.seed={seed}', *more]

    def train(name: str, args: str = '', *settings: str) -> dict:
        result = folder / name / 'result.json'
        if not result.exists():
            run(f'--config=configs/few_labels.py:csv={table}{args}',
                f'--workdir={folder / name}', *common, *settings)
        return json.loads(result.read_text('utf-8'))

    found['plain'] = train('plain')['test']['accuracy']
    found['folds'] = train('folds', f',folds={folds}')['test_accuracy_mean']
    if not (folder / 'vote/vote.json').exists():
        run('vote', f'--config=configs/vote/digits.py:members={folder / "folds"}',
            f'--workdir={folder / "vote"}')
    vote = json.loads((folder / 'vote/vote.json').read_text('utf-8'))
    found['vote'] = vote['ensembles'][vote['answer']]['accuracy']
    labels = folder / 'pseudo.csv'
    if not labels.exists():
        run('pseudo', f'--members={folder / "folds"},{folder / "plain"}',
            f'--images={folder / "unlabelled"}', '--folds=all', '--threshold=0.5',
            f'--out={labels}')
    taught = [f'--config.distill.teachers={folder / "folds"}']
    if 'pseudo' in arms:
        found['pseudo'] = train('pseudo', f',extra={labels}')['test']['accuracy']
    if 'distilled' in arms:
        found['distilled'] = train('distilled', '', *taught)['test']['accuracy']
    if 'both' in arms:
        found['both'] = train('both', f',extra={labels}', *taught)['test']['accuracy']
    return found


def of_labels(folder: Path) -> tuple[int, float]:
    """(how many pictures have a pseudo-label, the share of right ones)"""
    def read(name: str) -> list[dict[str, str]]:
        with open(folder / name, newline='', encoding='utf-8') as file:
            return list(csv.DictReader(file))

    truth = {row['image']: row['label'] for row in read('truth.csv')}
    rows = read('pseudo.csv')
    return len(rows), float(np.mean([truth[row['id']] == row['label'] for row in rows]))


def speeds(folder: Path, turns: int = 9) -> str:
    """How long the folds take for the labelled pictures of a seed, in times of their student."""
    files = sorted((folder / 'labelled').glob('*.png'))
    runs = {name: train_lib.load(folder / name) for name in ('folds', 'distilled')}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):  # the first one compiles
        for name, loaded in runs.items():
            began = time.perf_counter()
            loaded.predict(files)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    ratios = [many / one for many, one in zip(seconds['folds'], seconds['distilled'])]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return (f'{len(files):,} pictures: the folds take {middle:.2f} times as long as the student '
            f'({low:.2f} to {high:.2f}), which answers '
            f'{len(files) / statistics.median(seconds["distilled"]):,.0f} per second')


def difference(values: np.ndarray) -> str:
    """The mean of paired differences, with Student's 95 % interval."""
    mean = values.mean()
    if len(values) < 2:
        return f'{mean:+.3f}'
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f'{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]'


def main(argv: list[str]) -> None:
    """Runs all seeds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=list(ARMS))
    parser.add_argument('--source', type=Path, required=True)
    parser.add_argument('--folder', type=Path, required=True)
    parser.add_argument('--classes', type=int, default=60)
    parser.add_argument('--labelled', type=int, default=0)
    parser.add_argument('--seeds', default='0,1,2')
    known, more = parser.parse_known_args(argv)
    if not zipfile.is_zipfile(known.source):
        raise SystemExit(f'--source={known.source} is not a zip archive.')
    pictures, found = chosen(from_omniglot(known.source), known.classes), []
    seeds = [int(seed) for seed in known.seeds.split(',')]
    for seed in seeds:
        folder = known.folder / f'seed_{seed}'
        if not (folder / 'truth.csv').exists():
            write_data(pictures, folder, known.labelled or LABELLED[known.what], seed)
        found.append(accuracies(folder, ARMS[known.what], FOLDS[known.what], seed, more))
        count, right = of_labels(folder)
        print(f'seed {seed}: {found[-1]}; {count} pseudo-labels, {right:.3f} of them right',
              flush=True)
    if known.what == 'distill':
        print(speeds(known.folder / f'seed_{seeds[0]}'))
    print(f'| arm | {" | ".join(f"seed {seed}" for seed in seeds)} | mean | to plain |')
    print('|---|' + '---|' * (len(seeds) + 2))
    plain = np.array([one['plain'] for one in found])
    for arm in ARMS[known.what]:
        values = np.array([one[arm] for one in found])
        print(f'| {arm} | {" | ".join(f"{value:.3f}" for value in values)} | {values.mean():.3f} '
              f'| {"" if arm == "plain" else difference(values - plain)} |')


if __name__ == '__main__':
    main(sys.argv[1:])
