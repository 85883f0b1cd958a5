"""What machine a program is for, which need not be the one that makes it.

XLA tells a program the platform when it is lowered (`jax.lax.platform_dependent`), but not the
compute capability of a GPU, which decides whether cuDNN has flash attention for it. JAX answers for
the GPU of this process, if there is one. A model is therefore told by `aim`.
"""

import dataclasses

import jax
from flax import nnx


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices of a program.

    Attributes:
        platform: 'cpu', 'tpu', 'cuda' or 'rocm', as XLA calls it when it lowers a program.
        capability: the compute capability of an NVIDIA GPU, such as '9.0' of an H100.
    """

    platform: str
    capability: str = ''

    def __post_init__(self):
        if self.platform == 'cuda' and not self.numbers:
            raise ValueError(f"A target 'cuda' needs the compute capability of the GPU, such as "
                             f"'8.0', and got {self.capability!r}.")

    @property
    def numbers(self) -> tuple[int, ...]:
        """The compute capability, (major, minor); () of what is not an NVIDIA GPU."""
        parts = self.capability.split('.')
        return tuple(map(int, parts)) if len(parts) == 2 and all(map(str.isdigit, parts)) else ()


def target_of(device: jax.Device) -> Target:
    """The target of a device that is here, or of one in a `TopologyDescription`."""
    if device.platform != 'gpu':
        return Target(device.platform)
    capability = str(device.compute_capability)  # 'gfx942' on one of AMD
    return Target('rocm' if capability.startswith('gfx') else 'cuda', capability)


def aim(model: nnx.Module, target: Target | None) -> None:
    """Tells all parts of a model that ask for it for which target they are traced; None: for any
    that has the platform's usual abilities. It becomes part of the model's definition, and so of
    what JAX's caches compare."""
    for _, module in nnx.iter_modules(model):
        if hasattr(module, 'target'):
            module.target = target
