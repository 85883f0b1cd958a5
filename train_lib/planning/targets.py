"""Where a program is meant to run: 'v5e:4x4', 'h100:1x1x8' or 'cpu', and devices to compile for."""

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from input_pipeline.errors import did_you_mean
from train_lib.planning.chips import CHIPS, Chip, gpu_description
from train_lib.runtime.errors import ConfigError

# Where a Triton kernel for a matrix product would be measured on the GPU, cuBLAS is assumed.
_COMPILER_OPTIONS = {'cuda': {'xla_gpu_enable_triton_gemm': False}}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices that a program is compiled for.

    Attributes:
        name: as it was given, in its plain spelling; '' for the devices of this machine.
        chip: None for CPU devices and for those of this machine.
        kind: of the chip, a key of CHIPS, or 'cpu'.
        topology: TPU: devices per axis; GPU: (slices, hosts, GPUs per host).
    """

    name: str
    chip: Chip | None = None
    kind: str = 'cpu'
    topology: tuple[int, ...] = ()

    @property
    def platform(self) -> str:
        """'tpu', 'cuda' or 'cpu'."""
        return self.chip.platform if self.chip else 'cpu'

    @property
    def compiler_options(self) -> dict:
        """Of `jax.stages.Lowered.compile`."""
        return _COMPILER_OPTIONS.get(self.platform, {})


def read_target(text: str) -> Target:
    """The target that config.plan.target names.

    Raises:
        ConfigError: it is not a known one.
    """
    name = text.strip().lower()
    if name in ('', 'cpu'):
        return Target(name)
    kind, _, topology = name.partition(':')
    if kind not in CHIPS:
        raise ConfigError(f'config.plan.target = {text!r}: '
                          f'{did_you_mean(kind, [*CHIPS, "cpu"], show=str)}')
    chip = CHIPS[kind]
    if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*){1,2}', topology):
        raise ConfigError(f'config.plan.target = {text!r}: write devices per axis behind the '
                          f'colon, such as v5e:4x4 or h100:1x1x8 (slices, hosts, GPUs per host).')
    return Target(name, chip, kind, tuple(map(int, topology.split('x'))))


def missing(target: Target) -> str:
    """What has to be installed to compile for a target; '' if nothing is missing."""
    if target.platform == 'tpu' and importlib.util.find_spec('libtpu') is None:
        return 'libtpu'
    plugins = importlib.util.find_spec('jax_plugins')
    folders = plugins.submodule_search_locations or () if plugins else ()
    if target.platform == 'cuda' and not any(
            entry.startswith('xla_cuda') for folder in folders for entry in os.listdir(folder)):
        return 'jax-cuda13-plugin'
    return ''


def target_devices(target: Target) -> list[jax.Device]:
    """Devices to compile for, which cannot run anything.

    Raises:
        ConfigError: the compiler does not know the topology.
    """
    assert target.chip is not None
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # else a second process cannot plan
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # no metadata server is asked
    sizes = 'x'.join(map(str, target.topology))
    try:
        if target.platform == 'cuda':
            return topologies.get_topology_desc(
                platform='cuda', topology_name='', topology=sizes,
                target_config=gpu_description(target.kind, target.chip)).devices
        options: dict = dict(target.chip.options)
        if math.prod(target.topology) == 1:
            options['chips_per_host_bounds'] = (1, 1, 1)
        return topologies.get_topology_desc(
            platform='tpu', topology_name=f'{target.kind}:{sizes}', **options).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ConfigError(f'config.plan.target = {target.name!r} is not a topology that its '
                          f'compiler knows ({str(error).splitlines()[0][:160]}).') from None
