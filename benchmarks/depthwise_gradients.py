"""Depthwise convolutions on a CPU, forward and backward: as JAX derives them, and as ours are.

    python benchmarks/depthwise_gradients.py [--steps=8]

Three layers of tf_efficientnet_lite0 at 128 px, batch 32, float32. Both are called in turn within
one process; times are CPU milliseconds (user and system), medians, with the smallest and the
largest ratio. On a machine with other load they say more than seconds do, but not how well the
cores are used.
"""

import argparse
import resource
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from models import depthwise

LAYERS = {  # side, channels, kernel, stride, padding
    '64x64x96, 3x3, stride 2': (64, 96, 3, 2, (0, 1)),
    '32x32x144, 3x3': (32, 144, 3, 1, (1, 1)),
    '8x8x672, 5x5': (8, 672, 5, 1, (2, 2)),
}


def used() -> float:
    """CPU milliseconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return 1e3 * (usage.ru_utime + usage.ru_stime)


def measure(layer: tuple, steps: int) -> str:
    """A row of the table."""
    side, channels, taps, stride, pad = layer
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.standard_normal((32, side, side, channels)), jnp.float32)
    kernel = jnp.asarray(draw.standard_normal((taps, taps, 1, channels)), jnp.float32)
    out = (side + sum(pad) - taps) // stride + 1
    gradient = jnp.ones((32, out, out, channels))
    programs, times = [], ([], [])
    for form in (depthwise.convolve.fun, depthwise.convolve):
        def step(x, kernel, gradient, form=form):
            y, transpose = jax.vjp(lambda x, kernel: form(x, kernel, (stride,) * 2, (pad,) * 2),
                                   x, kernel)
            return y, transpose(gradient)

        programs.append(jax.jit(step).lower(x, kernel, gradient).compile())
    for _ in range(steps + 1):
        for program, row in zip(programs, times):
            since = used()
            jax.block_until_ready(program(x, kernel, gradient))
            row.append(used() - since)
    before, after = (row[1:] for row in times)
    ratios = sorted(a / b for a, b in zip(before, after))
    memory = [program.memory_analysis().temp_size_in_bytes / 1e6 for program in programs]
    return (f'{statistics.median(before):9.1f}{statistics.median(after):9.1f}'
            f'{statistics.median(ratios):7.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]'
            f'{memory[0]:8.0f}{memory[1]:7.0f}')


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--steps', type=int, default=8)
    steps = parser.parse_args(argv).steps
    print(f'{"":24}{"derived":>9}{"ours":>9}{"ratio":>7}{"":14}{"MB kept":>8}{"":>7}')
    for name, layer in LAYERS.items():
        print(f'{name:24}{measure(layer, steps)}', flush=True)
    print(f'CPU ms per call; jax {jax.__version__}')


if __name__ == '__main__':
    main(sys.argv[1:])
