"""Weights & Biases: config.log.wandb names the project.

Everything else is wandb's own: `wandb login`, WANDB_MODE=offline, WANDB_ENTITY, WANDB_BASE_URL. An
offline run lies in <workdir>/wandb and is sent by `wandb sync <workdir>/wandb/offline-run-*`. wandb
cannot go on with its file, and a kill may leave one without its last minutes; so each start writes
a file with all rows, which takes the place of those before.
"""

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from train_lib.run_dir.logged_run import LoggedRun, need_package
from train_lib.runtime.errors import ConfigError

_ONLINE = ('online', 'run', 'shared')
_INIT_SECONDS, _FINISH_SECONDS = 45.0, 60.0  # until a server that does not answer is left alone


class WandbLogger:
    """A run of a project. Its history is by training step, which wandb wants in order."""

    WHERE = 'the name of a project'

    def __init__(self, where: str, place: str, run: str, about: LoggedRun):
        import wandb

        online = place.endswith(' online')
        if not online:
            _forget_earlier_starts(about.workdir / 'wandb', run)
        self._wandb_run = wandb.init(
            project=where, id=run or uuid.uuid4().hex[:12], name=about.name,
            group=about.group or None, dir=str(about.workdir), config=dict(about.settings),
            resume='allow' if online else None,
            reinit='create_new',  # the folds of a run follow each other in one process
            settings=wandb.Settings(console='off', silent=True, init_timeout=_INIT_SECONDS,
                                    finish_timeout=_FINISH_SECONDS))
        self.run = self._wandb_run.id
        self.shown = self._wandb_run.starting_step - 1
        self._wandb_run.config.update(dict(about.settings), allow_val_change=True)

    @staticmethod
    def check(where: str) -> str:
        """The project, and whether it is written online; see `Logger.check`."""
        need_package('wandb', 'wandb')
        import wandb

        try:
            settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
            online = settings.mode in _ONLINE
            known = not online or wandb.login(prompt=False, verify=False)
        except (ValueError, wandb.Error) as error:
            raise ConfigError(f'config.log.wandb is set, and wandb refuses its settings '
                              f'({" ".join(str(error).split())}): correct them.') from None
        if settings.mode == 'disabled':
            raise ConfigError('config.log.wandb is set, and WANDB_MODE is disabled: '
                              'take one of them out.')
        if not known:
            raise ConfigError('config.log.wandb is set, and this machine is not logged in to '
                              'Weights & Biases: run `wandb login`, or set WANDB_MODE=offline.')
        return f'{where} {"online" if online else "offline"}'

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values to the history."""
        self._wandb_run.log(dict(values), step=step, commit=True)

    def result(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the scores to the summary."""
        self._wandb_run.summary.update(dict(values))

    def close(self, status: str) -> None:
        """Waits until all is sent, a minute at most; the rest stays in <workdir>/wandb."""
        self._wandb_run.finish(exit_code=0 if status == 'done' else 1)


def _forget_earlier_starts(folder: Path, run: str) -> None:
    """Removes the offline files of a run that were not sent yet."""
    for found in folder.glob(f'offline-run-*-{run}') if run else ():
        if not list(found.glob('*.synced')):
            shutil.rmtree(found, ignore_errors=True)
