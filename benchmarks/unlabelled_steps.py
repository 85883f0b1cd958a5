"""A training step with unlabelled pictures or a teacher beside the plain one, in turns on this
machine.

    python benchmarks/unlabelled_steps.py [--steps=9] [--batch=32] [--unlabelled=48] [--size=28]

All steps are compiled first and then run one after another, again and again, so what else the
machine does meets all of them. Prints for each the median of the ratios to the plain step that
came just before, with their quartiles; the memory that XLA plans (arguments, results and
temporaries); and the pictures that go through the model that trains. The model is that of
configs/studies/consistency.py, the data are drawings, and the teacher is the same model.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

ARMS = {'plain': {}, 'fixmatch': {'unlabelled.kind': 'fixmatch'},
        'mean_teacher': {'unlabelled.kind': 'mean_teacher'}, 'teacher': {}}


def programs(folder: Path, size: int, batch: int, unlabelled: int) -> dict:
    """{arm: (a function that makes one step, bytes, pictures per step)}"""
    import main
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

    teacher = folder / 'teacher'
    done = main.main(['--config=configs/studies/consistency.py', f'--config.image.size={size}',
                      '--config.data.doodles.classes=10', '--config.data.doodles.per_class=20',
                      f'--config.data.doodles.size={size}', '--config.duration.steps=1',
                      f'--workdir={teacher}'])
    assert done == 0
    found = {}
    for arm, changes in ARMS.items():
        taught = {'teacher.workdir': str(teacher)} if arm == 'teacher' else {}
        config = config_of(changes | taught)
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
    print(f'{"step":14}{"pictures":>9}{"time / plain":>14}{"quartiles":>15}{"memory MiB":>12}')
    for arm, (_, memory, pictures) in arms.items():
        ratios = [one / plain for one, plain in zip(seconds[arm], seconds['plain'])]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f'{arm:14}{pictures:9}{middle:14.2f}{f"{low:.2f} to {high:.2f}":>15}'
              f'{memory / 2**20:12.1f}')
    return 0


if __name__ == '__main__':
    sys.exit(main_(sys.argv[1:]))
