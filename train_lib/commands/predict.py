"""The verb predict: the logits of a trained run, or of every fold of one, in the store."""

import logging

from train_lib.commands.command import Command
from train_lib.probing.probe_inference import predict_any
from train_lib.run_dir import lock
from train_lib.runtime import distributed
from train_lib.runtime.signals import STOPPED, Interrupted, StopSignal

log = logging.getLogger(__name__)


def predict(command: Command) -> int:
    """Predicts with the run in --workdir. Returns the exit code."""
    distributed.start(command.config.distributed)
    try:
        with (distributed.StopTogether() if distributed.several() else StopSignal() as stop,
              lock.held(command.workdir)):
            predict_any(command.config, command.workdir, stop)
    except Interrupted:
        log.info('Stopped. The same command continues.')
        return STOPPED
    return 0
