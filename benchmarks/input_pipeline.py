"""The input pipeline beside other libraries, its own limits, and a checkout from before.

    python benchmarks/input_pipeline.py [--photos=FOLDER_OR_ZIP] [--only=decoded,files,...]
        [--against=CHECKOUT]

Peers (pipeline_peers.py) that are not installed are named and left out; of several, the fastest
counts. Without --photos, pictures like photographs are drawn. Files are read from the page cache.
Speeds are pictures per second, the best of several rounds in which all take turns, each in a
process of its own; one thread is timed by its own clock. Ratios by CPU are of pictures per CPU
second, over all threads and processes: they leave out waiting, and are valid on a busy machine
too. With --against, the same is measured with the package of another checkout, in the same rounds.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import pipeline_peers as peers
from benchmarks.jpeg_files import collect, draw_files
from benchmarks.pipeline_measures import (
    BATCH,
    CORES,
    SIZE,
    Speed,
    many,
    one_thread,
    shrunk,
    stage_of,
)
from input_pipeline import loader, manifest_files, sources
from input_pipeline.decode import decode
from input_pipeline.encode import encode
from input_pipeline.manifest import make_manifest
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.resize import resize
from input_pipeline.sources import folder as folders

HERE = Path(__file__).parents[1]
LAST = (dict(kind='hflip'), dict(kind='vflip'), dict(kind='rotate', degrees=15),
        dict(kind='elastic', alpha=30, sigma=4), dict(kind='grid_distortion', steps=4, limit=0.2))
CROP = (dict(kind='hflip', p=0.5), dict(kind='random_resized_crop'))
STAGES = (('last stage, p=1', LAST, 1.0), ('last stage, p=.5', LAST, 0.5),
          ('flip + random resized crop', CROP, None), ('no transforms', (), None))
ROWS: list[tuple[str, ...]] = []
CHECKOUTS: list['Checkout'] = []  # this one, and that of --against


class Checkout:
    """Measures a checkout in a process of its own, which waits in between."""

    def __init__(self, root: Path):
        self.root = root
        self._process = subprocess.Popen(self.command(), stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True)

    def command(self, *requests: str) -> list[str]:
        """Starts pipeline_measures.py with the package of the checkout."""
        return [sys.executable, str(HERE / 'benchmarks/pipeline_measures.py'), str(self.root),
                *requests]

    def __call__(self, measure: str, **arguments) -> Speed | dict[str, float]:
        """The answer of a measure."""
        self._process.stdin.write(json.dumps({'measure': measure, **arguments}) + '\n')
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f'{self.root}: the measure {measure} failed, see above')
        answer = json.loads(answer)
        return answer if isinstance(answer, dict) else tuple(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def main(argv: list[str]) -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--photos', default='', help='folder or zip archive of pictures')
    parser.add_argument('--pictures', type=int, default=640, help='how many files')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--only', default=','.join(PARTS), help=f'of {", ".join(PARTS)}')
    parser.add_argument('--against', default='', help='the folder of another checkout')
    args = parser.parse_args(argv)
    CHECKOUTS[:] = [Checkout(Path(root)) for root in (HERE, args.against) if root]
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        photos = collect(args, home)
        made = {'500x400': home / '500x400'} | ({'photos': photos} if args.photos else {})
        draw_files(home / '500x400', args.pictures, photos)
        for part in args.only.split(','):
            PARTS[part](made, args.rounds, home)
            print(f'{part} done, load {os.getloadavg()[0]:.1f}', file=sys.stderr)
    for checkout in CHECKOUTS:
        checkout.close()
    print(f'{SIZE} px, batches of {BATCH}, {CORES} cores, OpenCV {cv2.__version__}; '
          f'{peers.versions()}')
    head = ('', 'before', 'ours', 'other', 'ratio before', 'by CPU', 'ratio', 'by CPU', 'target')
    rows = [head, *ROWS]
    if not args.against:
        rows = [(*row[:1], *row[2:4], *row[6:]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print('  '.join(cell.ljust(width) if i == 0 else cell.rjust(width)
                        for i, (cell, width) in enumerate(zip(row, widths))))


def row(name: str, ours: list[Speed], other: Speed, target: float | None) -> None:
    """A line of the table; `ours` is of this checkout and perhaps of another."""
    (now, cpu), *before = ours
    ratio = now / other[0]
    verdict = '' if target is None else f'{"" if ratio >= target else "MISSED "}>= {target:g}'
    old = [f'{before[0][0]:,.0f}', f'{before[0][0] / other[0]:.2f}',
           f'{before[0][1] / other[1]:.2f}'] if before else [''] * 3
    ROWS.append((name, old[0], f'{now:,.0f}', f'{other[0]:,.0f}', *old[1:], f'{ratio:.2f}',
                 f'{cpu / other[1]:.2f}', verdict))


def limit_row(name: str, values: list[float], limit: float | None, unit: str) -> None:
    """A line for a number that must stay below a limit, of this checkout and perhaps another."""
    before = f'{values[1]:.2f}{unit}' if len(values) > 1 else ''
    verdict = '' if limit is None else f'{"" if values[0] < limit else "MISSED "}< {limit:g}'
    ROWS.append((name, before, f'{values[0]:.2f}{unit}', *[''] * 5, verdict))


def in_turns(rounds: int, *measures) -> list[Speed]:
    """The best speeds of each measure, which take turns."""
    found = [[measure() for measure in measures] for _ in range(rounds)]
    return [tuple(map(max, zip(*speeds))) for speeds in zip(*found)]


def ours(measure: str, **arguments) -> list:
    """The measure of every checkout."""
    return [lambda checkout=checkout: checkout(measure, **arguments) for checkout in CHECKOUTS]


def decoded(made, rounds, home) -> None:
    """The last stage on decoded pictures, one thread."""
    path = str(made.get('photos', made['500x400']))
    pictures = shrunk(path)
    for p, target in ((1.0, 10), (0.5, 6)) if peers.module('albumentations') else ():
        compose = peers.albumentations(LAST, p, None)
        beside = partial(one_thread, lambda i, compose=compose: compose(
            image=pictures[i % len(pictures)]), 60)
        *found, peer = in_turns(2 * rounds, *ours('decoded', path=path, specs=LAST, p=p), beside)
        row(f'last stage, decoded, one thread, p={p:g}: albumentations', found, peer, target)


def files(made, rounds, home) -> None:
    """Both stages from JPEG files against the peers and against decoding alone."""
    for kind, path in made.items():
        photos = kind == 'photos'
        for name, specs, p, peer_target, own_target in (
                ('last stage, p=1', LAST, 1.0, 6, 0.75 if photos else 0.85),
                ('last stage, p=.5', LAST, 0.5, 6, 0.75 if photos else 0.85),
                ('flip + random resized crop', CROP, None, 2, 1.0 if photos else 1.3)):
            mine = ours('batches', path=str(path), specs=specs, p=p)
            others = peers.loaders(str(path), specs, p, 8 if specs is LAST else 20)
            alone = ours('decoding', path=str(path))[0]
            speeds = in_turns(rounds, *mine, alone, *others.values())
            found, alone, beside = speeds[:len(mine)], speeds[len(mine)], speeds[len(mine) + 1:]
            if beside:
                fastest, peer = max(zip(beside, others), key=lambda one: one[0][0])
                row(f'{name}, {kind} files: {peer} + DataLoader', found, fastest, peer_target)
            row(f'{name}, {kind} files: decoding alone', found, alone, own_target)


def packed(made, rounds, home) -> None:
    """Packed folders against the folder; both checkouts read those that both can read."""
    path = str(made['500x400'])
    for name, size, side, quality in (
            ('JPEG, longest side 256', 256, 'longest', 90),
            ('raw, longest side 256', 256, 'longest', 'raw'),
            ('raw, both sides 224', 224, 'both', 'raw')):
        folder = str(home / f'{side} {quality}')
        CHECKOUTS[0]('pack', path=path, folder=folder, size=size, side=side, quality=quality)
        readers = CHECKOUTS if quality != 'raw' else CHECKOUTS[:1]
        for stage, specs, p, target in (
                ('no transforms', (), None, 3), ('last stage, p=.5', LAST, 0.5, 2),
                ('flip + random resized crop', CROP, None, 3)):
            def reading(checkout, path, specs=specs, p=p):
                return lambda: checkout('batches', path=path, specs=specs, p=p)
            *found, whole = in_turns(rounds, *(reading(one, folder) for one in readers),
                                     reading(CHECKOUTS[0], path))
            row(f'packed, {name}, {stage}: folder', found, whole, target)


def parallel(made, rounds, home) -> None:
    """Threads against processes."""
    kinds = sorted({(1, 0), (2, 0), (CORES, 0), (2 * CORES, 0), (1, 1), (1, 2), (1, CORES),
                    (2, 2)})
    path = str(made['500x400'])
    speeds = in_turns(rounds, *(measure for threads, workers in kinds for measure in ours(
        'batches', path=path, specs=LAST, p=0.5, threads=threads, workers=workers)))
    each = len(CHECKOUTS)
    for i, (threads, workers) in enumerate(kinds):
        row(f'last stage, p=.5, {threads} threads' + f' in each of {workers} processes' *
            bool(workers) + ': 1 thread', speeds[i * each:(i + 1) * each], speeds[0], None)


def profile(made, rounds, home) -> None:
    """Where the time of a picture goes, one thread."""
    for kind, path in made.items():
        for name, specs, p in STAGES:
            tables = [{} for _ in CHECKOUTS]
            for _ in range(rounds):
                for table, checkout in zip(tables, CHECKOUTS):
                    found = checkout('profile', path=str(path), specs=specs, p=p)
                    if not table or found['all'] < table['all']:
                        table.update(found)
            for part in tables[0]:
                limit_row(f'{part}, {name}, {kind} files', [one[part] for one in tables], None,
                          ' us')


def gil(made, rounds, home) -> None:
    """How long one picture holds Python's lock, by py-spy's samples of one thread."""
    spy = shutil.which('py-spy') or str(Path(sys.executable).parent / 'py-spy')
    if not os.path.exists(spy):
        print('gil left out: py-spy is not installed', file=sys.stderr)
        return
    rate, seconds, samples = 500, 5, home / 'samples.txt'
    for name, specs, p in STAGES:
        shares, speeds = [], []
        request = dict(measure='loop', path=str(made['500x400']), specs=specs, p=p,
                       seconds=seconds)
        for checkout in CHECKOUTS:
            subprocess.run([spy, 'record', '--gil', '--rate', str(rate), '--duration', '600',
                            '--format', 'raw', '--output', str(samples), '--',
                            *checkout.command(json.dumps(request))], check=True,
                           capture_output=True)
            lines = [line.rpartition(' ') for line in samples.read_text().splitlines()]
            held = sum(int(count) for stack, _, count in lines if 'profiled (' in stack)
            shares.append(held / (rate * seconds))
            speeds.append(max(checkout(**request | {'seconds': 1})[1] for _ in range(2 * rounds)))
        held = [share / speed for share, speed in zip(shares, speeds)]
        limit_row(f'GIL held per picture, {name}', [1e6 * one for one in held], 60, ' us')
        limit_row(f'pictures per second that follow for one process on 16 cores, {name}',
                  [min(16 * speed, 1 / one) for one, speed in zip(held, speeds)], None, '')


def reduced(made, rounds, home) -> None:
    """Scaled decoding of large JPEGs: its speed, and its difference to full decode + areas."""
    source = folders.load(str(made['500x400']))
    pictures = [sources.read_image(source.root, name) for name in source.table['location'][:64]]
    size = SIZE, SIZE

    def show(data: bytes, min_size=size):
        return resize(decode(data, name='', min_size=min_size), size)

    def speed(data: list[bytes], min_size):
        return lambda: one_thread(lambda i: show(data[i % len(data)], min_size), 16)

    for side in (2, 3, 4):  # large pictures made of several, so that they have detail
        data = [encode(np.vstack([np.hstack(pictures[i + j:i + j + side])
                                         for j in range(0, side * side, side)]), 90)
                for i in range(0, 48, 12)]
        difference = np.mean([np.abs(show(one).astype(int) - cv2.resize(
            decode(one, name=''), size, interpolation=cv2.INTER_AREA)).mean()
            for one in data])
        fast, full = in_turns(rounds, speed(data, size), speed(data, None))
        row(f'scaled decoding of {500 * side}x{400 * side}, differs by {difference:.2f} grey '
            f'levels: in full', [fast], full, None)


def memory(made, rounds, home) -> None:
    """RSS after 20 epochs against that after the second."""
    source = folders.load(str(made['500x400']))
    source = source.select(np.arange(4 * BATCH))
    for name, specs in (('last stage', LAST), ('flip + random resized crop', CROP)):
        iterator = loader.train_iterator(
            source, PreprocessSpec(size=SIZE),
            loader.Course(stages=(stage_of(specs),), steps=80, seed=0), batch_size=BATCH,
            loading=loader.LoaderSpec(threads=CORES))
        found = []
        for step, _ in enumerate(iterator):
            if step in (7, 79):
                found.append(int(Path('/proc/self/statm').read_text().split()[1]) * 4096)
        iterator.close()
        limit_row(f'memory, {name}, 20 epochs', [100 * (found[1] / found[0] - 1)], 5, '% growth')


def synthetic(made, rows: int, path: Path) -> None:
    """A manifest of many rows that share few files."""
    names = sorted(str(file) for file in made['500x400'].rglob('*.jpg'))
    manifest_files.save(make_manifest(
        {'id': [f'picture/{i:08}.jpg' for i in range(rows)],
         'location': [names[i % len(names)] for i in range(rows)],
         'label/class': np.arange(rows) % 1000}, {'class': [f'{i:04}' for i in range(1000)]},
        str(made['500x400'])), str(path))


def start(made, rounds, home) -> None:
    """Start-up with many rows, in a process of its own; resuming far in."""
    for count, limit in ((25_000, 2), (1_300_000, 10)):
        path = home / f'{count}.parquet'
        synthetic(made, count, path)
        request = json.dumps(dict(measure='first_batch', path=str(path), specs=LAST, p=0.5))
        seconds = [[] for _ in CHECKOUTS]
        for _ in range(rounds):
            for found, checkout in zip(seconds, CHECKOUTS):
                begin = time.perf_counter()
                subprocess.run(checkout.command(request), check=True, capture_output=True)
                found.append(time.perf_counter() - begin)
        limit_row(f'a process to its first batch, {count:,} rows', [min(one) for one in seconds],
                  limit, 's')

    def resume(step: int):
        def measure() -> Speed:
            iterator, _ = many(str(home / '25000.parquet'), LAST, 0.5)
            begin = time.perf_counter()
            if step:
                iterator.set_state({**iterator.get_state(), 'next_index': step})
            next(iterator)
            seconds = time.perf_counter() - begin
            iterator.close()
            return 1000 / seconds, 1000 / seconds
        return measure
    late, first = in_turns(2 * rounds, resume(10**6), resume(0))
    row('first batch at step 1,000,000 (per 1000 s): step 0', [late], first, 0.9)


PARTS = {'decoded': decoded, 'files': files, 'packed': packed, 'parallel': parallel,
         'profile': profile, 'gil': gil,
         'reduced': reduced, 'memory': memory, 'start': start}

if __name__ == '__main__':
    main(sys.argv[1:])
