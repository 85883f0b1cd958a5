"""MLflow: config.log.mlflow is a folder or a tracking URI.

A folder gets a database, mlflow.db, which `mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db`
shows. Everything else is MLflow's own: MLFLOW_EXPERIMENT_NAME, MLFLOW_TRACKING_USERNAME.
"""

import contextlib
import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from input_pipeline.atomic_files import atomic_path
from train_lib.run_dir.dotted_keys import by_dotted_key
from train_lib.run_dir.logged_run import LoggedRun, need_package
from train_lib.runtime.errors import ConfigError

_EXPERIMENT = 'atelier'
_AT_ONCE = 100  # parameters per call, MLflow's limit
_LONGEST = 6000  # characters of the value of a parameter, MLflow's limit
_STATUS = {'done': 'FINISHED', 'stopped': 'KILLED', 'failed': 'FAILED'}
_SQLITE = 'sqlite:///'  # and a path
_FILE_STORE = 'MLFLOW_ALLOW_FILE_STORE'


class MlflowLogger:
    """A run of an experiment. Parameters are the config as it was at the first start; a value that
    a later start changes becomes a tag."""

    WHERE = 'a folder or a tracking URI'

    def __init__(self, where: str, place: str, run: str, about: LoggedRun):
        from mlflow import MlflowClient

        for name in ('mlflow', 'alembic'):  # set to INFO by the import
            logging.getLogger(name).setLevel(logging.WARNING)
        with _alone(place):
            _make_database(place)
            self._client = MlflowClient(tracking_uri=place)
            experiment = _experiment(self._client)
        self.run, self.shown = run, -1
        if run:
            self._client.update_run(run, status='RUNNING')
            self.shown = max((metric.step for split in ('train', 'val') for metric in
                              self._client.get_metric_history(run, f'{split}/epoch')), default=-1)
        else:
            tags = dict(workdir=str(about.workdir)) | (
                dict(group=about.group) if about.group else {})
            self.run = self._client.create_run(experiment, run_name=about.name,
                                               tags=tags).info.run_id
        self._describe(about.settings)

    @staticmethod
    def check(where: str) -> str:
        """The tracking URI; see `Logger.check`."""
        need_package('mlflow', 'mlflow')
        scheme = re.match(r'([a-z][a-z0-9+-]+):', where)  # longer than the letter of a drive
        if scheme is None and where != 'databricks':
            place = f'{_SQLITE}{Path(where).resolve() / "mlflow.db"}'
        else:
            place = where
        if place.startswith('sqlite'):
            need_package('mlflow', 'sqlalchemy')  # which mlflow-skinny lacks
        if scheme is not None and scheme[1] == 'file' and os.environ.get(
                _FILE_STORE, '').lower() not in ('true', '1'):
            raise ConfigError(f'config.log.mlflow = {where!r} is a file store, which newer '
                              f'versions of MLflow refuse: give a folder without "file:", in '
                              f'which a database is made, or set {_FILE_STORE}=true.')
        return place

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to each metric."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self.run, metrics=[Metric(_allowed(name), value, now, step)
                                                  for name, value in values.items()])

    result = write

    def close(self, status: str) -> None:
        """Says how the start ended."""
        self._client.set_terminated(self.run, _STATUS[status])

    def _describe(self, settings: Mapping) -> None:
        from mlflow.entities import Param

        known = self._client.get_run(self.run).data.params
        wanted = {_allowed(key): str(value)[:_LONGEST]
                  for key, value in by_dotted_key(settings).items()}
        new = [Param(key, value) for key, value in wanted.items() if key not in known]
        for first in range(0, len(new), _AT_ONCE):
            self._client.log_batch(self.run, params=new[first:first + _AT_ONCE])
        for key, value in wanted.items():
            if known.get(key, value) != value:
                self._client.set_tag(self.run, f'changed.{key}', value[:_LONGEST])


@contextlib.contextmanager
def _alone(place: str) -> Iterator[None]:
    """In the block, no other process of this machine makes the tables of this database: of two that
    do so at the same time, one fails."""
    if not place.startswith(_SQLITE):
        yield
        return
    path = Path(place.removeprefix(_SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f'{path}.lock', 'a') as file:  # ends with the file
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_database(place: str) -> None:
    """Makes a database that is not there whole or not at all: a process that is killed between the
    tables would leave one that MLflow can never open."""
    path = Path(place.removeprefix(_SQLITE))
    if place.startswith(_SQLITE) and not path.exists():
        from mlflow import MlflowClient

        with atomic_path(path) as temporary:
            Path(temporary).unlink(missing_ok=True)  # of a process that was killed
            MlflowClient(tracking_uri=f'{_SQLITE}{temporary}')


def _experiment(client) -> str:
    """The id of the experiment, which is made if necessary."""
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME') or _EXPERIMENT
    for last in (False, True):
        found = client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        try:
            return client.create_experiment(name)
        except Exception:  # another process may have made it meanwhile
            if last:
                raise
    raise AssertionError


def _allowed(name: str) -> str:
    """The name without what MLflow refuses."""
    return re.sub(r'[^\w/.\- ]', '_', name)
