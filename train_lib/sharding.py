"""The mesh, and how batches and state lie on it."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train_lib.errors import ConfigError


def make_mesh(config: Mapping) -> Mesh:
    """The mesh of config.mesh: one axis, 'data', over all devices or the first so many.

    Raises:
        ConfigError: more devices asked for than there are.
    """
    devices = jax.devices()
    count = len(devices) if config['data'] == -1 else config['data']
    if not 1 <= count <= len(devices):
        raise ConfigError(f'config.mesh.data = {config["data"]}: there are {len(devices)} devices; '
                          f'give 1 to {len(devices)}, or -1 for all.')
    return jax.make_mesh((count,), ('data',), axis_types=(AxisType.Auto,),
                         devices=devices[:count])


def replicate(tree, mesh: Mesh):
    """Every array of a tree, whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Arrays split along their first axis."""
    return NamedSharding(mesh, PartitionSpec('data'))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays, split along their first axis, from this process's part of a batch."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value)
            for name, value in batch.items()}
