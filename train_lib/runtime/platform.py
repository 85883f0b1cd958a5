"""Chooses JAX's platform before JAX is imported."""

import glob
import importlib.util
import os


def choose_platform() -> None:
    """Selects the CPU where JAX's CUDA plugin is installed and no NVIDIA GPU is there.

    The plugin would print a traceback at start (cuPTI cannot be loaded without a driver). A
    choice that the user made with JAX_PLATFORMS stays. Call it before the first `import jax`.
    """
    if os.environ.get('JAX_PLATFORMS'):
        return
    plugins = importlib.util.find_spec('jax_plugins')
    found = {name for folder in (plugins.submodule_search_locations or () if plugins else ())
             for name in os.listdir(folder)}
    has_cuda_plugin = any(name.startswith('xla_cuda') for name in found)
    # /dev/dxg is the GPU of Windows' Linux subsystem.
    has_gpu = bool(glob.glob('/dev/nvidia[0-9]*')) or os.path.exists('/dev/dxg')
    has_other = bool(found - {name for name in found if name.startswith('xla_cuda')}
                     - {'__pycache__', '__init__.py'})
    has_tpu = importlib.util.find_spec('libtpu') is not None
    if has_cuda_plugin and not has_gpu and not has_other and not has_tpu:
        os.environ['JAX_PLATFORMS'] = 'cpu'
