"""The training loop. The order of things, which resuming depends on:

    at step s, everything that is due and not yet done:  evaluate, then save
    then: next batch, one training step (s becomes s + 1), log

Rows of metrics.jsonl are durable before the save that follows them, and a checkpoint knows
how long the file was, so a resumed run cuts off the rest and writes the same bytes again.
A run told to stop in the middle of an evaluation saves without it, and makes up for it
when it is started again; a save that was due takes the place of the other then. What the host
must know of a step (whether it was finite) it hears while the device works on the next one, or
before anything else is due.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from input_pipeline.curriculum import Stage, stage_at
from train_lib.losses.losses import LossSpec
from train_lib.optim.schedules import Schedule
from train_lib.run_dir import checkpoints
from train_lib.run_dir.checkpoints import Checkpointer
from train_lib.run_dir.goodput import Clock
from train_lib.run_dir.metrics_log import METRICS, Records
from train_lib.runtime import distributed
from train_lib.runtime.errors import DivergedError
from train_lib.runtime.profiling import Trace
from train_lib.runtime.progress import Progress
from train_lib.runtime.sharding import place, shard_batch
from train_lib.runtime.signals import StopSignal
from train_lib.training import patience, rollback
from train_lib.training.evaluate import EvalSplit, Interrupted, all_finite, predict, score_split
from train_lib.training.rollback import Guard
from train_lib.training.step import State, is_finite, weights_of, zero_sums

log = logging.getLogger(__name__)
_is_finite = jax.jit(is_finite)


class Stopped(Exception):
    """The run was told to stop (SIGTERM, Ctrl-C) and has saved its state."""


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
    guard: Guard | None = None
    plateau: patience.Plateau | None = None
    stopping: patience.EarlyStopping | None = None
    keep_best: bool = True  # False: the last weights count, not the best
    profiled: range = range(0)  # steps to trace

    def epoch(self, step: int) -> float:
        """Epochs done after so many steps."""
        return step * self.batch_size / self.examples_per_epoch

    def is_over(self, host: dict, step: int) -> bool:
        """Whether this step is the last: by its number, or by early stopping."""
        return step == self.total_steps or (
            host['evaluated'] == step and patience.exhausted(host['patience'], step, self.stopping))


def new_host_state() -> dict:
    """What the host knows besides the arrays; saved with every checkpoint, as JSON."""
    return dict(evaluated=0, metric=None, best_step=None, best_value=None, metrics_bytes=0,
                seconds={}, patience=patience.new_state(), guard=rollback.new_state())


def _due(step: int, every: int, total: int) -> bool:
    return step > 0 and (step % every == 0 or step == total)


def evaluate(run: Run, state: State, host: dict, records: Records, step: int,
             stop: Callable[[], bool]) -> dict:
    """Scores the validation split, writes its row, and returns the host state after it."""
    logits = run.adjust(predict(run.eval_step, weights_of(state), run.val, run.mesh, stop))
    if all_finite(logits):
        found = score_split(logits, run.val.manifest, run.losses)
    else:
        log.warning('step %d: the logits of the validation are not finite, so it has no scores.',
                    step)
        nothing = dict(loss=None, accuracy=None, f1_macro=None, nll=None)
        found = nothing | dict.fromkeys(run.heads, nothing)
    row = dict(step=step, epoch=run.epoch(step), split='val', loss=found['loss'],
               accuracy=found['accuracy'], f1_macro=found['f1_macro'])
    if len(run.heads) > 1:
        row |= {f'{head}/accuracy': found[head]['accuracy'] for head in run.heads}
    value = row[run.metric] = found[run.metric]
    records.write(row)
    if host['metric'] not in (None, run.metric):  # changed between two starts
        host = host | dict(best_step=None, best_value=None,
                           patience=patience.forget_best(host['patience']))
    best = patience.better(run.metric, value, host['best_value'])
    host = host | dict(evaluated=step, metric=run.metric, patience=patience.after_evaluation(
        host['patience'], run.metric, value, step, run.plateau, run.stopping))
    if best:
        host |= dict(best_step=step if run.keep_best else None, best_value=value)
    marker = '  best so far' if best else ''
    log.info('epoch %5.1f  val loss %.3f  acc %.3f  f1 %.3f%s', run.epoch(step),
             found['loss'] or math.nan, found['accuracy'] or 0, found['f1_macro'] or 0, marker)
    return host


def _hear(run: Run, host: dict, step: int, loss: jax.Array) -> dict:
    """Waits for a step and notes whether it was finite."""
    if run.guard is None:
        jax.block_until_ready(loss)
        return host
    finite = math.isfinite(float(loss))
    if not finite:
        log.warning('step %d is not finite: it changed nothing.', step + 1)
    return host | dict(guard=rollback.after_step(host['guard'], step, finite, run.guard))


def _roll_back(run: Run, state: State, host: dict, iterator, checkpointer: Checkpointer,
               records: Records) -> tuple[State, dict]:
    """State and host state of a checkpoint before the steps in doubt; what came after it is undone.

    Raises:
        DivergedError: that was done often enough, or there is no such checkpoint.
    """
    start, end = rollback.doubtful(host['guard'])
    if host['guard']['rollbacks'] >= run.guard.rollbacks:
        raise DivergedError(
            f'{run.guard.skip} steps in a row, up to step {end}, were not finite, after '
            f'{run.guard.rollbacks} roll-backs (config.guard): lower config.schedule.lr, lengthen '
            f'the warm-up or clip harder.')
    checkpointer.wait()
    folder = checkpointer.folder
    # Before what was not finite, if none is left before what led there.
    step = distributed.on_first(lambda: next(
        (int(found.name) for until in (start, host['guard']['bad'][0])
         if (found := checkpoints.newest_good_until(folder, until))), None))
    if step is None:
        raise DivergedError(f'Steps {start + 1} to {end} are to be undone, and no good checkpoint '
                            f'before them is left in {folder}: start anew.')
    trained = {key: value for key, value in state.items() if key != 'frozen'}
    restored, then = checkpoints.restore(folder / str(step), trained, iterator)
    log.warning('roll back: to step %d; steps %d to %d will not be trained on.', step, start + 1,
                end)
    checkpointer.forget_after(step)
    records.rewind(then['metrics_bytes'], step)
    then |= dict(guard=rollback.after_rollback(host['guard'], then['guard']))
    return restored | dict(frozen=state['frozen']), then


def train_loop(run: Run, state: State, host: dict, iterator, checkpointer: Checkpointer,
               records: Records, clock: Clock, stop: StopSignal) -> tuple[State, dict]:
    """Trains to the last step.

    Returns:
        The final state and host state, both saved.

    Raises:
        Stopped: told to stop; the state is saved.
        DivergedError: the loss became NaN or infinite.
    """
    step = int(state['step'])
    # What was restored is saved already; the guard needs a checkpoint of a fresh start as well.
    saved = (step, host['evaluated']) if step or not run.guard else None
    total, every = run.total_steps, run.every
    progress = Progress(total, step, run.batch_size, enabled=distributed.is_first())
    waiting = None  # the newest step and its loss, on the device, that we have not heard of
    trace = None
    if run.profiled and distributed.is_first():
        trace = Trace(run.workdir / 'profile', run.profiled)

    def hear():
        nonlocal host, waiting
        if waiting:
            host = _hear(run, host, *waiting)
        waiting = None

    def save():
        pinned = rollback.pinned(host['guard']) | {host['best_step']}
        with clock('checkpoint'), progress.paused():
            if run.guard is None:  # a guarded step writes nothing else
                _refuse_not_finite(state, step, checkpointer)
            known = host | dict(metrics_bytes=records.flush(), seconds=clock.seconds())
            checkpointer.save(step, state, iterator, known, pinned, {METRICS: records.content()})
        return known

    try:
        while True:
            to_evaluate = bool(run.val and _due(step, every.eval, total)
                               and host['evaluated'] < step)
            if run.guard:
                if to_evaluate or _due(step, every.save, total):
                    hear()
                if rollback.exhausted(host['guard'], run.guard):
                    state, host = _roll_back(run, state, host, iterator, checkpointer, records)
                    clock.go_back(host['seconds'])
                    step = int(state['step'])
                    saved = step, host['evaluated']
                    waiting = None
                    progress.rewind(step)
                    continue
            interrupted = False
            if to_evaluate:
                before = host
                try:
                    with clock('eval'), progress.paused():
                        host = evaluate(run, state, host, records, step, stop)
                    state = _with_lr_factor(run, state, host)
                    if run.is_over(host, step) and not _due(step, every.log, total):
                        state = _log(run, state, before, step, records, progress)
                except Interrupted:
                    interrupted = True  # `stop` is true: saved and raised below
            over, stopping = run.is_over(host, step), stop()
            due = not interrupted and (
                _due(step, every.save, total) or host['best_step'] == step or over
                or (step == 0 and run.guard))
            if due and run.guard:
                host = host | dict(
                    guard=rollback.after_save(host['guard'], step, host['best_step']))
            if (due or stopping) and saved != (step, host['evaluated']):
                hear()
                host = save()
                saved = step, host['evaluated']
            if stopping:
                with clock('checkpoint'):
                    checkpointer.wait()
                raise Stopped
            if over:
                if step < total:
                    log.info('early stopping: val %s has not improved since step %d.', run.metric,
                             host['patience']['stopping']['step'])
                with clock('checkpoint'):
                    checkpointer.wait()
                return state, host
            if trace:
                trace.before(step, waiting)
            with clock('data'):
                batch = next(iterator)
                if waiting and not waiting[1].is_ready():
                    clock.rename('step')  # the device worked all the while
            with clock('step'):
                if rollback.only_counts(host['guard'], step):
                    hear()
                    state = state | dict(step=_like(np.int32(step + 1), state['step']))
                    host = host | dict(guard=rollback.after_skip(host['guard']))
                else:
                    state, loss = run.train_step(state, shard_batch(batch, run.mesh))
                    # The device works on this step while we fetch the next batch; waiting for
                    # the one before keeps the queue at one step.
                    hear()
                    waiting = step, loss
                step += 1
                if _due(step, every.log, total):
                    hear()
                    state = _log(run, state, host, step, records, progress)
    finally:
        if trace:
            trace.close(step)
        progress.close()


def _refuse_not_finite(state: State, step: int, checkpointer: Checkpointer) -> None:
    """A checkpoint that is not finite would only take the place of one that is."""
    if bool(_is_finite({key: state[key] for key in ('params', 'rest', 'sums')})):
        return
    checkpointer.wait()
    kept = distributed.on_first(lambda: checkpoints.committed_steps(checkpointer.folder))
    raise DivergedError(
        f'The loss or the weights are not finite at step {step}: lower config.schedule.lr, '
        f'lengthen the warm-up, clip harder or set config.guard.skip'
        f'{f"; the last checkpoint is of step {kept[-1]}" if kept else ""}.')


def _like(values, array):
    """Values from the host, laid over the devices as an array (or a tree) is."""
    return jax.tree.map(lambda value, leaf: place(value, leaf.sharding), values, array)


def _with_lr_factor(run: Run, state: State, host: dict) -> State:
    if run.plateau is None:
        return state
    scale = np.float32(host['patience']['plateau']['scale'])
    return state | dict(lr_factor=_like(scale, state['lr_factor']))


def _log(run: Run, state: State, host: dict, step: int, records: Records, progress: Progress
         ) -> State:
    """Writes the means since the last log line and sets the sums back to 0.

    Steps that trained nothing are not in the means; if none did, they are null.
    """
    sums: Mapping[str, float] = {name: float(value)
                                 for name, value in jax.device_get(state['sums']).items()}
    trained = sums['steps'] > 0
    loss = sums['loss'] / sums['steps'] if trained else None
    if trained and not math.isfinite(loss):
        raise DivergedError(f'The training loss is {loss} at step {step}: lower '
                            f'config.schedule.lr, lengthen the warm-up or clip harder.')
    accuracies = {head: sums[f'correct/{head}'] / max(sums[f'labelled/{head}'], 1.0)
                  for head in run.heads}
    accuracy = float(np.mean(list(accuracies.values()))) if trained else None
    rate = run.schedule(step - 1)
    if run.plateau:
        rate *= np.float32(host['patience']['plateau']['scale'])
    row = dict(step=step, epoch=run.epoch(step), split='train', loss=loss, accuracy=accuracy,
               lr=float(rate), stage=stage_at(run.stages, step - 1))
    if run.guard:
        row['steps_skipped'] = host['guard']['skipped']
    if len(run.heads) > 1:
        row |= {f'{head}/accuracy': value if trained else None
                for head, value in accuracies.items()}
    images = progress.update(step, loss, accuracy)
    records.write(row, images_per_second=images)
    return state | dict(sums=_like(zero_sums(run.heads), state['sums']))
