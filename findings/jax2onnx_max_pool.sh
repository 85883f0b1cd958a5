#!/usr/bin/env bash
# jax2onnx writes the max-pooling of pictures as one over four axes, which ONNX Runtime cannot run.
#
# One would guess: a convolutional network converts if its operations are supported, and a file that
# onnx.checker accepts with full_check runs.
#
# What happens: jax.lax.reduce_window with jax.lax.max over [B, H, W, C], which is how JAX pools
# pictures, becomes a MaxPool with kernel_shape [1, 2, 2, 1] behind two Unsqueeze: four spatial axes.
# The conversion and onnx.checker say nothing, the session loads, and its first run ends with
# "Unsupported pooling size". flax.nnx.max_pool(x, (2, 2), (2, 2)), which Flax itself takes so,
# is a TypeError during the conversion, because the converter's own takes keywords only.
#
# Why it matters: the failure shows only where the file is used. A way out: pool by comparing slices
# (jnp.maximum), which is converted rightly; and run a file once before it is given away.
#
# Needs Python 3.11 or later and 2 GB on disk for the time of the run.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 jax2onnx==0.17.1 onnx==1.23.2 onnxruntime==1.32.0

JAX_PLATFORMS=cpu FOLDER="$folder" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from flax import nnx
from jax2onnx import to_onnx

for name in ('jax', 'flax', 'jax2onnx', 'onnx', 'onnxruntime'):
    print(name, importlib.metadata.version(name))
onnxruntime.set_default_logger_severity(4)
path = Path(os.environ['FOLDER']) / 'model.onnx'
images = np.random.default_rng(0).standard_normal((2, 16, 20, 3)).astype(np.float32)


def by_window(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')


def by_slices(x):
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


def outcome(function):
    try:
        model = to_onnx(function, [images.shape])
    except TypeError as error:
        return 'not converted', str(error).split('()')[-1].strip()
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    kernels = [list(a.ints) for node in model.graph.node for a in node.attribute
               if a.name == 'kernel_shape']
    try:
        found, = session.run(None, {session.get_inputs()[0].name: images})
    except Exception as error:
        return f'checked and loaded, kernel {kernels}', str(error).rstrip('.').split(': ')[-1]
    return 'runs', bool(np.array_equal(found, by_window(images)))


expected = {
    'jax.lax.reduce_window': ('checked and loaded, kernel [[1, 2, 2, 1]]',
                              'Unsupported pooling size'),
    'nnx.max_pool(x, (2, 2), (2, 2))': ('not converted',
                                        'takes 1 positional argument but 3 were given'),
    'slices': ('runs', True)}
seen = {name: outcome(function) for name, function in zip(expected, (
    by_window, lambda x: nnx.max_pool(x, (2, 2), (2, 2)), by_slices))}
for name, value in seen.items():
    print(f'{name}: {": ".join(map(str, value))}')
if seen != expected:
    sys.exit('The behaviour has changed.')
PYTHON
