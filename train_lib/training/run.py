"""One run from its config to its report: data, model, start, loop, final scores."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest
from models.errors import ModelError
from train_lib.reporting.stages import write_stages
from train_lib.run_dir import ancestors, made_folders, seen_rows, starting_weights, workdirs
from train_lib.run_dir.checkpoints import Checkpointer, committed_steps, latest_good
from train_lib.run_dir.goodput import Clock
from train_lib.run_dir.loggers import Loggers
from train_lib.run_dir.metrics_log import METRICS, MetricsLog, NullMetricsLog
from train_lib.runtime import distributed
from train_lib.runtime.distributed import StopTogether
from train_lib.runtime.errors import CheckpointError, ConfigError
from train_lib.runtime.sharding import make_mesh
from train_lib.runtime.signals import Stopped, StopSignal
from train_lib.training import init, live_teacher, unlabelled_rows
from train_lib.training.checks import check_values
from train_lib.training.data import Data, split_data
from train_lib.training.finish import FinalWeights, Finished, finish
from train_lib.training.loop import train_loop
from train_lib.training.new_length import find_new_length, say
from train_lib.training.overview import announce, save_parameters
from train_lib.training.preprocess_spec import input_record, preprocess_spec
from train_lib.training.setup import Job, assemble, compile_step
from train_lib.training.teaching import FACT

log = logging.getLogger(__name__)


def train_one(config: ConfigDict, manifest: Manifest, workdir: Path, began: float | None = None,
              first: Callable[[], None] | None = None, pause: float | None = None) -> Finished:
    """One training run in one workdir, or what is left of it.

    Args:
        config, manifest, workdir: of the run.
        began: time.perf_counter() from which on its time counts (None: now).
        first: called once nothing can refuse the start any more, before anything is written.
        pause: share of the run, percent, at whose next evaluation it saves and raises Paused.

    Raises:
        Stopped or Interrupted: told to stop. DivergedError: the training is no longer finite.
            ConfigError, DataError, ModelError: a user's mistake. CheckpointError: the workdir is
            damaged, or disappeared.
    """
    clock = Clock(began, 'start')
    config = init.inherit(config, workdir)
    mesh = make_mesh(config.mesh)
    check_values(config, mesh.size)
    known = workdir
    if config.init.resume_from and not (workdir / 'config.json').exists():
        known = Path(config.init.resume_from)
    data = split_data(config, manifest, known)
    ancestry = ancestors.of_run(config, known, init.digest_of_best)
    if data.taught and not (known / 'config.json').exists():
        ancestry = ancestors.joined(ancestry, data.taught.ancestry)
    seen_rows.check(config, ancestry, data.manifest,
                    goes_on=(known / 'config.json').exists())
    live_teacher.check_goes_on(config, ancestry, init.digest_of_best)
    unlabelled_rows.check_goes_on(config, known, data.unlabelled)
    own = latest_good(workdir / 'checkpoints')
    copied = own is None and bool(config.init.resume_from)
    found = init.source_checkpoint(config, data) if copied else own
    claimed = begun_before = (workdir / 'config.json').exists()
    before = made_folders.names_in(workdir)
    workdirs.compare(workdir, config, data.digest, data.manifest, range16=data.manifest.range16)
    length = find_new_length(config, data, found.parent.parent, int(found.name)) if found else None
    prepared = input_record(preprocess_spec(config, workdir, say=True))
    try:
        # Whatever may refuse the start comes before the first file is written.
        job = assemble(config, data, mesh, found, workdir)
        if pause is not None:
            job = dataclasses.replace(job, run=dataclasses.replace(
                job.run, pause_at=job.run.timing.evaluation_at(pause)))
        announce(data, job)
        with _closed_if_refused(job):
            begun = init.begin(init.init_spec(config, data.manifest.classes), found, job.state,
                               job.iterator, job.run.timing.total_steps)
        published = starting_weights.of_run(known) if found else starting_weights.of_start(
            ancestors.source_of(config), job.pretrained)
        if length:
            say(length, begun.host.patience.plateau.scale)
        if first is not None:
            first()
        workdirs.claim(workdir, config, data.digest, data.manifest,
                       range16=data.manifest.range16, compared=True,
                       facts=dict(input=prepared, pretrained=published,
                                  **unlabelled_rows.start_facts(data.unlabelled)) | (
                           {FACT: data.taught.facts} if data.taught else {}))
        claimed = True
        distributed.on_first(lambda: ancestors.save(workdir, ancestry))
        distributed.on_first(lambda: unlabelled_rows.save(workdir, data.unlabelled))
        if found is not None and copied:
            distributed.on_first(lambda: init.copy_run(found, workdir))
            own = latest_good(workdir / 'checkpoints')
        with clock.kept(workdir if distributed.is_first() else None, saved=Stopped):
            return _train(begun, data, job, own, clock)
    except (ConfigError, DataError, ModelError):
        # Of a picture that only the first batches show to be wrong, for instance.
        if not begun_before and not distributed.several() \
                and not committed_steps(workdir / 'checkpoints'):
            made_folders.withdraw(workdir, before)
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError):
            time.sleep(1)  # whoever removes the workdir may not be done yet
        if not claimed or (workdir / 'config.json').exists():
            raise
        raise CheckpointError(f'The workdir {workdir} or its contents disappeared: put it back and '
                              f'start again.') from error


@contextmanager
def _closed_if_refused(job: Job) -> Iterator[None]:
    """Closes the iterator of a job that cannot begin."""
    try:
        yield
    except BaseException:
        job.iterator.close()
        raise


def _train(begun: init.Begun, data: Data, job: Job, own: Path | None, clock: Clock) -> Finished:
    """`train_one` in a workdir that is claimed, from its checkpoint `own`, if it has one."""
    run, workdir = job.run, job.run.workdir
    if distributed.is_first():
        write_stages(workdir / 'curriculum.png', data.parts['train'], run.stages,
                     run.inputs.preprocess,
                     run.outputs.seed)
        save_parameters(job)

    with (Loggers(run.outputs.loggers if distributed.is_first() else {}, workdir) as loggers,
          StopTogether() if distributed.several() else StopSignal() as stop):
        checkpointer = Checkpointer(workdir / 'checkpoints', run.outputs.kept_checkpoints)
        clock.resume(begun.host.seconds)
        open_log = MetricsLog if distributed.is_first() else NullMetricsLog
        metrics_log = open_log(workdir, size=begun.host.metrics_bytes, step=begun.step,
                               tensorboard=run.outputs.tensorboard,
                               kept=own / METRICS if own else None, loggers=loggers)
        # Whatever happens, nothing is written here once this is over.
        with closing(checkpointer), closing(metrics_log), closing(job.iterator):
            if not run.is_over(begun.host, begun.step):
                run = compile_step(run, begun.state, data.parts, clock, begun.step)
            state, host = train_loop(run, begun.state, begun.host, job.iterator, checkpointer,
                                     metrics_log, clock, stop)
        end, weights = int(state.step), state.weights
        del state
        if host.best_step not in (None, end):
            weights, host = init.best_weights(checkpointer.folder, host, weights)
        finished = finish(data, job, FinalWeights(weights, host, end), clock, stop)
        loggers.result(finished.result)
        return finished
