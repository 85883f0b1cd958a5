"""Which heads of trained runs have classes in an order, as the configs of the runs say."""

from collections.abc import Collection, Mapping
from pathlib import Path

from train_lib.predictions.answers import MEDIAN
from train_lib.predictions.run_folders import config_json, run_of
from train_lib.runtime.errors import ConfigError

ANSWERS = ('probable', MEDIAN)  # values of eval.answer


def ordered_of(config: Mapping, heads: Collection[str]) -> tuple[str, ...]:
    """The heads whose classes have an order: those of data.ordered and of model.head_order.

    Args:
        config: of a run, as config.json holds it; what is not there says nothing.
        heads: those that are asked for.
    """
    data, model = (part if isinstance(part, Mapping) else {}
                   for part in (config.get('data'), config.get('model')))
    named, built = data.get('ordered') or (), model.get('head_order') or ()
    if isinstance(built, str):  # of all heads
        return tuple(heads)
    named = {named} if isinstance(named, str) else set(named)
    return tuple(head for head in heads if head in named or head in built)


def medians_of(config: Mapping, heads: Collection[str]) -> tuple[str, ...]:
    """The heads that answer the median of their classes: by eval.answer those that have an order.
    Arguments as of `ordered_of`."""
    evaluation = config.get('eval')
    if not isinstance(evaluation, Mapping) or evaluation.get('answer') != MEDIAN:
        return ()
    return ordered_of(config, heads)


def orders_of_members(members: Mapping[str, Path], heads: Collection[str]
                      ) -> dict[str, tuple[str, ...]]:
    """{head whose classes have an order by the config of some member: names of the members whose
    config does not say so}. All have the same classes one after another, as `members.join` holds.
    A member whose config is not there is not asked.

    Args:
        members: {name: workdir}.
        heads: those that are asked for.
    """
    said = {name: ordered_of(config, heads) for name, workdir in members.items()
            if (config := _config_of(workdir))}
    return {head: tuple(name for name, ordered in said.items() if head not in ordered)
            for head in heads if any(head in ordered for ordered in said.values())}


def medians_of_members(members: Mapping[str, Path], heads: Collection[str]) -> tuple[str, ...]:
    """The heads that members answer by the median. Those whose config does not say that a head is
    ordered have no say in it. Arguments as of `orders_of_members`.

    Raises:
        ConfigError: two members answer a head differently.
    """
    configs = {name: _config_of(workdir) for name, workdir in members.items()}
    found = []
    for head in heads:
        said = {head in medians_of(config, heads): name for name, config in configs.items()
                if head in ordered_of(config, heads)}
        if len(said) > 1:
            raise ConfigError(f'The member {said[True]} answers {head!r} by its median, and '
                              f'{said[False]} by its most probable class: start one of the runs '
                              f'again with the other value of --config.eval.answer (a finished '
                              f'one only evaluates).')
        if True in said:
            found.append(head)
    return tuple(found)


def _config_of(workdir: Path) -> dict:
    """config.json of a run or a fold; of a head of a probing run that of the whole run."""
    root = run_of(workdir)
    for folder in (Path(workdir), root):
        if config := config_json(folder):
            return config
    config = config_json(root.parent)
    probe = config.get('probe')
    return config if isinstance(probe, Mapping) and probe.get('heads') else {}
