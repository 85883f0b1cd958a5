"""How fast is a training step? Compared with timm under torch.compile, on one device.

    python benchmarks/train_step.py [--models=NAME,...] [--batch=N] [--size=PIXELS] [--steps=N]
        [--precision=bfloat16,float32] [--peer=auto|none|timm]

Prints one table: images/s, milliseconds per step, model FLOP utilisation, peak memory in gigabytes
and seconds to compile; then the same for timm, and the ratio of the rates. A step is everything
from uint8 images on the device to new weights: normalisation, gradient, clipping, AdamW; no input
pipeline. Utilisation is 3 x the FLOPs of inference x images/s / the peak of the device, for timm
too. Ours is compiled ahead of time; timm runs with bfloat16 autocast (float32: TF32 products, as in
JAX), fused AdamW and, for CNNs, channels_last. Each measurement runs in its own process, and so has
all of the memory. For timm install torch and timm.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from train_lib.runtime.cpu_program import set_up_cpu
from train_lib.runtime.platform import choose_platform

choose_platform()  # for the processes that measure; this one needs no device, see `main`
if __name__ == '__main__':  # not the allocator of a program that imports this
    set_up_cpu()

PRECISIONS = ('bfloat16', 'float32')
CLASSES = 1000
ON_GPU = {  # batch
    'vit_base_patch16_224': 128, 'vit_large_patch16_224': 64, 'eva02_large_patch14_448': 16,
    'densenet121': 128, 'resnet50': 256, 'efficientnet_b4': 64,
}
ON_CPU = {'vit_tiny_patch16_224': 8, 'resnet18': 8}
# Part of JAX's device_kind: peak FLOP/s of dense bfloat16 (V100: float16) and of float32 matrix
# products as JAX takes them by default (TF32; bfloat16 passes on TPUs), from the vendors' data
# sheets. The first that matches holds, so the longer names come first.
PEAKS = (
    ('A100', 312e12, 156e12),
    ('H100 PCIe', 756e12, 378e12),
    ('H100 NVL', 835e12, 418e12),
    ('H100', 989e12, 495e12),
    ('H200 NVL', 835e12, 418e12),
    ('H200', 989e12, 495e12),
    ('L40S', 362e12, 183e12),
    ('L40', 181e12, 90.5e12),
    ('L4', 121e12, 60e12),
    ('V100', 125e12, 15.7e12),
    ('TPU v4', 275e12, 275e12),
    ('TPU v5 lite', 197e12, 197e12),
    ('TPU v5e', 197e12, 197e12),
    ('TPU v5', 459e12, 459e12),
    ('TPU v6', 918e12, 918e12),
)


def known_peak(kind: str, precision: str) -> float | None:
    """FLOP/s that the maker of a device states; None if the device is not in the table."""
    for part, *peaks in PEAKS:
        if part.lower() in kind.lower():
            return peaks[PRECISIONS.index(precision)]
    return None


def matmul_rate(precision: str) -> float:
    """FLOP/s of one large matrix product on this device, the best of five."""
    import jax
    import jax.numpy as jnp

    side = 1024 if jax.default_backend() == 'cpu' else 8192
    a = jnp.ones((side, side), precision)
    multiply = jax.jit(jnp.matmul).lower(a, a).compile()
    seconds = []
    for _ in range(6):  # the first warms up
        start = time.perf_counter()
        multiply(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * side ** 3 / min(seconds[1:])


def build(name: str, size: int, **settings):
    """The model of that name, for images of `size` where it has to know."""
    from flax import nnx

    import models

    if 'img_size' in models.model_settings(name):
        settings['img_size'] = size
    return models.create_model(name, CLASSES, rngs=nnx.Rngs(0), **settings)


def forward_flops(name: str, size: int) -> float:
    """Floating-point operations of one picture's inference, a multiply-add being two: from
    models/costs.csv, or for another size counted in the same way."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from models import costs, eval_view

    cost = costs.costs().get(name)
    if cost and cost.image_size == size:
        return cost.gflops * 1e9
    model = nnx.eval_shape(lambda: build(name, size))
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    lowered = jax.jit(lambda model, x: eval_view(model)(x)).lower(model, image)
    return lowered.cost_analysis()['flops']


def common_optimizer() -> dict:
    """The default of config.optimizer."""
    from configs import common

    return common.get_config().optimizer.to_dict()


def measure_ours(name: str, size: int, batch: int, precision: str, steps: int) -> dict:
    """One row for this project: rate, seconds, bytes, and the device and its peak."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from train_lib.optim.optimizers import make_optimizer
    from train_lib.training.state import Weights, make_state
    from train_lib.training.step import (
        StepOptions,
        make_normalise,
        make_train_step,
        split_model,
    )

    optimizer = make_optimizer(common_optimizer())
    graphdef, params, rest = split_model(build(name, size, dtype=precision))
    normalise = make_normalise((0.5,) * 3, (0.5,) * 3, jnp.dtype(precision))
    step = make_train_step(graphdef, optimizer, lambda step: 1e-4, normalise,
                           StepOptions(heads=('class',), seed=0))
    rng = np.random.default_rng(0)
    data = jax.device_put({
        'image': rng.integers(0, 256, (batch, size, size, 3), np.uint8),
        'label/class': rng.integers(0, CLASSES, batch, np.int32)})
    state = jax.block_until_ready(make_state(Weights(params, {}, rest), optimizer, ('class',)))
    start = time.perf_counter()
    step = step.lower(state, data).compile()
    compile_seconds = time.perf_counter() - start
    memory = step.memory_analysis()

    def run(count):
        nonlocal state
        start = time.perf_counter()
        for _ in range(count):
            state, loss = step(state, data)
        jax.block_until_ready((state, loss))
        return (time.perf_counter() - start) / count, float(loss)

    run(1 if jax.default_backend() == 'cpu' else 5)
    seconds, loss = run(steps)
    kind = jax.devices()[0].device_kind
    return dict(
        seconds=seconds, compile=compile_seconds, loss=loss, kind=kind,
        # As the compiler lays it out: what it frees before the step's peak is not counted twice.
        bytes=memory and (memory.argument_size_in_bytes + memory.output_size_in_bytes
                          - memory.alias_size_in_bytes + memory.temp_size_in_bytes),
        peak=known_peak(kind, precision) or matmul_rate(precision),
        versions=f'jax {jax.__version__}')


def measure_timm(name: str, size: int, batch: int, precision: str, steps: int, device: str) -> dict:
    """One row for timm with torch.compile: the same step, on 'cuda' or 'cpu'."""
    import timm
    import torch

    if device == 'cuda' and not torch.cuda.is_available():
        raise RuntimeError('torch sees no GPU')
    torch.backends.cudnn.benchmark = True
    if device == 'cuda':
        torch.set_float32_matmul_precision('high')
    transformer = name.startswith(('vit', 'eva'))
    layout = torch.contiguous_format if transformer else torch.channels_last
    sized = dict(img_size=size) if transformer else {}
    model = timm.create_model(name, num_classes=CLASSES, **sized).train()
    model = model.to(device, memory_format=layout)
    settings = common_optimizer()
    decayed, others = [], []
    for weight in model.parameters():
        (decayed if weight.ndim > 1 else others).append(weight)
    optimizer = torch.optim.AdamW(
        [dict(params=decayed), dict(params=others, weight_decay=0)], lr=1e-4, fused=True,
        betas=(settings['b1'], settings['b2']), eps=settings['eps'],
        weight_decay=settings['weight_decay'])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, size, size), generator=generator, dtype=torch.uint8)
    images = images.to(device, memory_format=layout)
    labels = torch.randint(0, CLASSES, (batch,), generator=generator).to(device)

    @torch.compile
    def objective(images, labels):
        with torch.autocast(device, torch.bfloat16, enabled=precision == 'bfloat16'):
            logits = model((images.float() / 255 - 0.5) / 0.5)
            return torch.nn.functional.cross_entropy(logits, labels)

    def run(count):
        synchronise()
        start = time.perf_counter()
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            loss = objective(images, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings['clip_norm'], foreach=True)
            optimizer.step()
        synchronise()
        return (time.perf_counter() - start) / count, loss.item()

    synchronise = torch.cuda.synchronize if device == 'cuda' else lambda: None
    compile_seconds = run(1)[0]
    run(1 if device == 'cpu' else 5)
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    seconds, loss = run(steps)
    used = torch.cuda.max_memory_allocated() if device == 'cuda' else None
    return dict(seconds=seconds, compile=compile_seconds, loss=loss, bytes=used,
                versions=f'torch {torch.__version__}, timm {timm.__version__}')


def in_a_process(env: dict, **flags) -> dict:
    """What this script prints when it is run with these flags; dict(error=...) if it fails."""
    done = subprocess.run(
        [sys.executable, __file__, *(f'--{key}={value}' for key, value in flags.items())],
        env=env, capture_output=True, text=True)
    lines = (done.stdout if not done.returncode else done.stderr).strip().splitlines()
    if not done.returncode:
        return json.loads(lines[-1])
    # The exception is rarely the last line: JAX and torch add advice to it.
    errors = [line for line in lines if re.match(r'[\w.]+(Error|Exception)\b', line)]
    return dict(error=([f'it ended with code {done.returncode}'] + lines[-1:] + errors)[-1][:300])


HEADER = (f'{"":57} | {"ours":^42} | {"timm, torch.compile":^42} | ours/\n'
          f'{"model":28}{"size":>5}{"batch":>6} {"precision":9}{"peak":>8}'
          + f' | {"images/s":>9}{"ms/step":>10}{"MFU":>7}{"GB":>7}{"compile":>9}' * 2 + ' |  timm')


def cells(row: dict, batch: int, flops: float, peak: float) -> str:
    """Five columns of a measurement, with dashes for what is unknown."""
    if 'seconds' not in row:
        return f'{"-":>9}{"-":>10}{"-":>7}{"-":>7}{"-":>9}'
    rate = batch / row['seconds']
    share = f'{3 * flops * rate / peak:.1%}' if peak else '-'
    used = f'{row["bytes"] / 1e9:.2f}' if row['bytes'] else '-'
    return f'{rate:9.1f}{1e3 * row["seconds"]:10.2f}{share:>7}{used:>7}{row["compile"]:8.1f}s'


def compare(jobs: list[tuple], steps: int, env: dict, device: str, peer: bool) -> bool:
    """Measures (model, size, batch, precision, FLOPs) one by one and prints the table with its
    notes; returns whether all of ours could be measured."""
    notes, versions, complete = [], [], True
    print(HEADER, flush=True)
    for name, size, batch, precision, flops in jobs:
        flags = dict(models=name, size=size, batch=batch, precision=precision, steps=steps)
        ours = in_a_process(env, only='jax', **flags)
        theirs = in_a_process(env, only='torch', device=device, **flags) if peer else {}
        both = 'seconds' in ours and 'seconds' in theirs
        ratio = f'{theirs["seconds"] / ours["seconds"]:6.2f}' if both else f'{"-":>6}'
        peak = ours.get('peak')
        print(f'{name:28}{size:5}{batch:6} {precision:9}'
              f'{f"{peak / 1e12:.4g}T" if peak else "-":>8} | {cells(ours, batch, flops, peak)} | '
              f'{cells(theirs, batch, flops, peak)} |{ratio}', flush=True)
        complete &= 'seconds' in ours
        if 'kind' in ours:
            source = ("the maker's data sheet" if known_peak(ours['kind'], precision) else
                      'the rate of one large matrix product, measured with each row')
            notes.append(f'{ours["kind"]}, {precision}: the peak FLOP/s are {source}')
        for who, row in (('ours', ours), ('timm', theirs)):
            if 'error' in row:
                notes.append(f'{who}, {name}, {precision}: {row["error"]}')
            elif row:
                versions.append(row['versions'])
                if row['loss'] != row['loss']:
                    notes.append(f'{who}, {name}, {precision}: the loss is not a number')
    print(*dict.fromkeys(notes + versions), sep='\n')
    return complete


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str):
        self.exit(2, f'train_step.py: {message}\n')


def natural_size(name: str) -> int:
    """Pixels per side that a model is made for."""
    from models import costs

    known = costs.costs().get(name)
    return known.image_size if known else costs.image_size(name)


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags; lists are parsed."""
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--models', help='names, separated by commas')
    parser.add_argument('--batch', type=int, help='images per step (default: by model)')
    parser.add_argument('--size', type=int, help='pixels per side (default: by model)')
    parser.add_argument('--steps', type=int, help='timed steps (30; 5 on a CPU)')
    parser.add_argument('--precision', help='bfloat16 and/or float32 (bfloat16; both on a CPU)')
    parser.add_argument('--peer', choices=('auto', 'none', 'timm'), default='auto',
                        help='auto: timm where it is installed and there is a GPU')
    parser.add_argument('--only', choices=('device', 'jax', 'torch'), help='measure in this '
                        'process and print JSON')
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cpu', help='of --only=torch')
    args = parser.parse_args(argv)
    for key in ('batch', 'size', 'steps'):
        value = getattr(args, key)
        if value is not None and value < 1:
            parser.error(f'--{key}={value} is too small: give 1 or more.')
    for precision in args.precision.split(',') if args.precision else ():
        if precision not in PRECISIONS:
            parser.error(f'--precision={precision} is not known: use bfloat16, float32 or both.')
    if args.only in ('jax', 'torch') and not all(
            (args.models, args.batch, args.size, args.steps, args.precision)):
        parser.error(f'--only={args.only} is one measurement: give --models, --batch, --size, '
                     f'--steps and --precision too.')
    missing = [name for name in ('torch', 'timm') if importlib.util.find_spec(name) is None]
    if args.peer == 'timm' and missing:
        parser.error(f'--peer=timm needs {" and ".join(missing)}: install it, or use --peer=none.')
    args.has_timm = not missing
    return args


def main(argv: list[str]) -> int:
    """Runs the comparison, or with --only one part of it; the exit code."""
    args = parse(argv)
    if args.only == 'device':
        import jax
        print(json.dumps(dict(platform=jax.default_backend())))
        return 0
    if args.only:
        job = args.models, args.size, args.batch, args.precision, args.steps
        row = measure_ours(*job) if args.only == 'jax' else measure_timm(*job, args.device)
        print(json.dumps(row))
        return 0

    env = dict(os.environ)
    platform = env.get('JAX_PLATFORMS')
    if platform != 'cpu':
        found = in_a_process(env, only='device')
        if 'error' in found:
            print(f'train_step.py: JAX finds no device: {found["error"]}', file=sys.stderr)
            return 1
        platform = found['platform']
    os.environ['JAX_PLATFORMS'] = 'cpu'  # counting FLOPs must not hold the accelerator's memory
    import models

    cpu = platform == 'cpu'
    defaults = ON_CPU if cpu else ON_GPU
    precisions = (args.precision or ('float32,bfloat16' if cpu else 'bfloat16')).split(',')
    jobs = []
    try:
        for name in args.models.split(',') if args.models else defaults:
            models.model_settings(name)
            size = args.size or (64 if cpu else natural_size(name))
            flops = forward_flops(name, size)
            jobs += [(name, size, args.batch or defaults.get(name, 8 if cpu else 64), precision,
                      flops) for precision in precisions]
    except models.ModelError as error:
        print(f'train_step.py: {error}', file=sys.stderr)
        return 2
    if cpu:
        print('no accelerator here: small sizes on the CPU; the figures say nothing of a GPU')
    peer = args.peer == 'timm' or (args.peer == 'auto' and platform == 'gpu' and args.has_timm)
    complete = compare(jobs, args.steps or (5 if cpu else 30), env,
                       'cuda' if platform == 'gpu' else 'cpu', peer)
    return 0 if complete else 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
