"""Makes the predictions that a vote lacks, as the verb predict does."""

import logging
from collections.abc import Sequence
from pathlib import Path

from train_lib.predictions.store import OUT_OF_FOLD
from train_lib.run_dir import lock
from train_lib.run_dir.run_config import config_of_run
from train_lib.runtime.signals import StopSignal

log = logging.getLogger(__name__)


def predict_missing(workdir: Path, source: str, views: Sequence[str]) -> None:
    """Predicts one source with a run, or with every fold of a k-fold run.

    Args:
        workdir: of the run.
        source: 'train', 'val' or 'test'; 'out_of_fold' are the validation rows of the folds.
        views: as in config.predict.views.

    Raises:
        ConfigError: the run cannot predict. Interrupted: told to stop; what is finished is kept.
    """
    from train_lib.probing.probe_inference import predict_any  # loads JAX, which few votes need

    config = config_of_run(workdir)
    with config.ignore_type():
        config.predict.update(source='val' if source == OUT_OF_FOLD else source,
                              views=tuple(views))
    log.info('missing  predictions of %s (%s), which are made now: %s', source, ', '.join(views),
             workdir)
    with StopSignal() as stop, lock.held(workdir):
        predict_any(config, workdir, stop, replace=False)
