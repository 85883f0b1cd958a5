"""The folds of a k-fold run, one after another, and their out-of-fold scores."""

import dataclasses
import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

import train_lib
from input_pipeline import sources
from input_pipeline.atomic_files import write_json
from input_pipeline.errors import DataError
from input_pipeline.kept_splits import split_digest
from input_pipeline.manifest import Manifest, digest
from input_pipeline.splits import several_folds
from models.errors import ModelError
from train_lib.metrics.thresholds import by_class
from train_lib.run_dir import ancestors, checkpoints, made_folders, seen_rows, workdirs
from train_lib.run_dir.goodput import goodput, together
from train_lib.run_dir.json_files import read_json
from train_lib.run_dir.loggers import Loggers, wanted_loggers
from train_lib.runtime import distributed
from train_lib.runtime.errors import ConfigError
from train_lib.training import init
from train_lib.training.class_structure import (
    answered_by_median,
    ordered_heads,
    say_structure,
    with_structure,
)
from train_lib.training.data import split_data
from train_lib.training.evaluate import (
    fitted_thresholds,
    save_predictions,
    say_set_scores,
    score_split,
)
from train_lib.training.finish import Finished
from train_lib.training.preprocess_spec import input_record, preprocess_spec
from train_lib.training.row_splits import split_rows
from train_lib.training.run import train_one
from train_lib.training.teaching import is_taught

log = logging.getLogger(__name__)


def train_folds(config: ConfigDict, manifest: Manifest, workdir: Path,
                began: float | None = None) -> None:
    """Trains each fold that config.split.fold names in a folder of its own, then scores all
    out-of-fold predictions together.

    `began` is when the time of the first fold begins; the next one's begins when that one ends.
    """
    config = init.inherit(config, workdir)
    if config.init.resume_from and not (workdir / 'config.json').exists():
        workdirs.check_same(Path(config.init.resume_from), config, digest(manifest),
                            remedy='take only its weights, by config.init.from', rows=manifest)
    _check_ancestors(config, manifest, workdir)
    workdirs.compare(workdir, config, digest(manifest), range16=manifest.range16, rows=manifest)
    prepared = input_record(preprocess_spec(config, workdir))
    _check_cut(config, manifest, workdir)
    # A start that the first fold refuses changes nothing here either.
    claim = lambda: workdirs.claim(workdir, config, digest(manifest), range16=manifest.range16,
                                   rows=manifest, facts=dict(input=prepared), compared=True)
    finished: list[Finished] = []
    before = made_folders.names_in(workdir)
    numbers = _numbers(config)
    for place, fold in enumerate(numbers):
        of_fold = _of_fold(config, fold)
        with of_fold.ignore_type():
            if config.init.resume_from:
                # A fold that the other run had not begun starts fresh here, as it would have there.
                source = Path(config.init.resume_from) / f'fold_{fold}'
                begun = checkpoints.committed_steps(source / 'checkpoints')
                of_fold.init.resume_from = str(source) if begun else ''
        log.info('fold %d of %d%s', place + 1, len(numbers),
                 '' if fold == place else f': number {fold}')
        try:
            finished.append(train_one(of_fold, manifest, workdir / f'fold_{fold}', began,
                                      None if finished else claim))
        except (ConfigError, DataError, ModelError):
            if not finished and 'config.json' not in before and not distributed.several() \
                    and not any(workdir.glob('fold_*')):
                made_folders.withdraw(workdir, before)
            raise
        began = time.perf_counter()
    results = [each.result for each in finished]
    whole = dataclasses.replace(manifest, table=pd.concat([each.val.table for each in finished],
                                                          ignore_index=True))
    pooled = {head: np.concatenate([each.val_logits[head] for each in finished])
              for head in manifest.heads}
    mean_test = [result['test']['accuracy'] for result in results if 'test' in result]
    ended = time.perf_counter()
    thresholds = fitted_thresholds(whole, pooled) if config.eval.thresholds == 'f1' else {}
    out_of_fold = with_structure(
        score_split(pooled, whole, thresholds=dict.fromkeys(thresholds)), pooled, whole,
        ordered_heads(config, whole.classes))
    if distributed.is_first():
        save_predictions(workdir / 'predictions' / 'out_of_fold.npz', whole, pooled,
                         thresholds=thresholds, medians=answered_by_median(config, whole.classes))
        seconds = together([*(result['seconds'] for result in results),
                            dict(eval=time.perf_counter() - ended)])
        result = dict(
            status='done', out_of_fold=out_of_fold, folds=results,
            test_accuracy_mean=float(np.mean(mean_test)) if mean_test else None,
            seconds=seconds, goodput=goodput(seconds), version=train_lib.__version__,
            **seen_rows.facts_of_folds(results))
        if thresholds:
            result['thresholds'] = {head: by_class(values, whole.classes[head])
                                    for head, values in thresholds.items()}
        write_json(workdir / 'result.json', result)
        with Loggers(wanted_loggers(config.log), workdir) as loggers:
            loggers.result(result)
        report = _write_report(config, manifest, workdir)
    log.info('out of fold  accuracy %.4f  (n %d)', out_of_fold['accuracy'], out_of_fold['n'])
    say_set_scores('folds', out_of_fold)
    say_structure('folds', out_of_fold)
    if distributed.is_first():
        log.info('report   %s', report)


def _write_report(config: ConfigDict, manifest: Manifest, workdir: Path) -> Path:
    """Writes report.html from the files of the run, and its seconds into result.json."""
    from train_lib.reporting.folds_page import write_folds_report  # loads matplotlib

    began = time.perf_counter()
    path = write_folds_report(workdir, manifest=manifest, read_image=sources.reader(manifest),
                              max_errors=config.report.errors)
    result = read_json(workdir / 'result.json')
    seconds = together([result['seconds'], dict(report=time.perf_counter() - began)])
    write_json(workdir / 'result.json',
               result | dict(seconds=seconds, goodput=goodput(seconds)))
    return path


def _numbers(config: ConfigDict) -> tuple[int, ...]:
    return several_folds(config.split) or ()


def _of_fold(config: ConfigDict, fold: int) -> ConfigDict:
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.split.fold = fold
    return config


def _check_ancestors(config: ConfigDict, manifest: Manifest, workdir: Path) -> None:
    """Refuses before the first fold trains what one of the folds that are still to begin would
    refuse."""
    if not (config.init['from'] or config.init.pretrained or config.teacher.workdir
            or is_taught(config)):
        return
    source = Path(config.init.resume_from or workdir)
    for fold in _numbers(config):
        if any((path / f'fold_{fold}/config.json').exists() for path in (workdir, source)):
            continue
        of_fold = _of_fold(config, fold)
        start = ancestors.source_of(of_fold)
        if start is not None:
            init.best_of(start)  # the source may have other folds than those that train here
        found = ancestors.of_start(of_fold, init.digest_of_best)
        if found.rows:
            seen_rows.check(of_fold, found, split_rows(of_fold, manifest, None))
        if is_taught(config):
            split_data(of_fold, manifest)  # reads what it learns from others


def _check_cut(config: ConfigDict, manifest: Manifest, workdir: Path) -> None:
    """Folds that have begun keep their split, so the others must come from the same split."""
    source = Path(config.init.resume_from or workdir)
    known = {fold: workdirs.start_facts(workdir / f'fold_{fold}').get('split_digest')
             or workdirs.start_facts(source / f'fold_{fold}').get('split_digest')
             for fold in _numbers(config)}
    begun = [fold for fold in known if known[fold]]
    if not begun or len(begun) == len(known):
        return
    table = split_rows(_of_fold(config, begun[0]), manifest, None).table
    if split_digest(table['id'], table['split']) != known[begun[0]]:
        raise ConfigError(f'These versions of the libraries would cut other folds than those that '
                          f'have begun in {source}, and they would overlap: reinstall the versions '
                          f'it was started with, or give a new --workdir.')
