"""Does the curriculum help? The same seeds with it, all at once, and without it, on doodles.

The paper of the test writers is turned, mirrored and bent; that of the training writers is not.

    python benchmarks/curriculum.py [--seeds=3] [--arms=none,staged,all] [--out=DIR] [--key=value]

Prints the test accuracy of each run, and the mean difference of each arm to the first with its
95 % confidence interval (paired by seed, Student's t). Other flags are passed on to the run.
"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

import main

SETTINGS = ['--config.data.doodles.per_class=40', '--config.data.doodles.wild_writers=8',
            '--config.split.test_groups=' + ','.join(f'w{number}' for number in range(32, 40)),
            '--config.duration.epochs=8', '--config.eval.every.epochs=4',
            '--config.checkpoint.every.epochs=8', '--config.log.tensorboard=false']


def run(out: Path, arm: str, seed: int, flags: list[str]) -> float:
    """Test accuracy of one run; a finished one is not run again."""
    workdir = out / arm / str(seed)
    if not (workdir / 'result.json').exists():
        code = main.main([f'--config=configs/sketch_cnn.py:curriculum={arm}', *SETTINGS, *flags,
                          f'--config.seed={seed}', f'--workdir={workdir}'])
        if code:
            raise SystemExit(code)
    return json.loads((workdir / 'result.json').read_text())['test']['accuracy']


def compare(argv: list[str]) -> None:
    """Runs what is missing and prints the table."""
    own = dict(flag[2:].split('=', 1) for flag in argv
               if flag.partition('=')[0] in ('--seeds', '--arms', '--out'))
    flags = [flag for flag in argv if flag[2:].partition('=')[0] not in own]
    arms = own.get('arms', 'none,staged,all').split(',')
    out = Path(own.get('out', 'runs/curriculum'))
    # Arms within seeds: a machine that slows down slows all arms alike.
    scores = np.array([[run(out, arm, seed, flags) for arm in arms]
                       for seed in range(int(own.get('seeds', 3)))])
    print(f'{"arm":10}{"mean":>8}{"sd":>8}  {"difference [95 %]":28}runs')
    for number, arm in enumerate(arms):
        values = scores[:, number]
        difference = ''
        if number and len(values) > 1:
            gain = values - scores[:, 0]
            low, high = stats.ttest_1samp(gain, 0).confidence_interval()
            difference = f'{gain.mean():+.4f} [{low:+.4f}, {high:+.4f}]'
        print(f'{arm:10}{values.mean():8.4f}{values.std(ddof=1) if len(values) > 1 else 0:8.4f}  '
              f'{difference:28}{" ".join(f"{value:.4f}" for value in values)}')


if __name__ == '__main__':
    compare(sys.argv[1:])
