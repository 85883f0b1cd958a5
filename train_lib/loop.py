"""The training loop. The order of things, which resuming depends on:

    at step s, everything that is due and not yet done:  evaluate, then save
    then: next batch, one training step (s becomes s + 1), log

Rows of metrics.jsonl are durable before the save that follows them, and a checkpoint knows
how long the file was, so a resumed run cuts off the rest and writes the same bytes again.
A run told to stop in the middle of an evaluation saves without it, and makes up for it
when it is started again.
"""

import dataclasses
import logging
import math
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from input_pipeline.curriculum import Stage, stage_at
from train_lib.checkpoints import Checkpointer
from train_lib.evaluation import EvalSplit, Interrupted, predict, score_split
from train_lib.losses import LossSpec
from train_lib.progress import Clock, Progress
from train_lib.records import Records
from train_lib.schedules import Schedule
from train_lib.sharding import shard_batch
from train_lib.step import State, weights_of, zero_sums

log = logging.getLogger(__name__)


class Stopped(Exception):
    """The run was told to stop (SIGTERM, Ctrl-C) and has saved its state."""


class DivergedError(RuntimeError):
    """The training loss is no longer finite."""


@dataclasses.dataclass(frozen=True)
class Every:
    """Steps between two events of a kind; the last step of the run always counts as one."""

    log: int
    eval: int
    save: int


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything about a run that does not change while it runs."""

    workdir: Path
    total_steps: int
    batch_size: int
    image_size: int
    examples_per_epoch: int
    every: Every
    heads: tuple[str, ...]
    stages: tuple[Stage, ...]
    schedule: Schedule
    train_step: Callable
    eval_step: Callable
    val: EvalSplit | None
    adjust: Callable  # {head: logits} -> the same, as they are scored
    metric: str
    losses: Mapping[str, LossSpec]
    mesh: jax.sharding.Mesh

    def epoch(self, step: int) -> float:
        """Epochs done after so many steps."""
        return step * self.batch_size / self.examples_per_epoch


def new_host_state() -> dict:
    """What the host knows besides the arrays; saved with every checkpoint, as JSON."""
    return dict(evaluated=0, best_step=None, best_value=None, metrics_bytes=0, seconds={})


class StopSignal:
    """SIGTERM or Ctrl-C once: stop cleanly and save. Ctrl-C again: stop at once."""

    def __init__(self):
        self._asked = False

    def __enter__(self):
        self._before = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: nobody can signal us there
                break
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        log.info('%s: saving, then stopping.', signal.Signals(number).name)

    def __call__(self) -> bool:
        return self._asked


def _due(step: int, every: int, total: int) -> bool:
    return step > 0 and (step % every == 0 or step == total)


def _improved(metric: str, value: float | None, best: float | None) -> bool:
    if value is None or not math.isfinite(value):
        return False
    return best is None or (value < best if metric == 'loss' else value > best)


def evaluate(run: Run, state: State, host: dict, records: Records, step: int,
             stop: Callable[[], bool]) -> dict:
    """Scores the validation split, writes its row, and returns the host state after it."""
    logits = run.adjust(predict(run.eval_step, weights_of(state), run.val, run.mesh, stop))
    found = score_split(logits, run.val.manifest, run.losses)
    row = dict(step=step, epoch=run.epoch(step), split='val', loss=found['loss'],
               accuracy=found['accuracy'], f1_macro=found['f1_macro'])
    if len(run.heads) > 1:
        row |= {f'{head}/accuracy': found[head]['accuracy'] for head in run.heads}
    records.write(row)
    host = host | dict(evaluated=step)
    if _improved(run.metric, found[run.metric], host['best_value']):
        host |= dict(best_step=step, best_value=found[run.metric])
    marker = '  best so far' if host['best_step'] == step else ''
    log.info('epoch %5.1f  val loss %.3f  acc %.3f  f1 %.3f%s', run.epoch(step),
             found['loss'] or math.nan, found['accuracy'] or 0, found['f1_macro'] or 0, marker)
    return host


def train_loop(run: Run, state: State, host: dict, iterator, checkpointer: Checkpointer,
               records: Records, clock: Clock, stop: StopSignal) -> tuple[State, dict]:
    """Trains to the last step.

    Returns:
        The final state and host state, both saved.

    Raises:
        Stopped: told to stop; the state is saved.
        DivergedError: the loss became NaN or infinite.
    """
    step = saved = int(state['step'])  # what was restored is saved already
    total, every = run.total_steps, run.every
    progress = Progress(total, step, run.batch_size)
    before = None  # the loss of the step before, on the device

    def save(host):
        with clock('checkpoint'), progress.paused():
            host = host | dict(metrics_bytes=records.flush(), seconds=clock.seconds())
            checkpointer.save(step, state, iterator, host, host['best_step'])
        return host

    try:
        while True:
            if run.val and _due(step, every.eval, total) and host['evaluated'] < step:
                try:
                    with clock('eval'), progress.paused():
                        host = evaluate(run, state, host, records, step, stop)
                except Interrupted:
                    pass  # `stop` is true: saved and raised below
            stopping = stop()
            due = _due(step, every.save, total) or host['best_step'] == step or stopping
            if due and saved != step:
                host = save(host)
                saved = step
            if stopping:
                checkpointer.wait()
                raise Stopped
            if step == total:
                checkpointer.wait()
                return state, host
            with clock('data'):
                batch = next(iterator)
            with clock('step'):
                state, loss = run.train_step(state, shard_batch(batch, run.mesh))
                step += 1
                if _due(step, every.log, total):
                    state = _log(run, state, step, records, progress)
                else:
                    # The device works on this step while we fetch the next batch; waiting for
                    # the one before keeps the queue at one step.
                    jax.block_until_ready(before)  # None is ready
                before = loss
    finally:
        progress.close()


def _log(run: Run, state: State, step: int, records: Records, progress: Progress) -> State:
    """Writes the means since the last log line and sets the sums back to 0."""
    sums: Mapping[str, float] = {name: float(value)
                                 for name, value in jax.device_get(state['sums']).items()}
    loss = sums['loss'] / sums['steps']
    if not math.isfinite(loss):
        raise DivergedError(f'The training loss is {loss} at step {step}: lower '
                            f'config.schedule.lr, lengthen the warm-up or clip harder.')
    accuracies = {head: sums[f'correct/{head}'] / max(sums[f'labelled/{head}'], 1.0)
                  for head in run.heads}
    accuracy = float(np.mean(list(accuracies.values())))
    row = dict(step=step, epoch=run.epoch(step), split='train', loss=loss, accuracy=accuracy,
               lr=float(run.schedule(step - 1)), stage=stage_at(run.stages, step - 1))
    if len(run.heads) > 1:
        row |= {f'{head}/accuracy': value for head, value in accuracies.items()}
    images = progress.update(step, loss, accuracy)
    records.write(row, images_per_second=images)
    zeros = zero_sums(run.heads)
    return state | dict(sums=jax.device_put(zeros, jax.tree.map(lambda leaf: leaf.sharding,
                                                                state['sums'])))
