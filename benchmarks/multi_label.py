"""Losses of a multi-label head: illustrations and their tags, one run per loss and seed.

    python benchmarks/multi_label.py --data=illustrations.zip --home=runs/multi_label

The tags of a picture are its folder and the words of its file name (`man`, `facing_right`, ...)
that occur at least ten times; pictures that differ by words of gender are one group. `--data` is a
folder or zip of <category>/<name>.png. Finished runs are not repeated, and stopped ones continue:
the same command fills the table.
"""

import argparse
import csv
import json
import re
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEAST = 10  # pictures of a tag
_GENDER = {'man', 'woman', 'men', 'women', 'male', 'female', 'boy', 'girl', 'person', 'people'}
_SAME = {'male': 'man', 'men': 'man', 'female': 'woman', 'women': 'woman'}
_NO_TAG = {'with', 'in', 'and', 'of', 'on', 'the', 'no', 'a', 'right', 'facing'}
ARMS: dict[str, list[str]] = {
    'binary cross-entropy': ['--config.loss.name=binary_cross_entropy'],
    'asymmetric': ['--config.loss.name=asymmetric'],
    'binary cross-entropy, sqrt weights': ['--config.loss.name=binary_cross_entropy',
                                           '--config.loss.class_weights.kind=sqrt'],
}
SCORES = ('map', 'f1_macro', 'f1_macro_fitted', 'f1_micro', 'f1_micro_fitted', 'accuracy',
          'accuracy_fitted')


def words_of(stem: str) -> list[str]:
    """The words of a file name, of several words for one thing the same."""
    words = [word for word in re.split(r'[-_+0-9. ]+', stem.lower()) if word]
    turned = ['facing_right'] if 'facing' in words and 'right' in words else []
    return [_SAME.get(word, word) for word in words] + turned


def write_table(data: str, path: Path) -> int:
    """Writes the CSV with image, tags and group; returns how many tags there are."""
    if zipfile.is_zipfile(data):
        with zipfile.ZipFile(data) as archive:
            names = archive.namelist()
    else:
        names = [str(one.relative_to(data)) for one in Path(data).rglob('*.png')]
    names = sorted(name for name in names if name.endswith('.png'))
    tags = {name: {Path(name).parent.name.replace(' ', '_')}
            | {word for word in words_of(Path(name).stem) if word not in _NO_TAG}
            for name in names}
    count: dict[str, int] = {}
    for found in tags.values():
        for tag in found:
            count[tag] = count.get(tag, 0) + 1
    kept = {tag for tag, times in count.items() if times >= LEAST}
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(['image', 'tags', 'group'])
        for name in names:
            rest = [word for word in words_of(Path(name).stem)
                    if word not in _GENDER and word != 'facing_right']
            group = f'{Path(name).parent.name}/{"-".join(rest)}'
            writer.writerow([name, '|'.join(sorted(tags[name] & kept)) or '|', group])
    return len(kept)


def run(arm: str, seed: int, args: argparse.Namespace, home: Path, table: Path) -> dict:
    """Trains (or finishes) one run; returns the scores of its test."""
    workdir = home / f'{re.sub("[^a-z]+", "_", arm)}-{seed}'
    result = workdir / 'result.json'
    if not result.exists():
        command = [sys.executable, str(ROOT / 'main.py'),
                   f'--config=configs/mask_cnn.py:csv={table},images={Path(args.data).absolute()}',
                   f'--workdir={workdir}', '--config.data.columns.labels=tags',
                   '--config.data.multi_label=tags', '--config.data.columns.group=group',
                   f'--config.image.size={args.size}', '--config.split.val=0.15',
                   '--config.split.test=0.25', f'--config.duration.epochs={args.epochs}',
                   '--config.eval.metric=map', '--config.early_stopping.patience=None',
                   '--config.eval.every.percent=10', '--config.log.tensorboard=False',
                   '--config.report.heat_maps=False', '--config.split.seed=0',
                   '--config.split.tolerance=0.0', f'--config.seed={seed}', *ARMS[arm],
                   *args.override]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(f'{arm}, seed {seed} ended with {done.returncode}: {done.stderr[-2000:]}')
    return json.loads(result.read_text())['test']


def main(argv: list[str]) -> None:
    """Prints one line per loss when it is done: means and standard deviations over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', required=True)
    parser.add_argument('--home', default='runs/multi_label')
    parser.add_argument('--epochs', default='60')
    parser.add_argument('--size', default='32')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('override', nargs='*', help='further --config.key=value, after --')
    args = parser.parse_args(argv)
    home = Path(args.home).absolute()
    home.mkdir(parents=True, exist_ok=True)
    table = home / 'tags.csv'
    tags = write_table(args.data, table)
    print(f'{tags} tags, {args.seeds} seeds, {args.epochs} epochs, {args.size} px')
    print(f'{"test":36}' + ''.join(f'{name:>19}' for name in SCORES))
    for arm in ARMS:
        found = [run(arm, seed, args, home, table) for seed in range(args.seeds)]
        cells = []
        for name in SCORES:
            values = [one[name] for one in found]
            spread = f' ± {statistics.stdev(values):.3f}' if len(values) > 1 else ''
            cells.append(f'{statistics.mean(values):.3f}{spread}')
        print(f'{arm:36}' + ''.join(f'{cell:>19}' for cell in cells), flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
