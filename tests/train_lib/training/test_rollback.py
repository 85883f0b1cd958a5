"""The guard's decisions, on a made-up run."""

import json

import pytest

from configs import common
from train_lib.runtime.errors import ConfigError
from train_lib.training import rollback
from train_lib.training.rollback import Guard, GuardState

GUARD = Guard(skip=2, rollbacks=9)


def loaded(text):
    state, trained = json.loads(text)
    return GuardState.from_json(state), trained


def run(bad, total=40, every=5, stops=()):
    """What a loop does with the guard: bad(step) says which steps are not finite.

    Returns:
        the steps that trained in the end, how often it went back, and the last host state. At
        the steps of `stops` the process dies and starts again from the newest checkpoint.
    """
    step, state, trained, saves = 0, GuardState(), [], {}
    stops, rollbacks = list(stops), []
    while True:
        if rollback.exhausted(state, GUARD):
            assert len(rollbacks) < GUARD.rollbacks
            start, end = rollback.doubtful(state)
            target = max([at for at in saves if at <= start]
                         or [at for at in saves if at <= state.bad[0]])
            then, trained = loaded(saves[target])
            for later in [at for at in saves if at > target]:
                del saves[later]
            state = rollback.after_rollback(state, then)
            rollbacks.append((step, target, start, end))
            step = target
            continue
        if step % every == 0:
            state = rollback.after_save(state, step, None)
            saves.setdefault(step, json.dumps([state.to_json(), trained]))
            for old in set(saves) - rollback.pinned(state) - {max(saves)}:
                del saves[old]
        if stops and step == stops[0]:
            stops.pop(0)
            step = max(saves)
            state, trained = loaded(saves[step])
            continue
        if step == total:
            return trained, rollbacks, state
        if rollback.only_counts(state, step):
            state = rollback.after_skip(state)
        else:
            finite = not bad(step)
            state = rollback.after_step(state, step, finite, GUARD)
            trained = [*trained, step] if finite else trained
        step += 1


def test_single_bad_steps_are_skipped():
    trained, rollbacks, state = run(lambda step: step in (7, 9, 30))
    assert trained == [step for step in range(40) if step not in (7, 9, 30)]
    assert not rollbacks
    assert state.skipped == 3


def test_two_in_a_row_go_back_and_are_left_out_with_the_step_before():
    trained, rollbacks, state = run(lambda step: step in (12, 13))
    assert rollbacks == [(14, 10, 11, 14)]
    assert trained == [step for step in range(40) if step not in (11, 12, 13)]
    assert (state.skipped, state.rollbacks) == (3, 1)


def test_a_checkpoint_after_the_step_in_doubt_is_not_gone_back_to():
    assert run(lambda step: step in (15, 16))[1] == [(17, 10, 14, 17)]
    assert run(lambda step: step in (0, 1))[1] == [(2, 0, 0, 2)]


def test_trouble_that_goes_on_goes_further_back():
    """The step before the first range is in doubt when the one after it is bad again."""
    trained, rollbacks, state = run(lambda step: 12 <= step < 16)
    assert rollbacks == [(14, 10, 11, 14), (16, 10, 10, 16)]
    assert trained == [*range(10), *range(16, 40)]
    assert (state.skipped, state.rollbacks) == (6, 2)


def test_what_was_left_out_stays_so_when_it_goes_back_further():
    trained, rollbacks, _ = run(lambda step: step in (12, 13, 15, 16))
    assert rollbacks == [(14, 10, 11, 14), (17, 10, 14, 17)]
    assert trained == [*range(11), *range(17, 40)]


def test_states_in_doubt_are_none_to_go_back_to():
    """With a checkpoint a step: none while steps are bad, and none between those left out."""
    trained, rollbacks, _ = run(lambda step: 12 <= step < 16, every=1)
    assert rollbacks == [(14, 11, 11, 14), (16, 11, 10, 16)]  # the one of step 10 is gone
    assert trained == [*range(11), *range(16, 40)]


@pytest.mark.parametrize('stops', [(13,), (14,), (15, 12), (17, 24, 36), (14, 14, 14)])
def test_a_killed_run_comes_to_the_same_decisions(stops):
    def bad(step):
        return step in (3, 12, 13, 14, 15, 28, 29)

    unbroken, broken = run(bad), run(bad, stops=stops)
    assert broken[0] == unbroken[0]
    assert broken[2] == unbroken[2]


def test_wrong_numbers_are_refused():
    config = common.get_config().guard.to_dict()
    assert rollback.make_guard(config) is None
    with pytest.raises(ConfigError, match=r'config\.guard\.rollbacks = -1'):
        rollback.make_guard(config | dict(rollbacks=-1))
