"""Which members vote: config.members, and the workdirs that config.ensembles adds."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from input_pipeline.manifest import SPLITS
from train_lib.predictions.members import find_members, workdirs_of
from train_lib.predictions.run_folders import folds_of, run_of
from train_lib.predictions.store import IDENTITY, OUT_OF_FOLD, Member
from train_lib.predictions.views import make_views
from train_lib.runtime.errors import ConfigError

# (workdir, source, views) -> None: makes the predictions that a run lacks.
Predict = Callable[[Path, str, Sequence[str]], None]


def find_voters(config: Mapping, source: str, predict: Predict | None) -> list[Member]:
    """The members that vote on one source, under unique names; folds of a run are members each.

    Args:
        config: of a vote, as a dict.
        source: as in `predictions.members.find_members`.
        predict: called for runs that have a checkpoint but lack predictions; None: they are
            refused.

    Returns:
        Members whose `model` is the name in config.members, where that has names.

    Raises:
        ConfigError: there are none, a run lacks predictions, or a member appears twice.
    """
    table = _member_table(config)
    views = tuple(config['views'])
    if predict is not None:
        for patterns in table.values():
            for workdir in (path for pattern in patterns for path in workdirs_of(pattern)):
                if lacks_predictions(workdir, source, views):
                    predict(workdir, source, views or (IDENTITY,))
    members: list[Member] = []
    seen: dict[tuple[Path, str], str | None] = {}
    for name, patterns in table.items():
        for member in find_members(patterns, source, views):
            key = (member.workdir.resolve(), member.view)
            if key in seen and (name is None or seen[key] is None):
                continue
            if key in seen:
                raise ConfigError(f'config.members has {member.workdir} under {seen[key]!r} and '
                                  f'under {name!r}: a member votes once.')
            seen[key] = name
            members.append(member if name is None else dataclasses.replace(
                member, model=name, name=name + member.name.removeprefix(member.model)))
    names = [member.name for member in members]
    return [member if names.count(member.name) == 1 else dataclasses.replace(
        member, name=f'{member.name} ({run_of(member.workdir)})') for member in members]


def views_of(given: str | Sequence[str]) -> tuple[str, ...]:
    """config.views with the views that a set stands for; without any, the pictures as they are.

    Raises:
        ConfigError: there is no such view.
    """
    try:
        return tuple(make_views(split_words(given) or (IDENTITY,)))
    except ConfigError as error:
        raise ConfigError(str(error).replace('config.predict.views', 'config.views')) from None


def split_words(value: str | Sequence) -> tuple[str, ...]:
    """'a, b' or ('a', 'b') as ('a', 'b'): how a config gives workdirs, rules and columns."""
    if isinstance(value, (list, tuple)):
        return tuple(str(one) for one in value)
    return tuple(word.strip() for word in str(value).split(',') if word.strip())


def lacks_predictions(workdir: Path, source: str, views: Sequence[str]) -> bool:
    """Whether a run, or a fold of it, has a checkpoint but no predictions of a source."""
    split = 'val' if source == OUT_OF_FOLD else source
    if split not in SPLITS:
        return False
    for path in folds_of(workdir) or [workdir]:
        stored = path / 'predictions' / split
        wanted = views or (IDENTITY,)
        found = [view for view in wanted if (stored / view).is_dir()
                 or (view == IDENTITY and stored.with_name(f'{split}.npz').exists())]
        if not views and stored.is_dir():
            continue
        if len(found) < len(wanted) and (path / 'checkpoints').is_dir():
            return True
    return False


def _member_table(config: Mapping) -> dict[str | None, tuple[str, ...]]:
    """{model: patterns}, those without a model's name under None."""
    given = config['members']
    table = given if isinstance(given, Mapping) else {None: given}
    table = {name: split_words(patterns) for name, patterns in table.items()}
    if not any(table.values()):
        raise ConfigError('config.members is empty: give workdirs of trained runs, as in '
                          "--config.members='runs/a,runs/b*'.")
    plain = list(table.get(None, ()))
    for spec in config['ensembles'].values():
        plain += [pattern for pattern in split_words(spec.get('members', ()))
                  if pattern not in table and pattern not in plain]
    named = {name: patterns for name, patterns in table.items() if name is not None}
    return named | ({None: tuple(plain)} if plain else {})
