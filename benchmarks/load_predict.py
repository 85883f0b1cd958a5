"""`train_lib.load(...).predict` beside the evaluation inside a run, on the same JPEG files.

    python benchmarks/load_predict.py --pictures=1000 --model=resnet18 --size=64

Both read files of 320 x 240 pixels, and answer with the same weights and batch size, one after the
other, so that a busy machine slows down both. Each line is the median of the repetitions. The
evaluation is that of `train_lib/training/evaluate.py`, as at the end of a run, without writing
files; `predict` ends with a table.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import train_lib
from input_pipeline import loader
from input_pipeline.pictures import Pictures
from main import main as command
from train_lib.run_dir.run_config import config_of_run
from train_lib.runtime.sharding import make_mesh
from train_lib.serving.trained_models import read_models
from train_lib.training.data import load_data
from train_lib.training.evaluate import EvalSplit, predict
from train_lib.training.preprocess_spec import DTYPES, loader_spec
from train_lib.training.state import Weights
from train_lib.training.step import make_eval_step, make_normalise, split_model


def main(argv: list[str] | None = None) -> None:
    """Trains for a step, then measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--pictures', type=int, default=1000)
    parser.add_argument('--model', default='small_cnn')
    parser.add_argument('--size', type=int, default=64)
    parser.add_argument('--batch', type=int, default=256)
    parser.add_argument('--repeats', type=int, default=5)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), asked)


def measure(folder: Path, asked: argparse.Namespace) -> None:
    """Prints one line for each side, and their ratio."""
    write_pictures(folder / 'pictures', asked.pictures)
    workdir = folder / 'run'
    code = command([f'--config=configs/sketch_cnn.py:folder={folder / "pictures"}',
                    f'--config.model=dict(name="{asked.model}")', '--config.duration.steps=1',
                    f'--config.image.size={asked.size}', f'--config.eval.batch_size={asked.batch}',
                    '--config.report.heat_maps=False', '--config.log.tensorboard=False',
                    '--config.batch_size=16', f'--workdir={workdir}'])
    assert code == 0
    config = config_of_run(workdir)
    manifest = load_data(config, workdir)
    sides = {'evaluation': evaluation(workdir, config, manifest, asked.batch)}
    run = train_lib.load(workdir)
    paths = [f'{manifest.root}/{name}' for name in manifest.table['location']]
    sides['load.predict'] = lambda: run.predict(paths)['prediction'].tolist()
    assert sides['evaluation']() == sides['load.predict'](), 'they must agree'
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(asked.repeats):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - began)
    rates = {name: len(paths) / statistics.median(each) for name, each in seconds.items()}
    for name, rate in rates.items():
        print(f'{name:<14}{rate:10,.0f} pictures/s')
    ratios = [a / b for a, b in zip(seconds['evaluation'], seconds['load.predict'])]
    print(f'predict / evaluation {statistics.median(ratios):.2f}  '
          f'({min(ratios):.2f} to {max(ratios):.2f}, {asked.repeats} pairs; {asked.model}, '
          f'{asked.size} px, batches of {asked.batch})')


def write_pictures(folder: Path, count: int) -> None:
    """Smooth noise, so that the JPEG files are as large as those of photographs."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f'class_{number % 4}/{number:05d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (60, 80, 3), np.uint8)
        cv2.imwrite(str(path), cv2.resize(small, (320, 240), interpolation=cv2.INTER_CUBIC))


def evaluation(workdir: Path, config, manifest, batch: int):
    """The labels by name that the evaluation inside a run gives for these rows."""
    trained, = read_models(workdir)
    graphdef, params, others = split_model(trained.model)
    normalise = make_normalise(trained.preprocess.mean, trained.preprocess.std,
                               DTYPES[config.precision])
    (head, names), = trained.classes.items()
    step, mesh = make_eval_step(graphdef, normalise, (head,)), make_mesh(config.mesh)
    weights = Weights(params, {}, others)

    def evaluate() -> list[str]:
        # No picture is kept from one pass to the next.
        batches = loader.eval_dataset(manifest, trained.preprocess, batch_size=batch,
                                      loading=loader_spec(config),
                                      pictures=Pictures(manifest, trained.preprocess))
        logits = predict(step, weights, EvalSplit(manifest, batches), mesh)[head]
        return [names[k] for k in logits.argmax(axis=1)]

    return evaluate


if __name__ == '__main__':
    main()
