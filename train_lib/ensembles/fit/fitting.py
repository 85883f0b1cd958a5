"""What a vote fits, on rows that no member saw: weights, the choice of an ensemble, a temperature.

Each k-fold run is one unit there, its rows scored by the fold that did not see them; its folds
share the unit's weight in the vote. Every fitted thing is scored twice on these rows: naive, by the
fit on all of them, and nested, each part of the rows by a fit on the others.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from train_lib.ensembles.aligned import Panel, lacks, seat, unit_of
from train_lib.ensembles.candidates import gather_evidence
from train_lib.ensembles.fit.nested import draw_folds, nested
from train_lib.ensembles.fit.selection import METRICS, choose, convex_weights, greedy, robustness
from train_lib.ensembles.rules import FLOOR, RULES
from train_lib.ensembles.spec import Ensemble, counts_of_units
from train_lib.ensembles.stacking import fit_temperature, tempered
from train_lib.metrics.statistics import macro_f1
from train_lib.predictions.members import folds_of, out_of_fold
from train_lib.predictions.store import OUT_OF_FOLD, config_of, members_of
from train_lib.runtime.errors import ConfigError

CHOICES = ('accuracy', 'worst_class', 'worst_fold', 'evenness')


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was fitted on some rows: the ensemble that answers, unit weights, temperature."""

    chosen: str
    weights: Mapping[str, np.ndarray]  # {ensemble: float [U]}
    temperature: float | None


@dataclasses.dataclass(frozen=True)
class Fit:
    """Result of `fit`.

    Attributes:
        decision: by all rows.
        weights: {ensemble: float [M]} of the panel that votes, of those whose weights are fitted.
        about: for vote.json: source, n, scores.
    """

    decision: Decision
    weights: Mapping[str, np.ndarray]
    about: dict


def source_for(config: Mapping, panel: Panel) -> tuple[str, str]:
    """(the source to fit on, '' if there is none; then why)

    Raises:
        ConfigError: an unknown value.
    """
    if config['fit_source'] not in ('auto', OUT_OF_FOLD, 'val'):
        raise ConfigError(f'config.fit_source = {config["fit_source"]!r}: choose auto, '
                          f'{OUT_OF_FOLD} or val.')
    whole, single = [], []
    for root in dict.fromkeys(unit_of(member)[0] for member in panel.members):
        folds = len(folds_of(Path(root)))
        if folds and folds != config_of(Path(root)).get('split', {}).get('folds', folds):
            return '', f'{root} has only {folds} of its folds'
        (whole if folds else single).append(root)
    if whole and single:
        return '', f'{whole[0]} has folds and {single[0]} has none: no rows are unseen by all'
    if config['fit_source'] == 'val' and whole:
        return '', f'the folds of {whole[0]} validate different rows'
    if config['fit_source'] == OUT_OF_FOLD and single:
        return '', f'{single[0]} has no folds'
    return (OUT_OF_FOLD if whole else 'val'), ''


def units_panel(config: Mapping, panel: Panel, source: str, make: Callable | None) -> Panel:
    """The panel of the units on the rows of `source`: one member a run and view."""
    units, wanted = [], {}
    for member in panel.members:
        root, view = unit_of(member)
        wanted.setdefault(root, {}).setdefault(view, member)
    for root, by_view in wanted.items():
        if make is not None and lacks(Path(root), source, tuple(by_view)):
            make(Path(root), source, tuple(by_view))
        for view, member in by_view.items():
            unit = out_of_fold(Path(root), view) if source == OUT_OF_FOLD \
                else members_of(Path(root), source, [view])[0]
            units.append(dataclasses.replace(unit, model=member.model))
    return seat(config, units)


def fit(config: Mapping, panel: Panel, units: Panel, ensembles: list[Ensemble],
        source: str) -> Fit:
    """Fits everything that config asks for; see the head of this file.

    Raises:
        ConfigError: rows without labels, an unknown choice or metric.
    """
    if not units.known.any():
        raise ConfigError(f'The rows of {source} have no labels to fit on: set config.weights='
                          f"none, config.choose='' and config.temperature=False.")
    if config['choose'] and config['choose'] not in CHOICES:
        raise ConfigError(f'config.choose = {config["choose"]!r}: choose one of '
                          f"{', '.join(CHOICES)}, or '' for the first ensemble.")
    if config['greedy']['metric'] not in METRICS:
        raise ConfigError(f'config.greedy.metric = {config["greedy"]["metric"]!r}: choose one of '
                          f'{", ".join(METRICS)}.')
    folds = _folds(config, units)
    fitter = _Fitter(config, panel, units, ensembles, folds)
    score = lambda outputs, rows: float(np.mean(outputs[:, 0] == units.labels[rows]))
    about = dict(source=source, n=int(units.known.sum()), folds=int(folds.max() + 1))
    rows = np.flatnonzero(folds >= 0)
    if about['folds'] < 2:
        decision = fitter.decide(rows)
        nested_outputs = None
    else:
        found = nested(fitter.decide, fitter.answer, score, folds, units.groups)
        decision, nested_outputs = found.fitted, found.outputs
    plain = dataclasses.replace(decision, temperature=None)
    about['answer'] = dict(
        plain=_judge(fitter.answer(plain, rows), units, rows),
        naive=_judge(fitter.answer(decision, rows), units, rows),
        nested=None if nested_outputs is None else _judge(nested_outputs[rows], units, rows))
    about['ensembles'] = {}
    for ensemble in ensembles:
        one = Decision(ensemble.name, decision.weights, None)
        naive = fitter.answer(one, rows)
        entry = dict(naive=_judge(naive, units, rows),
                     robustness=robustness(naive[:, 0].astype(int), units.labels[rows],
                                           folds[rows]), nested=None)
        if ensemble.fitted and about['folds'] >= 2:
            alone = nested(lambda part, one=one, e=ensemble: dataclasses.replace(
                one, weights={e.name: fitter.unit_weights(e, part)}), fitter.answer, score, folds,
                units.groups)
            entry['nested'] = _judge(alone.outputs[rows], units, rows)
        about['ensembles'][ensemble.name] = entry
    weights = {ensemble.name: fitter.spread(ensemble, decision.weights[ensemble.name])
               for ensemble in ensembles if ensemble.fitted}
    return Fit(decision, weights, about)


class _Fitter:
    """The fits on parts of the rows, with the votes that they share kept."""

    def __init__(self, config, panel, units, ensembles, folds):
        self.config, self.panel, self.units, self.folds = config, panel, units, folds
        self.ensembles = {ensemble.name: ensemble for ensemble in ensembles}
        kinds = [unit_of(unit) for unit in units.members]
        self.counts = {}
        for ensemble in ensembles:
            self.unit, self.counts[ensemble.name] = counts_of_units(panel, kinds, ensemble.there)
        self.evidence = gather_evidence(units.logits, units.labels, units.rows) \
            if any(ensemble.fitted for ensemble in ensembles) else None
        self._votes = {}

    def unit_weights(self, ensemble: Ensemble, rows: np.ndarray) -> np.ndarray:
        """float [U]; 0 for units that are not in the ensemble."""
        counts = self.counts[ensemble.name]
        if isinstance(ensemble.weights, np.ndarray):
            return np.bincount(self.unit, ensemble.weights, minlength=len(counts))
        if not ensemble.fitted:
            return counts.astype(float)
        there = np.flatnonzero(counts)
        part = self.evidence.select(np.searchsorted(self.evidence.at, rows))
        part = dataclasses.replace(part, own=part.own[there], probs=part.probs[there])
        weights = np.zeros(len(counts))
        if ensemble.weights == 'fit':
            weights[there] = convex_weights(part)[0]
        else:
            settings = self.config['greedy']
            weights[there] = greedy(part, settings['metric'], rounds=settings['rounds'],
                                    seed=self.config['seed']).weights
        return weights

    def spread(self, ensemble: Ensemble, weights: np.ndarray) -> np.ndarray:
        """Unit weights as weights of the panel's members, float [M]."""
        shares = weights / np.maximum(self.counts[ensemble.name], 1)
        return np.where(ensemble.there, shares[self.unit], 0.0)

    def outcome(self, name: str, weights: np.ndarray):
        """The vote of the units by all rows, with its scores."""
        key = name, weights.tobytes()
        if key not in self._votes:
            ensemble = self.ensembles[name]
            # Equal weights of members leave the models of two levels equal.
            if ensemble.inner is not None and not ensemble.fitted \
                    and isinstance(ensemble.weights, str):
                plain = dataclasses.replace(ensemble, there=weights > 0)
                ballot = plain.ballot(self.units)
            else:
                ballot = ensemble.ballot(self.units, weights)
            self._votes[key] = self.units.vote({name: ballot}, keep=[name])[name]
        return self._votes[key]

    def decide(self, rows: np.ndarray) -> Decision:
        """Fits weights, the choice and the temperature on these rows."""
        weights = {name: self.unit_weights(one, rows) for name, one in self.ensembles.items()}
        chosen = next(iter(self.ensembles))
        if self.config['choose']:
            answers = {name: self.outcome(name, weights[name]).predicted[rows]
                       for name in self.ensembles}
            chosen = choose(answers, self.units.labels[rows], self.config['choose'],
                            self.folds[rows])
        temperature = None
        if self.config['temperature'] and RULES[self.ensembles[chosen].rule].distribution:
            scores = self.outcome(chosen, weights[chosen]).scores[rows]
            temperature = fit_temperature(scores, self.units.labels[rows])
        return Decision(chosen, weights, temperature)

    def answer(self, decision: Decision, rows: np.ndarray) -> np.ndarray:
        """float64 [len(rows), 2]: the predicted class, and the negative log likelihood."""
        outcome = self.outcome(decision.chosen, decision.weights[decision.chosen])
        scores = outcome.scores[rows]
        if decision.temperature is not None:
            scores = tempered(scores, decision.temperature)
        own = scores[np.arange(len(rows)), self.units.labels[rows]].astype(float)
        nll = -np.log(np.maximum(own, FLOOR))
        if not RULES[self.ensembles[decision.chosen].rule].distribution:
            nll = np.full(len(rows), np.nan)
        return np.stack([outcome.predicted[rows], nll], axis=1)


def _folds(config: Mapping, units: Panel) -> np.ndarray:
    known = units.known
    groups = units.groups
    most = known.sum() if groups is None else len(np.unique(groups[known].astype(str)))
    count = min(config['folds'], int(most))
    if config['folds'] < 2:
        raise ConfigError(f'config.folds = {config["folds"]}: give 2 or more.')
    if count < 2:
        return np.where(known, 0, -1)
    return draw_folds(units.labels, groups, count, config['seed'])


def _judge(outputs: np.ndarray, units: Panel, rows: np.ndarray) -> dict:
    predicted, labels = outputs[:, 0].astype(np.int64), units.labels[rows]
    nll = float(outputs[:, 1].mean())
    return dict(accuracy=float(np.mean(predicted == labels)),
                f1_macro=macro_f1(predicted, labels, len(units.classes)),
                nll=nll if np.isfinite(nll) else None)
