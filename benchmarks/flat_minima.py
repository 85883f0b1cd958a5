"""A training step with a second gradient or an average of weights, beside the plain one.

    python benchmarks/flat_minima.py [--jobs=small_cnn:28:64,resnet18:64:32] [--steps=15]

All kinds of a row are compiled first and then make one step each, in turns, so what else the
machine does meets all of them. Prints per kind the median ratio of its seconds to those of the
plain step beside it, with quartiles, and the memory of the compiled program as XLA states it.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).parents[1]
sys.path.insert(0, str(HERE))


def kinds() -> dict[str, dict]:
    """Options of the step by kind; the plain one first."""
    from train_lib.optim.sharpness import Sharpness
    from train_lib.training.weight_averages import Averaging

    return {
        'plain': {},
        'sam': dict(sharpness=Sharpness('sam', 0.05)),
        'asam': dict(sharpness=Sharpness('asam', 0.5)),
        'ema': dict(ema_decay=lambda step: 0.999),
        'swa': dict(averaging=Averaging('swa', start=1, every=10)),
        'lookahead': dict(averaging=Averaging('lookahead', every=5)),
        'schedule-free': dict(averaging=Averaging('schedule_free', share=0.9)),
    }


def compiled(name: str, size: int, batch: int, options: dict):
    """(a step as a function of nothing, bytes that its program needs)"""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    import models
    from benchmarks import train_step as common
    from train_lib.optim.optimizers import make_optimizer
    from train_lib.training.state import Weights, make_state
    from train_lib.training.step import StepOptions, make_normalise, make_train_step, split_model

    optimizer = make_optimizer(common.common_optimizer())
    graphdef, params, rest = split_model(models.create_model(
        name, num_classes=100, rngs=nnx.Rngs(0)))
    step = make_train_step(graphdef, optimizer, lambda step: jnp.float32(1e-4), make_normalise(
        (0.5,) * 3, (0.5,) * 3, jnp.float32), StepOptions(heads=('class',), seed=0, **options))
    rng = np.random.default_rng(0)
    data = {'image': rng.integers(0, 256, (batch, size, size, 3), np.uint8),
            'label/class': rng.integers(0, 100, batch, np.int32)}
    averaging = options.get('averaging')
    state = make_state(Weights(params, {}, rest), optimizer, ('class',),
                       ema=averaging is not None or 'ema_decay' in options,
                       counted=averaging is not None and averaging.counted)
    program = step.lower(state, data).compile()
    memory = program.memory_analysis()
    state = jax.device_put(jax.tree.map(jnp.copy, state))

    def run() -> None:
        nonlocal state
        state, loss = program(state, data)
        float(loss)

    return run, (memory.argument_size_in_bytes + memory.temp_size_in_bytes
                 + memory.output_size_in_bytes - memory.alias_size_in_bytes)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--jobs', default='small_cnn:28:64,resnet18:64:32')
    parser.add_argument('--steps', type=int, default=15)
    given = parser.parse_args()
    print('| model | kind | time / plain | quartiles | MiB | MiB / plain |')
    print('|---|---|---|---|---|---|')
    for job in given.jobs.split(','):
        name, size, batch = job.split(':')
        contestants = {kind: compiled(name, int(size), int(batch), options)
                       for kind, options in kinds().items()}
        ratios: dict[str, list[float]] = {kind: [] for kind in contestants}
        for turn in range(given.steps + 2):
            seconds = {}
            for kind, (run, _) in contestants.items():
                begin = time.perf_counter()
                run()
                seconds[kind] = time.perf_counter() - begin
            for kind, one in seconds.items():
                if turn > 1:
                    ratios[kind].append(one / seconds['plain'])
        plain = contestants['plain'][1]
        for kind, (_, memory) in contestants.items():
            low, middle, high = statistics.quantiles(ratios[kind], n=4)
            print(f'| {job} | {kind} | {middle:.2f} | {low:.2f} to {high:.2f} '
                  f'| {memory / 2**20:.1f} | {memory / plain:.2f} |', flush=True)


if __name__ == '__main__':
    main()
