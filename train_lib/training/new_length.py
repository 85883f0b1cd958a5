"""A run that goes on with another length: what that does to its rate, stages, resampling, mixing.

Durations in percent of the run, and the schedule itself, move with its length. The rate before and
after is logged; what had begun and would begin again, or had ended and would come back, is refused
unless config.checkpoint.back says otherwise.
"""

import dataclasses
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline.curriculum import make_stages, stage_at
from input_pipeline.durations import to_steps
from train_lib.losses.mixing import make_mixings
from train_lib.optim.param_groups import durations
from train_lib.optim.schedules import make_schedule
from train_lib.run_dir import workdirs
from train_lib.runtime.errors import ConfigError
from train_lib.training.data import Data
from train_lib.training.weight_averages import read_averaging

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Moment:
    """A run of `total` steps at one of them.

    Attributes:
        total: steps of the run.
        rate: learning rate of the step, without the cuts of a plateau.
        stage: of the curriculum.
        phases: {what changes once or twice in a run: how often it has changed so far}.
    """

    total: int
    rate: float
    stage: int
    phases: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class NewLength:
    """The last step done as it was, and the next one as it will be; `step` steps are done."""

    step: int
    before: _Moment
    after: _Moment

    @property
    def goes_back(self) -> list[str]:
        """What would begin again, or come back after its end."""
        return [name for name, phase in self.before.phases.items()
                if self.after.phases[name] < phase]


def find_new_length(config: ConfigDict, data: Data, run: Path, step: int) -> NewLength | None:
    """Compares the length of a run with that of the start before.

    Args:
        config, data: of this start, which differs from that one in config.duration and perhaps in
            the number of training rows.
        run: the workdir that goes on, with the config.json of that start.
        step: steps done, those of its checkpoint.

    Returns:
        None if the run has not begun or keeps its length.

    Raises:
        ConfigError: something goes back, and config.checkpoint.back is not 'accept'.
    """
    if not step:
        return None
    then = config.copy_and_resolve_references()
    with then.ignore_type(), then.unlocked():
        then.duration = workdirs.saved_config(run).duration
    now_rows = then_rows = len(data.parts['train'])
    if workdirs.data_digest(run) not in ('', data.digest):
        sides = list(workdirs.known_sides(run).values())
        then_rows = sides.count('train') or now_rows
    before = _moment(then, data, then_rows, step - 1)
    after = _moment(config, data, now_rows, step)
    if before.total == after.total:
        return None
    found = NewLength(step, before, after)
    if found.goes_back and config.checkpoint.back != 'accept':
        raise ConfigError(
            f'config.duration = {config.duration.to_dict()!r}: with {after.total} steps instead of '
            f'{before.total} {", ".join(found.goes_back)} would go back at step {step}, where the '
            f'run goes on: give another length, or accept that by --config.checkpoint.back=accept.')
    return found


def say(found: NewLength, cuts: float = 1.0) -> None:
    """Logs the rate and the stage before and after, and what goes back.

    Args:
        found: of this start.
        cuts: the factor of the rate that a plateau has come to.
    """
    before, after = found.before, found.after
    log.info('changed  the length: %d -> %d steps; %d are done', before.total, after.total,
             found.step)
    old, new = before.rate * cuts, after.rate * cuts
    moves = 'rises' if new > old * (1 + 1e-6) else 'falls' if new < old * (1 - 1e-6) else 'stays'
    log.info('changed  the learning rate %s: %.3g -> %.3g; stage %d -> %d', moves, old, new,
             before.stage, after.stage)
    for name in found.goes_back:
        log.info('changed  goes back (checkpoint.back=accept): %s', name)


def _moment(config: ConfigDict, data: Data, rows: int, step: int) -> _Moment:
    """The run of a config over so many training rows, at a step."""
    def steps(duration: Mapping, key: str, total: int | None = None) -> int:
        return to_steps(dict(duration), key=key, examples_per_epoch=rows,
                        batch_size=config.batch_size, total_steps=total)

    total = max(steps(config.duration, 'duration'), 1)
    of_run = partial(steps, total=total)
    stages = make_stages(config.curriculum, of_run)
    averaging = read_averaging(config, total, of_run)
    schedule = make_schedule(config.schedule.to_dict(), total, of_run, stages,
                             batch_size=config.batch_size,
                             tail=averaging.tail if averaging else None)
    phases = {'the curriculum': stage_at(stages, step)}
    phases |= {key: step >= of_run(duration, key)
               for key, duration in durations(config.finetune.to_dict()).items()}
    if config.sharpness.kind != 'none':
        phases['sharpness'] = step >= of_run(config.sharpness.start, 'sharpness.start')
    if config.swa.start is not None:
        phases['swa'] = step >= of_run(config.swa.start, 'swa.start')
    if config.resample.kind != 'none' and config.resample.start:
        phases['resampling'] = step >= of_run(config.resample.start, 'resample.start')
    weights = config.loss.class_weights
    if weights.kind != 'none':
        phases['the class weights'] = step >= of_run(weights.start, 'loss.class_weights.start')
    for number, item in enumerate(make_mixings(config.mixing, data.manifest.classes, of_run)):
        ended = item.until is not None and step >= item.until
        phases[f'mixing[{number}]'] = (step >= item.start) + ended
    rate = float(schedule(min(step, total)))  # type: ignore[arg-type]  # a plain number too
    return _Moment(total, rate, phases['the curriculum'], phases)
