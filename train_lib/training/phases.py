"""A run whose parameters do not all train from the first step on, cut where more of them begin.

Which phase a step belongs to is a function of its number alone, and the state has the same parts in
all of them, so a run that was stopped goes on exactly. Each phase has a program of its own: what
waits gets no gradient, so its backward pass is not computed at all.
"""

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence

from flax import nnx

from train_lib.optim.late_start import describe
from train_lib.optim.param_groups import freeze_norms
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.trees import by_path
from train_lib.training.network import Network
from train_lib.training.step import split_model

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run before its last parameters begin to train.

    Attributes:
        until: the step from which on more of them train.
        waiting: names of those that do not train in it.
        begins: names of those that begin at `until`.
    """

    until: int
    waiting: frozenset[str]
    begins: frozenset[str]


def find_phases(network: Network, to_steps: Callable[[Mapping, str], int], total: int
                ) -> list[Phase]:
    """The phases of a run before everything trains, in their order; [] where all begins at once.

    Args:
        network: of the run.
        to_steps: (duration, config key) -> steps.
        total: steps of the run; what would begin later never trains, which is logged.

    Raises:
        ConfigError: nothing trains at the first step.
    """
    starts = network.parameters.starts
    if not starts:
        return []
    firsts = {start: to_steps(dict([start]), 'finetune.unfreeze') for start in starts.values()}
    steps = {name: firsts[start] for name, start in starts.items()}
    phases, named = [], set(by_path(network.weights.params))
    for until in sorted(set(steps.values()) - {0}):
        phases.append(Phase(until, frozenset(name for name in steps if steps[name] >= until),
                            frozenset(name for name in steps if steps[name] == until)))
    if phases and phases[0].waiting == named:
        raise ConfigError(f'config.finetune: nothing trains before step {phases[0].until}: give a '
                          f'row of the table no start.')
    for start, first in firsts.items():
        if first >= total:
            log.warning('finetune what begins %s never trains: the run has %d steps.',
                        describe(start), total)
    return phases


def graphdef_of(network: Network, waiting: Collection[str]) -> nnx.GraphDef:
    """The definition of the model in a phase: a BatchNorm that waits keeps its statistics."""
    weights = network.weights
    model = nnx.merge(network.graphdef, weights.params, weights.frozen, weights.batch_stats)
    freeze_norms(model, set(by_path(weights.params)) - set(waiting))
    return split_model(model)[0]


def summary(names: Collection[str], modules: int = 3) -> str:
    """Such as 'conv_stem, bn1, blocks and 2 others'."""
    tops = list(dict.fromkeys(name.partition('/')[0] for name in sorted(names)))
    rest = len(tops) - modules
    return ', '.join(tops[:modules]) + (f' and {rest} other{"s" * (rest > 1)}' if rest > 0 else '')


def begun_at(phases: Sequence[Phase], step: int) -> str:
    """What begins to train at this step, for the log; '' for nothing."""
    return next((summary(phase.begins) for phase in phases if phase.until == step), '')
