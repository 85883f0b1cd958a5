"""The rows that a vote is fitted on: no member trained on them.

A run is one member there. The rows of a k-fold run are its validation rows, each scored by the fold
that did not see it. Folds of one split that were trained in workdirs of their own are such a run
too.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from train_lib.ensembles.aligned import AlignedPredictions, align
from train_lib.ensembles.voters import Predict, lacks_predictions
from train_lib.predictions.members import join_folds, out_of_fold
from train_lib.predictions.run_folders import (
    config_json,
    folds_of,
    missing_folds,
    run_of,
    splits_of,
)
from train_lib.predictions.store import IDENTITY, OUT_OF_FOLD, Member, members_of
from train_lib.run_dir.dotted_keys import by_dotted_key
from train_lib.run_dir.moved_data import PLACES
from train_lib.run_dir.workdirs import CHANGEABLE, START_FACTS
from train_lib.runtime.errors import ConfigError


def runs_of(members: Sequence[Member]) -> dict[str, str]:
    """{workdir of a run: workdir of the run that it is a part of in the fit}, in their order.

    They differ for workdirs that hold one fold each of the same split, made with the same
    settings: the first of them stands for all. Where a fold occurs again, another run begins.
    """
    found: dict[str, str] = {}
    joined: dict[str, list[dict[int, str]]] = {}
    for run, roles in {str(run_of(member.workdir)): member.roles for member in members}.items():
        key, fold = _single_fold(Path(run), roles)
        if fold is None:
            found[run] = run
            continue
        sets = joined.setdefault(key, [])
        place = next((one for one in sets if fold not in one), None)
        if place is None:
            sets.append(place := {})
        place[fold] = run
        found[run] = next(iter(place.values()))
    return found


def run_and_view(member: Member, runs: Mapping[str, str]) -> tuple[str, str]:
    """What the folds of one run have in common: its workdir, as in `runs_of`, and the view."""
    return runs[str(run_of(member.workdir))], member.view


def _single_fold(run: Path, roles: Mapping[str, str]) -> tuple[str, int | None]:
    """(what workdirs with the other folds of its split share, its fold); (_, None) if the workdir
    does not hold one fold of several."""
    content = config_json(run)
    split = content.get('split', {})
    fold = split.get('fold')
    if split.get('kind') != 'kfold' or not isinstance(fold, int) or folds_of(run):
        return '', None
    settings = {key: value for key, value in by_dotted_key(content).items()
                if key != 'split.fold' and not any(f'{key}.'.startswith(f'{name}.') for name in
                                                   (*CHANGEABLE, *START_FACTS, *PLACES))}
    # Fold k may have begun from fold k of another run.
    start = str(settings.get('init.from', ''))
    settings['init.from'] = start.removesuffix('/').removesuffix(f'/fold_{fold}')
    # Of the same settings the data may have changed, and then the folds overlap.
    rows = [sorted(roles), sorted(name for name, role in roles.items() if role == 'test')]
    return json.dumps([settings, rows], sort_keys=True), fold


def fit_source(config: Mapping, members: Sequence[Member]) -> tuple[str, str]:
    """(the source to fit on, ''), or ('', why there is none).

    Raises:
        ConfigError: an unknown value.
    """
    if config['fit_source'] not in ('auto', OUT_OF_FOLD, 'val'):
        raise ConfigError(f'config.fit_source = {config["fit_source"]!r}: choose auto, '
                          f'{OUT_OF_FOLD} or val.')
    parts = _parts(runs_of(members))
    with_folds: list[str] = []
    single: list[str] = []
    for run, paths in parts.items():
        missing = missing_folds(Path(run)) if folds_of(Path(run)) else ''
        if missing:
            return '', f'{run} has only {missing}'
        pooled = _is_pooled(Path(run))
        views = {member.view for member in members if str(run_of(member.workdir)) == run}
        if pooled and views != {IDENTITY}:
            return '', f'{run} has out-of-fold predictions of the view {IDENTITY} only'
        (with_folds if folds_of(Path(run)) or len(paths) > 1 or pooled else single).append(run)
    if config['fit_source'] == 'val' and with_folds:
        return '', f'the folds of {with_folds[0]} validate different rows'
    if config['fit_source'] == OUT_OF_FOLD and single:
        return '', f'{single[0]} has no folds'
    roles = {member.workdir.absolute(): member.roles for member in members}
    held_out = {run: {name for path in paths for name, role in (
        roles.get(path.absolute()) or splits_of(path).roles).items()
        if role == 'val' or (role == 'train' and _is_pooled(Path(run)))}
        for run, paths in parts.items()}
    known = {run: rows for run, rows in held_out.items() if rows}
    first = next(iter(known), '')
    other = next((run for run in known if known[run] != known[first]), '')
    if other:
        return '', f'{Path(first).name} and {Path(other).name} validate different rows'
    if with_folds and single:
        return '', (f'{with_folds[0]} has folds and {single[0]} has none: no rows are unseen by '
                    f'all')
    return (OUT_OF_FOLD if with_folds else 'val'), ''


def _is_pooled(run: Path) -> bool:
    """Whether it is a probing run of several folds, which are no runs of their own: its split.csv
    is that of one fold, and what all of them validated is in one file."""
    return not folds_of(run) and (run / 'predictions' / f'{OUT_OF_FOLD}.npz').is_file()


def _parts(runs: Mapping[str, str]) -> dict[str, list[Path]]:
    """{run of the fit: the workdirs of its folds, or its own}"""
    parts: dict[str, list[Path]] = {}
    for path, run in runs.items():
        parts.setdefault(run, []).extend(folds_of(Path(path)) or [Path(path)])
    return parts


def align_runs(config: Mapping, aligned: AlignedPredictions, source: str,
               predict: Predict | None) -> AlignedPredictions:
    """The predictions of `source` by the runs that vote: one member per run and view."""
    return align(config, members_of_runs(aligned.members, source, predict))


def members_of_runs(voting: Sequence[Member], source: str, predict: Predict | None
                    ) -> list[Member]:
    """The runs of the members that vote on the rows of `source`: one member per run and view."""
    runs = runs_of(voting)
    parts = _parts(runs)
    wanted: dict[str, dict[str, Member]] = {}
    for member in voting:
        run, view = run_and_view(member, runs)
        wanted.setdefault(run, {}).setdefault(view, member)
    if predict is not None:
        for path, run in runs.items():
            if lacks_predictions(Path(path), source, tuple(wanted[run])):
                predict(Path(path), source, tuple(wanted[run]))
    members = []
    for run, by_view in wanted.items():
        for view, member in by_view.items():
            if source != OUT_OF_FOLD:
                found = members_of(Path(run), source, [view])[0]
            elif _is_pooled(Path(run)):
                found = members_of(Path(run), OUT_OF_FOLD, [view])[0]
            elif folds_of(Path(run)):
                found = out_of_fold(Path(run), view)
            else:
                found = join_folds(parts[run], view)
            members.append(dataclasses.replace(found, model=member.model))
    return members
