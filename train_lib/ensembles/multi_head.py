"""Votes on aligned predictions, also of models with several heads (mask x gender x age).

Several heads answer with one class of their product. Either each head is voted on and the answers
are combined (here), or each member's heads are combined to product probabilities and these are
voted on (`aligned.product_of_heads`, then `pool.vote`). Heads count as independent given
the image.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence

import numpy as np

from train_lib.ensembles.aligned import AlignedPredictions
from train_lib.ensembles.aligned_logits import AlignedLogits
from train_lib.ensembles.pool import Outcome, score_rows, vote, vote_one
from train_lib.ensembles.rules import RULES
from train_lib.ensembles.spec import EnsembleSpec


def vote_on(aligned: AlignedPredictions, specs: Mapping[Hashable, EnsembleSpec],
            keep: Collection[Hashable] = ()) -> dict[Hashable, Outcome]:
    """`pool.vote` of the answer that aligned predictions ask for, head by head if they say so."""
    if aligned.by_head is None:
        return vote(aligned.logits, specs, labels=aligned.labels, models=aligned.models, keep=keep)
    outcomes = {}
    for name, spec in specs.items():
        answer, by_head = vote_then_combine(aligned.by_head, spec, aligned.models)
        outcomes[name] = _as_product(answer, list(by_head.values()), aligned.labels,
                                     RULES[spec.rule].distribution, name in keep)
    return outcomes


def vote_then_combine(by_head: Mapping[str, AlignedLogits], spec: EnsembleSpec,
                      models: Sequence[Hashable] | None = None
                      ) -> tuple[np.ndarray, dict[str, Outcome]]:
    """Votes on each head.

    Args:
        by_head: the logits of M members per head, in the order of the product class.
        models: M names, as in `pool.vote`.

    Returns:
        (the product class int64 [N], in the order of `np.ravel_multi_index`; {head: Outcome} with
        scores).
    """
    outcomes = {head: vote_one(logits, spec, models=models) for head, logits in by_head.items()}
    sizes = tuple(outcome.num_classes for outcome in outcomes.values())
    answers = tuple(outcome.predicted for outcome in outcomes.values())
    return np.ravel_multi_index(answers, sizes), outcomes


def _as_product(answer: np.ndarray, outcomes: Sequence[Outcome], labels: np.ndarray,
                distribution: bool, keep: bool) -> Outcome:
    """Outcomes of single heads as one outcome of their product."""
    scores = outcomes[0].scores
    for outcome in outcomes[1:]:
        scores = (scores[:, :, None] * outcome.scores[:, None, :]).reshape(len(scores), -1)
    rows = score_rows(scores, answer, labels, distribution)
    return Outcome(answer.astype(np.int32), np.any([one.tied for one in outcomes], axis=0),
                   scores if keep else None, rows, scores.shape[1])
