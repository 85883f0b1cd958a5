"""Steps that are not finite: they are skipped, then undone.

The training step leaves everything but the counter as it was when the loss, the gradient or
what it would write is not finite. After `skip` such steps in a row the run goes back to the
newest good checkpoint before the last step that trained, whose update may have led there. That
step and those that followed then only advance the counter: order, schedule and curriculum stay
functions of the step. To have a place to go back to, step 0 is saved too, and the last two good
checkpoints (with the best ones they know of) are kept: one of them is old enough. Only when the
trouble comes back at once, the place for it may be gone; then the newest before the steps that
were not finite has to do.

Pure functions of a state that is JSON, which every checkpoint holds:

    bad        the steps that were not finite since the last one that trained
    skipped    steps of this run that trained nothing
    rollbacks  how often it went back
    ranges     [start, end] of steps that only count, the end excluded
    good       [step, best step then] of the two newest checkpoints to go back to

A killed run repeats what it did after its last checkpoint, and so comes to the same decisions.
A checkpoint that SIGTERM asked for is not kept for it: a run that was not stopped has no such.
"""

import dataclasses
from collections.abc import Mapping

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


def new_state() -> dict:
    """Before the first step."""
    return dict(bad=[], skipped=0, rollbacks=0, ranges=[], good=[])


def only_counts(state: dict, step: int) -> bool:
    """Whether a step lies in a range that is not trained on again."""
    return any(start <= step < end for start, end in state['ranges'])


def after_step(state: dict, step: int, finite: bool, guard: Guard) -> dict:
    """The state after a step, heard of in their order; after the last of `skip` nothing counts."""
    if exhausted(state, guard):
        return state
    if finite:
        return state | dict(bad=[]) if state['bad'] else state
    return state | dict(bad=[*state['bad'], step], skipped=state['skipped'] + 1)


def after_skip(state: dict) -> dict:
    """The state after a step of a range."""
    return state | dict(skipped=state['skipped'] + 1)


def exhausted(state: dict, guard: Guard) -> bool:
    """Whether it is time to go back."""
    return len(state['bad']) >= guard.skip


def after_save(state: dict, step: int, best_step: int | None) -> dict:
    """The state that is saved with a checkpoint that was due."""
    known = [each for each, _ in state['good']]
    if state['bad'] or step in known or (step and only_counts(state, step - 1)):
        return state
    return state | dict(good=[*state['good'], [step, best_step]][-2:])


def pinned(state: dict) -> set[int]:
    """The checkpoints that must not be removed."""
    return {step for pair in state['good'] for step in pair if step is not None}


def doubtful(state: dict) -> tuple[int, int]:
    """The steps from the last that trained to the last that was not finite, the end excluded."""
    start = state['bad'][0] - 1
    while start > 0 and only_counts(state, start):
        start -= 1
    return max(start, 0), state['bad'][-1] + 1


def after_rollback(now: dict, then: dict) -> dict:
    """The state to go on with, from that of now and that of the checkpoint."""
    return then | dict(ranges=[*now['ranges'], list(doubtful(now))],
                       rollbacks=now['rollbacks'] + 1)
