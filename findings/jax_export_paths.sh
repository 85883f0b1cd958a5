#!/usr/bin/env bash
# A function that jax.export writes to a file tells where on the disk its source code lay.
#
# One would guess: the bytes of Exported.serialize() hold the computation, its types and platforms,
# and are the same wherever the same code was exported.
#
# What happens: they hold, for each operation, the absolute paths, functions and line numbers of the
# Python calls that led to it. The same module in two folders gives two files of different content.
#
# Why it matters: such files are made to be handed on, and a path often has the name of a user, a
# customer or a project. Two exports of the same code cannot be compared by their digests. A way
# out: jax.config.update('jax_traceback_in_locations_limit', 0) before the export; then both folders
# give the same bytes.
#
# Needs Python 3.11 or later, and 500 MB on disk for the time of the run.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 flatbuffers==25.12.19

cat > "$folder/export.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
from network import forward

limit, target = sys.argv[1:]
if limit:
    jax.config.update('jax_traceback_in_locations_limit', int(limit))
batch, = jax.export.symbolic_shape('b')
exported = jax.export.export(jax.jit(forward))(jax.ShapeDtypeStruct((batch, 4), jnp.float32))
open(target, 'wb').write(exported.serialize())
PYTHON
sed -i 's/^import jax$/import jax\nimport jax.export/' "$folder/export.py"

for name in alice bob; do
    mkdir -p "$folder/home/$name/project"
    printf 'import jax.numpy as jnp\n\n\ndef forward(x):\n    return jnp.tanh(x) * 2\n' \
        > "$folder/home/$name/project/network.py"
    cp "$folder/export.py" "$folder/home/$name/project/export.py"
    for limit in '' 0; do
        (cd "$folder/home/$name/project" && JAX_PLATFORMS=cpu "$folder/venv/bin/python" export.py \
            "$limit" "$folder/$name$limit.bin")
    done
done

FOLDER="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import os
import pathlib
import sys

for name in ('jax', 'jaxlib', 'flatbuffers'):
    print(name, importlib.metadata.version(name))
folder = pathlib.Path(os.environ['FOLDER'])
as_seen = True
for limit, told in (('', True), ('0', False)):
    files = {name: (folder / f'{name}{limit}.bin').read_bytes() for name in ('alice', 'bob')}
    paths = all(f'{folder}/home/{name}/project/network.py'.encode() in content
                for name, content in files.items())
    same = files['alice'] == files['bob']
    print(f'limit {limit or "as it is"}: paths of the source in the file: {paths}; '
          f'both folders give the same bytes: {same}')
    as_seen &= (paths, same) == (told, not told)
print('as seen before' if as_seen else 'CHANGED: read the comment of this finding again')
sys.exit(not as_seen)
PYTHON
