"""What JAX on a CPU needs to be told before it is imported, to use memory and cores well."""

import ctypes
import importlib.metadata
import os
import sys

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
# YNNPACK, which XLA takes for convolutions on CPUs, runs most of them on one core: a step of a
# resnet18 (64 px, batch 32) on two cores takes 320 ms with it and 254 ms with Eigen. A version of
# jaxlib that does not know a flag ends the process, so only versions that were tried get it.
_FLAG = '--xla_cpu_experimental_ynn_fusion_type'
_VALUE = '-individual_convolution'
_TRIED = ('0.10.2',)


def set_up_cpu() -> None:
    """Sets how programs on a CPU allocate memory and convolve. Call it before the first `import
    jax`, while there is one thread. What the environment already says stays."""
    keep_freed_memory()
    convolve_on_all_cores()


def keep_freed_memory() -> bool:
    """Lets this process reuse memory that it freed instead of fetching it anew from the system.

    XLA allocates the temporary buffers of a program, hundreds of megabytes, in one piece for each
    run. glibc fetches so large a piece by mmap and gives it back by munmap, and the kernel then
    hands out zeroed pages one by one: a training step of a ViT-Ti (224 px, batch 8) spent a tenth
    of its time on that. Only the arena of the main thread can grow without mmap, so programs run
    in the thread that calls them (JAX_CPU_ENABLE_ASYNC_DISPATCH=0), which waits for its steps
    anyway and lets others have Python's lock. One arena for all threads would do the same, but
    threads that compile wait for one another there: an EfficientNet-B0 took 41 s instead of 31.
    Once compiled, it is faster: configs/sketch_vit.py shows 312 to 322 pictures per second with
    it, and 247 to 254 without.

    Returns:
        Whether it was done: only with glibc, and not where the environment has settings of its
        allocator (MALLOC_* or GLIBC_TUNABLES).
    """
    if sys.platform != 'linux' or any(
            name.startswith('MALLOC_') or name == 'GLIBC_TUNABLES' for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, 'gnu_get_libc_version'):
        return False
    os.environ.setdefault('JAX_CPU_ENABLE_ASYNC_DISPATCH', '0')
    settings = (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2 ** 31 - 1)
    done = [library.mallopt(name, value) == 1 for name, value in settings]
    return all(done)


def convolve_on_all_cores() -> bool:
    """Adds the flag above to XLA_FLAGS; whether it is there now, or another value of it."""
    flags = os.environ.get('XLA_FLAGS', '')
    if _FLAG in flags:
        return True
    try:
        version = importlib.metadata.version('jaxlib')
    except importlib.metadata.PackageNotFoundError:
        return False
    if version not in _TRIED:
        return False
    os.environ['XLA_FLAGS'] = f'{flags} {_FLAG}={_VALUE}'.strip()
    return True
