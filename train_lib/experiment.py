"""One run from its config to its report: data, model, start, loop, final scores."""

import dataclasses
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import nnx
from ml_collections import ConfigDict

import models
from input_pipeline import loader, sources
from input_pipeline.curriculum import make_stages
from input_pipeline.descriptors import with_clusters
from input_pipeline.durations import to_steps
from input_pipeline.long_tail import cut_tail
from input_pipeline.manifest import Manifest, class_counts, digest
from input_pipeline.products import combine_heads, separate_head
from input_pipeline.readable import check_readable
from input_pipeline.resampling import make_order
from input_pipeline.splits import assign_splits, parts_of, save_splits
from input_pipeline.warp import BORDERS
from train_lib import finetuning, start, workdirs
from train_lib.checkpoints import Checkpointer, latest_good
from train_lib.command_line import Command
from train_lib.errors import ConfigError
from train_lib.evaluation import EvalSplit, Interrupted, predict, save_predictions, score_split
from train_lib.loop import DivergedError, Every, Run, Stopped, StopSignal, train_loop
from train_lib.mixing import make_mixings
from train_lib.objectives import adjust, objectives
from train_lib.optimizers import make_optimizer
from train_lib.preparation import DTYPES, image_spec, prepared_for
from train_lib.probing.run import probe
from train_lib.progress import Clock
from train_lib.records import Records, write_json
from train_lib.reporting.report import write_report
from train_lib.reporting.stages import write_stages
from train_lib.schedules import make_schedule
from train_lib.sharding import batch_sharding, make_mesh, replicate
from train_lib.step import make_eval_step, make_normalise, make_state, make_train_step, weights_of

log = logging.getLogger(__name__)
STOPPED = 75


def train(command: Command) -> int:
    """The verb train. Returns the exit code."""
    config = command.config
    workdir = command.workdir or workdirs.new(command.config_file)
    log.info('workdir  %s', workdir)
    manifest = load_data(config, workdir)
    fold = str(config.split.fold)
    try:
        if config.probe.heads:
            probe(config, manifest, workdir)
        elif config.split.kind == 'kfold' and fold == 'all':
            train_folds(config, manifest, workdir)
        else:
            train_one(config, manifest, workdir)
    except (Stopped, Interrupted):
        log.info('Stopped. The same command with --workdir=%s goes on.', workdir)
        return STOPPED
    except DivergedError as error:
        log.error('%s', error)
        return 1
    return 0


def load_data(config: ConfigDict, workdir: Path | None = None) -> Manifest:
    """The manifest of config.data, with unreadable pictures found before anything else.

    Those that a run in `workdir` was started with stay in it: the loader replaces a picture that
    broke since, and a run that goes on has the same data.
    """
    data = config.data.to_dict()
    manifest = sources.load_source(data, seed=config.seed)
    if data['separate']:
        manifest = separate_head(manifest, manifest.heads[0], data['separate'])
    if data['combine']:
        manifest = combine_heads(manifest, data['combine'])
    readable = check_readable(manifest, policy=data['unreadable'],
                              cache_dir=workdirs.cache_folder())
    if len(readable) < len(manifest) and workdir:
        ids = manifest.table['id']
        return manifest.select(ids.isin(readable.table['id']) | ids.isin(workdirs.ids(workdir)))
    return readable


def train_folds(config: ConfigDict, manifest: Manifest, workdir: Path) -> None:
    """Every fold in a folder of its own, then their out-of-fold scores together."""
    workdirs.claim(workdir, config, digest(manifest))
    results, logits, rows = [], [], []
    for fold in range(config.split.folds):
        of_fold = config.copy_and_resolve_references()
        with of_fold.ignore_type():
            of_fold.split.fold = fold
        log.info('fold %d of %d', fold + 1, config.split.folds)
        result, val, val_logits = train_one(of_fold, manifest, workdir / f'fold_{fold}')
        results.append(result)
        rows.append(val.table)
        logits.append(val_logits)
    whole = dataclasses.replace(manifest, table=pd.concat(rows, ignore_index=True))
    pooled = {head: np.concatenate([part[head] for part in logits]) for head in manifest.heads}
    save_predictions(workdir / 'predictions' / 'out_of_fold.npz', whole, pooled)
    mean_test = [result['test']['accuracy'] for result in results if 'test' in result]
    out_of_fold = score_split(pooled, whole)
    write_json(workdir / 'result.json', dict(
        status='done', out_of_fold=out_of_fold, folds=results,
        test_accuracy_mean=float(np.mean(mean_test)) if mean_test else None))
    log.info('out of fold  accuracy %.4f  (n %d)', out_of_fold['accuracy'], out_of_fold['n'])


def make_model(config: ConfigDict, classes: Mapping[str, tuple]) -> nnx.Module:
    """The model of config.model for these classes, with its image size if it has one."""
    settings = {key: value for key, value in config.model.to_dict().items() if key != 'name'}
    known = models.model_settings(config.model.name)
    if 'img_size' in known:
        settings.setdefault('img_size', config.image.size)
    if 'dtype' in known:
        settings.setdefault('dtype', DTYPES[config.precision])
    sizes = {head: len(names) for head, names in classes.items()}
    num_classes = sizes if len(sizes) > 1 else next(iter(sizes.values()))
    return models.create_model(config.model.name, num_classes=num_classes,
                               rngs=nnx.Rngs(config.seed), **settings)


def _check_values(config: ConfigDict, devices: int) -> None:
    for key, value, allowed in (
            ('precision', config.precision, DTYPES),
            ('image.border', config.image.border, BORDERS),
            ('eval.metric', config.eval.metric, ('accuracy', 'loss'))):
        if value not in allowed:
            raise ConfigError(f'config.{key} = {value!r}: choose one of {", ".join(allowed)}.')
    for key, value in (('batch_size', config.batch_size), ('image.size', config.image.size),
                       ('eval.batch_size', config.eval.batch_size)):
        if value < 1:
            raise ConfigError(f'config.{key} = {value}: give 1 or more.')
    if config.eval.adjust_tau and config.loss.name in ('balanced_softmax', 'logit_adjustment'):
        raise ConfigError(f'config.eval.adjust_tau = {config.eval.adjust_tau} and config.loss.name '
                          f'= {config.loss.name!r} would adjust for the class sizes twice: '
                          f'keep one of them.')
    if config.batch_size % devices:
        raise ConfigError(f'config.batch_size = {config.batch_size} cannot be shared by '
                          f'{devices} devices: give a multiple of {devices}.')


def train_one(config: ConfigDict, manifest: Manifest, workdir: Path
              ) -> tuple[dict, Manifest, dict]:
    """One training run in one workdir, or what is left of it.

    Returns:
        (result.json, the validation rows, their logits); empty rows and logits without validation.
    """
    mesh = make_mesh(config.mesh)
    _check_values(config, mesh.size)
    manifest = assign_splits(manifest, config.split.to_dict(), seed=config.seed)
    manifest = cut_tail(manifest, config.data.long_tail.to_dict(), seed=config.seed)
    data_digest = digest(manifest)
    workdirs.claim(workdir, config, data_digest)
    save_splits(manifest, workdir / 'split.csv')
    parts = parts_of(manifest, config.split)
    if config.resample.kind == 'cluster' and not config.resample.column:
        parts['train'] = with_clusters(parts['train'], config.resample.head, config.resample.k,
                                       config.seed)

    steps_of = partial(_steps, config, len(parts['train']))
    total = max(steps_of(config.duration, 'duration'), 1)
    stages = make_stages(config.curriculum, partial(steps_of, total=total))
    schedule = make_schedule(config.schedule.to_dict(), total, partial(steps_of, total=total),
                             stages, batch_size=config.batch_size)
    prepared = prepared_for(config)
    spec = image_spec(config, prepared)
    evals = _eval_splits(config, parts, spec, mesh.size)
    write_stages(workdir / 'curriculum.png', parts['train'], stages, spec, config.seed)

    model = make_model(config, manifest.classes)
    own = latest_good(workdir / 'checkpoints')
    if own is None:
        start.load_pretrained(config, model)
    rules = finetuning.prepare(model, config.finetune.to_dict(), config.seed)
    count = finetuning.describe(model, rules)
    graphdef, params, frozen, rest = finetuning.split(model, rules)
    rates, decay = finetuning.factors(params, rules)
    optimizer = make_optimizer(config.optimizer.to_dict(), decay, getattr(model, 'scan', False))
    del model
    normalise = make_normalise(prepared.mean, prepared.std, DTYPES[config.precision])
    heads = manifest.heads
    counts = {head: class_counts(parts['train'], head) for head in heads}
    losses = objectives(config, manifest.classes, counts, partial(steps_of, total=total))
    mixings = make_mixings(config.mixing, manifest.classes, partial(steps_of, total=total))
    run = Run(
        workdir=workdir, total_steps=total, batch_size=config.batch_size,
        image_size=config.image.size, examples_per_epoch=len(parts['train']),
        every=Every(*(max(steps_of(config[key].every, f'{key}.every', total=total), 1)
                      for key in ('log', 'eval', 'checkpoint'))),
        heads=heads, stages=stages, schedule=schedule,
        train_step=make_train_step(graphdef, optimizer, schedule, normalise, heads=heads,
                                   seed=config.seed, losses=losses,
                                   head_weights=config.loss.head_weights, mixings=mixings,
                                   rates=rates),
        eval_step=make_eval_step(graphdef, normalise, heads),
        val=evals.get('val'), metric=config.eval.metric,
        losses=losses, adjust=partial(adjust, counts=counts, tau=config.eval.adjust_tau),
        mesh=mesh)

    shard = (jax.process_index(), jax.process_count())
    order = make_order(parts['train'], config.resample.to_dict(), seed=config.seed,
                       batch_size=config.batch_size, to_steps=partial(steps_of, total=total))
    replaced: dict[int, int] = {}
    iterator = loader.train_iterator(
        parts['train'], spec, stages, steps=total, batch_size=config.batch_size, seed=config.seed,
        order=order, shard=shard, threads=config.loader.threads, workers=config.loader.workers,
        prefetch=config.loader.prefetch, cache_mb=config.image.cache_mb,
        unreadable=config.data.unreadable, replaced=replaced)
    state = replicate(make_state(params, rest, optimizer, heads, frozen), mesh)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, frozen)]
    _announce(config, parts, manifest, count, total, mesh)

    with StopSignal() as stop:
        checkpointer = Checkpointer(workdir / 'checkpoints', config.checkpoint.keep)
        begun = start.begin(config, own, state, iterator, total)
        clock = Clock(begun.host['seconds'])
        records = Records(workdir, size=begun.host['metrics_bytes'], step=begun.step,
                          tensorboard=config.log.tensorboard)
        try:
            if begun.step < total:
                run = _compile(run, begun.state, parts, clock)
            state, host = train_loop(run, begun.state, begun.host, iterator, checkpointer, records,
                                     clock, stop)
            checkpointer.close()
        finally:
            iterator.close()
            records.close()
        if host['best_step'] not in (None, total):
            state = state | start.best_weights(checkpointer.folder, host, state)
        return _finish(config, run, state, host, parts, evals, manifest, clock, stop,
                       dict(parameters=sum(sizes), trained_parameters=sizes[0],
                            data_digest=data_digest, input=dataclasses.asdict(prepared),
                            pictures_replaced=len(replaced)))


def _steps(config: ConfigDict, examples: int, duration, key: str, total: int | None = None) -> int:
    duration = duration.to_dict() if isinstance(duration, ConfigDict) else duration
    return to_steps(duration, key=key, examples_per_epoch=examples,
                    batch_size=config.batch_size, total_steps=total)


def _eval_splits(config: ConfigDict, parts: Mapping[str, Manifest], spec: loader.ImageSpec,
                 devices: int) -> dict[str, EvalSplit]:
    """The splits that have rows, all with one batch size, so that one program serves them."""
    processes = jax.process_count()
    largest = max(len(parts['val']), len(parts['test']), 1)
    batch_size = -(-min(config.eval.batch_size, largest) // devices) * devices
    make = partial(loader.eval_dataset, spec=spec, batch_size=batch_size,
                   shard=(jax.process_index(), processes), threads=config.loader.threads,
                   cache_mb=config.image.cache_mb, unreadable=config.data.unreadable)
    return {name: EvalSplit(part, make(part)) for name, part in parts.items() if len(part)}


def _compile(run: Run, state: dict, parts: Mapping[str, Manifest], clock: Clock) -> Run:
    """The training step compiled ahead of its first batch, so that its time is known."""
    def spec(shape, dtype):
        return jax.ShapeDtypeStruct((run.batch_size, *shape), dtype,
                                    sharding=batch_sharding(run.mesh))

    image = run.image_size
    batch = {'image': spec((image, image, 3), jnp.uint8)}
    batch |= {f'label/{head}': spec((), jnp.int32) for head in run.heads}
    if 'weight' in parts['train'].table:
        batch['weight'] = spec((), jnp.float32)
    with clock('compile'):
        compiled = run.train_step.lower(state, batch).compile()
    return dataclasses.replace(run, train_step=compiled)


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


def describe_devices(mesh) -> str:
    """Such as '8 x NVIDIA H100'."""
    devices = mesh.devices.flatten()
    return f'{len(devices)} x {devices[0].device_kind}'


def _finish(config, run, state, host, parts, evals, manifest, clock, stop, facts
            ) -> tuple[dict, Manifest, dict]:
    """Scores every split with the best weights; writes predictions, result.json, report.html."""
    found, logits = {}, {}
    with clock('eval'):
        for name, split in evals.items():
            logits[name] = run.adjust(predict(run.eval_step, weights_of(state), split, run.mesh,
                                              stop))
            found[name] = score_split(logits[name], split.manifest, run.losses)
    for name in logits:
        if jax.process_index() == 0:
            save_predictions(run.workdir / 'predictions' / f'{name}.npz', parts[name], logits[name])
    total = run.total_steps
    result = dict(
        status='done', **found, steps=total, epochs=round(run.epoch(total), 4),
        best_step=host['best_step'] or total, seconds=clock.seconds(),
        **facts, model=config.model.name, device=describe_devices(run.mesh),
        versions=dict(jax=jax.__version__, flax=flax.__version__))
    write_json(run.workdir / 'result.json', result)
    with clock('report'):
        path = write_report(run.workdir, manifest=manifest,
                            read_image=partial(sources.read_image, manifest.root))
    for name in ('val', 'test'):
        if name in found:
            log.info('%-5s accuracy %.4f  f1 %.4f  nll %.4f  (n %d)', name,
                     found[name]['accuracy'], found[name]['f1_macro'],
                     found[name].get('nll', found[name]['loss']), found[name]['n'])
    log.info('report   %s', path)
    result['seconds'] = clock.seconds()
    write_json(run.workdir / 'result.json', result)
    return result, parts['val'], logits.get('val', {})


def report(command: Command) -> int:
    """The verb report: writes report.html of a workdir anew, from what lies in it."""
    workdir = command.workdir
    config = command.config or workdirs.saved_config(workdir)
    manifest = assign_splits(load_data(config, workdir), config.split.to_dict(), seed=config.seed)
    manifest = cut_tail(manifest, config.data.long_tail.to_dict(), seed=config.seed)
    path = write_report(workdir, manifest=manifest,
                        read_image=partial(sources.read_image, manifest.root))
    log.info('report   %s', path)
    return 0
