"""A trace of a few training steps, to see where their time goes."""

import logging
from pathlib import Path

import jax

log = logging.getLogger(__name__)


class Trace:
    """Traces some steps; of a run that goes on, those that are left."""

    def __init__(self, folder: Path, steps: range):
        self._folder, self._steps = folder, steps
        self._since = None  # the first step traced, while it runs

    def before(self, step: int, running) -> None:
        """Called before each step; `running` is what the device still works on, or None."""
        if self._since is None and step in self._steps:
            jax.block_until_ready(running)
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._since = step
        elif self._since is not None and step not in self._steps:
            jax.block_until_ready(running)
            self.close(step)

    def close(self, step: int) -> None:
        """Writes the trace, if one runs."""
        if self._since is None:
            return
        since, self._since = self._since, None
        jax.profiler.stop_trace()
        log.info('profile  steps %d to %d: drop the newest perfetto_trace.json.gz under %s on '
                 'https://ui.perfetto.dev, or: pip install xprof; xprof --logdir=%s',
                 since, step - 1, self._folder, self._folder)
