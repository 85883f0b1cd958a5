"""Where a program is meant to run: 'v5e:4x4', 'h100:1x1x8' or 'cpu', and the memory there is."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping

from train_lib.planning.chips import GIB, Chip
from train_lib.planning.target_names import CHIPS, plain_name
from train_lib.runtime.errors import ConfigError

# Where a Triton kernel for a matrix product would be measured on the GPU, cuBLAS is assumed.
_COMPILER_OPTIONS = {'cuda': {'xla_gpu_enable_triton_gemm': False}}
# What JAX takes of a GPU's memory when it starts, unless a variable says otherwise:
# docs.jax.dev/en/latest/gpu_memory_allocation.html
_GPU_SHARE = 0.75
_SHARE_VARIABLES = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')


@dataclasses.dataclass(frozen=True)
class PlanTarget:
    """Devices that a program is compiled for.

    Attributes:
        name: in its plain spelling, e.g. 'v5e:4x4*2'; '' for the devices of this machine.
        chip: None for CPU devices and for those of this machine.
        kind: of the chip, a key of CHIPS, or 'cpu'.
        topology: TPU: chips per axis; GPU: (slices, hosts, GPUs per host).
        slices: of TPUs that are joined by the network of the data centre.
        count: devices of 'cpu:8'; 0 where the mesh says how many.
    """

    name: str
    chip: Chip | None = None
    kind: str = 'cpu'
    topology: tuple[int, ...] = ()
    slices: int = 1
    count: int = 0

    @property
    def platform(self) -> str:
        """'tpu', 'cuda' or 'cpu'."""
        return self.chip.platform if self.chip else 'cpu'

    @property
    def compiler_options(self) -> dict:
        """Of `jax.stages.Lowered.compile`."""
        return _COMPILER_OPTIONS.get(self.platform, {})

    @property
    def devices(self) -> int:
        """How many there are, as JAX counts them; 0 where the mesh says how many."""
        if self.chip is None:
            return self.count
        return math.prod(self.topology) * self.slices * self.chip.devices_per_chip


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a device has for a program.

    Attributes:
        total: bytes.
        share: of it that JAX takes.
        margin: of that which stays free.
    """

    total: int
    share: float = 1.0
    margin: float = 0.0

    @property
    def usable(self) -> int:
        """Bytes that a program may take."""
        return int(self.total * self.share * (1 - self.margin))


def read_target(text: str) -> PlanTarget:
    """The target that config.plan.target names, in any spelling.

    Raises:
        ConfigError: it is not a known one.
    """
    name = re.sub(r'\s', '', text.lower())
    if cpu := re.fullmatch(r'(?:cpu(?::([1-9]\d{0,3}))?)?', name):
        return PlanTarget(name, count=int(cpu[1] or 0))
    kind, topology, slices = plain_name(text)
    name = f'{kind}:{"x".join(map(str, topology))}' + (f'*{slices}' if slices > 1 else '')
    return PlanTarget(name, CHIPS[kind], kind, topology, slices)


def memory_of(target: PlanTarget, plan: Mapping, cpu_gib: float) -> Memory:
    """The memory of each device of a target.

    Args:
        target: where the program is meant to run.
        plan: config.plan.
        cpu_gib: config.plan_memory_gb, which holds where the target is not an absent chip.

    Raises:
        ConfigError: a margin that is not a share, or a variable that does not hold one.
    """
    margin = plan['margin']
    if not 0 <= margin < 1:
        raise ConfigError(f'config.plan.margin = {margin}: give a share of the memory from 0 to '
                          f'below 1, such as 0.05.')
    if target.chip is None:
        return Memory(int(cpu_gib * GIB))
    share = gpu_share() if target.platform == 'cuda' else 1.0
    return Memory(target.chip.memory, share, margin)


def gpu_share() -> float:
    """The share of a GPU's memory that JAX takes."""
    for name in _SHARE_VARIABLES:
        if text := os.environ.get(name):
            try:
                share = float(text)
            except ValueError:
                share = 0.0
            if not 0 < share <= 1:
                raise ConfigError(f'{name} = {text!r} is not a share of the GPU memory: give a '
                                  f'number above 0, at most 1.')
            return share
    return _GPU_SHARE
