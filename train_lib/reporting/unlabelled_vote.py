"""The part of a vote's report on pictures without labels, and the preview of submission.csv."""

import csv
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from input_pipeline.csv_table import separator_of
from train_lib.ensembles.aligned import AlignedPredictions
from train_lib.ensembles.vote_scores import Votes
from train_lib.metrics.class_shift import FACTOR, LEVEL
from train_lib.reporting import figures

_ROWS = 400  # of a table at most
_TOP, _SIDES, _NAMED = 3, 4, 3  # classes, voted classes and voters named of a picture, at most
_PREVIEW, _COLUMNS = 8, 10  # rows and columns of submission.csv


def unlabelled_values(result: Mapping, aligned: AlignedPredictions, votes: Votes,
                      show: Callable[[str], dict], most: int) -> dict:
    """What the template shows of rows without labels.

    Args:
        result: the content of vote.json, with 'unlabelled'.
        show: id -> a picture for the template.
        most: pictures of each kind at most.
    """
    found = result['unlabelled']
    unsure, contested = _rows_to_look_at(votes, most)
    cards = [dict(title='Least sure', lead='The answers with the smallest score come first.',
                  cards=[_card(row, aligned, votes, show) for row in unsure]),
             dict(title='Most contested', lead='Those on which fewest members agree come first; '
                  'pictures that stand above are left out.',
                  cards=[_card(row, aligned, votes, show) for row in contested])]
    return dict(
        members=[dict(name=member.name, weight=weight, scores=scores) for member, weight, scores in
                 zip(aligned.members[:_ROWS], found['weights'], found['members'])],
        others=max(0, len(aligned.members) - _ROWS), runs=found['runs'], without=found['without'],
        models=len(set(aligned.models)),
        heads=_score_heads(found), seen=_seen(aligned, found),
        grouped=any(one and one['groups'] for one in (*found['members'],
                                                      *found['runs'].values())),
        classes=[_class_table(head, part, aligned.members[0].classes[head])
                 for head, part in found['classes'].items()],
        factor=FACTOR, level=LEVEL, confidence=_confidence(found['confidence']),
        unanimous=found['unanimous'], kinds=[kind for kind in cards if kind['cards']],
        unread=sum(not card['picture']['uri'] for kind in cards for card in kind['cards']))


def preview(path: Path) -> dict:
    """The first rows of submission.csv: path, columns, rows, and how many columns there are more.
    """
    with open(path, newline='', encoding='utf-8') as file:
        separator = separator_of(file.readline())
        file.seek(0)
        lines = list(itertools.islice(csv.reader(file, delimiter=separator), _PREVIEW + 1))
    header = lines[0] if lines else []
    return dict(path=str(path), columns=header[:_COLUMNS], rows=[row[:_COLUMNS]
                                                                 for row in lines[1:]],
                more=max(0, len(header) - _COLUMNS))


def _score_heads(found: Mapping) -> list[str]:
    scores = [one for one in (*found['members'], *found['runs'].values()) if one]
    return list(scores[0]['heads']) if scores else []


def _seen(aligned: AlignedPredictions, found: Mapping) -> list[tuple[str, int, int]]:
    """(member, validation rows that an ancestor trained on, all of them)."""
    return [(member.name, one['seen'], one['n'])
            for member, one in zip(aligned.members, found['members']) if one and one['seen']]


def _class_table(head: str, part: Mapping, names: tuple[str, ...]) -> dict:
    """The classes of one head, the largest difference to the training first."""
    predicted = np.array(part['predicted'])
    shares = {key: np.array(part[key]) / sum(part[key]) if sum(part[key]) else None
              for key in ('predicted', 'trained', 'members', 'validated')}
    pairs = dict(training=('predicted', 'trained'), validation=('members', 'validated'))
    shown = 'training' if shares['trained'] is not None else part['reference']
    minus = lambda first, second: None if shares[first] is None or shares[second] is None \
        else shares[first] - shares[second]
    difference = minus(*pairs[shown]) if shown else None
    tested = minus(*pairs[part['reference']]) if part['reference'] else None
    order = np.argsort(-predicted, kind='stable') if difference is None else \
        np.lexsort((-predicted, -np.abs(difference)))
    at = lambda values, k: None if values is None else float(values[k])
    rows = [dict(name=names[k], n=int(predicted[k]), difference=at(difference, k),
                 **{key: at(values, k) for key, values in shares.items()},
                 p=part['p'][k] if part['reference'] else None,
                 marked=bool(part['reference'] and part['marked'][k]),
                 fewer=tested is not None and bool(tested[k] < 0)) for k in order[:_ROWS]]
    return dict(head=head, rows=rows, more=max(0, len(names) - _ROWS),
                reference=part['reference'], shown=shown, trained=shares['trained'] is not None,
                validated=part['reference'] == 'validation',
                marked=sum(part['marked']) if part['reference'] else 0, count=len(names),
                never=int((predicted == 0).sum()), n=int(predicted.sum()),
                distance=part.get('distance'), by_chance=part.get('by_chance'),
                p=part.get('p_distance'))


def _confidence(found: Mapping) -> dict:
    counts = {key: np.array(part['counts']) for key, part in found.items() if part}
    return dict(
        vote=figures.shares_by_score(counts['vote']),
        members=figures.shares_by_score(counts['members'], counts.get('validated')),
        means={key: part and part['mean'] for key, part in found.items()})


def _rows_to_look_at(votes: Votes, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The least sure rows, and of the others the most contested ones, at most `most` each."""
    answer = votes.answer.predicted
    sure = votes.scores[np.arange(len(answer)), answer]
    unsure = np.argsort(sure, kind='stable')[:most]
    predicted = np.stack([one.predicted for one in votes.members])
    agree = np.max([(predicted == row).sum(0) for row in predicted], axis=0)
    contested = np.lexsort((sure, agree))
    contested = contested[agree[contested] < len(predicted)]
    return unsure, contested[~np.isin(contested, unsure)][:most]


def _card(row: int, aligned: AlignedPredictions, votes: Votes,
          show: Callable[[str], dict]) -> dict:
    """One picture: its answer, the classes of the largest scores, and who voted for what."""
    scores = votes.scores[row]
    answer = int(votes.answer.predicted[row])
    top = np.argsort(-scores, kind='stable')[:_TOP + 1]
    order = [answer, *(int(k) for k in top if k != answer)][:_TOP]  # a tie was broken
    voters: dict[int, list[str]] = {}
    for member, outcome in zip(aligned.members, votes.members):
        voters.setdefault(int(outcome.predicted[row]), []).append(member.name)
    sides = sorted(voters.items(), key=lambda side: (-len(side[1]), side[0]))
    return dict(
        id=aligned.ids[row], picture=show(aligned.ids[row]),
        top=[dict(name=aligned.classes[k], score=float(scores[k])) for k in order],
        sides=[dict(name=aligned.classes[k], n=len(names), names=names[:_NAMED],
                    all=', '.join(names))
               for k, names in sides[:_SIDES]],
        more=max(0, len(sides) - _SIDES), tied=bool(votes.answer.tied[row]))
