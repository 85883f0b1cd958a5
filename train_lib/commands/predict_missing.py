"""Predictions that a vote lacks, made by what the verb predict does."""

import logging
from collections.abc import Sequence
from pathlib import Path

from train_lib.commands.command_line import config_of_run
from train_lib.predictions.store import OUT_OF_FOLD
from train_lib.run_dir import lock

log = logging.getLogger(__name__)


class Stopped(Exception):
    """A signal ended the work; what is finished is kept."""


def predict_with(workdir: Path, source: str, views: Sequence[str]) -> None:
    """Makes the predictions of a run, or of every fold of one, one model after another."""
    from train_lib.commands.predict import predict_runs
    from train_lib.training.evaluate import Interrupted
    from train_lib.training.loop import StopSignal

    config = config_of_run(workdir)
    with config.ignore_type():
        config.predict.update(source='val' if source == OUT_OF_FOLD else source,
                              views=tuple(views))
    log.info('%s has no predictions of %s in the views %s yet: making them', workdir, source,
             ', '.join(views))
    try:
        with StopSignal() as stop, lock.held(workdir):
            predict_runs(config, workdir, stop)
    except Interrupted:
        raise Stopped from None
