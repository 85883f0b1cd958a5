"""Did a change make anything slower? Ratios of five minutes, compared with a kept table.

    python benchmarks/guard.py [--only=step,pipeline,...] [--table=FILE]
    python benchmarks/guard.py --update [--runs=N] [--table=FILE]

Each line divides the speed of a part by that of something fixed which runs beside it on the same
machine: a matrix product, decoding alone, the bare forward step, plain NumPy, the import of JAX, or
a peer (timm in eager mode, albumentations) where it is installed. So 1 is as fast as that, more is
better, and a slow or busy machine changes little. A line is slower if its ratio is below the kept
one by more than its tolerance; then the exit code is 1, and the lines are named.

--update writes the table from several runs: the median of each line, and as its tolerance twice the
largest distance of a run from the median, at least 10 % (LEAST). Ratios still differ between kinds
of machines. To judge a change on another machine, write a table of the code before it there
(--update --table=FILE), and compare with that.
"""

import argparse
import csv
import dataclasses
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from train_lib.runtime.platform import choose_platform

choose_platform()

TABLE = Path(__file__).with_suffix('.csv')
LEAST = 0.10  # what the same code differs by from day to day, whatever its runs say
STEPS = (('resnet18', 64, 32), ('efficientnet_b0', 64, 16), ('vit_tiny_patch16_224', 224, 4))
# What a process costs before any of our code: JAX, and a product that takes part of a second.
_FIXED = ('import jax, jax.numpy as jnp; a = jnp.ones((2048, 2048)); '
          '[(a @ a).block_until_ready() for _ in range(8)]')


@dataclasses.dataclass(frozen=True)
class Kept:
    """A line of the table: a ratio, more is better, and by what share a run may be below it."""

    ratio: float
    tolerance: float


def training_steps() -> Iterator[tuple[str, float]]:
    """FLOP/s of a step as a share of those of a matrix product, and beside timm."""
    from benchmarks import train_step

    peer = all(importlib.util.find_spec(name) for name in ('torch', 'timm'))
    for name, size, batch in STEPS:
        flags = dict(models=name, size=size, batch=batch, precision='float32', steps=6)
        ours = _measured(train_step.in_a_process(dict(os.environ), only='jax', **flags), name)
        flops = 3 * train_step.forward_flops(name, size) * batch
        yield f'step {name}: of a matrix product', flops / ours['seconds'] / ours['peak']
        if peer:
            eager = dict(os.environ, TORCHDYNAMO_DISABLE='1')
            theirs = _measured(train_step.in_a_process(eager, only='torch', device='cpu', **flags),
                               f'{name} of timm')
            yield f'step {name}: timm, eager', theirs['seconds'] / ours['seconds']


def _measured(row: Mapping, name: str) -> Mapping:
    if 'error' in row:
        raise RuntimeError(f'the step of {name} was not measured: {row["error"]}')
    return row


def input_pipeline() -> Iterator[tuple[str, float]]:
    """Pictures per CPU second beside decoding alone, and beside albumentations."""
    from benchmarks import input_pipeline as pipeline
    from benchmarks.jpeg_files import draw_files
    from input_pipeline.sources import folder

    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / 'files'
        draw_files(path, 64, Path())
        source = folder.load(str(path))
        for name, specs, p in (('last stage', pipeline.LAST, 1.0), ('crop', pipeline.CROP, None)):
            ours, decoding = pipeline.in_turns(
                3, pipeline.ours_from(source, pipeline.stage_of(specs, p), count=8),
                pipeline.decoding_alone(source, count=8))
            yield f'pipeline {name}: decoding alone', ours[1] / decoding[1]
        before = len(pipeline.ROWS)
        pipeline.decoded({'500x400': path}, 1, Path(home))
        for name, *_, by_cpu, _ in pipeline.ROWS[before:]:
            yield f'pipeline {name}', float(by_cpu)


def evaluation() -> Iterator[tuple[str, float]]:
    """The bare forward step's share of an evaluation and of a prediction, by CPU seconds."""
    from benchmarks import evaluation

    options = argparse.Namespace(model='resnet18', size=64, batch=128)
    with tempfile.TemporaryDirectory() as home:
        parts = evaluation.sides(options, Path(home), 768, False)
        for name, (_, by_cpu) in evaluation.shares(evaluation.in_turns(parts, 3)).items():
            yield f'{name}: forward step alone', by_cpu


def votes() -> Iterator[tuple[str, float]]:
    """All votes and their statistics beside one sort and one softmax of each member in NumPy."""
    import numpy as np

    from benchmarks import voting

    with tempfile.TemporaryDirectory() as folder:
        labels = voting.write(Path(folder), 20, 1000, 1000)
        logits = [np.load(Path(folder) / f'{i}.npy', mmap_mode='r') for i in range(20)]

        def plain() -> None:
            total = 0
            for member in logits:
                values = np.asarray(member, np.float32)
                probs = np.exp(values - values.max(1, keepdims=True))
                total = total + probs / probs.sum(1, keepdims=True)
                np.argsort(values, axis=1)
            total.argmax(1)

        alone, whole = in_turns(3, plain, lambda: voting.run(logits, labels, 100))
    yield 'vote: plain NumPy', alone / whole


def in_turns(rounds: int, *works: Callable[[], object]) -> list[float]:
    """The least CPU seconds of each, after a round that warms up."""
    found: list[list[float]] = [[] for _ in works]
    for turn in range(rounds + 1):
        for work, seconds in zip(works, found):
            since = time.process_time()
            work()
            if turn:
                seconds.append(time.process_time() - since)
    return list(map(min, found))


def start() -> Iterator[tuple[str, float]]:
    """CPU seconds of a process with JAX and a fixed product, over those to the first step."""
    from benchmarks import start_up

    fixed, starts = [], []
    for _ in range(2):
        before = os.times()
        subprocess.run([sys.executable, '-c', _FIXED], check=True, env=os.environ)
        after = os.times()
        fixed.append(sum(after[2:4]) - sum(before[2:4]))
        with tempfile.TemporaryDirectory() as cache:
            starts.append([start_up.seconds_to_first_step(start_up.CONFIGS['default'], cache)[1]
                           for _ in range(2)])
    for name, seconds in zip(('first', 'second'), zip(*starts)):
        yield f'{name} start to first step: import of JAX', min(fixed) / min(seconds)


PARTS = {'step': training_steps, 'pipeline': input_pipeline, 'evaluation': evaluation,
         'vote': votes, 'start': start}


def measure(only: list[str]) -> dict[str, float]:
    """{line: ratio} of these PARTS."""
    return {name: ratio for part in only for name, ratio in PARTS[part]()}


def slower(found: Mapping[str, float], kept: Mapping[str, Kept]) -> list[str]:
    """The lines whose ratio is below the kept one by more than the tolerance."""
    return [name for name, ratio in found.items()
            if name in kept and not ratio >= kept[name].ratio * (1 - kept[name].tolerance)]


def table_of(runs: list[Mapping[str, float]]) -> dict[str, Kept]:
    """What is kept of several runs: medians, and tolerances that the runs themselves justify."""
    found = {}
    for name in runs[0]:
        ratios = [run[name] for run in runs if name in run]
        middle = statistics.median(ratios)
        spread = max(abs(ratio / middle - 1) for ratio in ratios)
        found[name] = Kept(float(f'{middle:.4g}'), round(max(LEAST, 2 * spread), 2))
    return found


def read(path: Path) -> dict[str, Kept]:
    """The kept table; {} if there is none."""
    if not path.exists():
        return {}
    with path.open(encoding='utf-8', newline='') as file:
        return {line['line']: Kept(float(line['ratio']), float(line['tolerance']))
                for line in csv.DictReader(file)}


def write(path: Path, table: Mapping[str, Kept]) -> None:
    """Writes the table."""
    with path.open('w', encoding='utf-8', newline='') as file:
        out = csv.writer(file, lineterminator='\n')
        out.writerow(('line', 'ratio', 'tolerance'))
        out.writerows((name, f'{kept.ratio:.4g}', f'{kept.tolerance:.2f}')
                      for name, kept in table.items())


def show(found: Mapping[str, float], kept: Mapping[str, Kept], only: list[str]) -> int:
    """Prints the table and what got slower. Returns the exit code."""
    names = list(dict.fromkeys([*found, *kept])) if only == list(PARTS) else list(found)
    width = max(map(len, names))
    worse = slower(found, kept)
    print(f'{"ratio, more is better":{width}}      now     kept  may be')
    for name in names:
        now = f'{found[name]:8.3f}' if name in found else '       -'
        known = kept.get(name)
        least = '' if known is None else (
            f'{known.ratio:9.3f} {known.ratio * (1 - known.tolerance):7.3f}')
        print(f'{name:{width}} {now}{least or "        -       -"}'
              f'{"  SLOWER" if name in worse else ""}')
    for name in names:
        if name not in found:
            print(f'not measured: {name} (a package is not installed)')
        elif name not in kept:
            print(f'not kept yet: {name} (--update keeps it)')
    print(f'slower: {"; ".join(worse)}' if worse else 'nothing got slower')
    return 1 if worse else 0


def main(argv: list[str]) -> int:
    """Prints the table, or renews it. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--only', default=','.join(PARTS), help=f'of {", ".join(PARTS)}')
    parser.add_argument('--table', type=Path, default=TABLE)
    parser.add_argument('--update', action='store_true', help='write the table')
    parser.add_argument('--runs', type=int, default=3, help='of --update')
    options = parser.parse_args(argv)
    only = options.only.split(',')
    unknown = [part for part in only if part not in PARTS]
    if unknown:
        print(f'guard.py: --only={unknown[0]} is not known: choose some of {", ".join(PARTS)}.',
              file=sys.stderr)
        return 2
    kept = read(options.table)
    if not options.update:
        if not kept:
            print(f'guard.py: {options.table} is missing or empty: write it with --update.',
                  file=sys.stderr)
            return 2
        return show(measure(only), kept, only)
    table = table_of([measure(only) for _ in range(options.runs)])
    # Lines of other parts, and of peers that are not installed here, stay.
    write(options.table, {**kept, **table})
    return show({name: one.ratio for name, one in table.items()}, read(options.table), only)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
