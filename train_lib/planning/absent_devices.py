"""Devices to compile for that are not there, and whether their compiler is installed."""

import contextlib
import importlib.metadata
import importlib.util
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator

import jax
import jaxlib
from jax.experimental import topologies

from train_lib.planning.chips import gpu_description
from train_lib.planning.target_names import TOPOLOGIES, nearest_topology
from train_lib.planning.targets import PlanTarget
from train_lib.runtime.errors import ConfigError

# While libtpu is loaded: else a second process cannot plan, and Cloud's metadata server, which is
# not there, is asked for minutes.
_LIBTPU = {'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_SKIP_MDS_QUERY': '1'}
_PACKAGES = {'tpu': ('libtpu',), 'cuda': ('jax-cuda13-plugin', 'jax-cuda12-plugin')}


def missing(target: PlanTarget) -> str:
    """What has to be installed to compile for a target; '' if nothing is missing."""
    if target.platform == 'tpu' and importlib.util.find_spec('libtpu') is None:
        return 'libtpu'
    plugins = importlib.util.find_spec('jax_plugins')
    folders = plugins.submodule_search_locations or () if plugins else ()
    if target.platform == 'cuda' and not any(
            entry.startswith('xla_cuda') for folder in folders for entry in os.listdir(folder)):
        return 'jax-cuda13-plugin'
    return ''


def compiler_versions(platform: str) -> dict[str, str]:
    """{package: version} of JAX and of the compiler of a platform."""
    found = dict(jax=jax.__version__, jaxlib=jaxlib.__version__)
    for package in _PACKAGES.get(platform, ()):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def stay_on_cpu() -> None:
    """No accelerator of this machine is touched: JAX starts on the CPU, if it has not started."""
    jax.config.update('jax_platforms', 'cpu')


def target_devices(target: PlanTarget) -> list[jax.Device]:
    """Devices to compile for, which cannot run anything.

    Raises:
        ConfigError: the compiler does not know the topology, or cannot be loaded.
    """
    assert target.chip is not None
    sizes = 'x'.join(map(str, target.topology))
    options: dict = dict(target.chip.options)
    if target.platform == 'cuda':
        name = ''
        options |= dict(topology=sizes, target_config=gpu_description(target.kind, target.chip))
    else:
        name = f'{target.kind}:{sizes}'
        if math.prod(target.topology) == 1:
            options['chips_per_host_bounds'] = (1, 1, 1)
        if target.slices > 1:
            options['num_slices'] = target.slices
    try:
        with held_back(), _environment(_LIBTPU if target.platform == 'tpu' else {}):
            return topologies.get_topology_desc(
                platform=target.platform, topology_name=name, **options).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        said = re.sub(r'^[A-Z_]+: ', '', str(error).splitlines()[0])[:160]
        near = (f'did you mean {target.kind}:'
                f'{nearest_topology(target.kind, math.prod(target.topology))}?'
                if target.kind in TOPOLOGIES and sizes not in TOPOLOGIES[target.kind] else
                f'check that the versions of jax and of its plugins belong together '
                f'({", ".join(map(" ".join, compiler_versions(target.platform).items()))}).')
        raise ConfigError(f'config.plan.target = {target.name!r}: its compiler refuses it '
                          f'({said}): {near}') from None


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """In the block these variables are set, unless the user has set them."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """What compilers write to standard error in the block is not shown, unless it fails with
    anything but a refusal. libtpu warns at length on a machine without a TPU, and XLA for CUDA of a
    program that is too large, in words that a plan says better. Python's own lines are shown."""
    try:
        shown = os.dup(2)
    except OSError:  # this process has no standard error
        yield
        return
    sys.stderr.flush()
    python = sys.stderr
    with tempfile.TemporaryFile() as held, os.fdopen(shown, 'w', buffering=1,
                                                     errors='replace') as screen:
        os.dup2(held.fileno(), 2)
        if _descriptor(python) == 2:
            sys.stderr = screen
        try:
            yield
        except (RuntimeError, ValueError, NotImplementedError):
            raise
        except BaseException:
            held.seek(0)
            screen.write(held.read().decode(errors='replace'))
            raise
        finally:
            sys.stderr = python
            screen.flush()
            os.dup2(shown, 2)


def _descriptor(stream) -> int:
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):  # not a file, as in a notebook
        return -1
