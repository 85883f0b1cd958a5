"""A training step with unlabelled pictures, pseudo-labels or a teacher beside the plain one, in
turns on this machine.

    python benchmarks/unlabelled_steps.py [--steps=9] [--batch=32] [--unlabelled=48] [--size=28]

All steps are compiled first and then run one after another, again and again, so what else the
machine does meets all of them. Prints for each the median of the ratios to the plain step that
came just before, with their quartiles; the memory that XLA plans (arguments, results and
temporaries); and the pictures that go through the model that trains. The model is that of
configs/studies/consistency.py, the data are drawings, and the teachers are the same model, trained
for one step. A batch with pseudo-labels has as many pictures as the plain one.

    extra             half of the batch are pictures with soft pseudo-labels
    distill           what two folds said of the pictures, as stored, is learnt beside the labels
    teacher           a live teacher
    teacher_features  the same, and which pictures its features find alike
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

ARMS = {'plain': {}, 'fixmatch': {'unlabelled.kind': 'fixmatch'},
        'mean_teacher': {'unlabelled.kind': 'mean_teacher'},
        'extra': {'data.extra.file': '{folder}/pseudo.csv', 'data.extra.share': 0.5},
        'distill': {'distill.teachers': ('{folder}/folds',)},
        'teacher': {'teacher.workdir': '{folder}/teacher'},
        'teacher_features': {'teacher.workdir': '{folder}/teacher', 'teacher.features': 1.0}}


def make_teachers(folder: Path, size: int) -> None:
    """Trains for one step: `teacher`, and `folds` of the same rows; and lets the teacher label a
    few noisy pictures, in pseudo.csv."""
    import cv2
    import numpy as np

    import main
    argv = ['--config=configs/studies/consistency.py', f'--config.image.size={size}',
            '--config.data.doodles.classes=10', '--config.data.doodles.per_class=20',
            f'--config.data.doodles.size={size}', '--config.duration.steps=1']
    assert main.main([*argv, f'--workdir={folder}/teacher']) == 0
    assert main.main([*argv, f'--workdir={folder}/folds', '--config.split.kind=kfold',
                      '--config.split.folds=2', '--config.split.fold=all']) == 0
    rng = np.random.default_rng(0)
    (folder / 'noise').mkdir()
    for number in range(64):
        picture = rng.integers(0, 256, (size, size, 3), np.uint8)
        cv2.imwrite(str(folder / f'noise/{number}.png'), picture)
    assert main.main(['pseudo', f'--members={folder}/teacher', f'--images={folder}/noise',
                      '--folds=all', '--threshold=0', f'--out={folder}/pseudo.csv']) == 0


def programs(folder: Path, size: int, batch: int, unlabelled: int) -> dict:
    """{arm: (a function that makes one step, bytes, pictures per step)}"""
    from configs.studies import consistency
    from train_lib.run_dir.overrides import apply_values
    from train_lib.runtime.sharding import make_mesh, shard_batch
    from train_lib.training import init
    from train_lib.training.data import load_data, split_data
    from train_lib.training.setup import assemble, lower_step

    def config_of(changes):
        config = consistency.get_config(f'size={size}')
        return apply_values(config, {
            'batch_size': batch, 'unlabelled.batch_size': unlabelled,
            'data.doodles.classes': 10, 'data.doodles.per_class': 20,
            'data.doodles.size': size} | changes)

    make_teachers(folder, size)
    found = {}
    for arm, changes in ARMS.items():
        config = config_of({key: _placed(value, folder) for key, value in changes.items()})
        data, mesh = split_data(config, load_data(config)), make_mesh(config.mesh)
        job = assemble(config, data, mesh, None, folder)
        state = init.begin(init.init_spec(config, data.manifest.classes), None, job.state,
                           job.iterator, 1).state
        compiled = lower_step(job.run, state, data.parts).compile()
        given = shard_batch(next(job.iterator), mesh)
        job.iterator.close()
        memory = compiled.memory_analysis()
        views = {'fixmatch': 2, 'mean_teacher': 1}.get(arm, 0)
        found[arm] = (_step(compiled, state, given),
                      memory.argument_size_in_bytes + memory.output_size_in_bytes
                      + memory.temp_size_in_bytes - memory.alias_size_in_bytes,
                      batch + views * unlabelled)
    return found


def _placed(value, folder: Path):
    """A value with the folder in its texts."""
    if isinstance(value, tuple):
        return tuple(_placed(one, folder) for one in value)
    return value.format(folder=folder) if isinstance(value, str) else value


def _step(compiled, state, given):
    def run() -> float:
        nonlocal state
        began = time.perf_counter()
        state, loss = compiled(state, given)
        float(loss)
        return time.perf_counter() - began
    return run


def main_(argv: list[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (('steps', 9), ('batch', 32), ('unlabelled', 48), ('size', 28)):
        parser.add_argument(f'--{name}', type=int, default=default)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        arms = programs(Path(folder), given.size, given.batch, given.unlabelled)
        for run, *_ in arms.values():
            run()
        seconds: dict[str, list[float]] = {arm: [] for arm in arms}
        for _ in range(given.steps):
            for arm, (run, *_) in arms.items():
                seconds[arm].append(run())
    print(f'{"step":18}{"pictures":>9}{"time / plain":>14}{"quartiles":>15}{"memory MiB":>12}')
    for arm, (_, memory, pictures) in arms.items():
        ratios = [one / plain for one, plain in zip(seconds[arm], seconds['plain'])]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f'{arm:18}{pictures:9}{middle:14.2f}{f"{low:.2f} to {high:.2f}":>15}'
              f'{memory / 2**20:12.1f}')
    return 0


if __name__ == '__main__':
    sys.exit(main_(sys.argv[1:]))
