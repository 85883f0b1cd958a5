"""What a vote fits, on rows that no member saw: weights, the choice of an ensemble, a temperature.

The members on these rows are whole runs (see `fit_rows`); the folds of a run share its weight in
the vote. Each fit is scored twice on these rows: naive, by the fit on all of them, and nested, each
part of the rows by a fit on the others.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.errors import DataError
from train_lib.ensembles.aligned import AlignedPredictions
from train_lib.ensembles.candidates import find_candidates
from train_lib.ensembles.fit.fit_rows import align_runs, fit_source, run_and_view, runs_of
from train_lib.ensembles.fit.nested import draw_folds, nested
from train_lib.ensembles.fit.selection import METRICS, choose, convex_weights, greedy
from train_lib.ensembles.multi_head import vote_on
from train_lib.ensembles.pool import Outcome
from train_lib.ensembles.rules import FLOOR, RULES
from train_lib.ensembles.spec import EnsembleSpec
from train_lib.ensembles.temperature import fit_temperature, tempered
from train_lib.ensembles.voters import Predict
from train_lib.metrics.statistics import macro_f1, robustness
from train_lib.predictions.members import marks
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)
CHOICES = ('accuracy', 'worst_class', 'worst_fold', 'evenness')


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was fitted on some rows.

    Attributes:
        chosen: the name of the ensemble that answers.
        weights: {ensemble: float [R]}, weights of the R runs.
        temperature: of the answer's scores, or None.
    """

    chosen: str
    weights: Mapping[str, np.ndarray]
    temperature: float | None


@dataclasses.dataclass(frozen=True)
class Fit:
    """Result of `fit`.

    Attributes:
        decision: by all rows.
        specs: the ensembles, those of `EnsembleSpec.fitted` with their weights.
        about: for vote.json: source, n, scores.
    """

    decision: Decision
    specs: list[EnsembleSpec]
    about: dict

    def as_json(self, aligned: AlignedPredictions, source: str) -> dict:
        """The entry 'fit' of vote.json, of a vote on the rows of `source`."""
        return dict(
            self.about, temperature=self.decision.temperature,
            # If so, the scores of the vote are those of a fit on the same rows; `nested` is honest.
            on_the_scored_rows=self.about['source'] == source,
            weights={spec.name: {member.name: float(weight) for member, weight in
                                 zip(aligned.members, spec.weights)}
                     for spec in self.specs if spec.fitted})


def fit_if_asked(config: Mapping, aligned: AlignedPredictions, specs: Sequence[EnsembleSpec],
                 predict: Predict | None) -> tuple[Fit | None, str]:
    """(the fit, ''), or (None, why nothing is fitted). Without rows to fit on, a temperature is
    left out.

    Raises:
        ConfigError: weights or config.choose need a fit, and there are no rows to fit on.
        DataError: predictions are missing, and so are their pictures.
    """
    needed = [f'the weights of {spec.name!r}' for spec in specs if spec.fitted]
    needed += ['config.choose'] if config['choose'] else []
    if not needed and not config['temperature']:
        return None, 'nothing is to be fitted'
    source, why_not = fit_source(config, aligned.members)
    if not source and needed:
        raise ConfigError(f'{needed[0]} cannot be fitted: {why_not}; give members that are all '
                          f'k-fold runs, or all single runs with the same validation rows.')
    if source:
        try:
            runs = align_runs(config, aligned, source, predict)
        except DataError as error:  # as on a machine that has only the pictures of a test
            if needed:
                raise
            raise DataError(f'{str(error).removesuffix(".")}, or leave out the temperature, which '
                            f"is fitted on the run's own pictures, by "
                            f'--config.temperature=False.') from None
        if runs.known.any() or needed:
            return fit(config, aligned, runs, specs, source), ''
        why_not = f'the rows of {source} have no labels'
    log.info('no temperature is fitted: %s', why_not)
    return None, why_not


def fit(config: Mapping, aligned: AlignedPredictions, runs: AlignedPredictions,
        specs: Sequence[EnsembleSpec], source: str) -> Fit:
    """Fits everything that config asks for; see the head of this file.

    Args:
        config: of the vote, as a dict.
        aligned: the members that vote.
        runs: the runs on the rows of `source`, of `fit_rows.align_runs`.
        specs: the ensembles.
        source: the name of the rows.

    Raises:
        ConfigError: rows without labels, an unknown choice or metric.
    """
    if not runs.known.any():
        raise ConfigError(f'The rows of {source} have no labels to fit on: set config.weights='
                          f"none, config.choose='' and config.temperature=False.")
    if config['choose'] and config['choose'] not in CHOICES:
        raise ConfigError(f'config.choose = {config["choose"]!r}: choose one of '
                          f"{', '.join(CHOICES)}, or '' for the first ensemble.")
    if config['greedy']['metric'] not in METRICS:
        raise ConfigError(f'config.greedy.metric = {config["greedy"]["metric"]!r}: choose one of '
                          f'{", ".join(METRICS)}.')
    folds = _folds(config, runs)
    fitter = _Fitter(config, aligned, runs, specs, folds)
    score = lambda outputs, rows: float(np.mean(outputs[:, 0] == runs.labels[rows]))
    about = dict(source=source, n=int(runs.known.sum()), folds=int(folds.max() + 1),
                 **marks(runs.members, runs.ids.tolist(), shared=config['groups'] != 'none'))
    rows = np.flatnonzero(folds >= 0)
    if about['folds'] < 2:
        decision = fitter.decide(rows)
        nested_outputs = None
    else:
        found = nested(fitter.decide, fitter.answer, score, folds, runs.groups)
        decision, nested_outputs = found.fitted, found.outputs
    plain = dataclasses.replace(decision, temperature=None)
    about['answer'] = dict(
        plain=_summary(fitter.answer(plain, rows), runs, rows),
        naive=_summary(fitter.answer(decision, rows), runs, rows),
        nested=None if nested_outputs is None else _summary(nested_outputs[rows], runs, rows))
    about['ensembles'] = {}
    for spec in specs:
        one = Decision(spec.name, decision.weights, None)
        naive = fitter.answer(one, rows)
        entry = dict(naive=_summary(naive, runs, rows),
                     robustness=robustness(naive[:, 0].astype(int), runs.labels[rows],
                                           folds[rows]), nested=None)
        if spec.fitted and about['folds'] >= 2:
            alone = nested(lambda part, one=one, spec=spec: dataclasses.replace(
                one, weights={spec.name: fitter.run_weights(spec, part)}), fitter.answer, score,
                folds, runs.groups)
            entry['nested'] = _summary(alone.outputs[rows], runs, rows)
        about['ensembles'][spec.name] = entry
    weighted = [fitter.of_members(spec, decision.weights[spec.name]) if spec.fitted else spec
                for spec in specs]
    return Fit(decision, weighted, about)


class _Fitter:
    """Fits on parts of the rows; votes that they share are counted once."""

    def __init__(self, config: Mapping, aligned: AlignedPredictions, runs: AlignedPredictions,
                 specs: Sequence[EnsembleSpec], folds: np.ndarray):
        self.config, self.runs, self.folds = config, runs, folds
        self.models = aligned.models
        self.specs = {spec.name: spec for spec in specs}
        workdirs = runs_of(aligned.members)
        names = [run_and_view(run, workdirs) for run in runs.members]
        # The run of each member, and per ensemble how many members of each run vote.
        self.run_of = np.array([names.index(run_and_view(member, workdirs))
                                for member in aligned.members])
        self.counts = {spec.name: np.bincount(self.run_of[spec.voting(len(self.run_of))],
                                              minlength=len(names)) for spec in specs}
        self.candidates = find_candidates(runs.logits, runs.labels) \
            if any(spec.fitted for spec in specs) else None
        self._votes: dict[tuple[str, bytes], Outcome] = {}

    def run_weights(self, spec: EnsembleSpec, rows: np.ndarray) -> np.ndarray:
        """float [R], fitted on these rows if the ensemble asks for it; 0 for runs that do not
        vote."""
        counts = self.counts[spec.name]
        if spec.weighting == 'given':
            return np.bincount(self.run_of, spec.weights, minlength=len(counts))
        if not spec.fitted:
            return counts.astype(float)
        voting = np.flatnonzero(counts)
        part = self.candidates.select(np.searchsorted(self.candidates.rows, rows))
        part = part.of_members(voting)
        weights = np.zeros(len(counts))
        if spec.weighting == 'fit':
            weights[voting] = convex_weights(part)[0]
        else:
            settings = self.config['greedy']
            weights[voting] = greedy(part, settings['metric'], rounds=settings['rounds'],
                                     seed=self.config['seed']).weights
        return weights

    def of_members(self, spec: EnsembleSpec, weights: np.ndarray) -> EnsembleSpec:
        """The ensemble with weights of the runs, float [R], divided among their members."""
        shares = (weights / np.maximum(self.counts[spec.name], 1))[self.run_of]
        voting = spec.voting(len(shares))
        return spec.with_weights(np.where(voting, shares, 0.0), self.models)

    def outcome(self, name: str, weights: np.ndarray) -> Outcome:
        """The vote of the runs with these weights float [R], with its scores."""
        key = name, weights.tobytes()
        if key not in self._votes:
            spec = self.specs[name]
            # Equal weights of members leave the models of two levels equal.
            if spec.inner is not None and spec.weighting == 'none':
                spec = dataclasses.replace(spec, members=weights > 0)
            else:
                spec = dataclasses.replace(spec, members=None).with_weights(weights,
                                                                            self.runs.models)
            self._votes[key] = vote_on(self.runs, {name: spec}, keep=[name])[name]
        return self._votes[key]

    def decide(self, rows: np.ndarray) -> Decision:
        """Fits weights, the choice and the temperature on these rows."""
        weights = {name: self.run_weights(spec, rows) for name, spec in self.specs.items()}
        chosen = next(iter(self.specs))
        if self.config['choose']:
            answers = {name: self.outcome(name, weights[name]).predicted[rows]
                       for name in self.specs}
            chosen = choose(answers, self.runs.labels[rows], self.config['choose'],
                            self.folds[rows])
        temperature = None
        if self.config['temperature'] and RULES[self.specs[chosen].rule].distribution:
            scores = self.outcome(chosen, weights[chosen]).scores[rows]
            temperature = fit_temperature(scores, self.runs.labels[rows])
        return Decision(chosen, weights, temperature)

    def answer(self, decision: Decision, rows: np.ndarray) -> np.ndarray:
        """float64 [len(rows), 2]: the predicted class, and the negative log likelihood."""
        outcome = self.outcome(decision.chosen, decision.weights[decision.chosen])
        scores = outcome.scores[rows]
        if decision.temperature is not None:
            scores = tempered(scores, decision.temperature)
        label_scores = scores[np.arange(len(rows)), self.runs.labels[rows]].astype(float)
        nll = -np.log(np.maximum(label_scores, FLOOR))
        if not RULES[self.specs[decision.chosen].rule].distribution:
            nll = np.full(len(rows), np.nan)
        return np.stack([outcome.predicted[rows], nll], axis=1)


def _folds(config: Mapping, runs: AlignedPredictions) -> np.ndarray:
    """int [N], the parts of the nested scores; -1 without a label."""
    known, groups = runs.known, runs.groups
    most = known.sum() if groups is None else len(np.unique(groups[known].astype(str)))
    count = min(config['folds'], int(most))
    if config['folds'] < 2:
        raise ConfigError(f'config.folds = {config["folds"]}: give 2 or more.')
    if count < 2:
        return np.where(known, 0, -1)
    return draw_folds(runs.labels, groups, count, config['seed'])


def _summary(outputs: np.ndarray, runs: AlignedPredictions, rows: np.ndarray) -> dict:
    """accuracy, f1_macro and nll (None if it is not defined) of `_Fitter.answer`."""
    predicted, labels = outputs[:, 0].astype(np.int64), runs.labels[rows]
    nll = float(outputs[:, 1].mean())
    return dict(accuracy=float(np.mean(predicted == labels)),
                f1_macro=macro_f1(predicted, labels, len(runs.classes)),
                nll=nll if np.isfinite(nll) else None)
