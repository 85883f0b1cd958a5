"""The rows that a vote is fitted on: no member trained on them.

A run is one member there. The rows of a k-fold run are its validation rows, each scored by the fold
that did not see it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from train_lib.ensembles.aligned import AlignedPredictions, align
from train_lib.ensembles.voters import Predict, lacks_predictions
from train_lib.predictions.members import out_of_fold
from train_lib.predictions.run_folders import config_json, folds_of, run_of
from train_lib.predictions.store import OUT_OF_FOLD, Member, members_of
from train_lib.runtime.errors import ConfigError


def run_and_view(member: Member) -> tuple[str, str]:
    """What the folds of one run have in common: its workdir, and the view."""
    return str(run_of(member.workdir)), member.view


def fit_source(config: Mapping, aligned: AlignedPredictions) -> tuple[str, str]:
    """(the source to fit on, ''), or ('', why there is none).

    Raises:
        ConfigError: an unknown value.
    """
    if config['fit_source'] not in ('auto', OUT_OF_FOLD, 'val'):
        raise ConfigError(f'config.fit_source = {config["fit_source"]!r}: choose auto, '
                          f'{OUT_OF_FOLD} or val.')
    with_folds: list[str] = []
    single: list[str] = []
    for run in dict.fromkeys(run_and_view(member)[0] for member in aligned.members):
        folds = len(folds_of(Path(run)))
        if folds and folds != config_json(Path(run)).get('split', {}).get('folds', folds):
            return '', f'{run} has only {folds} of its folds'
        (with_folds if folds else single).append(run)
    if with_folds and single:
        return '', (f'{with_folds[0]} has folds and {single[0]} has none: no rows are unseen by '
                    f'all')
    if config['fit_source'] == 'val' and with_folds:
        return '', f'the folds of {with_folds[0]} validate different rows'
    if config['fit_source'] == OUT_OF_FOLD and single:
        return '', f'{single[0]} has no folds'
    return (OUT_OF_FOLD if with_folds else 'val'), ''


def align_runs(config: Mapping, aligned: AlignedPredictions, source: str,
               predict: Predict | None) -> AlignedPredictions:
    """The predictions of `source` by the runs that vote: one member per run and view."""
    wanted: dict[str, dict[str, Member]] = {}
    for member in aligned.members:
        run, view = run_and_view(member)
        wanted.setdefault(run, {}).setdefault(view, member)
    members = []
    for run, by_view in wanted.items():
        if predict is not None and lacks_predictions(Path(run), source, tuple(by_view)):
            predict(Path(run), source, tuple(by_view))
        for view, member in by_view.items():
            found = out_of_fold(Path(run), view) if source == OUT_OF_FOLD \
                else members_of(Path(run), source, [view])[0]
            members.append(dataclasses.replace(found, model=member.model))
    return align(config, members)
