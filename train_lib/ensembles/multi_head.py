"""Votes of models with several heads, as answers to one product class (mask x gender x age).

Either each head is voted on and the answers are combined, or each member's heads are combined to
product probabilities and these are voted on. Heads count as independent given the image.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.products import product_log_probs
from train_lib.ensembles.pool import Ballot, Outcome, vote, vote_one
from train_lib.runtime.errors import ConfigError

_MOST_CELLS = 500_000_000  # 2 GB of product log probabilities


def vote_then_combine(logits: Sequence[Mapping], heads: Sequence[str], ballot: Ballot, *,
                      rows: Sequence | None = None, labels: Mapping | None = None,
                      **options) -> tuple[np.ndarray, dict[str, Outcome]]:
    """Votes on each head.

    Args:
        logits: M members {head: [N_m, C_h]}.
        heads: in the order of the product class.
        ballot, rows, options: as in `ballots.vote`.
        labels: {head: int [N]} or None.

    Returns:
        (the product class int64 [N], in the order of `np.ravel_multi_index`; {head: Outcome} with
        scores).
    """
    outcomes = {head: vote_one([member[head] for member in logits], ballot, rows=rows,
                               labels=None if labels is None else labels[head], **options)
                for head in heads}
    sizes = tuple(outcomes[head].num_classes for head in heads)
    return np.ravel_multi_index(tuple(outcomes[head].predicted for head in heads), sizes), outcomes


def combine_then_vote(logits: Sequence[Mapping], heads: Sequence[str],
                      ballots: Mapping[str, Ballot], *, rows: Sequence | None = None,
                      **options) -> dict[str, Outcome]:
    """Votes on the product classes; `options` as in `ballots.vote` (labels of the product class).

    Raises:
        ConfigError: products too large for memory.
    """
    members = [{head: np.asarray(member[head]) if rows is None or rows[i] is None
                else np.asarray(member[head])[rows[i]] for head in heads}
               for i, member in enumerate(logits)]
    cells = sum(len(member[heads[0]]) * int(np.prod([member[head].shape[1] for head in heads]))
                for member in members)
    if cells > _MOST_CELLS:
        raise ConfigError(f'The product of the heads {", ".join(heads)} has {cells:,} numbers over '
                          f'all members and rows, more than {_MOST_CELLS:,}: vote on each head.')
    return vote([product_log_probs(member, heads).astype(np.float32) for member in members],
                ballots, **options)
