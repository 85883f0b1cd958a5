"""Measures of one checkout's input pipeline, in a process of its own, for input_pipeline.py.

    python benchmarks/pipeline_measures.py CHECKOUT             answers requests
    python benchmarks/pipeline_measures.py CHECKOUT REQUEST     answers one, prints the result

A request is a JSON object with the name of a measure and its arguments; an answer is (pictures per
second, pictures per CPU second), that of `profile` a table.
"""

import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == '__main__':
    sys.path.insert(0, sys.argv[1])

import numpy as np

from input_pipeline import loader, manifest_files, packing, resampling, sources, transforms
from input_pipeline.curriculum import Stage
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.resize import resize
from input_pipeline.sources import array_records
from input_pipeline.sources import folder as folders

SIZE, BATCH, CORES = 224, 64, os.cpu_count() or 1
Speed = tuple[float, float]  # pictures per second, pictures per CPU second


def stage_of(specs, p: float | None = None) -> Stage:
    """A stage; `p` overrides every transform's."""
    own = {} if p is None else {'p': p}
    return Stage(0, tuple(transforms.make_transform(spec | own, 'stage') for spec in specs))


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


def one_thread(function: Callable[[int], object], count: int) -> Speed:
    """Calls per second of this thread."""
    begin = time.thread_time()
    for number in range(count):
        function(number)
    return (count / (time.thread_time() - begin),) * 2


def speed_of(pictures: int, work: Callable[[], object]) -> Speed:
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


def source_of(path: str):
    """The manifest of a folder of pictures, or of a packed folder."""
    packed = os.path.exists(os.path.join(path, array_records.INDEX))
    return array_records.open_packed(path) if packed else folders.load(path)


def shrunk(path: str, count: int = 64) -> list[np.ndarray]:
    """Pictures of the model's size."""
    source = source_of(path)
    return [resize(sources.read_image(source.root, name), (SIZE, SIZE))
            for name in source.table['location'][:count]]


def decoded(path: str, specs: list, p: float) -> Speed:
    """A stage on decoded pictures, one thread."""
    pictures, stage, size = shrunk(path), stage_of(specs, p), (SIZE, SIZE)
    return one_thread(lambda i: transforms.apply(transforms.draw(
        stage.transforms, loader.example_rng(0, 0, i), size), pictures[i % len(pictures)], size),
        600)


def batches(path: str, specs: list, p: float | None, threads: int = CORES, workers: int = 0,
            count: int = 20) -> Speed:
    """The whole pipeline."""
    iterator = loader.train_iterator(
        source_of(path), PreprocessSpec(size=SIZE),
        loader.Course(stages=(stage_of(specs, p),), steps=10**6, seed=0), batch_size=BATCH,
        loading=loader.LoaderSpec(threads=threads, workers=workers))
    try:
        return batches_a_second(iterator, 4, count)
    finally:
        iterator.close()


def decoding(path: str, count: int = 20) -> Speed:
    """Reading and decoding in full on as many threads as the loader has."""
    source = source_of(path)
    locations = source.table['location'].to_numpy()

    def some(first: int) -> None:
        for place in range(first, first + BATCH):
            sources.read_image(source.root, locations[place % len(locations)])

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(some, range(CORES)))
        return speed_of(count * BATCH,
                        lambda: list(pool.map(some, range(0, count * BATCH, BATCH))))


def loop(path: str, specs: list, p: float | None, seconds: float) -> Speed:
    """Batches in this thread for some seconds after the first, for a profiler."""
    make, count = _batch(path, specs, p), 0
    make(0)

    def profiled() -> None:
        nonlocal count
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            count += 1
            make(count)

    begin = time.thread_time()
    profiled()
    return (count * BATCH / (time.thread_time() - begin),) * 2


# What a profile counts as what: (module, its functions, word).
PARTS = (('sources', ('read_bytes',), 'reading'), ('decode', ('probe',), 'header'),
         ('pictures', ('probe',), 'header'), ('cv2', ('imdecode', 'cvtColor'), 'decoding'),
         ('loader', ('example_rng',), 'generator'), ('transforms', ('draw',), 'drawing'),
         ('warp', ('dense_map',), 'map'), ('cv2', ('remap', 'warpAffine'), 'look-up'),
         ('cv2', ('resize', 'copyMakeBorder', 'flip'), 'resizing'))
WORDS = tuple(dict.fromkeys(word for *_, word in PARTS))


def profile(path: str, specs: list, p: float | None, rounds: int = 8) -> dict[str, float]:
    """Microseconds per picture that each part takes without the parts inside it, one thread, in the
    fastest of several batches; 'rest' is Python between them, and copies."""
    own: dict[str, int] = {}
    inner: list[int] = []

    def timed(function: Callable, word: str) -> Callable:
        def call(*args, **options):
            begin = time.perf_counter_ns()
            inner.append(0)
            try:
                return function(*args, **options)
            finally:
                whole = time.perf_counter_ns() - begin
                own[word] = own.get(word, 0) + whole - inner.pop()
                if inner:
                    inner[-1] += whole
        return call

    make, before, best = _batch(path, specs, p), [], {}
    for name, functions, word in PARTS:
        module = importlib.import_module(name if name == 'cv2' else f'input_pipeline.{name}')
        for one in functions:
            if hasattr(module, one):
                before.append((module, one, getattr(module, one)))
                setattr(module, one, timed(getattr(module, one), word))
    try:
        for number in range(rounds):
            own.clear()
            begin = time.perf_counter_ns()
            make(number)
            whole = time.perf_counter_ns() - begin
            if not best or whole < best['all']:
                best = {**own, 'rest': whole - sum(own.values()), 'all': whole}
    finally:
        for module, one, function in before:
            setattr(module, one, function)
    return {word: best.get(word, 0) / (1000 * BATCH) for word in (*WORDS, 'rest', 'all')}


def _batch(path: str, specs: list, p: float | None) -> Callable[[int], dict]:
    """Step -> batch, made by the thread that asks."""
    return loader.train_iterator(
        source_of(path), PreprocessSpec(size=SIZE),
        loader.Course(stages=(stage_of(specs, p),), steps=10**6, seed=0),
        batch_size=BATCH)._batch


def pack(path: str, folder: str, size: int, side: str, quality) -> Speed:
    """Packs a folder; not a measure."""
    packing.pack(folders.load(path), sources.read_bytes, folder,
                 packing.PackSpec(size=size, side=side, quality=quality))
    return 1, 1


def many(path: str, specs: list, p: float):
    """(iterator of a long run over the rows of a manifest's file, manifest)"""
    from configs.common import get_config

    source = manifest_files.load(path)
    each_row_once = get_config().resample.to_dict() | {'start': None}
    order = resampling.make_order(source, each_row_once, seed=0, batch_size=BATCH, to_steps=None)
    return loader.train_iterator(
        source, PreprocessSpec(size=SIZE),
        loader.Course(stages=(stage_of(specs, p),), steps=2 * 10**6, seed=0, order=order),
        batch_size=BATCH, loading=loader.LoaderSpec(threads=CORES)), source


def first_batch(path: str, specs: list, p: float) -> Speed:
    """From the file of a manifest to the first batch; the caller takes the time."""
    iterator, _ = many(path, specs, p)
    next(iterator)
    iterator.close()
    return 1, 1


MEASURES = {function.__name__: function
            for function in (decoded, batches, decoding, loop, profile, pack, first_batch)}


def answer(request: dict) -> Speed | dict[str, float]:
    """What a measure returns."""
    return MEASURES[request.pop('measure')](**request)


def main(requests: list[str]) -> None:
    """Answers the given requests, or those of its standard input."""
    logging.getLogger('input_pipeline').setLevel(logging.ERROR)  # the folders have a single class
    for request in requests or sys.stdin:
        print(json.dumps(answer(json.loads(request))), flush=True)


if __name__ == '__main__':
    main(sys.argv[2:])
