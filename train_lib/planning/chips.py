"""The accelerators that a plan knows, with the figures of their data sheets."""

import dataclasses

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator, per device as JAX counts devices.

    Attributes:
        platform: 'tpu' or 'cuda'.
        memory: bytes that a program may use. TPU: the HBM that the compiler of libtpu 0.0.42.1
            names when a program is too large. GPU: that of the data sheet.
        flops: bfloat16 products per second without sparsity, 1e12.
        bandwidth: of the memory, bytes per second.
        options: of `get_topology_desc` (TPU).
        capability: compute capability (GPU), e.g. '9.0'.
        cores, shared_memory, clock_ghz, l2_cache: what the CUDA compiler asks of a GPU.
    """

    platform: str
    memory: int
    flops: float
    bandwidth: float
    options: tuple[tuple[str, str], ...] = ()
    capability: str = ''
    cores: int = 0
    shared_memory: int = 0
    clock_ghz: float = 0.0
    l2_cache: int = 0


def _tpu(gib: float, flops: float, bandwidth: float, **options: str) -> Chip:
    return Chip('tpu', int(gib * GIB), flops, bandwidth, tuple(options.items()))


# TPU: cloud.google.com/tpu/docs (system architecture of each version). v4 and v5p have two cores
# per chip that work as one device. GPUs: NVIDIA's data sheets and, for capabilities, the CUDA C++
# Programming Guide, table "Technical Specifications per Compute Capability".
CHIPS = {
    'v4': _tpu(30.75, 275e12, 1.2e12, chip_config_name='megacore'),
    'v5e': _tpu(15.75, 197e12, 0.819e12),
    'v5p': _tpu(95.74, 459e12, 2.765e12),
    'v6e': _tpu(31.25, 918e12, 1.64e12),
    'tpu7x': _tpu(94.75, 1153.5e12, 3.69e12),
    'a100': Chip('cuda', 80 * 10**9, 312e12, 2.039e12, capability='8.0', cores=108,
                 shared_memory=166912, clock_ghz=1.41, l2_cache=40 << 20),
    'h100': Chip('cuda', 80 * 10**9, 989e12, 3.35e12, capability='9.0', cores=132,
                 shared_memory=232448, clock_ghz=1.98, l2_cache=50 << 20),
}


def gpu_description(name: str, chip: Chip) -> str:
    """A GpuTargetConfigProto of XLA, as text.

    Source of its fields: xla/stream_executor/device_description.proto."""
    major, minor = chip.capability.split('.')
    per_core = {'8.0': 167936, '9.0': 233472}.get(chip.capability, chip.shared_memory + 1024)
    return f'''
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {per_core}
  shared_memory_per_block_optin: {chip.shared_memory}
  core_count: {chip.cores} fpus_per_core: {128 if chip.capability > '8.0' else 64}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.bandwidth)} l2_cache_size: {chip.l2_cache}
  clock_rate_ghz: {chip.clock_ghz} device_memory_size: {chip.memory}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "NVIDIA {name.upper()}"
'''
