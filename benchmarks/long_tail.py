"""The published methods for long tails: configs/cifar_lt.py, one run per method and seed.

    python benchmarks/long_tail.py --data=folder=cifar10.zip                       # the full table
    python benchmarks/long_tail.py --data=folder=cifar10.zip --epochs=10 --largest=1000   # short

Finished runs are not repeated, and stopped ones continue: the same command fills the table.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Test accuracy of ResNet-32 on CIFAR-10-LT, imbalance 100, 12,406 images, as published.
PUBLISHED = {'ce': 70.4, 'weights': 68.3, 'effective': 70.5, 'balanced': 72.5, 'sqrt': 71.4,
             'deferred': 75.1, 'mixup': 74.1, 'crt': 75.0, 'ldam': 77.7, 'balanced_softmax': 77.5,
             'posthoc': 77.3, 'logit_adjustment': 77.9, 'mixup_adjusted': None}


def run(method: str, seed: int, args, home: Path) -> float:
    """Trains (or finishes) one run; returns its test accuracy in percent."""
    workdir = home / f'{method}-{seed}'
    result = workdir / 'result.json'
    if not result.exists():
        extra = f',from={home / f"ce-{seed}"}' if method == 'crt' else ''
        command = [sys.executable, str(ROOT / 'main.py'),
                   f'--config=configs/cifar_lt.py:{args.data},imbalance={args.imbalance},'
                   f'method={method},epochs={args.epochs}{extra}',
                   f'--config.data.long_tail.largest={args.largest}', f'--config.seed={seed}',
                   '--config.eval.every.percent=100', '--config.checkpoint.every.percent=20',
                   '--config.log.tensorboard=False', f'--workdir={workdir}', *args.override]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(f'{method}, seed {seed} ended with {done.returncode}: {done.stderr[-2000:]}')
    return 100 * json.loads(result.read_text())['test']['accuracy']


def main(argv: list[str]) -> None:
    """Prints one line per method when it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', required=True, help='folder=..., tfds=cifar10 or packed=...')
    parser.add_argument('--imbalance', default='100')
    parser.add_argument('--epochs', default='200')
    parser.add_argument('--largest', type=int, default=0, help='images of the first class (0: all)')
    parser.add_argument('--seeds', type=int, default=1)
    parser.add_argument('--methods', default=','.join(PUBLISHED))
    parser.add_argument('--home', default='runs/long_tail')
    parser.add_argument('override', nargs='*', help='further --config.key=value, after --')
    args = parser.parse_args(argv)
    home = Path(args.home).absolute()
    print(f'{"method":18}{"accuracy":>9}{"sd":>6}{"to ce":>7}{"published":>11}   '
          f'imbalance {args.imbalance}, {args.epochs} epochs, {args.seeds} seeds')
    base = None
    for method in args.methods.split(','):
        found = [run(method, seed, args, home) for seed in range(args.seeds)]
        mean = statistics.mean(found)
        base = mean if base is None else base
        spread = f'{statistics.stdev(found):.2f}' if len(found) > 1 else '-'
        known = PUBLISHED.get(method) or '-'
        print(f'{method:18}{mean:9.2f}{spread:>6}{mean - base:+7.2f}{known:>11}', flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
