"""A run on frozen features: cache them, train every head of every fold at once, score, report.

    features   of all images, in config.probe.views views (feature_cache.py)
    heads      config.probe.heads x config.probe.lr x folds, in one program (stacked_heads.py)
    <head>-lr<rate>/fold_<k>/predictions/{val,test}.npz, head.safetensors
    (<head>/fold_<k>/... of heads that are fitted, see nearest_heads.py)
    (of multi-label heads also thresholds.json, fitted on the validation rows of the fold)
    heads.csv  one row per setting: out-of-fold score, and its range over the folds
    predictions/, result.json, report.html   of the setting with the best out-of-fold score

The setting is chosen by config.eval.metric on rows that no head was trained on, and only its test
score is shown. A run that was stopped finds its features again; it trains the heads from the
beginning, which takes minutes at most.
"""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import flax
import jax
from ml_collections import ConfigDict

import train_lib
from input_pipeline import sources
from input_pipeline.atomic_files import write_json
from input_pipeline.curriculum import stage_at
from input_pipeline.errors import DataError, counted
from input_pipeline.manifest import Manifest, digest
from input_pipeline.sources.array_records import packed_as
from models.errors import ModelError
from train_lib.probing.backbone import make_backbone
from train_lib.probing.feature_cache import Features, cached_features
from train_lib.probing.head_scores import Scoring, score_heads
from train_lib.probing.head_training import run_length, train_heads
from train_lib.probing.probe_folds import FoldedData, make_folds
from train_lib.probing.probe_losses import check_losses, probe_losses
from train_lib.probing.probe_spec import ProbeSpec, read_probe_spec
from train_lib.run_dir import ancestors, made_folders, seen_rows, workdirs
from train_lib.run_dir.goodput import Clock, goodput
from train_lib.run_dir.json_files import read_json
from train_lib.run_dir.loggers import Loggers, wanted_loggers
from train_lib.run_dir.metrics_log import METRICS, MetricsLog
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.signals import StopSignal
from train_lib.training import init
from train_lib.training.checks import check_swaps, check_values
from train_lib.training.class_structure import answered_by_median, ordered_heads
from train_lib.training.patience import check_metric
from train_lib.training.preprocess_spec import input_record, preprocess_spec

log = logging.getLogger(__name__)


def probe(config: ConfigDict, manifest: Manifest, workdir: Path, began: float | None = None
          ) -> dict:
    """The whole run.

    Args:
        config, manifest, workdir: of the run.
        began: time.perf_counter() from which on its time counts (None: now).

    Returns:
        The content of result.json, with the seconds of this start.

    Raises:
        ConfigError: a wrong value. Interrupted: told to stop; the features are kept.
    """
    config = init.with_found_weights(config, workdir)
    spec = read_probe_spec(config)
    check_losses(config, spec, manifest)
    ordered = ordered_heads(config, manifest.classes)
    check_metric(config.eval.metric, sets=bool(manifest.label_sets), ordered=bool(ordered))
    check_values(config, 1)  # no device shares a batch with others
    medians = answered_by_median(config, manifest.classes)
    data = make_folds(config, manifest)
    parts = [data.rows_of(fold) for fold in data.folds]
    ancestry = ancestors.of_run(config, workdir, init.digest_of_best)
    for part in parts:
        seen_rows.check(config, ancestry, part, goes_on=(workdir / 'config.json').exists())
    workdirs.compare(workdir, config, digest(data.manifest), rows=data.manifest,
                     range16=data.manifest.range16)
    prepared = input_record(preprocess_spec(config, workdir, say=True))
    clock = Clock(began, 'start')
    with StopSignal() as stop:
        clock.resume({})
        features = load_features(config, spec, data, clock, stop, workdir)
        before = made_folders.names_in(workdir)
        workdirs.claim(workdir, config, digest(data.manifest), rows=data.manifest,
                       range16=data.manifest.range16, compared=True,
                       facts=dict(input=prepared, pretrained=features.pretrained))
        ancestors.save(workdir, ancestry)
        metrics = MetricsLog(workdir, size=0, step=0, tensorboard=False)
        try:
            with clock('step'):
                trained = train_heads(config, spec, data, features, metrics, stop)
        except (ConfigError, DataError, ModelError):  # of a head, which are built there
            metrics.close()
            if 'config.json' not in before:
                made_folders.withdraw(workdir, before)
            raise
    metrics.close()
    heads = len(spec.heads) * len(spec.rates) * len(data.folds)
    if heads:
        log.info('heads    %s of %s: %.1f s', counted(heads, 'head'),
             counted(trained.steps, 'step'), clock.seconds()['step'])
    with clock('eval'):
        table, chosen = score_heads(data, trained, features, workdir, spec.nearest, Scoring(
            ordered, medians, config.eval.metric,
            config.eval.thresholds == 'f1', probe_losses(config, data.manifest)))
    result = dict(status='done', **chosen, heads=table.to_dict('records'),
                  features=str(features.folder), pretrained=features.pretrained,
                  backbone=read_json(features.folder / 'about.json')['weights'],
                  views=features.views.shape[0] - 1,
                  model=config.model.name, seconds=clock.seconds(), version=train_lib.__version__,
                  versions=dict(jax=jax.__version__, flax=flax.__version__),
                  **seen_rows.facts_of_rows(ancestry, parts, grouped=config.split.grouped))
    packed = packed_as(data.manifest)
    if packed is not None:
        result['packed_as'] = packed
    write_json(workdir / 'result.json', result)
    with Loggers(wanted_loggers(config.log), workdir) as loggers:
        loggers.replay(workdir / METRICS)
        loggers.result(result)
    with clock('report'):
        from train_lib.reporting.run_page import write_report  # loads matplotlib

        path = write_report(workdir, manifest=data.manifest,
                            read_image=sources.reader(data.manifest))
    seconds = clock.seconds()
    write_json(workdir / 'result.json', result | dict(seconds=seconds, goodput=goodput(seconds)))
    log.info('report   %s', path)
    return result


def load_features(config: ConfigDict, spec: ProbeSpec, data: FoldedData, clock: Clock,
                  stop: Callable[[], bool], workdir: Path | None = None) -> Features:
    """Opens the cache of features after computing what is missing there. The backbone is loaded
    for that only, and not kept."""
    backbone = make_backbone(config, workdir)
    examples = len(data.folds[0].train)
    total, stages = run_length(config, examples)
    if spec.views:
        check_swaps(config, stages, data.manifest.classes)
        if any(item.swap for stage in stages for item in stage.transforms):
            raise ConfigError('config.curriculum: a flip with swap changes labels, which cached '
                              'features of views do not: leave that flip out, or train without '
                              'config.probe.heads.')
    starts = (math.ceil(view * (examples / config.batch_size)) for view in range(spec.views))
    views = [stages[stage_at(stages, min(start, total - 1))] for start in starts]
    with clock('features'):
        return cached_features(data.manifest, backbone, views, spec.cache, stop)
