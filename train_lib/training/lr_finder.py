"""The loss while the learning rate grows from step to step (Smith, arXiv 1506.01186), and which
learning rates that suggests.

The sweep trains as `train` would: from the same state, with the same data, augmentation, mixing,
losses and regularisation; only the schedule differs. It happens in memory.
"""

import dataclasses
import logging
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.manifest import Manifest
from train_lib.optim.schedules import Schedule
from train_lib.run_dir import checkpoints, workdirs
from train_lib.run_dir.goodput import Clock
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.progress import bar
from train_lib.runtime.sharding import make_mesh, place, shard_batch
from train_lib.runtime.signals import Interrupted
from train_lib.training import init
from train_lib.training.checks import check_values
from train_lib.training.data import split_data
from train_lib.training.preprocess_spec import preprocess_spec
from train_lib.training.run_spec import Programs
from train_lib.training.setup import assemble, compile_step
from train_lib.training.state import TrainState

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SweepSpec:
    """A sweep of the learning rate, config.lr_find.

    Attributes:
        low, high: the first and the last learning rate.
        steps: of training, 10 or more.
        smoothing: share of the smoothed loss that is kept per step, from 0 up to, but not, 1.
        stop_at: the sweep ends when the smoothed loss is this many times its lowest, above 1.
    """

    low: float
    high: float
    steps: int
    smoothing: float
    stop_at: float


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep of S steps found, S <= SweepSpec.steps.

    Attributes:
        rates, losses, smooth: float [S], learning rates, losses, smoothed losses.
        ended: 'done' | 'diverged' | 'not finite'.
    """

    rates: np.ndarray
    losses: np.ndarray
    smooth: np.ndarray
    ended: str


def sweep_spec(config: ConfigDict) -> SweepSpec:
    """config.lr_find, read once.

    Raises:
        ConfigError: a number is out of its range.
    """
    spec = SweepSpec(**config)
    for key, right, what in (
            ('low', 0 < spec.low < math.inf, 'a number above 0'),
            ('high', spec.low < spec.high < math.inf,
             f'a number above lr_find.low = {spec.low:g}'),
            ('steps', spec.steps >= 10, '10 or more'),
            ('smoothing', 0 <= spec.smoothing < 1, 'a number from 0 up to, but not, 1'),
            ('stop_at', spec.stop_at > 1, 'a number above 1')):
        if not right:
            raise ConfigError(f'config.lr_find.{key} = {config[key]}: give {what}.')
    return spec


def run_sweep(config: ConfigDict, manifest: Manifest, workdir: Path,
              stop: Callable[[], bool] = lambda: False) -> Sweep:
    """Trains in memory while the learning rate grows, from where `train` would start.

    Args:
        config: of the run; config.lr_find says from where to where.
        manifest: all data.
        workdir: of the run, which is only read; it need not exist.
        stop: true ends the sweep.

    Raises:
        ConfigError: a wrong value, or a workdir of another run. Interrupted: told to stop.
    """
    spec = sweep_spec(config.lr_find)
    given, config = config, init.inherit(config, workdir)
    mesh = make_mesh(config.mesh)
    check_values(config, mesh.size)
    data = split_data(config, manifest, workdir)
    own = None
    if (workdir / 'config.json').exists():
        workdirs.check_same(workdir, config, data.digest, rows=data.manifest)
        own = checkpoints.newest_good_until(workdir / 'checkpoints', sys.maxsize)
    if own is None and given.init.resume_from:
        own = init.source_checkpoint(config, data)
    first = int(own.name) if own else 0
    preprocess_spec(config, workdir, say=True)
    schedule = exponential(spec.low, spec.high, spec.steps, first)
    job = assemble(config, data, mesh, own, workdir, schedule=schedule, steps=first + spec.steps)
    try:
        total = max(job.run.timing.total_steps, first + spec.steps)
        source = init.init_spec(config, data.manifest.classes)
        state = init.begin(source, own, job.state, job.iterator, total).state
        if state.lr_factor is not None:  # of a plateau: a sweep sets the learning rate itself
            state = state.replace(lr_factor=place(np.float32(1), state.lr_factor.sharding))
        # As `train` compiles it: one program, for the rate is a function of the state's step.
        if job.run.programs.earlier:
            log.info('lr       everything trains from the first step of the sweep on')
        programs = compile_step(job.run, state, data.parts, Clock(), sys.maxsize).programs
        losses, smooth, ended = _sweep(programs, job.iterator, state, spec, stop)
    finally:
        job.iterator.close()
    rates = np.asarray(jax.vmap(schedule)(first + jnp.arange(len(losses))), np.float64)
    return Sweep(rates, np.array(losses), np.array(smooth), ended)


def _sweep(programs: Programs, iterator: Iterator, state: TrainState, spec: SweepSpec,
           stop: Callable[[], bool]) -> tuple[list[float], list[float], str]:
    """(losses, smoothed losses, how it ended)"""
    losses: list[float] = []
    smooth: list[float] = []
    mean, lowest = 0.0, math.inf
    with bar(total=spec.steps, unit='step') as progress:
        for i in range(spec.steps):
            if stop():
                raise Interrupted
            state, loss = programs.train_step(state, shard_batch(next(iterator), programs.mesh))
            loss = float(loss)
            progress.update()
            if not math.isfinite(loss):
                return losses, smooth, 'not finite'
            mean = spec.smoothing * mean + (1 - spec.smoothing) * loss
            losses.append(loss)
            smooth.append(mean / (1 - spec.smoothing ** (i + 1)))
            lowest = min(lowest, smooth[-1])
            if smooth[-1] > spec.stop_at * lowest:
                return losses, smooth, 'diverged'
    return losses, smooth, 'done'


def exponential(low: float, high: float, steps: int, first: int = 0) -> Schedule:
    """step -> low (high / low)^((step - first) / (steps - 1)): one program for all rates."""
    rise = math.log(high / low) / (steps - 1)
    return lambda step: jnp.float32(low) * jnp.exp(jnp.float32(rise) * (step - first))


def suggestions(sweep: Sweep) -> dict[str, float]:
    """Learning rates by rule; a rule that finds nothing is left out. The rules look at the
    smoothed loss without its first tenth, where it is a mean of few losses.

        steepest    where it falls most within a tenth of the sweep, before it is lowest
        valley      two thirds into the longest stretch over which it falls
        minimum/10  a tenth of where it is lowest
    """
    settled = len(sweep.smooth) // 10
    rates, smooth = sweep.rates[settled:], sweep.smooth[settled:]
    if len(smooth) < 3:
        return {}
    found = {}
    lowest, half = int(np.argmin(smooth)), max(len(smooth) // 20, 1)
    fall = (smooth[:-2 * half] - smooth[2 * half:])[:max(lowest - 2 * half + 1, 0)]
    if len(fall) and fall.max() > 0:
        found['steepest'] = rates[half + int(np.argmax(fall))]
    begin, end = longest_decrease(smooth)
    if end > begin:
        found['valley'] = rates[begin + round((end - begin) * 2 / 3)]
    if lowest:
        found['minimum/10'] = rates[lowest] / 10
    return {rule: float(f'{rate:.2g}') for rule, rate in found.items()}


def longest_decrease(values: np.ndarray) -> tuple[int, int]:
    """First and last index of the longest decreasing subsequence. It need not be contiguous: small
    bumps are stepped over."""
    length, before = np.ones(len(values), int), np.full(len(values), -1)
    for i in range(1, len(values)):
        higher = np.flatnonzero(values[:i] > values[i])
        if len(higher):
            before[i] = higher[np.argmax(length[higher])]
            length[i] = length[before[i]] + 1
    end = begin = int(np.argmax(length))
    while before[begin] >= 0:
        begin = int(before[begin])
    return begin, end
