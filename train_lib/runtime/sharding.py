"""The mesh, and how batches, weights and the rest of the state lie on it.

The mesh has two axes. A batch is split over both. Weights are split over 'fsdp' only (fully
sharded data parallelism, as ZeRO-3, Rajbhandari et al., arXiv 1910.02054): each device keeps a
part of every large array, and XLA collects an array where a layer needs it. Where each array is
split is a table over the names of the weights; what belongs to a weight (its moments in the
optimizer, its average) lies as the weight does.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train_lib.runtime.errors import ConfigError

AXES = ('data', 'fsdp')
LARGEST = 'largest'
# Serves every family: kernels and stacks are large, norms, biases and statistics are not.
AUTO = (('.*', LARGEST),)
# Blocks under a scan have a leading axis [depth], which the scan walks along: it stays whole.
_STACKED = re.compile(r'blocks/(?!\d)')


def make_mesh(config: Mapping, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of config.mesh, over all devices or the first so many.

    Raises:
        ConfigError: more devices asked for than there are, or with several processes less.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: config[axis] for axis in AXES}
    given = math.prod(size for size in sizes.values() if size != -1)
    open_ = [axis for axis in AXES if sizes[axis] == -1]
    if min(sizes.values()) < -1 or not given or len(open_) > 1:
        raise ConfigError(f'config.mesh = {_text(sizes)}: give numbers of devices, one of them '
                          f'-1 for the rest.')
    if open_:
        sizes[open_[0]] = len(devices) // given
    count = math.prod(sizes.values())
    if not 1 <= count <= len(devices) or (open_ and count != len(devices)):
        key = open_[0] if open_ else max(AXES, key=lambda axis: sizes[axis])
        other, = set(AXES) - {key}
        raise ConfigError(f'config.mesh.{key} = {config[key]} with {other} = {config[other]}: '
                          f'there {_are(len(devices))}; give sizes whose product is at most that '
                          f'(with a -1, one that divides it).')
    if jax.process_count() > 1 and count != len(jax.devices()):
        raise ConfigError(f'config.mesh = {_text(sizes)} leaves out some of the '
                          f'{len(jax.devices())} devices of {jax.process_count()} processes: '
                          f'use all of them.')
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES),
                         devices=devices[:count])


def _text(sizes: Mapping) -> str:
    return f'dict({", ".join(f"{axis}={size}" for axis, size in sizes.items())})'


def _are(devices: int) -> str:
    return f'are {devices} devices' if devices > 1 else 'is 1 device'


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Arrays split along their first axis, over every device."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays, split along their first axis, from this process's part of a batch."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value)
            for name, value in batch.items()}


def place(value, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array that every process has whole (or an array of all of them) as `sharding` says."""
    if sharding.is_fully_addressable or (
            isinstance(value, jax.Array) and not value.is_fully_addressable):
        return jax.device_put(value, sharding)
    value = np.asarray(value)  # device_put would compare it between the processes, array by array
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def gather(value: jax.Array) -> np.ndarray:
    """A whole array, on every process; all of them must ask."""
    if value.is_fully_addressable:
        return np.asarray(value)
    return multihost_utils.process_allgather(value, tiled=True)


def replicate(tree, mesh: Mesh):
    """Every array of a tree, whole on every device."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: place(leaf, sharding), tree)


def path_name(path: Sequence) -> str:
    """The path of a leaf as a name, such as 'blocks/0/attn/qkv/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where arrays lie: a mesh, and rows (regex of a whole name, dimensions), first match wins.

    Dimensions are 'largest' (the largest dimension that 'fsdp' divides), or for each of the last
    dimensions of an array the name of a mesh axis or None, () for whole on every device. What has
    less than `min_size` elements, and a dimension that does not divide, stays whole.
    """

    mesh: Mesh
    rules: tuple[tuple[re.Pattern, str | tuple], ...] = ()
    min_size: int = 0

    @property
    def splits(self) -> bool:
        """Whether weights are split at all."""
        return self.mesh.shape['fsdp'] > 1 and bool(self.rules)

    def of(self, name: str, shape: Sequence[int]) -> NamedSharding:
        """The sharding of a weight.

        Raises:
            ConfigError: no row covers it, or the row has more dimensions than the array.
        """
        return NamedSharding(self.mesh, self._spec(name, tuple(shape)))

    def _spec(self, name: str, shape: tuple[int, ...]) -> PartitionSpec:
        if not self.splits:
            return PartitionSpec()
        wanted = next((spec for regex, spec in self.rules if regex.fullmatch(name)), None)
        if wanted is None:
            raise ConfigError(f"config.sharding.rules covers no {name}: add a last row "
                              f"('.*', 'largest').")
        if math.prod(shape) < self.min_size:
            return PartitionSpec()
        if wanted == LARGEST:
            parts = self.mesh.shape['fsdp']
            first = int(bool(_STACKED.search(name)))
            whole = [i for i in range(first, len(shape)) if shape[i] and shape[i] % parts == 0]
            chosen = max(whole, key=lambda i: (shape[i], i), default=None)
            return PartitionSpec(*('fsdp' if i == chosen else None for i in range(len(shape))))
        if len(wanted) > len(shape):
            raise ConfigError(f'config.sharding.rules gives {wanted} to {name}, which has the '
                              f'shape {shape}: name at most {len(shape)} dimensions.')
        wanted = (None,) * (len(shape) - len(wanted)) + tuple(wanted)
        return PartitionSpec(*(axis if axis and size % self.mesh.shape[axis] == 0 else None
                               for axis, size in zip(wanted, shape)))

    def of_state(self, state: Mapping):
        """Shardings of a whole state, a tree like it.

        `params`, `frozen` and `rest` hold the weights by name; any other array whose path ends
        with the name of a weight, and that has its shape, lies as the weight does.
        """
        own = ('params', 'frozen', 'rest')
        weights = {(path_name(path[1:]), leaf.shape) for path, leaf
                   in jax.tree_util.tree_flatten_with_path({k: state[k] for k in own})[0]}

        def find(path, leaf):
            if path[0].key in own:
                return self.of(path_name(path[1:]), leaf.shape)
            parts = path_name(path).split('/')
            names = ('/'.join(parts[i:]) for i in range(1, len(parts)))
            name = next((name for name in names if (name, leaf.shape) in weights), None)
            return self.of(name, leaf.shape) if name else NamedSharding(self.mesh, PartitionSpec())

        return jax.tree_util.tree_map_with_path(find, dict(state))


def make_layout(config: Mapping, mesh: Mesh) -> Layout:
    """The layout of config.sharding.

    Raises:
        ConfigError: a row that is no row, a broken regex, or an axis that the mesh lacks.
    """
    table = AUTO if config['rules'] == 'auto' else config['rules']
    if not isinstance(table, (list, tuple)):
        raise ConfigError(f"config.sharding.rules = {table!r}: give 'auto' or a list of rows "
                          f"(regex, dimensions).")
    rules = []
    for i, row in enumerate(table):
        try:
            regex, spec = row
            regex = re.compile(regex)
            if spec != LARGEST:
                spec = tuple(spec)
                if isinstance(row[1], str) or not set(spec) <= {None, *AXES}:
                    raise ValueError(f'its dimensions are not {LARGEST!r}, None or one of '
                                     f'{", ".join(AXES)}')
                if any(axis and spec.count(axis) > 1 for axis in AXES):
                    raise ValueError('an axis comes twice')
        except (TypeError, ValueError, re.error) as error:
            raise ConfigError(f'config.sharding.rules[{i}] = {row!r} is no row ({error}): write '
                              f"('.*/kernel', 'largest') or ('.*/kernel', (None, 'fsdp'))."
                              ) from None
        rules.append((regex, spec))
    return Layout(mesh, tuple(rules), config['min_size'])


def plan_state(layout: Layout, make: Callable, *trees):
    """What `make_state_on` would give, as shapes, dtypes and shardings."""
    state = jax.eval_shape(make, *trees)
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding), state, layout.of_state(state))


def make_state_on(layout: Layout, make: Callable, *trees):
    """make(*trees), a state, laid out. Where weights are split it is made in pieces; the trees
    are donated, and must not be used again."""
    if not layout.splits:
        return replicate(make(*trees), layout.mesh)
    shardings = layout.of_state(jax.eval_shape(make, *trees))
    return jax.jit(make, out_shardings=shardings,
                   donate_argnums=tuple(range(len(trees))))(*trees)


def keep_layout(step: Callable, state) -> Callable:
    """The jitted (state, batch) -> (state, loss) whose new state lies where the old one did;
    the old one is donated. `state` is one to take the shardings from."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    mesh = jax.tree.leaves(shardings)[0].mesh
    return jax.jit(on_mesh(step, mesh), donate_argnums=0, out_shardings=(shardings, None))


def on_mesh(function: Callable, mesh: Mesh) -> Callable:
    """A function to be traced that knows the mesh, so that models keep their batch split."""
    @functools.wraps(function)
    def traced(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced
