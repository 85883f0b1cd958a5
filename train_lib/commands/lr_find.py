"""The verb lr_find: the loss while the learning rate grows from step to step (Smith, arXiv
1506.01186), and what learning rate that suggests.

The sweep is training as `train` would go on with it: the same state, data, augmentation, mixing,
losses and regularisation; only the schedule is another. It happens in memory. Of a run, nothing but
lr_find.png, lr_find.csv and lr_find.json is written.
"""

import dataclasses
import logging
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from input_pipeline.manifest import Manifest
from train_lib.commands.command_line import Command
from train_lib.optim.schedules import Schedule
from train_lib.run_dir import checkpoints, lock, workdirs
from train_lib.run_dir.goodput import Clock
from train_lib.run_dir.metrics_log import write_json
from train_lib.runtime import distributed
from train_lib.runtime.distributed import StopTogether
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.progress import bar
from train_lib.runtime.sharding import make_mesh, place, shard_batch
from train_lib.training import init
from train_lib.training.evaluate import Interrupted
from train_lib.training.loop import StopSignal
from train_lib.training.run import STOPPED, load_data
from train_lib.training.setup import arrange, assemble, check_values, compile_step

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One entry a step: learning rate, loss, smoothed loss; and how the sweep ended."""

    rates: np.ndarray
    losses: np.ndarray
    smooth: np.ndarray
    ended: str  # 'done' | 'diverged' | 'not finite'


def lr_find(command: Command) -> int:
    """Sweeps, draws, and prints a line for each suggestion. Returns the exit code."""
    config = command.config
    distributed.start(config.distributed)
    if config.probe.heads:
        raise ConfigError('config.probe.heads is set, and lr_find sweeps the training of one '
                          'model: give the heads several rates in config.probe.lr, or take the '
                          'heads out.')
    if str(config.split.fold) == 'all':
        raise ConfigError("config.split.fold = 'all', and lr_find sweeps one of them: "
                          "give --config.split.fold=0.")
    folder = workdirs.choose(command.workdir, command.config_file, 'lr_find')
    manifest = load_data(config, folder)
    stops = StopTogether if distributed.several() else StopSignal
    try:
        with lock.held(folder), stops() as stop:
            sweep = run_sweep(config, manifest, folder, stop)
            write_sweep(folder, sweep, suggestions(sweep), config)
    except Interrupted:
        log.info('Stopped.')
        return STOPPED
    return 0


def run_sweep(config: ConfigDict, manifest: Manifest, workdir: Path, stop=lambda: False) -> Sweep:
    """Trains in memory while the learning rate grows, from where `train` would start.

    Args:
        config: of the run; config.lr_find says from where to where.
        manifest: all data.
        workdir: of the run, which is only read; it need not exist.
        stop: whether to give up.

    Raises:
        ConfigError: a wrong value, or a workdir of another run. Interrupted: given up.
    """
    settings = check_settings(config.lr_find)
    given, config = config, init.inherit(config, workdir)
    mesh = make_mesh(config.mesh)
    check_values(config, mesh.size)
    data = arrange(config, manifest, workdir)
    own = None
    if (workdir / 'config.json').exists():
        workdirs.check_same(workdir, config, data.digest)
        own = checkpoints.newest_good_until(workdir / 'checkpoints', sys.maxsize)
    if own is None and given.init.resume_from:
        own = init.source_checkpoint(config, data.digest)
    first = int(own.name) if own else 0
    schedule = exponential(settings['low'], settings['high'], settings['steps'], first)
    job = assemble(config, data, mesh, own, workdir, schedule=schedule,
                   steps=first + settings['steps'])
    try:
        total = max(job.run.total_steps, first + settings['steps'])
        state = init.begin(config, own, job.state, job.iterator, total).state
        if 'lr_factor' in state:  # of a plateau: a sweep is about the learning rate itself
            state['lr_factor'] = place(np.float32(1), state['lr_factor'].sharding)
        # As `train` compiles it: one program, for the rate is a function of the state's step.
        run = compile_step(job.run, state, data.parts, Clock())
        return _sweep(run, job.iterator, state, schedule, settings, first, stop)
    finally:
        job.iterator.close()


def _sweep(run, iterator, state, schedule, settings, first, stop) -> Sweep:
    losses, smooth, ended = [], [], 'done'
    mean, lowest = 0.0, math.inf
    with bar(total=settings['steps'], unit='step') as progress:
        for i in range(settings['steps']):
            if stop():
                raise Interrupted
            state, loss = run.train_step(state, shard_batch(next(iterator), run.mesh))
            loss = float(loss)
            progress.update()
            if not math.isfinite(loss):
                ended = 'not finite'
                break
            mean = settings['smoothing'] * mean + (1 - settings['smoothing']) * loss
            losses.append(loss)
            smooth.append(mean / (1 - settings['smoothing'] ** (i + 1)))
            lowest = min(lowest, smooth[-1])
            if smooth[-1] > settings['stop_at'] * lowest:
                ended = 'diverged'
                break
    rates = np.asarray(jax.vmap(schedule)(first + jnp.arange(len(losses))), np.float64)
    return Sweep(rates, np.array(losses), np.array(smooth), ended)


def check_settings(config: ConfigDict) -> dict:
    """config.lr_find as a dict.

    Raises:
        ConfigError: a number out of its range.
    """
    low, high, steps, smoothing, stop_at = (
        config[key] for key in ('low', 'high', 'steps', 'smoothing', 'stop_at'))
    for key, right, what in (
            ('low', 0 < low < math.inf, 'a number above 0'),
            ('high', low < high < math.inf, f'a number above lr_find.low = {low:g}'),
            ('steps', steps >= 10, '10 or more'),
            ('smoothing', 0 <= smoothing < 1, 'a number from 0 up to, but not, 1'),
            ('stop_at', stop_at > 1, 'a number above 1')):
        if not right:
            raise ConfigError(f'config.lr_find.{key} = {config[key]}: give {what}.')
    return config.to_dict()


def exponential(low: float, high: float, steps: int, first: int = 0) -> Schedule:
    """step -> low (high / low)^((step - first) / (steps - 1)): one program for all rates."""
    rise = math.log(high / low) / (steps - 1)
    return lambda step: jnp.float32(low) * jnp.exp(jnp.float32(rise) * (step - first))


def suggestions(sweep: Sweep) -> dict[str, float]:
    """Learning rates by rule; a rule that finds nothing is left out. Rules look at the smoothed
    loss without its first tenth, where it is a mean of few losses.

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
    """First and last index of the longest subsequence that falls, not all of it in a row: small
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


def write_sweep(folder: Path, sweep: Sweep, found: dict[str, float], config: ConfigDict) -> None:
    """lr_find.csv, .json and .png in a folder, and the suggestions in the log."""
    if not distributed.is_first():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f'The workdir {folder} cannot be made ({error.strerror}): '
                          f'give another --workdir.') from None
    table = pd.DataFrame(dict(lr=sweep.rates, loss=sweep.losses, smoothed=sweep.smooth))
    temporary = folder / 'lr_find.csv.tmp'
    table.to_csv(temporary, index=False, float_format='%.7g')
    temporary.replace(folder / 'lr_find.csv')
    write_json(folder / 'lr_find.json', dict(
        suggestions=found, ended=sweep.ended, steps=len(sweep.rates),
        settings=config.lr_find.to_dict(), lr_of_config=config.schedule.lr))
    from train_lib.reporting.sweep import draw_sweep  # matplotlib takes long to load
    draw_sweep(folder / 'lr_find.png', table, found)

    ends = {'done': '', 'diverged': '; the loss diverged there',
            'not finite': '; the loss was not finite after that'}
    log.info('lr_find  %d steps, %.1e to %.1e%s', len(table), config.lr_find.low,
             table['lr'].iloc[-1] if len(table) else config.lr_find.low, ends[sweep.ended])
    for rule, rate in found.items():
        log.info('%-11s--config.schedule.lr=%.2g', rule, rate)
    if not found:
        log.info('The loss does not fall anywhere: no suggestion.')
    log.info('plot     %s', folder / 'lr_find.png')

