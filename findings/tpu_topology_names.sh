#!/usr/bin/env bash
# libtpu takes the name of a TPU slice that it does not know how to read, and gives another slice.
#
# One would guess: jax.experimental.topologies.get_topology_desc(platform='tpu', topology_name=...)
# knows the accelerator types of Cloud (v5litepod-16, v5p-8, v4-8), as users type them everywhere
# else, or refuses a name that it does not know.
#
# What happens: 'v5e:4x4' and its like are the names. Of Cloud's types v5litepod-16, v6e-8 and v5p-8
# are refused; 'v4-8', which Cloud gives 4 devices (two cores work as one), is 8 devices with one
# core each; and an empty name, as of a variable that is not set, is 8 devices of a TPU v2.
#
# Why it matters: a program compiled to see whether it fits is compiled for another chip, with half
# the memory per device (v4) or 7.5 GiB (v2), and nothing says so. A way out: map names
# before, and look at device_kind and the number of the devices that come back.
#
# No TPU is needed. Needs Python 3.11 or later, and 2 GB on disk for the time of the run.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1

JAX_PLATFORMS=cpu ALLOW_MULTIPLE_LIBTPU_LOAD=1 TPU_SKIP_MDS_QUERY=1 \
    "$folder/venv/bin/python" - 2>"$folder/warnings" <<'PYTHON' || { cat "$folder/warnings"; exit 1; }
import importlib.metadata
import sys

from jax.experimental import topologies

for name in ('jax', 'libtpu'):
    print(name, importlib.metadata.version(name))


def outcome(name):
    """'8 x TPU v2', or 'refused'."""
    try:
        devices = topologies.get_topology_desc(platform='tpu', topology_name=name).devices
    except Exception:
        return 'refused'
    return f'{len(devices)} x {devices[0].device_kind}'


SEEN = {'v5e:4x4': '16 x TPU v5 lite', 'v5p:2x2x1': '4 x TPU v5', 'v5litepod-16': 'refused',
        'v6e-8': 'refused', 'v5p-8': 'refused', 'v4-8': '8 x TPU v4', '': '8 x TPU v2'}
found = {name: outcome(name) for name in SEEN}
for name, what in found.items():
    print(f'{name!r}: {what}')
print('as seen before' if found == SEEN else 'CHANGED: read the comment of this finding again')
sys.exit(found != SEEN)
PYTHON
