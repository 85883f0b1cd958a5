#!/usr/bin/env bash
# JAX's attention in bfloat16 cannot be compiled for GPUs before Ampere, although it has a fallback.
#
# One would guess: jax.nn.dot_product_attention(..., implementation='xla') runs wherever XLA
# multiplies bfloat16, as on a T4, where it multiplies in float32. Its source says so: the named
# algorithm "will fail on platforms that don't support it", and an except clause leaves it out.
#
# What happens: the except clause is around the tracing, and the refusal comes from the compiler.
# Under jit it is never caught: UNIMPLEMENTED, Unsupported algorithm on the current device(s):
# ALG_DOT_BF16_BF16_F32. The same product without a named algorithm compiles, and so does the
# attention for an A100.
#
# Why it matters: the free GPUs of notebooks are T4s (keras-team/keras#21112 met it on one). A way
# out: write the attention as two products and a softmax.
#
# No GPU is needed: JAX's plugin compiles for GPUs that are not there, here for a T4 and an A100.
# Needs Python 3.11 or later, and 1 GB on disk for the time of the run.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 jax-cuda13-plugin==0.10.2 jax-cuda13-pjrt==0.10.2

JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies

for name in ('jax', 'jax-cuda13-plugin'):
    print(name, importlib.metadata.version(name))

# What the compiler asks of a GPU: the data sheet, and the compute capability.
GPU = '''
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {threads}
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared} core_count: {cores} fpus_per_core: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {cache} clock_rate_ghz: 1.4
  device_memory_size: {memory} registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
'''
GPUS = {
    'T4': dict(threads=1024, shared=65536, cores=40, bandwidth=320 * 10**9, cache=4 << 20,
               memory=15 << 30, major=7, minor=5),
    'A100': dict(threads=2048, shared=166912, cores=108, bandwidth=2039 * 10**9, cache=40 << 20,
                 memory=80 << 30, major=8, minor=0),
}


def attention(query, key, value):
    return jax.nn.dot_product_attention(query, key, value, implementation='xla')


def written_out(query, key, value):
    scores = jnp.einsum('bqhd,bkhd->bhqk', query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5).astype(value.dtype)
    return jnp.einsum('bhqk,bkhd->bqhd', weights, value)


def outcome(gpu, function):
    """'compiled', or the first line of the compiler's error."""
    devices = topologies.get_topology_desc(platform='cuda', topology_name='', topology='1x1x1',
                                           target_config=GPU.format(**GPUS[gpu])).devices
    array = jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16,
                                 sharding=jax.sharding.SingleDeviceSharding(devices[0]))
    try:
        jax.jit(function).lower(array, array, array).compile(
            {'xla_gpu_enable_triton_gemm': False})
    except jax.errors.JaxRuntimeError as error:
        return str(error).strip().splitlines()[0]
    return 'compiled'


as_seen = True
for gpu in GPUS:
    for function in (attention, written_out):
        found = outcome(gpu, function)
        print(f'{gpu}, {function.__name__}: {found}')
        refused = gpu == 'T4' and function is attention
        as_seen &= ('ALG_DOT_BF16_BF16_F32' in found) if refused else found == 'compiled'
print('as seen before' if as_seen else 'CHANGED: read the comment of this finding again')
sys.exit(not as_seen)
PYTHON
