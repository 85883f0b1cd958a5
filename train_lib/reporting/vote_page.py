"""report.html of a vote: answers, members, diversity, calibration, and what the vote changed."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline import sources
from input_pipeline.errors import DataError
from input_pipeline.sixteen_bits import FULL
from train_lib.ensembles.aligned import AlignedPredictions
from train_lib.ensembles.vote_scores import Votes
from train_lib.predictions.run_folders import config_json
from train_lib.reporting import figures
from train_lib.reporting.page import write_page
from train_lib.reporting.thumbnails import thumbnailer
from train_lib.reporting.vote_table import vote_marks
from train_lib.run_dir.run_config import config_of_run
from train_lib.run_dir.workdirs import range16_of
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)
_MATRIX = 24  # members in the diversity matrix at most
_ROWS = 400  # members in the table at most
_BUDGET = 3_000_000  # characters of pictures, so that the page stays below 5 MB


def write_vote_report(path: Path, result: Mapping, aligned: AlignedPredictions, votes: Votes, *,
                      title: str, most: int) -> Path:
    """Writes the page, and returns its path.

    Args:
        result: the content of vote.json.
        title: of the page.
        most: pictures of each kind, repaired and broken, at most; 0 for none.
    """
    labelled = result['labelled'] > 0
    values = dict(title=title, result=result, labelled=labelled, calibration=(), curve=None,
                  matrix=None, changed=(), answer=None, unit='example', members=(), others=0,
                  marks=vote_marks(result) if labelled else ())
    if labelled:
        values |= dict(
            answer=result['ensembles'][result['answer']],
            unit=result['interval_unit'],
            members=result['members'][:_ROWS], others=max(0, len(aligned.members) - _ROWS),
            matrix=_matrix(result) if len(aligned.members) > 1 else None,
            curve=figures.growth(pd.DataFrame(result['learning_curve']))
            if len(result['learning_curve']['members']) > 1 else None,
            calibration=_calibration(result), changed=_changed(result, aligned, votes, most))
    write_page(path, 'vote.html.jinja', **values)
    return path


def _matrix(result: Mapping) -> dict:
    """Disagreement of each pair of members, with the shade of its cell."""
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
            for key, words in (('before', 'without temperature'), ('after', 'with temperature'))
            if key == 'before' or after]


def _changed(result: Mapping, aligned: AlignedPredictions, votes: Votes, most: int) -> list[dict]:
    """Pictures that the vote gets right and the best single member wrong, and the reverse."""
    predicted = votes.answer.predicted
    single = votes.members[result['best']].predicted
    right, alone = predicted == aligned.labels, single == aligned.labels
    wrong_by = np.mean([one.predicted != aligned.labels for one in votes.members], axis=0)
    read, locations = _pictures(aligned) if most else (None, {})
    thumbnail = thumbnailer(read, _BUDGET) if read else None
    found = []
    for name, rows in (('Repaired', np.flatnonzero(aligned.known & right & ~alone)),
                       ('Broken', np.flatnonzero(aligned.known & alone & ~right))):
        cards = []
        for row in rows[np.argsort(-wrong_by[rows], kind='stable')][:most]:
            location = locations.get(aligned.ids[row])
            shown = thumbnail(location) if thumbnail and location is not None else None
            cards.append(dict(
                shown or dict(uri='', small=False), id=aligned.ids[row],
                true=aligned.classes[aligned.labels[row]], vote=aligned.classes[predicted[row]],
                single=aligned.classes[single[row]], wrong=float(wrong_by[row]),
                shown=shown is not None))
        found.append(dict(title=name, n=len(rows), cards=cards))
    return found


def _pictures(aligned: AlignedPredictions
              ) -> tuple[Callable[[str], np.ndarray] | None, dict[str, str]]:
    """(location -> pixels, {id: location}) of the first member's data; (None, {}) if they cannot
    be read."""
    workdir = aligned.members[0].workdir
    if 'data' not in config_json(workdir):
        return None, {}
    try:
        config = config_of_run(workdir)
        manifest = sources.load_source(config.data.to_dict(), seed=config.seed)
    except (ConfigError, DataError, OSError) as error:
        log.info('no pictures in the report: %s', error)
        return None, {}
    return (partial(sources.read_image, manifest.root,
                    range16=range16_of(workdir) or FULL),
            dict(zip(manifest.table['id'], manifest.table['location'])))
