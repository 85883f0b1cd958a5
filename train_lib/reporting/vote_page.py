"""report.html of a vote: answers, members, diversity, calibration, and what the vote changed.

Of rows without labels: see `unlabelled_vote`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from train_lib.ensembles.aligned import AlignedPredictions
from train_lib.ensembles.vote_scores import Votes
from train_lib.reporting import figures
from train_lib.reporting.page import write_page
from train_lib.reporting.structured_section import vote_structure
from train_lib.reporting.thumbnails import thumbnailer
from train_lib.reporting.unlabelled_vote import preview, unlabelled_values
from train_lib.reporting.vote_pictures import Given, find_pictures
from train_lib.reporting.vote_table import vote_marks

_MATRIX = 24  # members in the diversity matrix at most
_ROWS = 400  # members in the table at most
_BUDGET = 2_000_000  # characters of pictures, so that the page stays below 3 MB


def write_vote_report(path: Path, result: Mapping, aligned: AlignedPredictions, votes: Votes, *,
                      title: str, most: int, pictures: Given | None = None) -> Path:
    """Writes the page, and returns its path.

    Args:
        path: of the page; submission.csv is beside it.
        result: the content of vote.json.
        title: of the page.
        most: pictures of each kind, such as repaired and broken, at most; 0 for none.
        pictures: see `find_pictures`.
    """
    labelled = result['labelled'] > 0
    show, why_not = _shown(aligned, pictures, most)
    values = dict(title=title, result=result, labelled=labelled, calibration=(), curve=None,
                  changed=(), answer=None, unit='example', members=(), others=0, unlabelled=None,
                  structure=None,
                  matrix=_matrix(result) if len(aligned.members) > 1 else None, why_not=why_not,
                  submission=preview(path.with_name('submission.csv')),
                  marks=vote_marks(result))
    if not labelled:
        values |= dict(unlabelled=unlabelled_values(result, aligned, votes, show, most))
    else:
        values |= dict(
            answer=result['ensembles'][result['answer']],
            unit=result['interval_unit'],
            members=result['members'][:_ROWS], others=max(0, len(aligned.members) - _ROWS),
            curve=figures.growth(pd.DataFrame(result['learning_curve']))
            if len(result['learning_curve']['members']) > 1 else None,
            calibration=_calibration(result),
            structure=vote_structure(result, {head: aligned.members[0].classes[head]
                                              for head in aligned.heads}),
            changed=_changed(result, aligned, votes, show, most))
    write_page(path, 'vote.html.jinja', **values)
    return path


def _matrix(result: Mapping) -> dict:
    """Disagreement of each pair of members, with the shade of its cell."""
    found = result['diversity'] if result['labelled'] else result['unlabelled']
    table = np.array(found['disagreement'])[:_MATRIX, :_MATRIX]
    faults = found.get('double_fault')  # needs labels
    largest = max(table.max(), 1e-9)
    names = [member['name'] for member in result['members'][:_MATRIX]]
    return dict(names=names, more=max(0, len(result['members']) - _MATRIX), rows=[
        dict(name=name, cells=[
            dict(value=float(table[i, k]), fault=faults and faults[i][k], same=i == k,
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


def _shown(aligned: AlignedPredictions, given: Given | None, most: int
           ) -> tuple[Callable[[str], dict], str]:
    """(id -> a picture for the template, why pictures are not shown at all or ''). `uri` is '' for
    a picture that cannot be read, and `shown` is false where there is none, or no room for it."""
    found = find_pictures(aligned, given) if most else None
    thumbnail = thumbnailer(found.read, _BUDGET) if found and found.read else None

    def show(name: str) -> dict:
        location = found.locations.get(name) if found else None
        picture = thumbnail(location) if thumbnail and location is not None else None
        return dict(picture or dict(uri='', small=False), shown=picture is not None)

    return show, found.why_not if found else ''


def _changed(result: Mapping, aligned: AlignedPredictions, votes: Votes,
             show: Callable[[str], dict], most: int) -> list[dict]:
    """Pictures that the vote gets right and the best single member wrong, and the reverse."""
    predicted = votes.answer.predicted
    single = votes.members[result['best']].predicted
    right, alone = predicted == aligned.labels, single == aligned.labels
    wrong_by = np.mean([one.predicted != aligned.labels for one in votes.members], axis=0)
    found = []
    for name, rows in (('Repaired', np.flatnonzero(aligned.known & right & ~alone)),
                       ('Broken', np.flatnonzero(aligned.known & alone & ~right))):
        cards = []
        for row in rows[np.argsort(-wrong_by[rows], kind='stable')][:most]:
            cards.append(dict(
                show(aligned.ids[row]), id=aligned.ids[row],
                true=aligned.classes[aligned.labels[row]], vote=aligned.classes[predicted[row]],
                single=aligned.classes[single[row]], wrong=float(wrong_by[row])))
        found.append(dict(title=name, n=len(rows), cards=cards))
    return found
