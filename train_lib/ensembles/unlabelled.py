"""What vote.json says of rows without labels: how good the members are elsewhere, and whether these
rows look as those did."""

from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.class_names import number_labels
from train_lib.ensembles.aligned import AlignedPredictions
from train_lib.ensembles.rules import RULES
from train_lib.ensembles.spec import EnsembleSpec
from train_lib.ensembles.validated_members import (
    Validated,
    answer_counts,
    even_rows,
    validated_members,
    validated_runs,
    written_scores,
)
from train_lib.ensembles.vote_scores import Votes
from train_lib.metrics.class_shift import shift_of_classes
from train_lib.metrics.scores import top_probability
from train_lib.metrics.statistics import disagreement
from train_lib.predictions.run_folders import run_of, splits_of

BINS = 25  # of confidences in 0..1


def describe_unlabelled(config: Mapping, aligned: AlignedPredictions, answering: EnsembleSpec,
                        votes: Votes) -> dict:
    """The entry 'unlabelled' of vote.json, of a vote on rows of which none has a label.

    Args:
        config: of the vote, as a dict; groups and seed are read.
        answering: the ensemble that answers, with its fitted weights.

    Returns:
        rule, and probability: whether its scores are probabilities;
        weights: the share of each member in the answer;
        members: per member what `Validated.scores` says of its validation rows, or None;
        runs: {k-fold run: the same out of fold}, and without: why others have none;
        classes: {head: how often each class is answered by the vote (predicted), labelled in the
        training (trained), and answered by single members here (members) and on their validation
        rows (validated), and `shift_of_classes`};
        confidence: see `_confidence`;
        disagreement: [M, M]; unanimous: the share of rows that all members answer alike.
    """
    validated = validated_members(aligned)
    runs, without = validated_runs(aligned)
    predicted = np.stack([one.predicted for one in votes.members])
    return dict(
        rule=answering.label, probability=RULES[answering.rule].distribution,
        weights=answering.member_shares(aligned.models).tolist(),
        members=[written_scores(member) if one is None else one.scores(config['groups'])
                 for member, one in zip(aligned.members, validated)],
        runs={name: one.scores(config['groups']) for name, one in runs.items()}, without=without,
        classes=_classes(config, aligned, votes, validated),
        confidence=_confidence(aligned, votes, _once(validated)),
        disagreement=disagreement(predicted).tolist(),
        unanimous=float((predicted == predicted[0]).all(0).mean()) if len(aligned) else None)


def _once(validated: Sequence[Validated | None]) -> list[Validated]:
    """Each set of validation rows once: views of a model may share them."""
    return list({id(one): one for one in validated if one is not None}.values())


def _classes(config: Mapping, aligned: AlignedPredictions, votes: Votes,
             validated: Sequence[Validated | None]) -> dict[str, dict]:
    """A vote answers better than its members, and so otherwise: what it answers here is set beside
    the training, and tested is what the members answer here against what they answer there."""
    by_head = lambda answers: aligned.split_heads(answers) or {aligned.heads[0]: answers}
    answers = by_head(votes.answer.predicted)
    members = [by_head(one.predicted) for one, there in zip(votes.members, validated) if there]
    found = {}
    for head, size in zip(aligned.heads, aligned.sizes):
        counts = dict(
            predicted=np.bincount(answers[head], minlength=size),
            trained=_training_counts(aligned, head, size),
            members=np.rint(sum((np.bincount(one[head], minlength=size) for one in members),
                                np.zeros(size)) / max(len(members), 1)).astype(int),
            validated=answer_counts(_once(validated), head, size))
        shift = shift_of_classes(dict(validation=(counts['members'], counts['validated']),
                                      training=(counts['predicted'], counts['trained'])),
                                 seed=config['seed'])
        found[head] = {key: value.tolist() if isinstance(value, np.ndarray) else value
                       for key, value in (counts | shift).items()}
    return found


def _training_counts(aligned: AlignedPredictions, head: str, size: int) -> np.ndarray:
    """int [size], the labels of all rows that a member trained on; each row counts once."""
    labels: dict[str, str] = {}
    read: dict = {}  # the folds of a run share the labels of their rows
    for member in aligned.members:
        run = run_of(member.workdir)
        if run not in read:
            splits = splits_of(member.workdir)
            read[run] = dict(zip(splits.roles, splits.labels.get(head, ())))
        for name, role in member.roles.items():
            if role == 'train' and name in read[run]:
                labels[name] = read[run][name]
    places = number_labels(labels.values(), aligned.members[0].classes[head])
    return np.bincount([k for k in places if k is not None and k >= 0], minlength=size)


def _confidence(aligned: AlignedPredictions, votes: Votes, validated: Sequence[Validated]) -> dict:
    """Counts in BINS equal bins of 0..1, and means, of the score of the answer (vote), of the
    largest probability of single members on some of these rows (members), and of the same on their
    validation rows (validated; None if there are none)."""
    rows = np.arange(len(aligned))
    some = even_rows(len(aligned)) if len(aligned) else rows
    members = [top_probability(aligned.logits.take(some).of_member(m))
               for m in range(len(aligned.members))]
    return dict(vote=_binned(votes.scores[rows, votes.answer.predicted]),
                members=_binned(np.concatenate(members)),
                validated=_binned(np.concatenate([one.confidence for one in validated]))
                if validated else None)


def _binned(values: np.ndarray) -> dict:
    counts = np.histogram(np.clip(values, 0, 1), np.linspace(0, 1, BINS + 1))[0]
    return dict(counts=counts.tolist(), mean=float(values.mean()) if len(values) else None)
