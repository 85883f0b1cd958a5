"""What does the training loop cost? The real loop and its bare step, in one process.

    python benchmarks/train_loop.py [--model=NAME] [--size=PIXELS] [--batch=N] [--steps=N]
        [--rounds=N] [--precision=float32|bfloat16]

The bare loop calls the compiled step again and again on one batch that is on the device. The real
one is train_lib.training.loop.train_loop with its data, log lines, metrics.jsonl and TensorBoard:
everything but evaluating and saving. The two take turns; ratios are medians over the rounds, of the
wall clock and of the CPU seconds of the process, which other work on the machine changes less. On a
CPU the threads of the loader share the cores with the step, so their work counts against the loop:
little in the first row, the augmentation of configs/sketch_vit.py in the second.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from train_lib.runtime.cpu_program import set_up_cpu
from train_lib.runtime.platform import choose_platform

choose_platform()
if __name__ == '__main__':  # not the allocator of a program that imports this
    set_up_cpu()


def configure(options: argparse.Namespace, augment: bool):
    """The config of a run that is long enough for all rounds."""
    from configs import common, sketch_vit

    config = common.get_config()
    config.model = dict(name=options.model)
    config.image.size = options.size
    config.batch_size = options.batch
    config.data.doodles.per_class = 20  # the first round has them all in memory
    config.precision = options.precision
    config.duration = dict(steps=(options.rounds + 1) * options.steps + 1)
    if augment:
        config.curriculum = sketch_vit.stages('all', flips=True)
    return config


class NoCheckpoints:
    """Saves nothing."""

    def save(self, *args) -> None:
        """Does nothing."""

    def wait(self) -> None:
        """Does nothing."""


def measure(options: argparse.Namespace, augment: bool) -> dict:
    """Milliseconds per step of both loops, ratios, and shares of the time of the real loop."""
    import dataclasses

    import jax

    from train_lib.run_dir.goodput import Clock
    from train_lib.run_dir.metrics_log import MetricsLog
    from train_lib.runtime.sharding import make_mesh, shard_batch
    from train_lib.runtime.signals import StopSignal
    from train_lib.training import init
    from train_lib.training.data import load_data, split_data
    from train_lib.training.loop import train_loop
    from train_lib.training.setup import assemble, compile_step

    config = configure(options, augment)
    bare, real, kinds = [], [], []  # (wall, CPU) seconds of each round

    @contextlib.contextmanager
    def timed(found):
        since = time.perf_counter(), time.process_time()
        yield
        found.append((time.perf_counter() - since[0], time.process_time() - since[1]))

    with tempfile.TemporaryDirectory() as folder, StopSignal() as stop:
        mesh = make_mesh(config.mesh)
        data = split_data(config, load_data(config))
        job = assemble(config, data, mesh, None, Path(folder))
        begun = init.begin(init.init_spec(config), None, job.state, job.iterator,
                           job.run.timing.total_steps)
        run = compile_step(job.run, begun.state, data.parts, Clock())
        run = dataclasses.replace(run, scoring=dataclasses.replace(run.scoring, val=None))
        metrics = MetricsLog(Path(folder), size=0, step=0, tensorboard=True)
        batch = shard_batch(next(job.iterator), mesh)
        state, host = begun.state, begun.host
        try:
            for turn in range(options.rounds + 1):  # the first warms up
                with timed(bare):
                    before = None
                    for _ in range(options.steps):
                        state, loss = run.programs.train_step(state, batch)
                        jax.block_until_ready(before)
                        before = loss
                    jax.block_until_ready(loss)
                # The steps of the bare loop are not steps of the run.
                state = state.replace(step=state.step - options.steps)
                timing = dataclasses.replace(run.timing, total_steps=(turn + 1) * options.steps)
                until = dataclasses.replace(run, timing=timing)
                clock = Clock()
                with timed(real):
                    state, host = train_loop(until, state, host, job.iterator, NoCheckpoints(),
                                             metrics, clock, stop)
                kinds.append(clock.seconds())
        finally:
            job.iterator.close()
            metrics.close()
    bare, real, kinds = bare[1:], real[1:], kinds[1:]

    def share(kind):
        return sum(seconds.get(kind, 0) for seconds in kinds) / sum(wall for wall, _ in real)

    def ratio(which):
        return statistics.median(b[which] / r[which] for b, r in zip(bare, real))

    return dict(bare=1e3 * min(bare)[0] / options.steps, real=1e3 * min(real)[0] / options.steps,
                ratio=ratio(0), cpu_ratio=ratio(1), data=share('data'),
                other=share('other') + share('checkpoint'), device=str(mesh.devices.flat[0]))


def main(argv: list[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--model', default='vit_tiny_patch16_224')
    parser.add_argument('--size', type=int, default=64)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--steps', type=int, default=40, help='of each loop in a round')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--precision', default='float32', choices=('float32', 'bfloat16'))
    options = parser.parse_args(argv)
    rows = [('plain', measure(options, False)), ('augmented', measure(options, True))]
    print(f'{options.model}, {options.size} px, batch {options.batch}, {options.precision}, '
          f'{rows[0][1]["device"]}; {options.rounds} rounds of {options.steps} steps')
    print('pictures   bare ms/step  loop ms/step  bare / loop  (CPU)  waiting for data  other')
    for name, row in rows:
        print(f'{name:9}  {row["bare"]:12.1f}  {row["real"]:12.1f}  {row["ratio"]:11.3f}  '
              f'{row["cpu_ratio"]:5.3f}  {row["data"]:16.1%}  {row["other"]:5.1%}')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
