"""The mesh, and how batches, weights and the other arrays of a state are laid out on it.

The mesh has two axes. A batch is split over both. Weights are split over 'fsdp' only (fully
sharded data parallelism, as ZeRO-3, Rajbhandari et al., arXiv 1910.02054): each device keeps a
part of every large array, and XLA gathers an array where a layer needs it. A table over the names
of the weights says how each of them is split; what belongs to a weight (its moments in the
optimizer, its moving average) is split in the same way.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train_lib.runtime.errors import ConfigError
from train_lib.runtime.trees import by_path, path_name

Tree = Any  # a tree of arrays
AXES = ('data', 'fsdp')
LARGEST = 'largest'
# The parts of a state that hold weights by name.
WEIGHTS = ('params', 'frozen', 'batch_stats')
# Fits every family: kernels and stacks are large; norms, biases and statistics are not.
AUTO = (('.*', LARGEST),)
# Blocks under a scan have a leading axis [depth], along which the scan runs: it stays whole.
_STACKED = re.compile(r'blocks/(?!\d)')


def make_mesh(config: Mapping, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of config.mesh, over all devices or over the first so many.

    Args:
        config: config.mesh.
        devices: to choose from; None for all that JAX has.

    Raises:
        ConfigError: it asks for more devices than there are, or, with several processes, for fewer;
            'data' cannot be shared by several slices of TPUs, or some of them are not a rectangle.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: config[axis] for axis in AXES}
    given = math.prod(size for size in sizes.values() if size != -1)
    free = [axis for axis in AXES if sizes[axis] == -1]
    if min(sizes.values()) < -1 or not given or len(free) > 1:
        raise ConfigError(f'config.mesh = {_text(sizes)}: give numbers of devices, one of which '
                          f'may be -1 for the others.')
    if free:
        sizes[free[0]] = len(devices) // given
    count = math.prod(sizes.values())
    if not 1 <= count <= len(devices) or (free and count != len(devices)):
        key = free[0] if free else max(AXES, key=lambda axis: sizes[axis])
        other, = set(AXES) - {key}
        raise ConfigError(f'config.mesh.{key} = {config[key]} with {other} = {config[other]}: '
                          f'there {_are(len(devices))}; give sizes whose product is at most that '
                          f'number (with a -1, sizes that divide it).')
    if jax.process_count() > 1 and count != len(jax.devices()):
        raise ConfigError(f'config.mesh = {_text(sizes)} leaves out some of the '
                          f'{len(jax.devices())} devices of {jax.process_count()} processes: '
                          f'use all of them.')
    shares = collections.Counter(getattr(device, 'slice_index', 0) for device in devices[:count])
    slices = len(shares)
    if sizes['data'] % slices:
        raise ConfigError(f'config.mesh.data = {sizes["data"]} cannot be shared by {slices} slices '
                          f'of TPUs, between which only batches are split: give a multiple of '
                          f'{slices}.')
    if len(set(shares.values())) > 1:
        raise ConfigError(f'config.mesh = {_text(sizes)} takes a part of a slice of TPUs only: '
                          f'give sizes whose product is a multiple of {max(shares.values())}.')
    try:
        return _arranged(sizes, slices, devices[:count])
    except AssertionError:
        if count == len(devices):
            raise
        raise ConfigError(f'config.mesh = {_text(sizes)}: {count} of the {len(devices)} TPUs are '
                          f'not a rectangle: use all of them.') from None


def _arranged(sizes: Mapping[str, int], slices: int, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh of all these devices, with neighbours side by side."""
    types, shape = (AxisType.Auto,) * len(AXES), tuple(sizes.values())
    inside = (sizes['data'] // slices, sizes['fsdp'])
    try:
        if slices == 1:
            return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
        found = mesh_utils.create_hybrid_device_mesh(inside, (slices, 1), devices)
    except NotImplementedError:  # no sides of the TPUs' torus make up a size: one is split
        found = mesh_utils.create_hybrid_device_mesh(
            inside, (slices, 1), devices, allow_split_physical_axes=True) if slices > 1 else (
            mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True))
    return Mesh(found, AXES, axis_types=types)


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
    """Lays an array out as `sharding` says.

    Args:
        value: a host array that is the same on every process, or an array that is spread over the
            devices of all processes already.
        sharding: the layout.
    """
    if sharding.is_fully_addressable or (
            isinstance(value, jax.Array) and not value.is_fully_addressable):
        return jax.device_put(value, sharding)
    value = np.asarray(value)  # device_put would compare every array between the processes
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def gather(value: jax.Array) -> np.ndarray:
    """The whole array, on every process. All processes must call it."""
    if value.is_fully_addressable:
        return np.asarray(value)
    return multihost_utils.process_allgather(value, tiled=True)


def replicate(tree, mesh: Mesh):
    """Copies every array of a tree to every device."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: place(leaf, sharding), tree)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How arrays are laid out: a mesh, and a table over the names of the weights.

    Attributes:
        mesh: of the devices.
        rules: rows (regex of a whole name, dimensions), of which the first match applies.
            Dimensions are 'largest' (the largest one that the size of 'fsdp' divides), or for each
            of the last dimensions of an array the name of a mesh axis or None; () copies the array
            to every device. A dimension that the mesh axis does not divide stays whole.
        min_size: smaller arrays stay whole, in elements.
    """

    mesh: Mesh
    rules: tuple[tuple[re.Pattern, str | tuple], ...] = ()
    min_size: int = 0

    @property
    def splits(self) -> bool:
        """Whether weights are split at all."""
        return self.mesh.shape['fsdp'] > 1 and bool(self.rules)

    def of(self, name: str, shape: Sequence[int]) -> NamedSharding:
        """The sharding of the weight with this name and shape.

        Raises:
            ConfigError: no row covers it, or the row has more dimensions than the array.
        """
        return NamedSharding(self.mesh, self._spec(name, tuple(shape)))

    def _spec(self, name: str, shape: tuple[int, ...]) -> PartitionSpec:
        if not self.splits:
            return PartitionSpec()
        wanted = next((spec for regex, spec in self.rules if regex.fullmatch(name)), None)
        if wanted is None:
            raise ConfigError(f"config.sharding.rules does not cover {name}: add a last "
                              f"row ('.*', 'largest').")
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

    def of_state(self, state: Tree) -> Tree:
        """Shardings of a whole state, a tree like it.

        Args:
            state: whose parts `WEIGHTS` hold the weights by name. Any other array whose path ends
                with the name of a weight, and that has its shape, is laid out as the weight is.
        """
        weights = {(name.partition('/')[2], leaf.shape) for name, leaf in by_path(state).items()
                   if name.partition('/')[0] in WEIGHTS}

        def find(path, leaf):
            part, _, name = path_name(path).partition('/')
            if part in WEIGHTS:
                return self.of(name, leaf.shape)
            words = name.split('/')
            names = ('/'.join(words[i:]) for i in range(len(words)))
            owner = next((each for each in names if (each, leaf.shape) in weights), None)
            return (NamedSharding(self.mesh, PartitionSpec()) if owner is None
                    else self.of(owner, leaf.shape))

        return jax.tree_util.tree_map_with_path(find, state)


def make_layout(config: Mapping, mesh: Mesh) -> Layout:
    """The layout of config.sharding.

    Args:
        config: config.sharding.
        mesh: of the devices.

    Raises:
        ConfigError: a row that is not a pair, an invalid regex, or an axis that the mesh lacks.
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
                    raise ValueError('an axis is named twice')
        except (TypeError, ValueError, re.error) as error:
            raise ConfigError(f'config.sharding.rules[{i}] = {row!r} is not a valid row ({error}): '
                              f"write ('.*/kernel', 'largest') or ('.*/kernel', (None, 'fsdp'))."
                              ) from None
        rules.append((regex, spec))
    return Layout(mesh, tuple(rules), config['min_size'])


def plan_state(layout: Layout, make: Callable, *trees: Tree) -> Tree:
    """The shapes, dtypes and shardings of the state that `make_state_on` would return."""
    state = jax.eval_shape(make, *trees)
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding), state, layout.of_state(state))


def make_state_on(layout: Layout, make: Callable, *trees: Tree) -> Tree:
    """The state make(*trees), laid out. Where weights are split it is made in pieces; the trees
    are then donated, and must not be used again."""
    if not layout.splits:
        return replicate(make(*trees), layout.mesh)
    shardings = layout.of_state(jax.eval_shape(make, *trees))
    return jax.jit(make, out_shardings=shardings,
                   donate_argnums=tuple(range(len(trees))))(*trees)


def keep_layout(step: Callable, state) -> Callable:
    """Jits a function (state, batch) -> (state, loss) so that the new state is laid out as the old
    one, which is donated. The shardings are those of `state`."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    mesh = jax.tree.leaves(shardings)[0].mesh
    return jax.jit(on_mesh(step, mesh), donate_argnums=0, out_shardings=(shardings, None))


def on_mesh(function: Callable, mesh: Mesh) -> Callable:
    """The function, traced with the mesh in its context, so that models keep their batch split."""
    @functools.wraps(function)
    def traced(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced
