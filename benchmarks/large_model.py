"""Peak memory of eva_giant_patch14_224 (1.01 B parameters, 4 GB) on a CPU: initialise, load a
.safetensors file of its size, one forward pass.

    python benchmarks/large_model.py [--model=eva_giant_patch14_224]

The file (4 GB) is written first, by a separate process, to a temporary folder.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))


def write(name: str, path: str) -> None:
    """A file with timm's keys and shapes for this model, all weights 0.01 N(0, 1)."""
    from flax import nnx
    from safetensors.numpy import save_file

    from models import create_model
    from models.pretrained import timm_targets, to_torch
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    save_file({key: 0.01 * rng.standard_normal(to_torch(target.variable.shape), dtype=np.float32)
               for target in timm_targets(model) for key in target.keys}, path)


def measure(name: str, path: str) -> None:
    """Prints one line per stage: seconds, and the peak of the resident memory so far."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from models import create_model, eval_view
    from models.pretrained import load_timm

    def report(stage, begin):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f'{stage:12} {time.perf_counter() - begin:7.1f} s   peak {peak:5.2f} GiB')

    begin = time.perf_counter()
    model = create_model(name, rngs=nnx.Rngs(0))
    jax.block_until_ready(nnx.state(model))
    report('initialise', begin)
    begin = time.perf_counter()
    load_timm(model, path)
    report('load', begin)
    begin = time.perf_counter()
    side = model.img_size[0]
    graphdef, state = nnx.split(model)
    infer = jax.jit(lambda state, x: eval_view(nnx.merge(graphdef, state))(x))
    logits = infer(state, jnp.ones((1, side, side, 3)))
    assert np.isfinite(logits).all()
    report('forward', begin)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', default='eva_giant_patch14_224')
    parser.add_argument('--stage', choices=('write', 'measure'))
    parser.add_argument('--file', default='')
    args = parser.parse_args()
    if args.stage:
        {'write': write, 'measure': measure}[args.stage](args.model, args.file)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for stage in ('write', 'measure'):
                subprocess.run([sys.executable, __file__, f'--stage={stage}',
                                f'--model={args.model}',
                                f'--file={folder}/weights.safetensors'], check=True)
