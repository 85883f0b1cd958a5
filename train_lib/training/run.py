"""One run from its config to its report: data, model, start, loop, final scores."""

import dataclasses
import logging
import time
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import flax
import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from input_pipeline import sources
from input_pipeline.curation.decisions import apply_decisions
from input_pipeline.kept_splits import split_digest
from input_pipeline.manifest import Manifest, digest
from input_pipeline.products import combine_heads, separate_head
from input_pipeline.readable import check_readable
from train_lib.commands.command_line import Command, config_of_run
from train_lib.commands.plan import show_plan
from train_lib.probing.run_probe import probe
from train_lib.reporting.inputs import errors_a_head, shown_split
from train_lib.reporting.stages import write_stages
from train_lib.run_dir import checkpoints, lock, workdirs
from train_lib.run_dir.checkpoints import Checkpointer, latest_good
from train_lib.run_dir.code_digest import code_digest
from train_lib.run_dir.goodput import Clock, goodput, together
from train_lib.run_dir.metrics_log import METRICS, NoRecords, Records, write_json, write_text
from train_lib.runtime import distributed
from train_lib.runtime.distributed import StopTogether
from train_lib.runtime.errors import CheckpointError, ConfigError, DivergedError
from train_lib.runtime.progress import duration
from train_lib.runtime.sharding import make_mesh
from train_lib.runtime.signals import Left, StopSignal, leaving_at_once
from train_lib.training import init, parameter_table
from train_lib.training.evaluate import (
    Interrupted,
    all_finite,
    predict,
    save_predictions,
    score_split,
)
from train_lib.training.heatmaps import explain_errors, save_heat_maps
from train_lib.training.loop import Stopped, train_loop
from train_lib.training.row_splits import split_rows
from train_lib.training.setup import Data, Job, arrange, assemble, check_values, compile_step
from train_lib.training.step import weights_of

log = logging.getLogger(__name__)
STOPPED = 75


def train(command: Command) -> int:
    """The verb train. Returns the exit code."""
    config = command.config
    if config.plan_only:
        return show_plan(config, load_manifest(config))
    distributed.start(config.distributed)
    workdir = workdirs.choose(command.workdir, command.config_file)
    log.info('workdir  %s', workdir)
    try:
        # The processes of a pod stop together.
        leaving = nullcontext() if distributed.several() else leaving_at_once()
        with leaving, lock.held(workdir):
            run_any(config, load_data(config, workdir), workdir, command.began)
    except (Stopped, Interrupted, Left):
        log.info('Stopped. The same command with --workdir=%s goes on.', workdir)
        return STOPPED
    except DivergedError as error:
        log.error('%s', error)
        return 1
    return 0


def run_any(config: ConfigDict, manifest: Manifest, workdir: Path,
            began: float | None = None) -> None:
    """The run that the config asks for: heads on features, all folds, or one training. The caller
    holds the lock of the workdir.

    Raises:
        Stopped or Interrupted: told to stop; what was saved is found again. DivergedError: the
            training is no longer finite. ConfigError, DataError, ModelError: a user's mistake.
    """
    if config.probe.heads and distributed.several():
        raise ConfigError(f'config.probe.heads asks for heads on stored features, which '
                          f'{jax.process_count()} processes cannot share: start one.')
    if config.probe.heads:
        probe(config, manifest, workdir, began)
    elif config.split.kind == 'kfold' and str(config.split.fold) == 'all':
        train_folds(config, manifest, workdir, began)
    else:
        train_one(config, manifest, workdir, began)


def load_manifest(config: ConfigDict) -> Manifest:
    """The manifest of config.data, with data.decisions obeyed; no picture is opened."""
    data = config.data.to_dict()
    for key in ('separate', 'combine', 'decisions', 'tfds_splits'):
        if not all(isinstance(name, str) for name in data[key]):
            raise ConfigError(f'config.data.{key} = {data[key]!r}: give names between commas.')
    manifest = sources.load_source(data, seed=config.seed)
    if data['separate']:
        manifest = separate_head(manifest, manifest.heads[0], data['separate'])
    if data['combine']:
        manifest = combine_heads(manifest, data['combine'])
    if data['decisions']:
        manifest = apply_decisions(manifest, data['decisions'])
    return manifest


def load_data(config: ConfigDict, workdir: Path | None = None) -> Manifest:
    """The manifest of config.data, with unreadable pictures found before anything else.

    Those that a run in `workdir` was started with stay in it: the loader replaces a picture that
    broke since, and a run that goes on has the same data.
    """
    manifest = load_manifest(config)
    readable = check_readable(manifest, policy=config.data.unreadable,
                              cache_dir=workdirs.cache_folder())
    if len(readable) < len(manifest) and workdir:
        ids = manifest.table['id']
        return manifest.select(ids.isin(readable.table['id']) | ids.isin(workdirs.ids(workdir)))
    return readable


def train_folds(config: ConfigDict, manifest: Manifest, workdir: Path,
                began: float | None = None) -> None:
    """Every fold in a folder of its own, then their out-of-fold scores together.

    `began` is when the time of the first of them begins; the next one's does when it ends.
    """
    config = init.inherit(config, workdir)
    if config.init.resume_from and not (workdir / 'config.json').exists():
        workdirs.check_same(Path(config.init.resume_from), config, digest(manifest),
                            remedy='take only its weights, by config.init.from')
    workdirs.claim(workdir, config, digest(manifest))
    _check_cut(config, manifest, workdir)
    results, logits, rows = [], [], []
    for fold in range(config.split.folds):
        of_fold = _of_fold(config, fold)
        with of_fold.ignore_type():
            if config.init.resume_from:
                # A fold that the other run had not begun begins here, as it would have there.
                source = Path(config.init.resume_from) / f'fold_{fold}'
                begun = checkpoints.committed_steps(source / 'checkpoints')
                of_fold.init.resume_from = str(source) if begun else ''
        log.info('fold %d of %d', fold + 1, config.split.folds)
        result, val, val_logits = train_one(of_fold, manifest, workdir / f'fold_{fold}', began)
        began = time.perf_counter()
        results.append(result)
        rows.append(val.table)
        logits.append(val_logits)
    whole = dataclasses.replace(manifest, table=pd.concat(rows, ignore_index=True))
    pooled = {head: np.concatenate([part[head] for part in logits]) for head in manifest.heads}
    mean_test = [result['test']['accuracy'] for result in results if 'test' in result]
    out_of_fold = score_split(pooled, whole)
    if distributed.is_first():
        save_predictions(workdir / 'predictions' / 'out_of_fold.npz', whole, pooled)
        seconds = together([*(result['seconds'] for result in results),
                            dict(eval=time.perf_counter() - began)])
        write_json(workdir / 'result.json', dict(
            status='done', out_of_fold=out_of_fold, folds=results,
            test_accuracy_mean=float(np.mean(mean_test)) if mean_test else None,
            seconds=seconds, goodput=goodput(seconds)))
    log.info('out of fold  accuracy %.4f  (n %d)', out_of_fold['accuracy'], out_of_fold['n'])


def _of_fold(config: ConfigDict, fold: int) -> ConfigDict:
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.split.fold = fold
    return config


def _check_cut(config: ConfigDict, manifest: Manifest, workdir: Path) -> None:
    """Folds that have begun keep their split, so the others must be cut as they were."""
    source = Path(config.init.resume_from or workdir)
    known = {fold: workdirs.records(workdir / f'fold_{fold}').get('split_digest')
             or workdirs.records(source / f'fold_{fold}').get('split_digest')
             for fold in range(config.split.folds)}
    begun = [fold for fold in known if known[fold]]
    if not begun or len(begun) == len(known):
        return
    table = split_rows(_of_fold(config, begun[0]), manifest, None).table
    if split_digest(table['id'], table['split']) != known[begun[0]]:
        raise ConfigError(f'These versions of the libraries would cut other folds than those that '
                          f'have begun in {source}, which would overlap: use the versions of then, '
                          f'or give a new --workdir.')


def train_one(config: ConfigDict, manifest: Manifest, workdir: Path,
              began: float | None = None) -> tuple[dict, Manifest, dict]:
    """One training run in one workdir, or what is left of it.

    Args:
        config, manifest, workdir: of the run.
        began: time.perf_counter() from which on its time counts (None: now).

    Returns:
        (result.json, the validation rows, their logits); empty rows and logits without validation.
    """
    clock = Clock(began, 'start')
    config = init.inherit(config, workdir)
    mesh = make_mesh(config.mesh)
    check_values(config, mesh.size)
    known = workdir
    if config.init.resume_from and not (workdir / 'config.json').exists():
        known = Path(config.init.resume_from)
    data = arrange(config, manifest, known)
    own = latest_good(workdir / 'checkpoints')
    if own is None and config.init.resume_from:
        init.source_checkpoint(config, data.digest)  # checked before the workdir is claimed
    workdirs.claim(workdir, config, data.digest, data.manifest)
    if own is None and config.init.resume_from:
        distributed.on_first(lambda: init.copy_run(config, workdir, data.digest))
        own = latest_good(workdir / 'checkpoints')
    try:
        with clock.kept(workdir if distributed.is_first() else None, saved=Stopped):
            return _train(config, data, mesh, own, workdir, clock)
    except Exception as error:
        if isinstance(error, FileNotFoundError):
            time.sleep(1)  # who removes the workdir may not be through
        if (workdir / 'config.json').exists():
            raise
        raise CheckpointError(f'The workdir {workdir} is gone, or what lay in it: put it back and '
                              f'start again.') from error


def _train(config: ConfigDict, data: Data, mesh: jax.sharding.Mesh, own: Path | None,
           workdir: Path, clock: Clock) -> tuple[dict, Manifest, dict]:
    """`train_one` in a workdir that is its own, from its checkpoint `own`, if it has one."""
    job = assemble(config, data, mesh, own, workdir)
    run, total = job.run, job.run.total_steps
    if distributed.is_first():
        write_stages(workdir / 'curriculum.png', data.parts['train'], run.stages, job.spec,
                     config.seed)
    _announce(config, data.parts, data.manifest, job.count, total, mesh)
    _overview(job, workdir)

    with StopTogether() if distributed.several() else StopSignal() as stop:
        checkpointer = Checkpointer(workdir / 'checkpoints', config.checkpoint.keep)
        begun = init.begin(config, own, job.state, job.iterator, total)
        clock.resume(begun.host['seconds'])
        open_records = Records if distributed.is_first() else NoRecords
        records = open_records(workdir, size=begun.host['metrics_bytes'], step=begun.step,
                               tensorboard=config.log.tensorboard,
                               kept=own / METRICS if own else None)
        # Whatever happens, nothing is written here once this is over.
        with closing(checkpointer), closing(records), closing(job.iterator):
            if not run.is_over(begun.host, begun.step):
                run = compile_step(run, begun.state, data.parts, clock)
            state, host = train_loop(run, begun.state, begun.host, job.iterator, checkpointer,
                                     records, clock, stop)
        end, weights = int(state['step']), weights_of(state)
        del state
        if host['best_step'] not in (None, end):
            weights, host = init.best_weights(checkpointer.folder, host, weights)
        return _finish(config, run, weights, end, host, data.parts, job, data.manifest, clock,
                       stop,
                       dict(parameters=sum(job.sizes), trained_parameters=job.sizes[0],
                            data_digest=data.digest, code_digest=code_digest(),
                            input=dataclasses.asdict(job.prepared),
                            pictures_replaced=len(job.replaced)))


def _announce(config, parts, manifest, count, total, mesh) -> None:
    classes = ', '.join(f'{len(names)} {head}' if len(manifest.heads) > 1 else f'{len(names)}'
                        for head, names in manifest.classes.items())
    log.info('data     %s train, %s val, %s test images; %s classes%s',
             *(f'{len(parts[name]):,}' for name in ('train', 'val', 'test')), classes,
             f'; {manifest.table["group"].nunique()} groups' if 'group' in manifest.table else '')
    log.info('model    %s, %s, %s, %s', config.model.name, count, config.precision,
             describe_devices(mesh))
    log.info('plan     %s steps of %d, %.4g epochs', f'{total:,}', config.batch_size,
             total * config.batch_size / len(parts['train']))


def _overview(job: Job, workdir: Path) -> None:
    parameters = parameter_table.parameters_of(job.state, job.rates, job.decay)
    for line in parameter_table.summary(parameters):
        log.info('         %s', line)
    if distributed.is_first():
        write_text(workdir / 'parameters.txt', parameter_table.table(parameters))


def describe_devices(mesh) -> str:
    """Such as '8 x NVIDIA H100'."""
    devices = mesh.devices.flatten()
    return f'{len(devices)} x {devices[0].device_kind}'


def _finish(config, run, weights, end, host, parts, job, manifest, clock, stop, facts
            ) -> tuple[dict, Manifest, dict]:
    """Scores every split with these weights; writes predictions, result.json, report.html.

    Raises:
        DivergedError: they give logits that are not finite.
    """
    found, logits = {}, {}
    with clock('eval'):
        for name, split in job.evals.items():
            logits[name] = run.adjust(predict(run.eval_step, weights, split, run.mesh, stop))
            if not all_finite(logits[name]):
                raise DivergedError(f'The logits of the {name} pictures are not finite: lower '
                                    f'config.schedule.lr, lengthen the warm-up or clip harder.')
            found[name] = score_split(logits[name], split.manifest, run.losses)
    result = dict(
        status='done', **found, steps=end, epochs=round(run.epoch(end), 4),
        best_step=host['best_step'] or end, stopped_early=end < run.total_steps,
        steps_skipped=host['guard']['skipped'], rollbacks=host['guard']['rollbacks'],
        **facts, model=config.model.name, device=describe_devices(run.mesh),
        versions=dict(jax=jax.__version__, flax=flax.__version__))
    if distributed.is_first():
        for name in logits:
            save_predictions(run.workdir / 'predictions' / f'{name}.npz', parts[name], logits[name])
        result['seconds'] = clock.seconds()
        write_json(run.workdir / 'result.json', result)
    with clock('report'):
        _heat_maps(config, job, weights, parts, logits)
    if distributed.is_first():
        _write(config, run, result, logits, manifest, clock)
    return result, parts['val'], logits.get('val', {})


def _heat_maps(config, job, weights, parts, logits) -> None:
    """Writes heatmaps.npz: where the model looked in the errors that the report will show."""
    path = job.run.workdir / 'heatmaps.npz'
    if distributed.is_first():
        path.unlink(missing_ok=True)  # of a shorter run
    if not config.report.heat_maps:
        return
    split = shown_split({name: [part.labels(head) for head in part.heads]
                         for name, part in parts.items() if name in logits})
    if not split:
        return
    found = explain_errors(
        job.heat_step, weights, parts[split], logits[split], job.spec, job.run.mesh,
        most=errors_a_head(config.report.errors, len(logits[split])),
        threads=config.loader.threads, unreadable=config.data.unreadable)
    if distributed.is_first():
        save_heat_maps(path, found)


def _write(config, run, result, logits, manifest, clock) -> None:
    with clock('report'):
        from train_lib.reporting.run_page import (
            write_report,  # matplotlib: not before the first step
        )

        path = write_report(run.workdir, manifest=manifest,
                            read_image=partial(sources.read_image, manifest.root),
                            max_errors=config.report.errors)
    for name in ('val', 'test'):
        if name in logits:
            found = result[name]
            log.info('%-5s accuracy %.4f  f1 %.4f  nll %.4f  (n %d)', name,
                     found['accuracy'], found['f1_macro'], found.get('nll', found['loss']),
                     found['n'])
    log.info('report   %s', path)
    seconds = clock.seconds()
    result |= dict(seconds=seconds, goodput=goodput(seconds))
    log.info('time     %s, %.0f %% of it steps that count', duration(seconds['total']),
             100 * result['goodput'])
    write_json(run.workdir / 'result.json', result)


def report(command: Command) -> int:
    """The verb report: writes report.html of a workdir anew, from what lies in it."""
    workdir = command.workdir
    config = command.config or config_of_run(workdir)
    manifest = split_rows(config, load_data(config, workdir), workdir)
    from train_lib.reporting.run_page import write_report

    path = write_report(workdir, manifest=manifest,
                        read_image=partial(sources.read_image, manifest.root),
                        max_errors=config.report.errors)
    log.info('report   %s', path)
    return 0
