"""The accelerators that a plan knows, with the figures of their data sheets."""

import dataclasses

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator, per device as JAX counts devices.

    Attributes:
        platform: 'tpu' or 'cuda'.
        memory: bytes. TPU: the HBM that the compiler of libtpu 0.0.42.1 says is available when a
            program is too large. GPU: the whole memory, as CUDA tells programs.
        flops: matrix products per second without sparsity, as FLOP/s: of bfloat16, or of float16
            where `bfloat16` is False.
        bandwidth: of the memory, bytes per second.
        devices_per_chip: 2 where JAX takes each core of a chip as a device.
        options: of `get_topology_desc` (TPU).
        capability: compute capability (GPU), e.g. '9.0'.
        cores, shared_memory, clock_ghz, l2_cache: what the CUDA compiler asks of a GPU.
        bfloat16: whether it multiplies matrices of bfloat16.
    """

    platform: str
    memory: int
    flops: float
    bandwidth: float
    devices_per_chip: int = 1
    options: tuple[tuple[str, str], ...] = ()
    capability: str = ''
    cores: int = 0
    shared_memory: int = 0
    clock_ghz: float = 0.0
    l2_cache: int = 0
    bfloat16: bool = True


def _tpu(gib: float, flops: float, bandwidth: float, devices_per_chip: int = 1, **options: str
         ) -> Chip:
    return Chip('tpu', int(gib * GIB), flops, bandwidth, devices_per_chip,
                tuple(options.items()))


def _gpu(memory: int, flops: float, bandwidth: float, capability: str, cores: int, **rest) -> Chip:
    shared = {'7.5': 65536, '8.0': 166912, '8.6': 101376, '8.9': 101376}.get(capability, 232448)
    return Chip('cuda', memory, flops, bandwidth, capability=capability, cores=cores,
                shared_memory=shared, **rest)


# TPU: docs.cloud.google.com/tpu/docs (system architecture of each version). v4 and v5p have two
# cores per chip that work as one device; those of v3 and tpu7x are two devices.
# GPU: FLOP/s from NVIDIA's data sheets. What CUDA reports of memory, cores, clock, bandwidth and
# cache: for A100, H100 and B200 as in XLA's files xla/backends/gpu/target_config/specs; for the
# others the memory that PyTorch names when it runs out of it (H200 139.8 GiB, L4 22.0, T4 14.7,
# A10G 22.0, RTX 4090 23.6), and the data sheets. nvidia-smi shows a little more: 81,559 MiB of an
# H100 of which programs see 81,008.
CHIPS = {
    'v3': _tpu(15.48, 61.5e12, 0.45e12, devices_per_chip=2),
    'v4': _tpu(30.75, 275e12, 1.2e12, chip_config_name='megacore'),
    'v5e': _tpu(15.75, 197e12, 0.819e12),
    'v5p': _tpu(95.74, 459e12, 2.765e12),
    'v6e': _tpu(31.25, 918e12, 1.64e12),
    'tpu7x': _tpu(94.75, 1153.5e12, 3.69e12, devices_per_chip=2),
    't4': _gpu(int(14.7 * GIB), 65e12, 0.32e12, '7.5', 40, clock_ghz=1.59, l2_cache=4 << 20,
               bfloat16=False),
    'l4': _gpu(int(22.0 * GIB), 121e12, 0.3e12, '8.9', 58, clock_ghz=2.04, l2_cache=48 << 20),
    'a10g': _gpu(int(22.0 * GIB), 70e12, 0.6e12, '8.6', 80, clock_ghz=1.71, l2_cache=6 << 20),
    'rtx4090': _gpu(int(23.6 * GIB), 165.2e12, 1.008e12, '8.9', 128, clock_ghz=2.52,
                    l2_cache=72 << 20),
    'a100-40gb': _gpu(42_298_834_944, 312e12, 1.5552e12, '8.0', 108, clock_ghz=1.41,
                      l2_cache=40 << 20),
    'a100': _gpu(85_100_068_864, 312e12, 2.03904e12, '8.0', 108, clock_ghz=1.41,
                 l2_cache=40 << 20),
    'h100': _gpu(84_942_979_072, 989e12, 3.35232e12, '9.0', 132, clock_ghz=1.98,
                 l2_cache=50 << 20),
    'h200': _gpu(int(139.8 * GIB), 989e12, 4.8e12, '9.0', 132, clock_ghz=1.98, l2_cache=50 << 20),
    'b200': _gpu(191_514_411_008, 2250e12, 7.67232e12, '10.0', 148, clock_ghz=1.965,
                 l2_cache=132_644_864),
}


def gpu_description(name: str, chip: Chip) -> str:
    """A GpuTargetConfigProto of XLA, as text.

    Source of its fields: xla/stream_executor/device_description.proto. Threads and arithmetic
    units per core: CUDA C++ Programming Guide, table "Technical Specifications per Compute
    Capability"."""
    major, minor = chip.capability.split('.')
    threads = {'7.5': 1024, '8.6': 1536, '8.9': 1536}.get(chip.capability, 2048)
    units = 64 if chip.capability in ('7.5', '8.0') else 128
    per_core = chip.shared_memory + (1024 if chip.capability != '7.5' else 0)
    accelerated = 'feature_extension: ACCELERATED_FEATURES' if int(major) >= 9 else ''
    return f'''
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {threads}
  shared_memory_per_block: 49152 shared_memory_per_core: {per_core}
  shared_memory_per_block_optin: {chip.shared_memory}
  core_count: {chip.cores} fpus_per_core: {units}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.bandwidth)} l2_cache_size: {chip.l2_cache}
  clock_rate_ghz: {chip.clock_ghz} device_memory_size: {chip.memory}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} {accelerated} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "NVIDIA {name.upper()}"
'''
