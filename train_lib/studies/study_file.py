"""study.json: the arms, seeds and folds that a study's workdir was started with."""

import json
from pathlib import Path

from input_pipeline.atomic_files import write_text
from train_lib.run_dir import made_folders
from train_lib.runtime.errors import ConfigError
from train_lib.studies.definition import Study
from train_lib.studies.identity import identity_of

STUDY = 'study.json'


def claim(study: Study, workdir: Path) -> list[Path]:
    """Makes the workdir and writes study.json. Where there is one already, from an earlier start
    or another process, compares with it first; arms, seeds and folds may be added.

    Returns:
        The folders that were made, for `made_folders.remove_empty`.

    Raises:
        ConfigError: an arm was changed or removed, the folder holds a run, or cannot be made.
    """
    path = workdir / STUDY
    made: list[Path] = []
    now = {arm.name: identity_of(arm.config) for arm in study.arms}
    search = None if study.search is None else study.search.to_json()
    if path.exists():
        known = json.loads(path.read_text())
        _compare(known['arms'], now, workdir)
        if known.get('search') != search:
            raise ConfigError(f'The search of {workdir} was started with other trials '
                              f'(search() or config.study.search): put them back, or give a new '
                              f'--workdir.')
    else:
        try:
            made = made_folders.make(workdir)
        except OSError as error:
            raise ConfigError(f'The workdir {workdir} cannot be made ({error.strerror}): give '
                              f'another --workdir.') from None
        if (workdir / 'config.json').exists():
            raise ConfigError(f'{workdir} holds a run, not a study: give another --workdir.')
    content = dict(metric=study.metric, baseline=study.baseline, seeds=study.seeds,
                   folds=[fold for fold in study.folds if fold is not None], arms=now,
                   folders={arm.name: arm.folder for arm in study.arms})
    content |= {} if search is None else dict(search=search)
    if not path.exists() or json.loads(path.read_text()) != json.loads(json.dumps(content)):
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + '\n', shared=True,
                   durable=False)
    return made


def _compare(before: dict[str, dict], now: dict[str, dict], workdir: Path) -> None:
    """Refuses arms that differ from those that the workdir was started with."""
    for name, old in before.items():
        if name not in now:
            raise ConfigError(f'The arm {name!r} of {workdir} is no longer in the study: put it '
                              f'back, or give a new --workdir.')
        new = now[name]
        # Keys that are newer than the study have their defaults, which change nothing. Those of
        # config.model are arguments of the model, and have no defaults in the config.
        keys = {key for key in (*old, *new) if key in old or key.startswith('model.')}
        for key in sorted(keys):
            if old.get(key) != new.get(key):
                raise ConfigError(
                    f'The arm {name!r} of {workdir} was started with config.{key} = '
                    f'{old.get(key)!r}, and now has {new.get(key)!r}: put it back, give the '
                    f'arm another name, or give a new --workdir.')
