"""report.html of a vote: answers, members, diversity, calibration, and what the vote changed."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline import sources
from input_pipeline.errors import DataError
from train_lib.commands.command_line import config_of_run
from train_lib.ensembles.aligned import Panel
from train_lib.ensembles.results import Votes
from train_lib.predictions.store import config_of
from train_lib.reporting import figures
from train_lib.reporting.gallery import thumbnailer
from train_lib.reporting.page import write_page
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)
_MATRIX = 24  # members of the diversity matrix at most
_ROWS = 400  # members of the table at most
_BUDGET = 3_000_000  # characters of pictures; the page shall stay under 5 MB


def write_vote_report(path: Path, result: Mapping, panel: Panel, votes: Votes, *, title: str,
                      most: int) -> Path:
    """Writes the page, and returns its path.

    Args:
        result: the content of vote.json.
        title: of the page.
        most: pictures of each kind, repaired and broken; 0 for none.
    """
    labelled = result['labelled'] > 0
    values = dict(title=title, result=result, labelled=labelled, calibration=(), curve=None,
                  matrix=None, changed=(), answer=None, unit='example', members=(), others=0)
    if labelled:
        values |= dict(
            answer=result['ensembles'][result['answer']],
            unit=result['interval_unit'],
            members=result['members'][:_ROWS], others=max(0, len(panel.members) - _ROWS),
            matrix=_matrix(result) if len(panel.members) > 1 else None,
            curve=figures.growth(pd.DataFrame(result['learning_curve']))
            if len(result['learning_curve']['members']) > 1 else None,
            calibration=_calibration(result), changed=_changed(result, panel, votes, most))
    write_page(path, 'voting.html.jinja', **values)
    return path


def _matrix(result: Mapping) -> dict:
    """Disagreement of each two members, with the shade of its cell."""
    table = np.array(result['diversity']['disagreement'])[:_MATRIX, :_MATRIX]
    faults = np.array(result['diversity']['double_fault'])[:_MATRIX, :_MATRIX]
    largest = max(table.max(), 1e-9)
    names = [member['name'] for member in result['members'][:_MATRIX]]
    return dict(names=names, more=max(0, len(result['members']) - _MATRIX), rows=[
        dict(name=name, cells=[
            dict(value=float(table[i, k]), fault=float(faults[i, k]), same=i == k,
                 shade=float(table[i, k] / largest)) for k in range(len(names))])
        for i, name in enumerate(names)])


def _calibration(result: Mapping) -> list[dict]:
    found = result['calibration']
    if not found:
        return []
    after = result['fit'] and result['fit']['temperature']
    return [dict(title=words, **{name: found[key][name] for name in ('nll', 'ece', 'brier')},
                 svg=figures.reliability_diagram(pd.DataFrame(found[key]['bins']).astype(float)))
            for key, words in (('before', 'as pooled'), ('after', 'with the temperature'))
            if key == 'before' or after]


def _changed(result: Mapping, panel: Panel, votes: Votes, most: int) -> list[dict]:
    """What the vote has right and the best single member wrong, and the other way round."""
    predicted = votes.ensembles[votes.chosen].predicted
    single = votes.members[result['best']].predicted
    right, alone = predicted == panel.labels, single == panel.labels
    wrong_by = np.mean([one.predicted != panel.labels for one in votes.members], axis=0)
    read, locations = _pictures(panel) if most else (None, {})
    thumbnail = thumbnailer(read, _BUDGET) if read else None
    found = []
    for name, rows in (('Repaired', np.flatnonzero(panel.known & right & ~alone)),
                       ('Broken', np.flatnonzero(panel.known & alone & ~right))):
        cards = []
        for row in rows[np.argsort(-wrong_by[rows], kind='stable')][:most]:
            location = locations.get(panel.ids[row])
            shown = thumbnail(location) if thumbnail and location is not None else None
            cards.append(dict(
                shown or dict(uri='', small=False), id=panel.ids[row],
                true=panel.classes[panel.labels[row]], vote=panel.classes[predicted[row]],
                single=panel.classes[single[row]], wrong=float(wrong_by[row]),
                shown=shown is not None))
        found.append(dict(title=name, n=len(rows), cards=cards))
    return found


def _pictures(panel: Panel):
    """(location -> pixels, {id: location}) of the first member's data; (None, {}) where they
    cannot be read."""
    workdir = panel.members[0].workdir
    if 'data' not in config_of(workdir):
        return None, {}
    try:
        config = config_of_run(workdir)
        manifest = sources.load_source(config.data.to_dict(), seed=config.seed)
    except (ConfigError, DataError, OSError) as error:
        log.info('no pictures in the report: %s', error)
        return None, {}
    return (partial(sources.read_image, manifest.root),
            dict(zip(manifest.table['id'], manifest.table['location'])))
