"""What trains, and how fast: one table over the names of the parameters.

`config.finetune.table` is a list of rows `(regex, dict(lr=..., wd=..., train=..., start=...))`. A
regex has to match a whole name, such as 'blocks/3/attn/qkv/kernel'; the first row that matches
applies; every parameter must be covered, and every row must be the first match of one. Parameters
that do not train are kept out of the gradient and the optimizer, and a BatchNorm that does not
train keeps its statistics too. With `start`, a duration, or config.finetune.unfreeze for all but
the heads, that holds until then.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from input_pipeline.durations import UNITS, is_duration
from models.lora import add_lora
from train_lib.optim.late_start import Start
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.trees import by_path, path_name

Row = tuple[str, dict[str, Any]]  # a regex over whole names, and its settings
EVERYTHING: tuple[Row, ...] = (('.*', {}),)
# With adapters and no table, the adapters and the heads train.
LORA_TABLE: tuple[Row, ...] = ((r'.*/lora_[ab]', {}), (r'heads?/.*', {}), ('.*', {'train': False}))
LEVELS = ('timm', 'groups')
_KEYS = {'lr': (int, float), 'wd': (int, float), 'train': (bool,), 'start': (dict,)}
_HEADS = re.compile(r'heads?/.*')


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one parameter trains.

    Attributes:
        trains: False keeps it as it is.
        rate: factor of the learning rate; float32 [depth] for a stack of layers that differ.
        decay: factor of the weight decay, likewise; None: 1 for kernels, 0 for all others.
        start: when it begins to train; None: at once.
    """

    trains: bool = True
    rate: float | np.ndarray = 1.0
    decay: float | np.ndarray | None = None
    start: Start | None = None


def plan(model: nnx.Module, config: Mapping) -> dict[str, Rule]:
    """The rule of every parameter, by name.

    Args:
        model: with its adapters, if it has any.
        config: config.finetune: table, layer_decay, levels, lora, unfreeze.

    Raises:
        ConfigError: an invalid regex, an unknown key, a parameter that no row covers, a row that
            is the first match of no parameter, or nothing left to train.
    """
    default = LORA_TABLE if config['lora']['rank'] else EVERYTHING
    table = _check(config['table'] or default)
    names = [path_name(path) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    depth = len(model.rates) if getattr(model, 'scan', False) else 0
    unstacked = [one for name in names for one in _layers_of(name, depth)]
    if config['levels'] not in LEVELS:
        raise ConfigError(f'config.finetune.levels = {config["levels"]!r}: choose one of '
                          f'{", ".join(LEVELS)}.')
    groups = model.layer_levels if config['levels'] == 'timm' else ()
    powers = _layer_powers(unstacked, groups or model.layer_groups, config['layer_decay'])
    unfreeze = _start(config['unfreeze'], 'config.finetune.unfreeze')
    rules, used, uncovered = {}, set(), []
    for name in unstacked:
        row = next((i for i, (regex, _) in enumerate(table) if regex.fullmatch(name)), None)
        if row is None:
            uncovered.append(name)
            continue
        used.add(row)
        settings = table[row][1]
        trains = settings.get('train', True)
        start = (_start(settings['start'], f'config.finetune.table[{row}].start')
                 if 'start' in settings else None if _HEADS.fullmatch(name) else unfreeze)
        rules[name] = Rule(trains, settings.get('lr', 1.0) * powers[name], settings.get('wd'),
                           start if trains else None)
    if uncovered:
        raise ConfigError(f'config.finetune.table does not cover {", ".join(uncovered[:5])} '
                          f'({len(uncovered)} parameters in total): add a last row '
                          f"('.*', dict(train=False)).")
    for i, (regex, _) in enumerate(table):
        if i not in used and config['table']:
            raise ConfigError(f'config.finetune.table[{i}]: {regex.pattern!r} is the first match '
                              f'of no parameter (they are named like {names[0]}): correct or '
                              f'remove the row.')
    if not any(rule.trains for rule in rules.values()):
        raise ConfigError('config.finetune.table freezes every parameter: let something train.')
    if unfreeze and not any(rule.start for rule in rules.values()):
        raise ConfigError(f'config.finetune.unfreeze = {config["unfreeze"]!r} has no effect, as '
                          f'nothing but heads trains or the rows of config.finetune.table say '
                          f'when: leave it out.')
    return {name: _stacked(name, [rules[one] for one in _layers_of(name, depth)])
            for name in names}


def prepare(model: nnx.Module, config: Mapping, seed: int) -> dict[str, Rule]:
    """Adds the adapters of config.finetune.lora and freezes BatchNorms that do not train; the model
    is changed in place.

    Args:
        model: as created.
        config: config.finetune.
        seed: of the run.

    Returns:
        The rule of every parameter, see `plan`.

    Raises:
        ConfigError: see `plan`. ModelError: the adapters do not fit the model.
    """
    lora = dict(config['lora'])
    if lora['rank']:
        add_lora(model, lora['layers'], rank=lora['rank'], alpha=lora['alpha'],
                 dropout=lora['dropout'], rngs=nnx.Rngs(seed + 1))
    rules = plan(model, config)
    freeze_norms(model, {name for name, rule in rules.items() if rule.trains})
    return rules


def freeze_norms(model: nnx.Module, training: Collection[str]) -> None:
    """Every BatchNorm none of whose parameters is among those named keeps its statistics, in
    training too; the model is changed in place."""
    owners = {name.rpartition('/')[0] for name in training}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm) and path_name(path) not in owners:
            module.use_running_average = True


def split(model: nnx.Module, rules: Mapping[str, Rule]
          ) -> tuple[nnx.GraphDef, dict, dict, dict]:
    """A model as (graph definition, params, frozen, batch_stats): the parameters that train, those
    that do not, and all other variables, as nested dicts of arrays."""
    def trains(path, variable):
        return isinstance(variable, nnx.Param) and rules[path_name(path)].trains

    graphdef, *states = nnx.split(model, trains, nnx.Param, ...)
    params, frozen, batch_stats = map(nnx.to_pure_dict, states)
    return graphdef, params, frozen, batch_stats


def factors(params: dict, rules: Mapping[str, Rule]) -> tuple[dict, dict]:
    """Two trees like `params`: factors of the learning rate, and of the weight decay."""
    def rate(path, leaf):
        return rules[path_name(path)].rate

    def decay(path, leaf):
        rule = rules[path_name(path)]
        kernel = path_name(path[-1:]) == 'kernel' and leaf.ndim > 1
        return float(kernel) if rule.decay is None else rule.decay

    with_path = jax.tree_util.tree_map_with_path
    return with_path(rate, params), with_path(decay, params)


def starts_of(params: dict, rules: Mapping[str, Rule]) -> dict[str, Start]:
    """When the parameters that begin to train later do so, by name."""
    return {name: start for name in by_path(params)
            if (start := rules[name].start) is not None}


def durations(config: Mapping) -> dict[str, Mapping]:
    """The durations of config.finetune by their keys: unfreeze, and `start` of the table's rows.

    Raises:
        ConfigError: a row that is not valid.
    """
    found = {'finetune.unfreeze': config['unfreeze']}
    found |= {f'finetune.table[{i}].start': settings['start']
              for i, (_, settings) in enumerate(_check(config['table'])) if 'start' in settings}
    return found


def describe(model: nnx.Module, rules: Mapping[str, Rule]) -> str:
    """The numbers of parameters, such as '1,234 of 5,678,901 parameters train'."""
    sizes = {path_name(path): int(np.prod(leaf.shape))
             for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    trained = sum(size for name, size in sizes.items() if rules[name].trains)
    return f'{trained:,} of {sum(sizes.values()):,} parameters train'


def _check(table: Iterable[Row]) -> list[tuple[re.Pattern, dict]]:
    rows = []
    for i, row in enumerate(table):
        where = f'config.finetune.table[{i}]'
        try:
            regex, settings = row
            settings = dict(settings)
            compiled = re.compile(regex)
        except (TypeError, ValueError, re.error) as error:
            raise ConfigError(f'{where} = {row!r} is not a valid row ({error}): write '
                              f"(regex, dict(lr=1.0, wd=1.0, train=True)).") from None
        for key, value in settings.items():
            if key not in _KEYS:
                raise ConfigError(f'{where} has the key {key!r}: a row has lr, wd, train and '
                                  f'start.')
            kinds = _KEYS[key]
            if key == 'start':
                _start(value, f'{where}.start')
            elif not isinstance(value, kinds) or (bool not in kinds and (
                    isinstance(value, bool) or not 0 <= value < float('inf'))):
                raise ConfigError(f'{where}.{key} = {value!r}: give '
                                  f'{"True or False" if key == "train" else "a factor >= 0"}.')
        if 'start' in settings and not settings.get('train', True):
            raise ConfigError(f'{where} has train=False and a start: remove one of them.')
        rows.append((compiled, settings))
    return rows


def _start(duration: Any, where: str) -> Start | None:
    """A duration as (unit, number); None for one of 0, with which nothing waits."""
    if not is_duration(duration):
        raise ConfigError(f'{where} = {duration!r} is not a valid duration: give exactly one of '
                          f'{", ".join(UNITS)}, e.g. dict(epochs=2).')
    (unit, number), = dict(duration).items()
    if isinstance(number, bool) or not isinstance(number, int | float) \
            or not 0 <= number < float('inf'):
        raise ConfigError(f'{where}.{unit} = {number!r}: give a number that is not negative.')
    number = int(number) if number == int(number) else number
    return (unit, number) if number else None


def _layers_of(name: str, depth: int) -> list[str]:
    """The names that a parameter would have if its blocks were not stacked."""
    if depth and name.startswith('blocks/'):
        return [f'blocks/{i}/{name.removeprefix("blocks/")}' for i in range(depth)]
    return [name]


_SHARED = 10**9  # in the place of a depth: behind all of them, and on the level of the last


def _layer_powers(names: list[str], groups: tuple[str, ...], decay: float) -> dict[str, float]:
    """decay ** (number of layers above), by name: 1 for the head, least for the stem (as in BEiT,
    Bao et al., arXiv 2106.08254)."""
    if not 0 < decay <= 1:
        raise ConfigError(f'config.finetune.layer_decay = {decay}: give a factor above 0 and '
                          f'up to 1.')

    def position(name):
        for i, pattern in enumerate(groups):
            match = re.match(pattern, name)
            if match:
                depths = [int(number or 0) for number in match.groups() if number is not None]
                return i, *depths, *([_SHARED] if len(depths) < len(match.groups()) else [])
        return len(groups),

    ranks: dict[tuple, int] = {}
    for place in sorted({position(name) for name in names} | {(len(groups),)}):
        rank = max(ranks.values(), default=-1)
        ranks[place] = max(rank, 0) if place[-1] == _SHARED else rank + 1
    top = ranks[len(groups),]
    return {name: decay ** (top - ranks[position(name)]) for name in names}


def _stacked(name: str, rules: list[Rule]) -> Rule:
    """The rule of a stack of layers, from those of its layers."""
    if all(rule == rules[0] for rule in rules):
        return rules[0]
    if any(len({what(rule) for rule in rules}) > 1 for what in (
            lambda rule: rule.trains, lambda rule: rule.decay is None, lambda rule: rule.start)):
        raise ConfigError(f'config.finetune.table treats the layers of {name} differently, and '
                          f'they are stacked: set config.model.scan=False.')
    decays = (None if rules[0].decay is None else
              np.array([rule.decay for rule in rules], np.float32))
    rates = np.array([rule.rate for rule in rules], np.float32)
    return Rule(rules[0].trains, rates, decays, rules[0].start)


def scale_updates(fn: Callable, *trees: Any) -> Any:
    """jax.tree.map over trees of which the last holds factors: numbers, or arrays [depth] for
    stacks of layers, whose first axis they scale."""
    def apply(*leaves):
        *arrays, factor = leaves
        if np.ndim(factor):
            factor = np.reshape(factor, (-1,) + (1,) * (arrays[0].ndim - 1))
        return fn(*arrays, factor)

    return jax.tree.map(apply, *trees)
