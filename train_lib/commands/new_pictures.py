"""Predictions of pictures that are not those of a run, as far as they are not there yet."""

from collections.abc import Sequence
from pathlib import Path

from train_lib.run_dir import lock
from train_lib.run_dir.run_config import config_of_run
from train_lib.runtime.signals import StopSignal


def predict_pictures(run: Path, name: str, views: Sequence[str], file: Path, root: str) -> None:
    """Predicts the pictures of a table with a run, or with every fold of one.

    Args:
        run: its workdir.
        name: of the predictions, in predictions/.
        views: as in config.predict.views.
        file: the saved manifest of the pictures.
        root: what their locations are relative to.

    Raises:
        Interrupted: told to stop; what is finished is kept.
    """
    from train_lib.probing.probe_inference import predict_any  # loads JAX

    config = config_of_run(run)
    with config.unlocked(), config.ignore_type():
        config.data.update(source='csv', csv=str(file), images=root, rules=2,
                           columns=dict.fromkeys(config.data.columns, ''),
                           combine=(), separate=(), decisions=(), group_regex='',
                           multi_label=(), unreadable='error')
        config.data.classes = ()  # of a run by head, which `update` would take for a section
        config.predict.update(source='data', name=name, labelled=False, views=tuple(views))
    with StopSignal() as stop, lock.held(run):
        predict_any(config, run, stop)
