"""The training loop. The order of things, which resuming depends on:

    at step s, everything that is due and not yet done:  evaluate, then save
    then: next batch, one training step (s becomes s + 1), log

Rows of metrics.jsonl are durable before the save that follows them, and a checkpoint knows
how long the file was, so a resumed run cuts off the rest and writes the same bytes again.
A run told to stop in the middle of an evaluation saves without it, and evaluates when it is
started again; a save that was due then replaces the earlier one. The host reads step s back
(whether it was finite) while step s + 1 runs, or before anything else is due.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping

import jax
import numpy as np

from input_pipeline.curriculum import stage_at
from train_lib.metrics.structured import ORDER_SCORES
from train_lib.run_dir import checkpoints
from train_lib.run_dir.checkpoints import Checkpointer
from train_lib.run_dir.goodput import Clock
from train_lib.run_dir.metrics_log import METRICS, MetricsLog
from train_lib.runtime import distributed
from train_lib.runtime.errors import DivergedError
from train_lib.runtime.profiling import Trace
from train_lib.runtime.progress import Progress
from train_lib.runtime.sharding import place, shard_batch
from train_lib.runtime.signals import Interrupted, Paused, Stopped
from train_lib.training import init, patience, rollback
from train_lib.training.beside_labels import row_of
from train_lib.training.class_structure import with_order
from train_lib.training.evaluate import all_finite, predict, score_split
from train_lib.training.phases import begun_at
from train_lib.training.run_spec import RunSpec
from train_lib.training.state import HostState, TrainState, to_stored
from train_lib.training.step import is_finite

log = logging.getLogger(__name__)
_is_finite = jax.jit(is_finite)


def evaluate(run: RunSpec, state: TrainState, host: HostState, metrics_log: MetricsLog, step: int,
             stop: Callable[[], bool]) -> HostState:
    """Scores the validation split, writes its row, and returns the host state after it."""
    scoring, programs, epoch = run.scoring, run.programs, run.timing.epoch(step)
    assert scoring.val is not None
    logits = scoring.adjust(predict(programs.eval_step, state.weights, scoring.val, programs.mesh,
                                    stop))
    if all_finite(logits):
        found = score_split(logits, scoring.val.manifest, scoring.losses)
        if scoring.metric in ORDER_SCORES:
            found = with_order(found, logits, scoring.val.manifest, scoring.ordered)
    else:
        log.warning('step %d: the logits of the validation are not finite, so it has no scores.',
                    step)
        nothing = dict(loss=None, accuracy=None, f1_macro=None, nll=None) | {scoring.metric: None}
        found = nothing | dict.fromkeys(scoring.heads, nothing)
    row = dict(step=step, epoch=epoch, split='val', loss=found['loss'],
               accuracy=found['accuracy'], f1_macro=found['f1_macro'])
    if len(scoring.heads) > 1:
        row |= {f'{head}/accuracy': found[head]['accuracy'] for head in scoring.heads}
    metric, control = scoring.metric, run.control
    said = '' if metric in row else f'  {metric} {_number(found[metric])}'
    value = row[metric] = found[metric]
    metrics_log.write(row)
    if host.metric not in (None, metric):  # changed between two starts
        host = host.replace(best_step=None, best_value=None,
                            patience=patience.forget_best(host.patience))
    best = patience.beats_best(metric, value, host.best_value, nll=found['nll'],
                               best_nll=host.best_nll, ties=control.ties)
    scale = host.patience.plateau.scale
    host = host.replace(evaluated=step, metric=metric, patience=patience.after_evaluation(
        host.patience, metric, value, step, control.plateau, control.stopping))
    if best:
        host = host.replace(best_step=step if control.keep_best else None, best_value=value,
                            best_nll=found['nll'])
    log.info('epoch %5.1f  val loss %.3f  acc %.3f  f1 %.3f%s%s', epoch,
             found['loss'] or math.nan, found['accuracy'] or 0, found['f1_macro'] or 0, said,
             '  best so far' if best else '')
    cuts = host.patience.plateau.scale
    if control.plateau and cuts != scale:
        log.info('plateau  step %d: val %s has not improved; lr x %g, in all x %.3g', step, metric,
                 control.plateau.factor, cuts)
    return host


def _number(value: float | None) -> str:
    return '–' if value is None else f'{value:.3f}'


def _read_back(run: RunSpec, host: HostState, step: int, loss: jax.Array) -> HostState:
    """Waits for a step and notes whether it was finite."""
    guard = run.control.guard
    if guard is None:
        jax.block_until_ready(loss)
        return host
    finite = math.isfinite(float(loss))
    if not finite:
        log.warning('step %d is not finite: it changed nothing.', step + 1)
    return host.replace(guard=rollback.after_step(host.guard, step, finite, guard))


def _roll_back(run: RunSpec, state: TrainState, host: HostState, iterator,
               checkpointer: Checkpointer, metrics_log: MetricsLog) -> tuple[TrainState, HostState]:
    """State and host state of a checkpoint before the steps in doubt; what came after it is undone.

    Raises:
        DivergedError: that was done often enough, or there is no such checkpoint.
    """
    guard = run.control.guard
    assert guard is not None
    start, end = rollback.doubtful(host.guard)
    if host.guard.rollbacks >= guard.rollbacks:
        raise DivergedError(
            f'{guard.skip} steps in a row, up to step {end}, were not finite, after '
            f'{guard.rollbacks} roll-backs (config.guard): lower config.schedule.lr, lengthen '
            f'the warm-up or clip harder.')
    checkpointer.wait()
    folder = checkpointer.folder
    # Before what was not finite, if none is left before what led there.
    step = distributed.on_first(lambda: next(
        (int(found.name) for until in (start, host.guard.bad[0])
         if (found := checkpoints.newest_good_until(folder, until))), None))
    if step is None:
        raise DivergedError(f'Steps {start + 1} to {end} are to be undone, and no good checkpoint '
                            f'before them is left in {folder}: start anew.')
    # Frozen weights are as they were; they need not be read again.
    restored, then = init.restore(folder / str(step), state.replace(frozen={}), iterator)
    log.warning('roll back: to step %d; steps %d to %d will not be trained on.', step, start + 1,
                end)
    checkpointer.forget_after(step)
    metrics_log.rewind(then.metrics_bytes, step)
    then = then.replace(guard=rollback.after_rollback(host.guard, then.guard))
    return restored.replace(frozen=state.frozen), then


def train_loop(run: RunSpec, state: TrainState, host: HostState, iterator,
               checkpointer: Checkpointer, metrics_log: MetricsLog, clock: Clock,
               stop: Callable[[], bool]) -> tuple[TrainState, HostState]:
    """Trains to the last step.

    Returns:
        The final state and host state, both saved.

    Raises:
        Stopped: told to stop; the state is saved. Paused: so it is at `run.pause_at`.
        DivergedError: the loss became NaN or infinite.
    """
    step, guard, timing = int(state.step), run.control.guard, run.timing
    # What was restored is saved already; the guard needs a checkpoint of a fresh start as well.
    saved = (step, host.evaluated) if step or not guard else None
    progress = Progress(timing.total_steps, step, timing.batch_size,
                        enabled=distributed.is_first())
    # The newest step and its loss: dispatched to the device, not yet read back.
    pending: tuple[int, jax.Array] | None = None
    trace = None
    if run.profiled and distributed.is_first():
        trace = Trace(run.workdir / 'profile', run.profiled)

    def read_back():
        nonlocal host, pending
        if pending:
            host = _read_back(run, host, *pending)
        pending = None

    def save():
        pinned = rollback.pinned(host.guard) | {host.best_step}
        with clock('checkpoint'), progress.paused():
            if guard is None:  # a guarded step writes nothing else
                _refuse_not_finite(state, step, checkpointer)
            known = host.replace(metrics_bytes=metrics_log.flush(), seconds=clock.seconds())
            checkpointer.save(step, to_stored(state), iterator, known.to_json(), pinned,
                              {METRICS: metrics_log.content()})
        return known

    try:
        while True:
            to_evaluate = bool(run.scoring.val and timing.is_due(timing.eval_every, step)
                               and host.evaluated < step)
            if guard:
                if to_evaluate or timing.is_due(timing.save_every, step):
                    read_back()
                if rollback.exhausted(host.guard, guard):
                    state, host = _roll_back(run, state, host, iterator, checkpointer, metrics_log)
                    clock.go_back(host.seconds)
                    step = int(state.step)
                    saved = step, host.evaluated
                    pending = None
                    progress.rewind(step)
                    continue
            interrupted = False
            if to_evaluate or step == timing.total_steps:  # there may be no validation
                with clock('eval'), progress.paused():
                    state = _with_statistics(run, state, step)
            if to_evaluate:
                before = host
                try:
                    with clock('eval'), progress.paused():
                        host = evaluate(run, state, host, metrics_log, step, stop)
                    state = _with_lr_factor(run, state, host)
                    if run.is_over(host, step) and not timing.is_due(timing.log_every, step):
                        state = _log(run, state, before, step, metrics_log, progress)
                except Interrupted:
                    interrupted = True  # `stop` is true: saved and raised below
            over, asked = run.is_over(host, step), stop()
            stopping = asked or (step == run.pause_at and not over)
            due = not interrupted and (
                timing.is_due(timing.save_every, step) or host.best_step == step or over
                or (step == 0 and guard))
            if due and guard:
                host = host.replace(
                    guard=rollback.after_save(host.guard, step, host.best_step))
            if (due or stopping) and saved != (step, host.evaluated):
                read_back()
                host = save()
                saved = step, host.evaluated
            if stopping:
                with clock('checkpoint'):
                    checkpointer.wait()
                raise Stopped if asked else Paused(step, timing.total_steps)
            if over:
                if run.control.stopping and step < timing.total_steps:
                    log.info('early stopping: val %s has not improved since step %d.',
                             run.scoring.metric,
                             patience.counted_from(host.patience, run.control.stopping))
                with clock('checkpoint'):
                    checkpointer.wait()
                return state, host
            if begins := begun_at([phase for phase, *_ in run.programs.earlier], step):
                log.info('epoch %5.1f  %s begin to train', timing.epoch(step), begins)
            if trace:
                trace.before(step, pending)
            with clock('data'):
                batch = next(iterator)
                # Arrays on devices have is_ready, which jax.Array does not declare.
                if pending and not pending[1].is_ready():  # type: ignore[attr-defined]
                    clock.rename('step')  # the device worked all the while
            with clock('step'):
                if rollback.only_counts(host.guard, step):
                    read_back()
                    state = state.replace(step=_like(np.int32(step + 1), state.step))
                    host = host.replace(guard=rollback.after_skip(host.guard))
                else:
                    train_step, _ = run.programs.at(step)
                    state, loss = train_step(state, shard_batch(batch, run.programs.mesh))
                    # The device works on this step while the host fetches the next batch; waiting
                    # for the one before keeps the queue at one step.
                    read_back()
                    pending = step, loss
                step += 1
                if timing.is_due(timing.log_every, step):
                    read_back()
                    state = _log(run, state, host, step, metrics_log, progress)
    finally:
        if trace:
            trace.close(step)
        progress.close()


def _refuse_not_finite(state: TrainState, step: int, checkpointer: Checkpointer) -> None:
    """A checkpoint that is not finite would only take the place of one that is."""
    if bool(_is_finite((state.params, state.batch_stats, state.metric_sums))):
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


def _with_lr_factor(run: RunSpec, state: TrainState, host: HostState) -> TrainState:
    if run.control.plateau is None:
        return state
    scale = np.float32(host.patience.plateau.scale)
    return state.replace(lr_factor=_like(scale, state.lr_factor))


def _with_statistics(run: RunSpec, state: TrainState, step: int) -> TrainState:
    """The moving average with BatchNorm statistics of its own, before it is scored and saved. They
    depend on its weights only, so a run that was stopped here and goes on has the same."""
    _, estimate = run.programs.at(step - 1)  # of the step that made these weights
    if estimate is None or state.ema is None or step < run.programs.estimate_from:
        return state
    return state.replace(ema=dataclasses.replace(
        state.ema, batch_stats=estimate(state.weights)))


def _log(run: RunSpec, state: TrainState, host: HostState, step: int, metrics_log: MetricsLog,
         progress: Progress) -> TrainState:
    """Writes the means since the last log line and sets the sums back to 0.

    Steps that trained nothing are not in the means; if none did, they are null.
    """
    sums: Mapping[str, float] = {name: float(value)
                                 for name, value in jax.device_get(state.metric_sums).items()}
    heads = run.scoring.heads
    trained = sums['steps'] > 0
    loss = sums['loss'] / sums['steps'] if trained else None
    if loss is not None and not math.isfinite(loss):
        raise DivergedError(f'The training loss is {loss} at step {step}: lower '
                            f'config.schedule.lr, lengthen the warm-up or clip harder.')
    accuracies = {head: sums[f'correct/{head}'] / max(sums[f'labelled/{head}'], 1.0)
                  for head in heads}
    accuracy = float(np.mean(list(accuracies.values()))) if trained else None
    rate = run.schedule(step - 1)  # type: ignore[arg-type]  # takes a plain number too
    if run.control.plateau:
        rate *= np.float32(host.patience.plateau.scale)
    row = dict(step=step, epoch=run.timing.epoch(step), split='train', loss=loss,
               accuracy=accuracy, lr=float(rate), stage=stage_at(run.stages, step - 1))
    if run.control.guard:
        row['steps_skipped'] = host.guard.skipped
    if len(heads) > 1:
        row |= {f'{head}/accuracy': value if trained else None
                for head, value in accuracies.items()}
    row |= row_of(sums, heads)
    images = progress.update(step, loss, accuracy)
    metrics_log.write(row, images_per_second=images)
    return state.replace(metric_sums=_like(
        jax.tree.map(lambda _: np.float32(0), state.metric_sums), state.metric_sums))
