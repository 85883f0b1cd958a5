"""The end of a run: every split scored; predictions, heat maps, result.json and report.html."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import numpy as np

import train_lib
from input_pipeline import sources
from input_pipeline.atomic_files import write_json
from input_pipeline.manifest import Manifest
from input_pipeline.sources.array_records import packed_as
from train_lib.metrics.thresholds import by_class
from train_lib.reporting.inputs import errors_per_head, shown_split
from train_lib.run_dir import seen_rows, starting_weights
from train_lib.run_dir.code_digest import code_digest
from train_lib.run_dir.digests import identity
from train_lib.run_dir.goodput import Clock, goodput
from train_lib.runtime import distributed
from train_lib.runtime.errors import DivergedError
from train_lib.runtime.progress import duration
from train_lib.training.class_structure import say_structure, with_structure
from train_lib.training.data import Data
from train_lib.training.evaluate import (
    all_finite,
    fitted_thresholds,
    predict,
    save_predictions,
    say_set_scores,
    score_split,
)
from train_lib.training.heatmaps import explain_errors, save_heat_maps
from train_lib.training.overview import describe_devices
from train_lib.training.preprocess_spec import input_record
from train_lib.training.run_spec import RunSpec
from train_lib.training.setup import Job
from train_lib.training.state import HostState, Weights
from train_lib.training.teaching import FACT

log = logging.getLogger(__name__)
Logits = Mapping[str, np.ndarray]  # by head, float32 [N, C]


@dataclasses.dataclass(frozen=True)
class FinalWeights:
    """The weights that count, the host state at the end, and the last step."""

    weights: Weights
    host: HostState
    step: int


class Finished(NamedTuple):
    """A finished run: result.json, the validation rows and their logits by head; no rows and no
    logits without a validation split."""

    result: dict
    val: Manifest
    val_logits: Logits


def finish(data: Data, job: Job, final: FinalWeights, clock: Clock, stop: Callable[[], bool]
           ) -> Finished:
    """Scores every split with these weights; writes predictions, result.json, report.html.

    Raises:
        DivergedError: they give logits that are not finite.
        Interrupted: told to stop.
    """
    run, host = job.run, final.host
    with clock('eval'):
        logits = _predict_all(job, final.weights, stop)
        thresholds = fitted_thresholds(data.parts['val'], logits.get('val', {})) \
            if 'val' in logits and run.scoring.fit_thresholds else {}
        found = {name: with_structure(
            score_split(logits[name], split.manifest, run.scoring.losses,
                        dict.fromkeys(thresholds) if name == 'val' else thresholds),
            logits[name], split.manifest, run.scoring.ordered)
            for name, split in job.evals.items()}
    result: dict[str, Any] = dict(
        status='done', **found, steps=final.step, epochs=round(run.timing.epoch(final.step), 4),
        best_step=host.best_step or final.step,
        stopped_early=final.step < run.timing.total_steps,
        steps_skipped=host.guard.skipped, rollbacks=host.guard.rollbacks,
        parameters=job.parameters.trained + job.parameters.frozen,
        trained_parameters=job.parameters.trained, data_digest=data.digest,
        code_digest=code_digest(), input=input_record(run.inputs.preprocess),
        pretrained=starting_weights.of_run(run.workdir),
        pictures_replaced=len(job.replaced), model=run.outputs.model,
        device=describe_devices(run.programs.mesh), version=train_lib.__version__,
        versions=dict(jax=jax.__version__, flax=flax.__version__),
        **seen_rows.facts(run.workdir))
    if data.unlabelled is not None:
        result['unlabelled'] = data.unlabelled.facts()
    if data.taught:
        result[FACT] = data.taught.facts
    if thresholds:
        result['thresholds'] = {head: by_class(values, data.manifest.classes[head])
                                for head, values in thresholds.items()}
    packed = packed_as(data.manifest)
    if packed is not None:  # what other pictures have to go through as well
        result['packed_as'] = packed
    if distributed.is_first():
        made_with = run.workdir / 'checkpoints' / str(result['best_step'])
        result['checkpoint'] = identity(made_with) if made_with.exists() else ''
        for name in logits:
            save_predictions(run.workdir / 'predictions' / f'{name}.npz', data.parts[name],
                             logits[name], result['checkpoint'], thresholds,
                             run.scoring.medians)
        result['seconds'] = clock.seconds()
        write_json(run.workdir / 'result.json', result)
    with clock('report'):
        _write_heat_maps(data, job, final.weights, logits)
    if distributed.is_first():
        with clock('report'):
            report = _write_report(data, run)
        _log_scores({name: result[name] for name in ('val', 'test') if name in logits}, report)
        seconds = clock.seconds()
        result |= dict(seconds=seconds, goodput=goodput(seconds))
        log.info('time     %s, goodput %.0f %%', duration(seconds['total']),
                 100 * result['goodput'])
        write_json(run.workdir / 'result.json', result)
    return Finished(result, data.parts['val'], logits.get('val', {}))


def _predict_all(job: Job, weights: Weights, stop: Callable[[], bool]) -> dict[str, Logits]:
    """{split: logits as they are scored}"""
    programs, logits = job.run.programs, {}
    for name, split in job.evals.items():
        logits[name] = job.run.scoring.adjust(
            predict(programs.eval_step, weights, split, programs.mesh, stop))
        if not all_finite(logits[name]):
            raise DivergedError(f'The logits of the {name} pictures are not finite: lower '
                                f'config.schedule.lr, lengthen the warm-up or clip harder.')
    return logits


def _write_heat_maps(data: Data, job: Job, weights: Weights, logits: Mapping[str, Logits]
                     ) -> None:
    """Writes heatmaps.npz: where the model looked in the errors that the report will show."""
    outputs, programs, inputs = job.run.outputs, job.run.programs, job.run.inputs
    path = job.run.workdir / 'heatmaps.npz'
    if distributed.is_first():
        path.unlink(missing_ok=True)  # of a shorter run
    if not outputs.heat_maps:
        return
    split = shown_split({name: [part.numbers(head) for head in part.heads]
                         for name, part in data.parts.items() if name in logits})
    if not split:
        return
    found = explain_errors(
        programs.heat_step, weights, data.parts[split], logits[split], inputs.preprocess,
        inputs.loading, programs.mesh,
        most=errors_per_head(outputs.shown_errors, len(logits[split])))
    if distributed.is_first():
        save_heat_maps(path, found)


def _write_report(data: Data, run: RunSpec) -> Path:
    # Loads matplotlib: not before the first step.
    from train_lib.reporting.run_page import write_report

    return write_report(run.workdir, manifest=data.manifest,
                        read_image=sources.reader(data.manifest),
                        max_errors=run.outputs.shown_errors)


def _log_scores(found: Mapping[str, dict], report: Path) -> None:
    for name, scores in found.items():
        log.info('%-5s accuracy %.4f  f1 %.4f  nll %.4f  (n %d)', name, scores['accuracy'],
                 scores['f1_macro'], scores.get('nll', scores['loss']), scores['n'])
        say_set_scores(name, scores)
        say_structure(name, scores)
    log.info('report   %s', report)
