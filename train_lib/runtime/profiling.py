"""A trace of a few training steps, to see where their time goes."""

import logging
from pathlib import Path
from typing import Any

import jax

log = logging.getLogger(__name__)


class Trace:
    """Traces the steps of a range; in a resumed run, those of them that are left.

    Args:
        folder: where the trace is written.
        steps: to be traced.
    """

    def __init__(self, folder: Path, steps: range):
        self._folder, self._steps = folder, steps
        self._since: int | None = None  # the first traced step, while the trace runs

    def before(self, step: int, running: Any) -> None:
        """Call it before each step. `running`: arrays that the device still computes, or None."""
        if self._since is None and step in self._steps:
            jax.block_until_ready(running)
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._since = step
        elif self._since is not None and step not in self._steps:
            jax.block_until_ready(running)
            self.close(step)

    def close(self, step: int) -> None:
        """Writes the trace, if one is running; `step` is the first one that is not in it."""
        if self._since is None:
            return
        since, self._since = self._since, None
        jax.profiler.stop_trace()
        log.info('profile  steps %d to %d: drop the newest perfetto_trace.json.gz under %s on '
                 'https://ui.perfetto.dev, or: pip install xprof; xprof --logdir=%s',
                 since, step - 1, self._folder, self._folder)
