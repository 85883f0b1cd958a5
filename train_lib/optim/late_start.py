"""Parameters that begin to train later than others: their moments in the optimizer.

Each group of parameters that begin together has a state of the optimizer of its own. While it
waits it gets no gradient and its state stays as it was made, so its first update is that of a fresh
optimizer: Adam divides its moments, which begin at zero, by 1 - b^t with t counted from there. With
one count for all, t would be large by then, and the updates of the first steps up to 6.6 times as
large as they should be.
"""

from collections.abc import Mapping

import optax

from train_lib.runtime.trees import by_path, joined, select

Start = tuple[str, float]  # unit and number of a duration, such as ('epochs', 2)
FIRST = 'first'  # the group of what trains from the first step on


def group_name(start: Start | None) -> str:
    """The name of a group in the optimizer's state and so in checkpoints: by the duration as it
    is written, which a run keeps, and not by its steps, which change with the run's length."""
    return FIRST if start is None else f'after_{start[1]}_{start[0]}'


def describe(start: Start) -> str:
    """Such as 'after 2 epochs', 'after 10% of the run'."""
    unit, number = start
    if unit == 'percent':
        return f'after {number}% of the run'
    return f'after {number} {unit.removesuffix("s") if number == 1 else unit}'


def in_groups(optimizer: optax.GradientTransformation, starts: Mapping[str, Start]
              ) -> optax.GradientTransformation:
    """The optimizer with a state for each group; unchanged where all begin at once.

    Its update takes gradients and parameters of those that train now, nested dicts, and leaves the
    states of the other groups as they are.

    Args:
        optimizer: which treats parameters one by one.
        starts: by name of a parameter; what is not there trains from the first step on.
    """
    if not starts:
        return optimizer

    def groups(params):
        names = {name: group_name(starts.get(name)) for name in by_path(params)}
        return {group: lambda name, group=group: names[name] == group
                for group in sorted(set(names.values()))}

    def init(params):
        return {group: optimizer.init(select(params, members))
                for group, members in groups(params).items()}

    def update(gradients, state, params=None):
        updates, new = {}, dict(state)
        for group, members in groups(gradients).items():
            part, new[group] = optimizer.update(
                select(gradients, members), state[group],
                None if params is None else select(params, members))
            updates = joined(updates, part)
        return updates, new

    return optax.GradientTransformation(init, update)
