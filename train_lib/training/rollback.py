"""Steps that are not finite: they are skipped, and after several the run goes back.

Where the loss, the gradient or what it would write is not finite, the training step leaves
everything but the counter as it was. After `skip` such steps in a row the run goes back to the
newest good checkpoint before the last step that trained, whose update may have led there. That
step and those that followed then only advance the counter: order, schedule and curriculum stay
functions of the step. To have a place to go back to, step 0 is saved too, and the last two good
checkpoints (and the best ones at their time) are kept: one of them is old enough. Only if the
trouble comes back at once may that checkpoint be gone; then the newest one before the steps that
were not finite is used.

Pure functions of a `GuardState`, which every checkpoint holds.

A killed run repeats what it did after its last checkpoint, and so makes the same decisions. A
checkpoint written because of SIGTERM is not used to go back: a run that was not stopped would not
have it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from train_lib.runtime.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Guard:
    """config.guard."""

    skip: int
    rollbacks: int


def make_guard(config: Mapping) -> Guard | None:
    """Checks config.guard; None if nothing is guarded.

    Raises:
        ConfigError: a number out of its range.
    """
    for key in ('skip', 'rollbacks'):
        if config[key] < 0:
            raise ConfigError(f'config.guard.{key} = {config[key]}: give 0 or more.')
    return Guard(config['skip'], config['rollbacks']) if config['skip'] else None


@dataclasses.dataclass(frozen=True)
class GuardState:
    """What the guard remembers; the default is the state before the first step.

    Attributes:
        bad: the steps that were not finite since the last one that trained.
        skipped: steps of this run that trained nothing.
        rollbacks: how often the run went back.
        ranges: (start, end) of steps that only advance the counter, the end excluded.
        good: (step, best step at that time) of the two newest checkpoints to go back to.
    """

    bad: tuple[int, ...] = ()
    skipped: int = 0
    rollbacks: int = 0
    ranges: tuple[tuple[int, int], ...] = ()
    good: tuple[tuple[int, int | None], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The state as lists and numbers."""
        return dict(bad=list(self.bad), skipped=self.skipped, rollbacks=self.rollbacks,
                    ranges=[list(pair) for pair in self.ranges],
                    good=[list(pair) for pair in self.good])

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> 'GuardState':
        """The inverse of `to_json`."""
        pairs = {key: tuple((first, second) for first, second in stored[key])
                 for key in ('ranges', 'good')}
        return cls(tuple(stored['bad']), stored['skipped'], stored['rollbacks'], **pairs)


def only_counts(state: GuardState, step: int) -> bool:
    """Whether a step lies in a range that is not trained on again."""
    return any(start <= step < end for start, end in state.ranges)


def after_step(state: GuardState, step: int, finite: bool, guard: Guard) -> GuardState:
    """The state after a step; steps are read back in order, and after the last of `skip` nothing
    counts."""
    if exhausted(state, guard):
        return state
    if finite:
        return dataclasses.replace(state, bad=()) if state.bad else state
    return dataclasses.replace(state, bad=(*state.bad, step), skipped=state.skipped + 1)


def after_skip(state: GuardState) -> GuardState:
    """The state after a step of a range."""
    return dataclasses.replace(state, skipped=state.skipped + 1)


def exhausted(state: GuardState, guard: Guard) -> bool:
    """Whether it is time to go back."""
    return len(state.bad) >= guard.skip


def after_save(state: GuardState, step: int, best_step: int | None) -> GuardState:
    """The state that is saved with a checkpoint that was due."""
    known = [each for each, _ in state.good]
    if state.bad or step in known or (step and only_counts(state, step - 1)):
        return state
    return dataclasses.replace(state, good=(*state.good, (step, best_step))[-2:])


def pinned(state: GuardState) -> set[int]:
    """The checkpoints that must not be removed."""
    return {step for pair in state.good for step in pair if step is not None}


def doubtful(state: GuardState) -> tuple[int, int]:
    """The steps from the last that trained to the last that was not finite, the end excluded."""
    start = state.bad[0] - 1
    while start > 0 and only_counts(state, start):
        start -= 1
    return max(start, 0), state.bad[-1] + 1


def after_rollback(now: GuardState, then: GuardState) -> GuardState:
    """The state to go on with, from that of now and that of the checkpoint."""
    return dataclasses.replace(then, ranges=(*now.ranges, doubtful(now)),
                               rollbacks=now.rollbacks + 1)
