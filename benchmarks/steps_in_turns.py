"""Training steps of ours, of another checkout of ours and of timm, in turns on this CPU.

    python benchmarks/steps_in_turns.py [--jobs=NAME:PIXELS:BATCH,...] [--against=CHECKOUT]
        [--peers=eager,compile] [--peer_python=PYTHON] [--steps=9] [--profile]

All contestants of a row are loaded first and then make one step each, again and again, so what else
the machine does meets all of them. Prints per contestant the median of seconds and CPU seconds per
step and, against `here`, the median of the ratios of neighbouring steps with their quartiles
(above 1: here is faster). A step is that of benchmarks/train_step.py, in float32. timm 1.0.31 runs
in torch with channels_last for CNNs, as it comes (eager) or by torch.compile, which needs g++.
Contestants get the environment of this process; main.py's own settings hold for ours only.

--profile lists instead where one step of ours spends its time, by kind of operation.
"""

import argparse
import collections
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parents[1]
JOBS = ('vit_tiny_patch16_224:224:8', 'resnet18:64:32', 'resnet18:224:8', 'resnet50:128:8',
        'densenet121:64:16', 'efficientnet_b0:64:16', 'mobilenetv3_large_100:96:16')


def our_step(name: str, size: int, batch: int):
    """(the compiled step as a function of nothing, the compiled program), of the checkout that is
    first on the path."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks import train_step as common
    from train_lib.optim.optimizers import make_optimizer
    from train_lib.training.state import Weights, make_state
    from train_lib.training.step import StepOptions, make_normalise, make_train_step, split_model

    optimizer = make_optimizer(common.common_optimizer())
    graphdef, params, rest = split_model(common.build(name, size, dtype='float32'))
    normalise = make_normalise((0.5,) * 3, (0.5,) * 3, jnp.dtype('float32'))
    step = make_train_step(graphdef, optimizer, lambda step: 1e-4, normalise,
                           StepOptions(heads=('class',), seed=0))
    rng = np.random.default_rng(0)
    data = jax.device_put({
        'image': rng.integers(0, 256, (batch, size, size, 3), np.uint8),
        'label/class': rng.integers(0, common.CLASSES, batch, np.int32)})
    state = jax.block_until_ready(make_state(Weights(params, {}, rest), optimizer, ('class',)))
    program = step.lower(state, data).compile()

    def run():
        nonlocal state
        state, loss = program(state, data)
        return float(loss)

    return run, program


def timm_step(name: str, size: int, batch: int, compiled: bool):
    """The same of timm, as a function of nothing."""
    import timm
    import torch

    transformer = name.startswith(('vit', 'eva'))
    layout = torch.contiguous_format if transformer else torch.channels_last
    sized = dict(img_size=size) if transformer else {}
    model = timm.create_model(name, num_classes=1000, **sized).train().to(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    images, labels = images.to(memory_format=layout), torch.randint(0, 1000, (batch,))

    def objective(images, labels):
        return torch.nn.functional.cross_entropy(model((images.float() / 255 - 0.5) / 0.5), labels)

    if compiled:
        objective = torch.compile(objective)

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = objective(images, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        return loss.item()

    return run


def contestant(who: str, job: str) -> None:
    """The process of one contestant: a step for each line of the input, timed."""
    name, size, batch = job.split(':')
    if who in ('eager', 'compile'):
        run = timm_step(name, int(size), int(batch), who == 'compile')
    else:
        run = our_step(name, int(size), int(batch))[0]
    for _ in range(2):
        run()
    print('ready', flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        loss = run()
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, loss]), flush=True)


def start(who: str, root: Path, python: str, job: str) -> subprocess.Popen:
    """Starts a contestant; `root` is the checkout that it imports."""
    return subprocess.Popen(
        [python, __file__, f'--contestant={who}', f'--root={root}', f'--jobs={job}'],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)


def compare(job: str, whos: dict[str, tuple[Path, str]], steps: int) -> dict[str, float]:
    """Prints one row per contestant; returns their ratios to 'here'."""
    processes = {who: start(who, *where, job) for who, where in whos.items()}
    times: dict[str, list] = {who: [] for who in processes}
    for who, process in list(processes.items()):
        if process.stdout.readline().strip() != 'ready':
            print(f'{job:32}{who:9} {process.stderr.read().strip().splitlines()[-1][:80]}')
            del processes[who]
    for _ in range(steps):
        for who, process in processes.items():
            time.sleep(0.1)  # the threads of the one before have stopped waiting by then
            process.stdin.write('\n')
            process.stdin.flush()
            times[who].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.communicate()
    ratios = {}
    for who in processes:
        wall, cpu, loss = map(statistics.median, zip(*times[who]))
        row = f'{job:32}{who:9}{1e3 * wall:9.1f}{1e3 * cpu:9.1f}{loss:8.3f}'
        if who != 'here' and 'here' in processes:
            pairs = [theirs[0] / ours[0] for theirs, ours in zip(times[who], times['here'])]
            ratios[who] = statistics.median(pairs)
            low, _, high = statistics.quantiles(pairs, n=4)
            row += f'{ratios[who]:8.2f} [{low:.2f}, {high:.2f}]'
        print(row, flush=True)
    return ratios


def profile(job: str, most: int = 20) -> None:
    """Prints milliseconds of one step by kind of operation, its shape and its place in the code."""
    import jax
    from jax.profiler import ProfileData

    name, size, batch = job.split(':')
    run, program = our_step(name, int(size), int(batch))
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
            run()
        data = ProfileData.from_file(str(next(Path(folder).rglob('*.xplane.pb'))))
    text = program.as_text()
    spent: collections.Counter = collections.Counter()
    counts: collections.Counter = collections.Counter()
    for event in (event for plane in data.planes for line in plane.lines for event in line.events):
        if 'hlo_op' in dict(event.stats):
            found = re.search(rf'^ *(?:ROOT )?%{re.escape(event.name)} = (\S+?)(?:{{| ).*', text,
                              re.M)
            place = found and re.search(r'op_name="([^"]*)"', found[0])
            key = (re.sub(r'[.\d]+$', '', event.name), found[1] if found else '',
                   place[1].split('/')[-1] if place else '')
            spent[key] += event.duration_ns / 2e6
            counts[key] += 1
    print(f'{job}: {sum(spent.values()):.0f} ms in operations')
    for key, value in spent.most_common(most):
        print(f'{value:8.1f} ms {counts[key] // 2:4} x {" ".join(key)}')


def main() -> int:
    """Runs the comparison, one profile, or one contestant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--jobs', default=','.join(JOBS))
    parser.add_argument('--against', type=Path)
    parser.add_argument('--peers', default='eager,compile')
    parser.add_argument('--peer_python', default=sys.executable)
    parser.add_argument('--steps', type=int, default=9)
    parser.add_argument('--profile', action='store_true')
    parser.add_argument('--contestant')
    parser.add_argument('--root', type=Path, default=HERE)
    args = parser.parse_args()
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    sys.path[0] = str(args.root)
    if args.contestant not in ('eager', 'compile') and (args.contestant or args.profile):
        try:
            from train_lib.runtime.cpu_program import set_up_cpu
            set_up_cpu()
        except ModuleNotFoundError:  # an older checkout
            pass
    if args.contestant:
        contestant(args.contestant, args.jobs)
        return 0
    if args.profile:
        for job in args.jobs.split(','):
            profile(job)
        return 0
    whos = {'here': (HERE, sys.executable)}
    if args.against:
        whos['against'] = (args.against.resolve(), sys.executable)
    whos |= {peer: (HERE, args.peer_python) for peer in args.peers.split(',') if peer}
    ratios = collections.defaultdict(list)
    print(f'{"model:pixels:batch":32}{"":9}{"ms/step":>9}{"CPU ms":>9}{"loss":>8}{"ratio":>8} '
          f'[quartiles]')
    for job in args.jobs.split(','):
        for who, ratio in compare(job, whos, args.steps).items():
            ratios[who].append(ratio)
    for who, values in ratios.items():
        print(f'geometric mean of {len(values)} ratios, {who}/here: '
              f'{statistics.geometric_mean(values):.2f}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
