"""Every vote and its statistics on stored logits: 20 members x 50,000 rows x 1,000 classes.

    python benchmarks/voting.py [--members=20] [--rows=50000] [--classes=1000] [--folder=/tmp]

Writes random float16 logits (2 GB, removed at the end), and prints seconds by part, by wall clock
and of the CPU, and the peak of resident memory, which includes the mapped files.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from train_lib.ensembles.candidates import find_candidates
from train_lib.ensembles.contributions import contributions, learning_curve
from train_lib.ensembles.fit.selection import convex_weights, greedy
from train_lib.ensembles.pool import vote
from train_lib.ensembles.rules import RULES
from train_lib.ensembles.spec import EnsembleSpec, each_alone
from train_lib.metrics.intervals import (
    accuracy_interval,
    difference_interval,
    f1_interval,
    f1_rows,
)
from train_lib.metrics.statistics import (
    diversity,
    equal_accuracy,
    holm,
    oracle,
    paired_test,
)

_FOLDS = 5


def write(folder: Path, members: int, rows: int, classes: int) -> np.ndarray:
    """Writes the members and returns the labels int [rows]."""
    labels = np.random.default_rng(0).integers(classes, size=rows)
    for i in range(members):  # one file mapped at a time, to leave the peak of memory to the votes
        file = np.lib.format.open_memmap(folder / f'{i}.npy', 'w+', np.float16, (rows, classes))
        for start in range(0, rows, 1000):
            truth = labels[start:start + 1000]
            shape = len(truth), classes
            shared = np.random.default_rng((1, start)).standard_normal(shape, np.float32)
            shared[np.arange(len(truth)), truth] += 4.5
            own = np.random.default_rng((2, start, i)).standard_normal(shape, np.float32)
            file[start:start + 1000] = 1.5 * (shared + 0.5 * own)
        file.flush()
        del file
    return labels


class Clock:
    """Seconds by part, by wall clock and of the CPU."""

    def __init__(self):
        self.parts = []
        self.mark()

    def mark(self) -> None:
        self.last = time.perf_counter(), time.process_time()

    def part(self, name: str) -> None:
        wall, cpu = self.last
        self.mark()
        self.parts.append((name, self.last[0] - wall, self.last[1] - cpu))


def run(logits: list[np.ndarray], labels: np.ndarray, repetitions: int) -> tuple[Clock, dict]:
    """(clock, summaries by ensemble)"""
    count, classes = len(logits), logits[0].shape[1]
    models = [i // _FOLDS for i in range(count)]
    weights = tuple(np.random.default_rng(3).random(count) + 0.1)
    specs = {f'member {i}': spec for i, spec in enumerate(each_alone(count))}
    specs |= {rule: EnsembleSpec(rule) for rule in RULES}
    specs |= {f'{rule}, weighted': EnsembleSpec(rule, weights=weights) for rule in RULES}
    specs |= {f'{inner}-{rule}': EnsembleSpec(rule, inner) for inner in RULES for rule in RULES}
    clock = Clock()
    outcomes = vote(logits, specs, labels=labels, models=models)
    clock.part(f'{len(specs)} votes: {count} members, {len(RULES)} rules equal and weighted, '
               f'{len(RULES) ** 2} pairs')
    found = {name: outcome.summary(labels) for name, outcome in outcomes.items()}
    clock.part('their scores')
    candidates = find_candidates(logits, labels)
    clock.part('candidates')
    convex, _ = convex_weights(candidates)
    clock.part('convex weights')
    for metric in ('nll', 'accuracy'):
        greedy(candidates, metric, rounds=25)
        clock.part(f'greedy selection by {metric}, 25 rounds')
    contributions(candidates, convex)
    learning_curve(candidates)
    clock.part('contributions and learning curve, 20 random orders')
    predicted = np.stack([outcomes[f'member {i}'].predicted for i in range(count)])
    right = predicted == labels
    best = int(right.mean(1).argmax())
    diversity(predicted, labels)
    oracle(predicted, labels)
    equal_accuracy(right, draws=repetitions)
    holm([paired_test(outcomes[name].predicted == labels, right[best])['p'] for name in specs])
    clock.part('diversity, McNemar, Cochran, Holm')
    of_best = f1_rows(predicted[best], labels, classes)
    for outcome in outcomes.values():
        hits = outcome.predicted == labels
        rows = f1_rows(outcome.predicted, labels, classes)
        accuracy_interval(hits)
        f1_interval(rows, hits)
        difference_interval(hits - right[best].astype(float), share=True, chosen=count)
        difference_interval(rows - of_best, chosen=count)
    clock.part(f'intervals of {len(specs)} answers')
    return clock, found


def main(argv: list[str]) -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (('members', 20), ('rows', 50_000), ('classes', 1000),
                          ('repetitions', 1000)):
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--folder', help='where the logits are written meanwhile')
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        labels = write(Path(folder), args.members, args.rows, args.classes)
        logits = [np.load(Path(folder) / f'{i}.npy', mmap_mode='r') for i in range(args.members)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20
        clock, found = run(logits, labels, args.repetitions)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20
        del logits
    print(f'{args.members} members x {args.rows:,} rows x {args.classes:,} classes, float16, '
          f'NumPy {np.__version__}; member 0 {found["member 0"]["accuracy"]:.4f}, '
          f'soft {found["soft"]["accuracy"]:.4f}')
    print(f'{"":78}  clock    CPU')
    total = [('together', *(sum(part[i] for part in clock.parts) for i in (1, 2)))]
    for name, wall, cpu in [*clock.parts, *total]:
        print(f'{name:78} {wall:6.1f} {cpu:6.1f}')
    print(f'peak memory {peak:.2f} GB, {before:.2f} GB of it from writing the logits')


if __name__ == '__main__':
    main(sys.argv[1:])
