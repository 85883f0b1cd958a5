"""How often printed 95 % intervals cover, and how often tests at 5 % raise a false alarm.

    python benchmarks/coverage.py [--repetitions=1000] [--processes=2] [--only=NAME,NAME]

Every interval and p value that a report, a vote or a study prints, in simulations of groups of
unequal size (log-normal, sigma 0.6) with an intra-class correlation of 0, 0.05 and 0.2, and of two
equal arms. "before" is what was printed up to version 0.1.0. docs/statistics.md keeps the table.
"""

import argparse
import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.statistics_before import bootstrap, cochran_q
from train_lib.metrics.intervals import (
    accuracy_interval,
    difference_interval,
    f1_interval,
    f1_rows,
)
from train_lib.metrics.scores import wilson_interval
from train_lib.metrics.statistics import equal_accuracy, mcnemar, paired_test
from train_lib.studies.cell_rows import CellRows
from train_lib.studies.comparison import paired_cells, paired_difference
from train_lib.studies.stopping import stop_level

SIZES, ACCURACIES, CORRELATIONS = (100, 200, 544), (0.9, 0.98), (0.0, 0.05, 0.2)
GROUPS = (None, 4, 8, 12, 20, 50)
CLASSES, MEMBERS = 10, 5
_STEEP = 3.0  # of the NLL


@dataclasses.dataclass(frozen=True)
class Sample:
    """What MEMBERS + 1 answers of equal accuracy say of N rows; the first one is the vote.

    Attributes:
        right: bool [K, N].
        predicted: int [K, N].
        labels: int [N].
        nll: float [K, N].
        groups: int [N], or None.
    """

    right: np.ndarray
    predicted: np.ndarray
    labels: np.ndarray
    nll: np.ndarray
    groups: np.ndarray | None


@functools.cache
def latent_share(accuracy: float, correlation: float) -> float:
    """The share of the variance of a normal latent value that groups need for the intra-class
    correlation of being right."""
    at, weight = np.polynomial.hermite_e.hermegauss(120)
    weight = weight / weight.sum()
    low, high = 0.0, 0.99
    for _ in range(50):
        middle = (low + high) / 2
        rate = stats.norm.cdf((stats.norm.ppf(accuracy) - np.sqrt(middle) * at)
                              / np.sqrt(1 - middle))
        variance = weight @ rate ** 2 - (weight @ rate) ** 2
        low, high = ((middle, high) if variance < correlation * accuracy * (1 - accuracy)
                     else (low, middle))
    return low if correlation else 0.0


def group_index(rng: np.random.Generator, rows: int, groups: int) -> np.ndarray:
    """Groups of unequal size, each of one row at least, int [rows]."""
    weights = np.exp(0.6 * rng.standard_normal(groups))
    extra = rng.choice(groups, rows - groups, p=weights / weights.sum())
    return np.concatenate([np.arange(groups), extra])


def draw(rng: np.random.Generator, rows: int, accuracy: float, groups: int | None,
         correlation: float, agree: float = 0.6) -> Sample:
    """A sample; `agree`: the share of a latent value that all answers have in common."""
    count = MEMBERS + 1
    index = None if groups is None else group_index(rng, rows, groups)
    by_group = latent_share(accuracy, correlation) if groups else 0.0
    mix = lambda size: (np.sqrt(agree) * rng.standard_normal(size)
                        + np.sqrt(1 - agree) * rng.standard_normal((count, size)))
    latent = np.sqrt(1 - by_group) * mix(rows)
    if index is not None:
        latent += np.sqrt(by_group) * mix(groups)[:, index]
    margin = stats.norm.ppf(accuracy) - latent
    labels = rng.integers(CLASSES, size=rows)
    other = (labels + rng.integers(1, CLASSES, size=(count, rows))) % CLASSES
    return Sample(margin > 0, np.where(margin > 0, labels, other), labels,
                  np.logaddexp(0, -_STEEP * margin), index)


def covers(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def _best(sample: Sample) -> np.ndarray:
    return sample.right[1 + int(sample.right[1:].mean(1).argmax())]


def _apart(sample: Sample, other: np.ndarray) -> np.ndarray:
    return sample.right[0] - other.astype(float)


def _bootstrapped(sample: Sample, column: str, seed: int) -> tuple[float, float]:
    """The percentile interval of before, of the vote's difference to the first member."""
    groups = sample.groups if sample.groups is not None and len(
        np.unique(sample.groups)) >= 10 else None
    found = bootstrap({name: {'predicted': sample.predicted[i], 'nll': None}
                       for i, name in enumerate('ab')}, sample.labels, num_classes=CLASSES,
                      reference='b', groups=groups, repetitions=200, seed=seed).iloc[0]
    return found[f'{column}_low'], found[f'{column}_high']


# name -> (what is counted, what it should be, (sample, accuracy, seed) -> whether it happened)
Check = tuple[str, str, Callable[[Sample, float, int], bool]]
CHECKS: dict[str, Check] = {
    'accuracy_before': ('accuracy in a run\'s report, before', '95', lambda s, p, _: covers(
        wilson_interval(float(s.right[0].mean()), s.right.shape[1]), p)),
    'accuracy': ('accuracy (run, vote)', '95', lambda s, p, _: covers(
        accuracy_interval(s.right[0], s.groups), p)),
    'f1': ('macro F1 (vote.json), ten classes', '95', lambda s, p, _: covers(
        f1_interval(f1_rows(s.predicted[0], s.labels, CLASSES), s.right[0], s.groups), p)),
    'difference_before': ('difference in accuracy, before', '95', lambda s, p, seed: covers(
        _bootstrapped(s, 'difference', seed), 0)),
    'difference': ('difference in accuracy to a given answer', '95', lambda s, p, _: covers(
        difference_interval(_apart(s, s.right[1]), s.groups, share=True), 0)),
    'mean_member': ('difference in accuracy to the mean of five members', '95',
                    lambda s, p, _: covers(difference_interval(
                        _apart(s, s.right[1:].mean(0)), s.groups, share=True), 0)),
    'best_single': ('difference in accuracy to the best of five equal members', '95',
                    lambda s, p, _: covers(difference_interval(
                        _apart(s, _best(s)), s.groups, share=True, chosen=MEMBERS), 0)),
    'f1_difference': ('difference in macro F1 (vote.json)', '95', lambda s, p, _: covers(
        difference_interval(f1_rows(s.predicted[0], s.labels, CLASSES)
                            - f1_rows(s.predicted[1], s.labels, CLASSES), s.groups), 0)),
    'nll_difference': ('difference in NLL (vote.json)', '95', lambda s, p, _: covers(
        difference_interval(s.nll[0] - s.nll[1], s.groups), 0)),
    'mcnemar_before': ('McNemar, p < .05, before', '5', lambda s, p, _:
                       mcnemar(s.right[0], s.right[1])['p'] < .05),
    'mcnemar': ('p of two given answers < .05', '5', lambda s, p, _:
                paired_test(s.right[0], s.right[1], s.groups)['p'] < .05),
    'best_single_p': ('p to the best of five equal members < .05', '5', lambda s, p, _:
                      paired_test(s.right[0], _best(s), s.groups, chosen=MEMBERS)['p'] < .05),
    'cochran_before': ('Cochran, p < .05, before', '5', lambda s, p, _:
                       cochran_q(s.right[1:])['p'] < .05),
    'cochran': ('Cochran, p < .05', '5', lambda s, p, seed:
                equal_accuracy(s.right[1:], s.groups, draws=400, seed=seed)['p'] < .05),
}


def measure(names: tuple[str, ...], repetitions: int, rows: int, accuracy: float,
            groups: int | None, correlation: float) -> dict[str, float]:
    """Percent of the repetitions in which each check happened; all see the same samples."""
    seen = np.zeros(len(names))
    for repetition in range(repetitions):
        rng = np.random.default_rng((rows, round(accuracy * 100), groups or 0,
                                     round(correlation * 100), repetition))
        sample = draw(rng, rows, accuracy, groups, correlation)
        seen += [CHECKS[name][2](sample, accuracy, repetition) for name in names]
    return dict(zip(names, (100 * seen / repetitions).tolist()))


# --- studies --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Trial:
    """A study of two equal arms.

    Attributes:
        runs: seeds, or seeds times folds.
        pictures: in all; a share of `test` of them is scored by each run.
        test: 1 if all runs score all pictures.
        folds: 0, or the number of them; then each scores its own.
        groups: of the pictures, or None.
        own: share of the variance of a latent value that an arm has in all of its runs.
        training: variance that the pictures of the training set give to an arm's mean.
    """

    runs: int
    pictures: int = 544
    test: float = 1.0
    folds: int = 0
    groups: int | None = None
    own: float = 0.15
    training: float = 0.002


TRIALS = {
    'fixed test, 3 seeds': Trial(3), 'fixed test, 5 seeds': Trial(5),
    'fixed test, 10 seeds': Trial(10),
    'fixed test, 5 seeds, arms differ more': Trial(5, own=0.3),
    'fixed test, 10 seeds, arms differ more': Trial(10, own=0.3),
    'fixed test of 4 groups, 5 seeds': Trial(5, groups=4),
    'fixed test of 12 groups, 5 seeds': Trial(5, groups=12),
    'hold-out of 20 % redrawn, 5 seeds': Trial(5, 1000, 0.2),
    'hold-out of 20 % redrawn, 10 seeds': Trial(10, 1000, 0.2),
    'hold-out of 10 % redrawn, 20 seeds': Trial(20, 1000, 0.1),
    '5 folds, 1 seed': Trial(5, 544, 0.2, 5), '5 folds, 3 seeds': Trial(15, 544, 0.2, 5),
}


def draw_runs(rng: np.random.Generator, trial: Trial, arms: int = 2, accuracy: float = 0.9
              ) -> list[list[CellRows]]:
    """The runs of arms that are equally accurate on new pictures, [arm][run].

    An arm finds a picture easier or harder than others do, in all of its runs (Trial.own of the
    variance of the latent value, 0.02 more by group); a run differs by picture (the rest of 0.4)
    and as a whole (0.002). Training sets that share pictures teach alike (Trial.training); a fixed
    split has one training set, of which nothing is said.
    """
    size, groups = trial.pictures, trial.groups
    index = group_index(rng, size, groups) if groups else None
    of_groups = lambda: (0 if index is None else
                         np.sqrt(.02) * rng.standard_normal(groups)[index])
    shared, cells = np.sqrt(.6) * rng.standard_normal(size), []
    tests = list(_test_rows(rng, trial))
    for _ in range(arms):
        arm = shared + np.sqrt(trial.own) * rng.standard_normal(size) + of_groups()
        teaches, found = rng.standard_normal(size), []
        for rows in tests:
            left = size - len(rows)  # the pictures that it trains on
            taught = (np.delete(teaches, rows).sum() / np.sqrt(left) if left else 0) * np.sqrt(
                trial.training)
            latent = (arm + np.sqrt(.4 - trial.own) * rng.standard_normal(size) + taught
                      + np.sqrt(.002) * rng.standard_normal())
            spread = np.sqrt(1.002 + .02 * bool(groups) + trial.training * bool(left))
            right = (latent / spread < stats.norm.ppf(accuracy)).astype(float)
            found.append(CellRows(np.array([f'{i:05d}' for i in rows]), right[rows],
                                  None if index is None else index[rows].astype(str),
                                  size - len(rows)))
        cells.append(found)
    return cells


def _test_rows(rng: np.random.Generator, trial: Trial):
    """The rows that each run scores, sorted."""
    size = trial.pictures
    if trial.folds:
        parts = np.array_split(rng.permutation(size), trial.folds)
        yield from (np.sort(parts[run % trial.folds]) for run in range(trial.runs))
        return
    for _ in range(trial.runs):
        yield (np.arange(size) if trial.test == 1 else
               np.sort(rng.choice(size, round(trial.test * size), replace=False)))


def compare(cells: list[list[CellRows]], folds: int, first: int = 0, second: int = 1,
            level: float = 0.95) -> tuple[dict, dict]:
    """(what is printed, what was printed before) of two arms."""
    apart = np.array([own.values.mean() - base.values.mean()
                      for own, base in zip(cells[first], cells[second])])
    rows = list(zip(cells[first], cells[second]))
    return paired_cells(apart, rows, folds or 1, level), paired_difference(apart, folds or 1)


def measure_trial(name: str, repetitions: int) -> tuple[float, float]:
    """Percent of false alarms (p < .05, so the interval misses 0): (before, now)."""
    trial, seen = TRIALS[name], np.zeros(2)
    for repetition in range(repetitions):
        cells = draw_runs(np.random.default_rng((sorted(TRIALS).index(name), repetition)), trial)
        now, before = compare(cells, trial.folds)
        seen += before['p'] < .05, now['p'] < .05
    return tuple((100 * seen / repetitions).tolist())


def measure_stop(repetitions: int, arms: int = 4, after: int = 2, seeds: int = 6
                 ) -> tuple[float, float]:
    """Percent of studies of equal arms on a fixed test in which config.study.stop gives an arm up:
    (before, now)."""
    seen = np.zeros(2)
    for repetition in range(repetitions):
        cells = draw_runs(np.random.default_rng((99, repetition)), Trial(seeds), arms)
        gone = np.zeros(2, bool)
        for n in range(after, seeds):
            part = [runs[:n] for runs in cells]
            means = [np.mean([run.values.mean() for run in runs]) for runs in part]
            best = int(np.argmax(means))
            for arm in range(1, arms):
                if arm != best:
                    now, before = compare(part, 0, arm, best,
                                          stop_level(arms, seeds - after))
                    gone |= np.array([before['high'] < 0, now['high'] < 0])
        seen += gone
    return tuple((100 * seen / repetitions).tolist())


# --- the table ------------------------------------------------------------------------------------


def cells_of_table():
    return [(rows, accuracy, groups, correlation) for rows, accuracy, correlation, groups in
            itertools.product(SIZES, ACCURACIES, CORRELATIONS, GROUPS)
            if groups is not None or correlation == 0]


def main(argv: list[str]) -> None:
    """Prints the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--repetitions', type=int, default=1000)
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--only', default='', help='some of ' + ', '.join([*CHECKS, 'studies']))
    args = parser.parse_args(argv)
    wanted = args.only.split(',') if args.only else [*CHECKS, 'studies']
    names = tuple(name for name in CHECKS if name in wanted)
    with ProcessPoolExecutor(args.processes) as pool:
        cells = cells_of_table() if names else []
        found = dict(zip(cells, pool.map(
            functools.partial(measure, names, args.repetitions), *zip(*cells)))) if cells else {}
        for name in names:
            what, aim, _ = CHECKS[name]
            print(f'\n{what}: {"covers" if aim == "95" else "false alarms"}, % (aim {aim})\n')
            print('| n | accuracy | correlation | rows | ' + ' | '.join(
                f'{count} groups' for count in GROUPS[1:]) + ' |')
            print('|---|---|---|' + '---|' * len(GROUPS))
            for rows, accuracy, correlation in itertools.product(SIZES, ACCURACIES, CORRELATIONS):
                line = [found.get((rows, accuracy, groups, correlation), {}).get(name)
                        for groups in GROUPS]
                print(f'| {rows} | {accuracy} | {correlation} | ' + ' | '.join(
                    '' if value is None else f'{value:.1f}' for value in line) + ' |')
        if 'studies' in wanted:
            print('\n| studies of equal arms, p < .05, % | before | now |\n|---|---|---|')
            trials = pool.map(functools.partial(measure_trial, repetitions=args.repetitions),
                              TRIALS)
            for name, (before, now) in zip(TRIALS, trials):
                print(f'| {name} | {before:.1f} | {now:.1f} |')
            before, now = measure_stop(max(1, args.repetitions // 2))
            print(f'| an arm of four given up (`study.stop.after=2`, 6 seeds, fixed test) '
                  f'| {before:.1f} | {now:.1f} |')


if __name__ == '__main__':
    main(sys.argv[1:])
