"""The knobs of a run that look for flat minima: sharpness-aware gradients and averages of weights.

`common.get_config` adds them. One average at a time, `ema` included, is used for predictions.
"""

from ml_collections import ConfigDict, FieldReference


def _anything(default) -> FieldReference:
    """A field whose value may have another type than its default."""
    return FieldReference(default, field_type=object)


def add_flat_minima_sections(config: ConfigDict) -> None:
    """Adds the sections sharpness, swa, lookahead and schedule_free."""
    # A second gradient, at weights where the batch's loss is high, is what the optimizer gets; a
    # step costs up to twice as much. Metrics and BatchNorm statistics are those of the first.
    config.sharpness = dict(
        kind='none',  # 'none' | 'sam' | 'asam', whose distance is in units of the weights
        rho=0.05,  # how far away, above 0; about ten times as much for asam
        start=dict(percent=0),  # from then on
        every=1,  # one step in so many takes a second gradient, 1 or more
    )
    # The equal-weight mean of the weights along the last part of a run. Before `start` there is no
    # mean, and evaluation uses the weights themselves.
    config.swa = dict(
        start=_anything(None),  # a duration: the weights then are the first that count (None: off)
        every=dict(epochs=1),  # between two weights that count, and the length of a cycle
        schedule='constant',  # learning rate from `start` on: 'constant' | 'cyclic', along a line
                              # from `lr` to `low` in each cycle | 'schedule': as config.schedule
        lr=0.5,  # constant, cyclic: a share of schedule.lr, above 0
        low=0.05,  # cyclic: at the end of each cycle, a share of schedule.lr
        # Training pictures on which the BatchNorm statistics of the mean are estimated anew before
        # each evaluation (0: those of the averaged weights are averaged as well).
        statistics=2048,
    )
    # Slow weights, used for predictions; every few steps they go a share of the way to those that
    # train, which go on from there.
    config.lookahead = dict(
        every=0,  # steps, e.g. 5 (0: off)
        alpha=0.5,  # the share, above 0, at most 1
        statistics=0,  # as swa.statistics (0: those of the training weights)
    )
    # A mean of all weights, used for predictions, in place of momentum and a falling learning rate:
    # needs schedule.name='constant', and optimizer.b1 or momentum of 0.
    config.schedule_free = dict(
        beta=0.0,  # share of the mean in the weights that the gradient is taken at, e.g. 0.9
                   # (0: off)
        statistics=0,  # as swa.statistics (0: those of the weights that the gradient is taken at)
    )
