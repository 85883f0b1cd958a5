"""A run on frozen features: cache them, train every head of every fold at once, score, report.

    features   of all pictures, in config.probe.views views (features.py)
    heads      config.probe.heads x config.probe.lr x folds, in one program (heads.py)
    <head>-lr<rate>/fold_<k>/predictions/{val,test}.npz, head.safetensors
    heads.csv  one row a setting: out-of-fold score, its spread over the folds
    predictions/, result.json, report.html   of the setting that is best out of fold

The setting is chosen by rows that no head was trained on, and only its test score is shown. A run
that was stopped finds its features again and trains the heads anew, which takes minutes at most.
"""

import dataclasses
import logging
from functools import partial
from pathlib import Path

import flax
import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from input_pipeline import sources
from input_pipeline.curriculum import make_stages
from input_pipeline.durations import to_steps
from input_pipeline.long_tail import cut_tail
from input_pipeline.manifest import SPLITS, Manifest, digest
from input_pipeline.resampling import make_order
from input_pipeline.splits import assign_splits, parts_of, save_splits
from train_lib.metrics.scores import log_softmax
from train_lib.optim.optimizers import make_optimizer
from train_lib.optim.schedules import make_schedule
from train_lib.probing import trained_heads as stacked
from train_lib.probing.backbone import make_backbone
from train_lib.probing.feature_cache import Features, cached_features
from train_lib.run_dir import workdirs
from train_lib.run_dir.checkpoints import flat
from train_lib.run_dir.goodput import Clock, goodput
from train_lib.run_dir.metrics_log import Records, write_json
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.progress import bar
from train_lib.training.evaluate import Interrupted, save_predictions, score_split
from train_lib.training.loop import StopSignal
from train_lib.training.preprocess_spec import image_spec

log = logging.getLogger(__name__)
CHUNK = 64  # steps a call of the program: enough to hide its start, few enough to plan ahead


@dataclasses.dataclass(frozen=True)
class Fold:
    """Rows of the whole manifest that train, validate and test in one fold."""

    name: str
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def probe(config: ConfigDict, manifest: Manifest, workdir: Path, began: float | None = None
          ) -> dict:
    """The whole run. Returns result.json, with the seconds of this start (`began`: see Clock).

    Raises:
        ConfigError: a wrong value. Interrupted: told to stop; the features are kept.
    """
    kinds = head_kinds(config)
    manifest, folds = make_folds(config, manifest)
    workdirs.claim(workdir, config, digest(manifest))
    clock, records = Clock(began, 'start'), Records(workdir, size=0, step=0, tensorboard=False)
    with StopSignal() as stop:
        clock.resume({})
        features = _features(config, manifest, folds, clock, stop)
        with clock('step'):
            task, state, definitions = train_heads(config, manifest, folds, kinds, features,
                                                   records, stop)
    records.close()
    log.info('heads    %d heads of %d steps: %.1f s', len(kinds) * len(task.rates) * len(folds),
             task.shares.shape[1], clock.seconds()['step'])
    with clock('eval'):
        table, chosen = _score(config, manifest, folds, kinds, task, state, definitions, features,
                               workdir)
    result = dict(status='done', **chosen, heads=table.to_dict('records'),
                  features=str(features.folder), views=features.views.shape[0] - 1,
                  model=config.model.name, seconds=clock.seconds(),
                  versions=dict(jax=jax.__version__, flax=flax.__version__))
    write_json(workdir / 'result.json', result)
    with clock('report'):
        from train_lib.reporting.run_page import write_report  # loads matplotlib

        path = write_report(workdir, manifest=manifest,
                            read_image=partial(sources.read_image, manifest.root))
    seconds = clock.seconds()
    write_json(workdir / 'result.json', result | dict(seconds=seconds, goodput=goodput(seconds)))
    log.info('report   %s', path)
    return result


def head_kinds(config: ConfigDict) -> list[stacked.HeadKind]:
    """The heads of config.probe.heads.

    Raises:
        ConfigError: an entry without a name, two with one name, or a knob that probing lacks.
    """
    for key, value, plain in (('loss.name', config.loss.name, 'cross_entropy'),
                              ('loss.class_weights.kind', config.loss.class_weights.kind, 'none'),
                              ('mixing', tuple(config.mixing), ()),
                              ('ema.decay', config.ema.decay, 0.0),
                              ('accumulate', config.accumulate, 1),
                              ('guard.skip', config.guard.skip, 0),
                              ('early_stopping.patience', config.early_stopping.patience, None),
                              ('schedule.plateau.patience', config.schedule.plateau.patience, None),
                              ('finetune.table', tuple(config.finetune.table), ()),
                              ('finetune.layer_decay', config.finetune.layer_decay, 1.0),
                              ('finetune.lora.rank', config.finetune.lora.rank, 0),
                              ('eval.adjust_tau', config.eval.adjust_tau, 0.0),
                              ('profile.steps', config.profile.steps, 0)):
        if value != plain:
            raise ConfigError(f'config.{key} = {value!r} has no effect on cached features: leave '
                              f'it at {plain!r}, or train without config.probe.heads.')
    kinds = []
    for i, entry in enumerate(config.probe.heads):
        settings = dict(entry)
        name = settings.pop('name', None)
        if not isinstance(name, str) or not name or name in {kind.name for kind in kinds}:
            raise ConfigError(f'config.probe.heads[{i}].name = {name!r}: give every head a name '
                              f"of its own, as in dict(name='mlp', head='mlp').")
        kinds.append(stacked.HeadKind(name, settings))
    return kinds


def make_folds(config: ConfigDict, manifest: Manifest) -> tuple[Manifest, list[Fold]]:
    """(the manifest in one order for all folds, the folds that config.split asks for)"""
    every = config.split.kind == 'kfold' and str(config.split.fold) == 'all'
    numbers = range(config.split.folds) if every else [config.split.fold]
    base, folds = None, []
    for number in numbers:
        split = config.split.to_dict() | dict(fold=number)
        assigned = assign_splits(manifest, split, seed=config.seed)
        base = assigned if base is None else base  # every row, whatever the tail loses
        assigned = cut_tail(assigned, config.data.long_tail.to_dict(), seed=config.seed)
        index = pd.Index(base.table['id'])
        rows = {name: index.get_indexer(part.table['id'])
                for name, part in parts_of(assigned, split).items()}
        folds.append(Fold(f'fold_{number}' if config.split.kind == 'kfold' else 'fold_0', **rows))
    return base, folds


def _features(config, manifest, folds, clock, stop) -> Features:
    """Loads the backbone, computes what the cache lacks, and lets the backbone go again."""
    backbone = make_backbone(config)
    total, stages = _stages(config, len(folds[0].train))
    steps_an_epoch = len(folds[0].train) / config.batch_size
    views = config.probe.views
    starts = [min(-int(-view * steps_an_epoch // 1), total - 1) for view in range(views)]
    batch = -(-config.eval.batch_size // backbone.mesh.size) * backbone.mesh.size
    with clock('features'):
        return cached_features(
            manifest, image_spec(config, backbone.prepared), stages, starts, backbone.embed,
            backbone.weights, key=backbone.key, seed=config.seed, batch_size=batch,
            folder=Path(config.probe.cache or Path(workdirs.cache_folder()) / 'features'),
            dtype=config.probe.dtype, mesh=backbone.mesh, threads=config.loader.threads,
            cache_mb=config.image.cache_mb, stop=stop)


def _stages(config, examples: int):
    """(steps of a run over so many training examples, its stages)"""
    total = max(_steps(config, examples, config.duration, 'duration'), 1)
    return total, make_stages(config.curriculum, partial(_steps, config, examples, total=total))


def _steps(config, examples: int, duration, key: str, total: int | None = None) -> int:
    duration = duration.to_dict() if isinstance(duration, ConfigDict) else duration
    return to_steps(duration, key=key, examples_per_epoch=examples,
                    batch_size=config.batch_size, total_steps=total)


def _shares(config, examples: int) -> np.ndarray:
    """The learning rate of each step as a share of the setting's, float32 [steps]."""
    total, stages = _stages(config, examples)
    schedule = make_schedule(config.schedule.to_dict() | dict(lr=1.0), total,
                             partial(_steps, config, examples, total=total), stages,
                             batch_size=config.batch_size)
    return np.asarray(jax.jit(jax.vmap(schedule))(np.arange(total)))


def train_heads(config, manifest, folds, kinds, features, records=None, stop=lambda: False):
    """Trains every head. Returns (task, {kind: (params, opt_state)}, {kind: definition}).

    Raises:
        Interrupted: `stop` became true between two chunks.
    """
    shares = [_shares(config, len(fold.train)) for fold in folds]
    longest = max(map(len, shares))
    task = stacked.Task(
        num_features=features.views.shape[-1],
        classes={head: len(names) for head, names in manifest.classes.items()},
        rates=tuple(config.probe.lr) or (config.schedule.lr,),
        shares=np.stack([np.pad(share, (0, longest - len(share))) for share in shares]),
        label_smoothing=config.loss.label_smoothing,
        head_weights=dict(zip(manifest.heads, config.loss.head_weights or
                              [1.0] * len(manifest.heads))), seed=config.seed)
    optimizer = make_optimizer(config.optimizer.to_dict())
    made = {kind.name: stacked.make_heads(kind, task) for kind in kinds}
    definitions = {name: graphdef for name, (graphdef, _) in made.items()}
    state = stacked.start_state({name: params for name, (_, params) in made.items()}, optimizer)
    program = stacked.make_program(definitions, optimizer, task)
    resample = config.resample.to_dict()
    order = [stacked.FoldRows(fold.train, make_order(
        manifest.select(fold.train), resample, seed=config.seed, batch_size=config.batch_size,
        to_steps=partial(_steps, config, len(fold.train), total=len(share)))
        ) for fold, share in zip(folds, shares)]
    labels = {head: manifest.labels(head) for head in manifest.heads}
    weight = manifest.table['weight'].to_numpy() if 'weight' in manifest.table else None
    views, used, slab = features.views.shape[0] - 1, None, None
    for first in bar(range(0, longest, CHUNK), unit=f'x{CHUNK} steps'):
        if stop():
            raise Interrupted
        last = min(first + CHUNK, longest)
        plan, wanted = stacked.plan_chunk(task, order, labels, weight, first, last,
                                          config.batch_size, views)
        if used is None or not np.array_equal(used, wanted):
            slab, used = jax.device_put(features.views[wanted]), wanted
        state, losses = program(state, slab, plan)
        if records:
            records.write(dict(step=last, epoch=last * config.batch_size / len(folds[0].train),
                               split='train', loss=float(np.mean([np.mean(value) for value in
                                                                  losses.values()])),
                               **{f'{name}/loss': float(np.mean(value[..., -1]))
                                  for name, value in losses.items()}))
    return task, state, definitions


def _score(config, manifest, folds, kinds, task, state, definitions, features, workdir):
    """Writes what each head says; returns (the table of settings, scores of the best one)."""
    rows, best = [], None
    rated = [fold for fold in folds if len(fold.val)]
    for kind in kinds:
        for i, rate in enumerate(task.rates):
            name = f'{kind.name}-lr{rate:g}'
            logits = _predict(manifest, folds, definitions[kind.name],
                              jax.tree.map(lambda leaf, i=i: leaf[i], state[kind.name][0]),
                              features, workdir / name)
            pooled = manifest.select(np.concatenate([fold.val for fold in rated])) if rated \
                else None
            found = score_split(
                {head: np.concatenate([logits[fold.name]['val'][head] for fold in rated])
                 for head in manifest.heads}, pooled) if rated else {}
            spread = [score_split(logits[fold.name]['val'], manifest.select(fold.val))['accuracy']
                      for fold in rated]
            rows.append(dict(head=kind.name, lr=rate, name=name,
                             accuracy=found.get('accuracy'), loss=found.get('loss'),
                             folds=len(folds), lowest=min(spread, default=None),
                             highest=max(spread, default=None)))
            log.info('%-24s out of fold  accuracy %.4f  (folds %.4f to %.4f, n %d)', name,
                     found.get('accuracy', np.nan), min(spread, default=np.nan),
                     max(spread, default=np.nan), found.get('n', 0))
            if best is None or (found.get('accuracy') or 0) > (best['found'].get('accuracy') or 0):
                best = dict(name=name, found=found, logits=logits)
    table = pd.DataFrame(rows)
    table.to_csv(workdir / 'heads.csv', index=False)
    chosen = dict(chosen=best['name'])
    if rated:
        key = 'out_of_fold' if len(folds) > 1 else 'val'
        chosen[key] = best['found']
        pooled = manifest.select(np.concatenate([fold.val for fold in rated]))
        save_predictions(workdir / 'predictions' / f'{key}.npz', pooled, {
            head: np.concatenate([best['logits'][fold.name]['val'][head] for fold in rated])
            for head in manifest.heads})
    if len(folds[0].test):
        test = manifest.select(folds[0].test)
        voted = {head: np.log(np.mean([np.exp(log_softmax(best['logits'][fold.name]['test'][head]))
                                       for fold in folds], axis=0) + 1e-12).astype(np.float32)
                 for head in manifest.heads}
        chosen['test'] = score_split(voted, test)
        save_predictions(workdir / 'predictions' / 'test.npz', test, voted)
        log.info('test     accuracy %.4f  (%s, mean probability of %d folds, n %d)',
                 chosen['test']['accuracy'], best['name'], len(folds), len(test))
    save_splits(manifest, workdir / 'split.csv')
    return table, chosen


def _predict(manifest, folds, graphdef, params, features, folder) -> dict:
    """{fold: {split: {head: logits}}} of one setting, written below its folder too."""
    found = {}
    for number, fold in enumerate(folds):
        own = jax.tree.map(lambda leaf, number=number: leaf[number], params)
        home = folder / fold.name
        home.mkdir(parents=True, exist_ok=True)
        save_splits(_of_fold(manifest, fold), home / 'split.csv')
        found[fold.name] = {}
        for split, rows in (('val', fold.val), ('test', fold.test)):
            if not len(rows):
                continue
            logits = stacked.predict_heads(graphdef, own, features.plain[rows], manifest.heads)
            save_predictions(home / 'predictions' / f'{split}.npz', manifest.select(rows), logits)
            found[fold.name][split] = logits
        save_file({name: np.asarray(leaf) for name, leaf in flat(own).items()},
                  home / 'head.safetensors')
    return found


def _of_fold(manifest: Manifest, fold: Fold) -> Manifest:
    """The rows of a fold, with their split there."""
    side = np.full(len(manifest), '', object)
    for name in SPLITS:
        side[getattr(fold, name)] = name
    return manifest.with_column('split', side).select(side != '')
