"""What do evaluation and `main.py predict` cost beside the forward step alone?

    python benchmarks/evaluation.py [--model=NAME] [--size=PIXELS] [--batch=N] [--pictures=N]
        [--files=N] [--rounds=N]

The forward step alone calls the compiled step again and again on one batch that is on the device.
The evaluation is that of a run: batches, logits and scores. The prediction is that of the verb:
batches, logits and the folder of the store. They take turns, on drawings that are in memory and on
JPEG files of 320 x 240 pixels, which have to be decoded. Ratios are medians over the rounds, of the
wall clock and of the CPU seconds of the process; one is below 1 by what the pictures cost, since on
a CPU the threads of the loader share the cores with the step.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from train_lib.runtime.platform import choose_platform

choose_platform()

PARTS = ('evaluation', 'prediction')


def sides(options: argparse.Namespace, home: Path, pictures: int, files: bool
          ) -> dict[str, Callable[[], None]]:
    """{'forward', 'evaluation', 'prediction': a function that goes over all pictures once}

    Args:
        options: model, size and batch.
        home: where files may be written.
        pictures: how many, at least.
        files: decode JPEG files each time, instead of drawings that are in memory.
    """
    import jax
    import numpy as np

    from benchmarks.load_predict import write_pictures
    from configs import common
    from input_pipeline import loader
    from input_pipeline.pictures import Pictures
    from train_lib.predictions.store import Writer
    from train_lib.runtime.sharding import make_layout, make_mesh, shard_batch
    from train_lib.training.data import load_data
    from train_lib.training.evaluate import EvalSplit, logits_of, predict, score_split
    from train_lib.training.network import make_network
    from train_lib.training.preprocess_spec import DTYPES, loader_spec, preprocess_spec
    from train_lib.training.step import make_eval_step, make_normalise

    config = common.get_config()
    config.model = dict(name=options.model)
    config.image.size = options.size
    if files:
        write_pictures(home / 'files', pictures)
        config.data.source, config.data.folder = 'folder', str(home / 'files')
    else:
        config.data.doodles.size = options.size
        config.data.doodles.per_class = -(-pictures // config.data.doodles.classes)
    manifest, spec = load_data(config), preprocess_spec(config)
    mesh = make_mesh(config.mesh)
    network = make_network(config, manifest.classes, make_layout(config.sharding, mesh),
                           pretrained=False, abstract=False)
    step = make_eval_step(network.graphdef, make_normalise(spec.mean, spec.std,
                                                           DTYPES[config.precision]),
                          manifest.heads)
    kept = Pictures(manifest, spec, cache_mb=0 if files else 1 << 12)
    batches = loader.eval_dataset(manifest, spec, batch_size=options.batch,
                                  loading=loader_spec(config), pictures=kept)
    count, one = -(-len(manifest) // options.batch), next(batches())
    images = shard_batch({'image': one['image']}, mesh)['image']

    def forward() -> None:
        before = None
        for _ in range(count):
            now = step(network.weights, images)
            jax.block_until_ready(before)
            before = now
        jax.block_until_ready(before)

    def evaluation() -> None:
        score_split(predict(step, network.weights, EvalSplit(manifest, batches), mesh), manifest)

    def prediction() -> None:
        with tempfile.TemporaryDirectory(dir=home) as folder:
            writer = Writer(Path(folder) / 'val' / 'identity', {}, manifest.table['id'].to_numpy(
                np.str_), {head: manifest.labels(head) for head in manifest.heads},
                manifest.classes, 'float16')
            for rows, logits in logits_of(step, network.weights, batches(), mesh):
                writer.write(rows, logits)
            writer.commit()

    return {'forward': forward, 'evaluation': evaluation, 'prediction': prediction}


def in_turns(parts: dict[str, Callable[[], None]], rounds: int
             ) -> dict[str, list[tuple[float, float]]]:
    """Per part its (wall, CPU) seconds in each round, after one that warms up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
    for turn in range(rounds + 1):
        for name, part in parts.items():
            since = time.perf_counter(), time.process_time()
            part()
            if turn:
                found[name].append((time.perf_counter() - since[0],
                                    time.process_time() - since[1]))
    return found


def shares(found: dict[str, list[tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Per part of PARTS the forward step's share of its time: medians by (wall, CPU)."""
    return {name: tuple(statistics.median(alone[i] / whole[i] for alone, whole in zip(
        found['forward'], found[name])) for i in (0, 1)) for name in PARTS}


def main(argv: list[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--model', default='resnet18')
    parser.add_argument('--size', type=int, default=64)
    parser.add_argument('--batch', type=int, default=256)
    parser.add_argument('--pictures', type=int, default=10_000, help='in memory')
    parser.add_argument('--files', type=int, default=2000, help='JPEG files')
    parser.add_argument('--rounds', type=int, default=5)
    options = parser.parse_args(argv)
    print(f'{options.model}, {options.size} px, batches of {options.batch}; '
          f'{options.rounds} rounds')
    print('pictures             part        forward alone, s   all, s  forward / all  (CPU)')
    for what, pictures in (('in memory', options.pictures), ('files', options.files)):
        if not pictures:
            continue
        with tempfile.TemporaryDirectory() as home:
            found = in_turns(sides(options, Path(home), pictures, what == 'files'),
                             options.rounds)
        for name, (wall, cpu) in shares(found).items():
            forward, whole = (min(found[part])[0] for part in ('forward', name))
            print(f'{pictures:<9,} {what:10} {name:10} {forward:17.2f} {whole:8.2f} '
                  f'{wall:14.3f}  {cpu:.3f}')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
