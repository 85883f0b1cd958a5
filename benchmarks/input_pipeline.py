"""The input pipeline compared with albumentations + torch DataLoader, and with its own limits.

    python benchmarks/input_pipeline.py [--photos=FOLDER_OR_ZIP] [--only=decoded,files,...]

Peers (albumentations, torch) that are not installed are named and left out. Without --photos,
pictures like photographs are drawn. Files are read from the page cache. Speeds are pictures per
second, the best of several rounds in which both take turns; one thread is timed by its own clock.
The second ratio is by pictures per CPU second, over all threads and processes: it leaves out
waiting, and is valid on a busy machine too.
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')

from benchmarks.jpeg_files import collect, draw_files
from configs.common import get_config
from input_pipeline import loader, manifest_files, packing, resampling, sources, transforms
from input_pipeline.curriculum import Stage
from input_pipeline.decode import decode
from input_pipeline.encode import encode
from input_pipeline.manifest import make_manifest
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.resize import resize
from input_pipeline.sources import folder as folders

SIZE, BATCH, CORES = 224, 64, os.cpu_count() or 1
LAST = (dict(kind='hflip'), dict(kind='vflip'), dict(kind='rotate', degrees=15),
        dict(kind='elastic', alpha=30, sigma=4), dict(kind='grid_distortion', steps=4, limit=0.2))
CROP = (dict(kind='hflip', p=0.5), dict(kind='random_resized_crop'))
ROWS: list[tuple[str, ...]] = []
Speed = tuple[float, float]  # pictures per second, pictures per CPU second


def main(argv: list[str]) -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--photos', default='', help='folder or zip archive of pictures')
    parser.add_argument('--pictures', type=int, default=640, help='how many files')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--only', default=','.join(PARTS), help=f'of {", ".join(PARTS)}')
    parser.add_argument('--startup', default='', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.startup:
        return start_up(args.startup)
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        photos = collect(args, home)
        made = {'500x400': home / '500x400'} | ({'photos': photos} if args.photos else {})
        draw_files(home / '500x400', args.pictures, photos)
        for part in args.only.split(','):
            PARTS[part](made, args.rounds, home)
            print(f'{part} done, load {os.getloadavg()[0]:.1f}', file=sys.stderr)
    peers = ', '.join(f'{name} {peer.__version__ if peer else "is not installed: left out"}'
                      for name, peer in ((name, peer_module(name)) for name in
                                         ('albumentations', 'torch')))
    print(f'{SIZE} px, batches of {BATCH}, {CORES} cores, OpenCV {cv2.__version__}; {peers}')
    ROWS.insert(0, ('', 'ours', 'other', 'ratio', 'by CPU', 'target'))
    widths = [max(map(len, column)) for column in zip(*ROWS)]
    for row in ROWS:
        print('  '.join(cell.ljust(width) if i == 0 else cell.rjust(width)
                        for i, (cell, width) in enumerate(zip(row, widths))))


def peer_module(name: str):
    """The module, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def stage_of(specs, p: float | None = None) -> Stage:
    """A stage; `p` overrides every transform's."""
    own = {} if p is None else {'p': p}
    return Stage(0, tuple(transforms.make_transform(spec | own, 'stage') for spec in specs))


def peer_of(specs, p: float | None = None, size: int | None = SIZE):
    """The same in albumentations, with its own defaults where ours lacks the parameter."""
    A = peer_module('albumentations')
    made = {
        'hflip': lambda s: A.HorizontalFlip(p=p or s.get('p', 0.5)),
        'vflip': lambda s: A.VerticalFlip(p=p or s.get('p', 0.5)),
        'rotate': lambda s: A.Rotate(limit=s['degrees'], p=p or 1),
        'elastic': lambda s: A.ElasticTransform(alpha=s['alpha'], sigma=s['sigma'], p=p or 1),
        'grid_distortion': lambda s: A.GridDistortion(
            num_steps=s['steps'], distort_limit=s['limit'], p=p or 1),
        'random_resized_crop': lambda s: A.RandomResizedCrop((SIZE, SIZE), p=1)}
    crops = any(spec['kind'] == 'random_resized_crop' for spec in specs)
    resize = [] if crops or size is None else [A.Resize(size, size)]
    return A.Compose(resize + [made[spec['kind']](spec) for spec in specs])


def row(name: str, ours: Speed, other: Speed, target: float | None) -> None:
    """A line of the table."""
    ratio = ours[0] / other[0]
    verdict = '' if target is None else f'{"" if ratio >= target else "MISSED "}>= {target:g}'
    ROWS.append((name, f'{ours[0]:,.0f}', f'{other[0]:,.0f}', f'{ratio:.2f}',
                 f'{ours[1] / other[1]:.2f}', verdict))


def limit_row(name: str, value: float, limit: float, unit: str) -> None:
    """A line for a number that must stay below a limit."""
    ROWS.append((name, f'{value:.2f}{unit}', '', '', '',
                 f'{"" if value < limit else "MISSED "}< {limit:g}'))


def in_turns(rounds: int, *measures) -> list[Speed]:
    """The best speeds of each measure, which take turns."""
    found = [[measure() for measure in measures] for _ in range(rounds)]
    return [tuple(map(max, zip(*speeds))) for speeds in zip(*found)]


def one_thread(function, count: int) -> Speed:
    """Calls per second of this thread."""
    begin = time.thread_time()
    for number in range(count):
        function(number)
    return (count / (time.thread_time() - begin),) * 2


def cpu_seconds() -> float:
    """Of this process and its children that live."""
    seconds = time.process_time()
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = path.read_text().rpartition(')')[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
    return seconds


def speed_of(pictures: int, work) -> Speed:
    """Of so many pictures while `work` runs."""
    begin, cpu = time.perf_counter(), cpu_seconds()
    work()
    return pictures / (time.perf_counter() - begin), pictures / (cpu_seconds() - cpu)


def batches_a_second(iterator, warm: int, count: int) -> Speed:
    """The speed of an iterator after some batches."""
    def take(number: int) -> None:
        for _ in range(number):
            next(iterator)

    take(warm)
    return speed_of(count * BATCH, lambda: take(count))


def ours_from(source, stage: Stage, *, threads: int = CORES, workers: int = 0, count: int = 20):
    """A measure of the whole pipeline on a manifest."""
    def measure() -> Speed:
        iterator = loader.train_iterator(
            source, PreprocessSpec(size=SIZE),
            loader.Course(stages=(stage,), steps=10**6, seed=0), batch_size=BATCH,
            loading=loader.LoaderSpec(threads=threads, workers=workers))
        try:
            return batches_a_second(iterator, 4, count)
        finally:
            iterator.close()
    return measure


def torch_from(source, compose, count: int = 20):
    """The same for torch's DataLoader with one process per core."""
    from torch.utils.data import DataLoader, Dataset

    paths = [os.path.join(source.root, name) for name in source.table['location']]

    class Files(Dataset):
        def __len__(self):
            return 10**6

        def __getitem__(self, index):
            image = cv2.imread(paths[index % len(paths)])
            return compose(image=cv2.cvtColor(image, cv2.COLOR_BGR2RGB))['image'], 0

    def measure() -> Speed:
        workers = DataLoader(Files(), BATCH, num_workers=CORES,
                             worker_init_fn=lambda _: cv2.setNumThreads(0))
        iterator = iter(workers)
        try:
            return batches_a_second(iterator, 2 * CORES, count)
        finally:
            iterator._shutdown_workers()
    return measure


def decoding_alone(source, count: int = 20):
    """Reading and decoding in full on as many threads as the loader has."""
    locations = source.table['location'].to_numpy()

    def some(first: int) -> None:
        for place in range(first, first + BATCH):
            sources.read_image(source.root, locations[place % len(locations)])

    def measure() -> Speed:
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(some, range(CORES)))
            return speed_of(count * BATCH,
                            lambda: list(pool.map(some, range(0, count * BATCH, BATCH))))
    return measure


def decoded(made, rounds, home) -> None:
    """The last stage on decoded pictures, one thread."""
    source = folders.load(str(made.get('photos', made['500x400'])))
    pictures = [resize(sources.read_image(source.root, name), (SIZE, SIZE))
                for name in source.table['location'][:64]]
    size = SIZE, SIZE

    def ours(stage):
        return lambda: one_thread(lambda i: transforms.apply(transforms.draw(
            stage.transforms, loader.example_rng(0, 0, i), size), pictures[i % 64], size), 600)

    def other(compose):
        return lambda: one_thread(lambda i: compose(image=pictures[i % 64]), 60)

    for p in (1.0, 0.5) if peer_module('albumentations') else ():
        row(f'last stage, decoded, one thread, p={p:g}: albumentations', *in_turns(
            2 * rounds, ours(stage_of(LAST, p)), other(peer_of(LAST, p, None))), 10)


def files(made, rounds, home) -> None:
    """Both stages from JPEG files against the peer and against decoding alone."""
    for kind, path in made.items():
        source = folders.load(str(path))
        for name, specs, p, peer_target, own_target in (
                ('last stage, p=1', LAST, 1.0, 4, 0.75), ('last stage, p=.5', LAST, 0.5, 4, 0.75),
                ('flip + random resized crop', CROP, None, 1.5, 0.85)):
            measures = [ours_from(source, stage_of(specs, p)), decoding_alone(source)]
            if peer_module('albumentations') and peer_module('torch'):
                measures.append(torch_from(source, peer_of(specs, p), 8 if specs is LAST else 20))
            speeds = in_turns(rounds, *measures)
            if len(speeds) > 2:
                row(f'{name}, {kind} files: albumentations + DataLoader', speeds[0], speeds[2],
                    peer_target)
            row(f'{name}, {kind} files: decoding alone', speeds[0], speeds[1], own_target)


def packed(made, rounds, home) -> None:
    """Packed at 256 px against the folder."""
    source = folders.load(str(made['500x400']))
    for side in packing.SIDES:
        small = packing.pack(source, sources.read_bytes, str(home / side),
                             packing.PackSpec(size=256, side=side, quality=90))
        for name, specs, p in (('no transforms', (), None), ('last stage, p=.5', LAST, 0.5),
                               ('flip + random resized crop', CROP, None)):
            stage = stage_of(specs, p)
            row(f'packed, {side} side 256, {name}: folder',
                *in_turns(rounds, ours_from(small, stage), ours_from(source, stage)), 2)


def parallel(made, rounds, home) -> None:
    """Threads against processes."""
    source = folders.load(str(made['500x400']))
    stage = stage_of(LAST, 0.5)
    kinds = sorted({(1, 0), (2, 0), (CORES, 0), (2 * CORES, 0), (1, 1), (1, 2), (1, CORES),
                    (2, 2)})
    speeds = in_turns(rounds, *(ours_from(source, stage, threads=threads, workers=workers)
                                for threads, workers in kinds))
    for (threads, workers), speed in zip(kinds, speeds):
        row(f'last stage, p=.5, {threads} threads' + f' in each of {workers} processes' *
            bool(workers) + ': 1 thread', speed, speeds[0], None)


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
        row(f'scaled decoding of {500 * side}x{400 * side}, differs by {difference:.2f} grey '
            f'levels: in full', *in_turns(rounds, speed(data, size), speed(data, None)), None)


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
        limit_row(f'memory, {name}, 20 epochs', 100 * (found[1] / found[0] - 1), 5, '% growth')


def synthetic(made, rows: int, path: Path) -> None:
    """A manifest of many rows that share few files."""
    names = sorted(str(file) for file in made['500x400'].rglob('*.jpg'))
    manifest_files.save(make_manifest(
        {'id': [f'picture/{i:08}.jpg' for i in range(rows)],
         'location': [names[i % len(names)] for i in range(rows)],
         'label/class': np.arange(rows) % 1000}, {'class': [f'{i:04}' for i in range(1000)]},
        str(made['500x400'])), str(path))


def start_up(path: str) -> None:
    """From the file of a manifest to the first batch."""
    iterator, _ = many(path)
    next(iterator)
    iterator.close()


def many(path: str):
    """(iterator of a long run, manifest)"""
    source = manifest_files.load(path)
    each_row_once = get_config().resample.to_dict() | {'start': None}
    order = resampling.make_order(source, each_row_once, seed=0, batch_size=BATCH, to_steps=None)
    return loader.train_iterator(
        source, PreprocessSpec(size=SIZE),
        loader.Course(stages=(stage_of(LAST, 0.5),), steps=2 * 10**6, seed=0, order=order),
        batch_size=BATCH, loading=loader.LoaderSpec(threads=CORES)), source


def start(made, rounds, home) -> None:
    """Start-up with many rows, in a process of its own; resuming far in."""
    for count, limit in ((25_000, 2), (1_300_000, 10)):
        path = home / f'{count}.parquet'
        synthetic(made, count, path)
        seconds = []
        for _ in range(rounds):
            begin = time.perf_counter()
            subprocess.run([sys.executable, __file__, f'--startup={path}'], check=True)
            seconds.append(time.perf_counter() - begin)
        limit_row(f'a process to its first batch, {count:,} rows', min(seconds), limit, 's')

    def resume(step: int):
        def measure() -> Speed:
            iterator, _ = many(str(home / '25000.parquet'))
            begin = time.perf_counter()
            if step:
                iterator.set_state({**iterator.get_state(), 'next_index': step})
            next(iterator)
            seconds = time.perf_counter() - begin
            iterator.close()
            return 1000 / seconds, 1000 / seconds
        return measure
    row('first batch at step 1,000,000 (per 1000 s): step 0',
        *in_turns(2 * rounds, resume(10**6), resume(0)), 0.9)


PARTS = {'decoded': decoded, 'files': files, 'packed': packed, 'parallel': parallel,
         'reduced': reduced, 'memory': memory, 'start': start}

if __name__ == '__main__':
    main(sys.argv[1:])
