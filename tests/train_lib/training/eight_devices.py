"""Runs on eight simulated devices, in a process of its own; prints one JSON object.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
        python -m tests.train_lib.training.eight_devices FOLDER|all
"""

import contextlib
import dataclasses
import io
import json
import math
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

import models
from configs import common
from models.pretrained import to_timm
from train_lib.commands.plan import show_plan
from train_lib.run_dir import checkpoints, workdirs
from train_lib.run_dir.goodput import Clock
from train_lib.runtime.sharding import (
    batch_sharding,
    keep_layout,
    make_layout,
    make_mesh,
    place,
    shard_batch,
)
from train_lib.training import init
from train_lib.training.data import load_manifest, split_data
from train_lib.training.evaluate import predict
from train_lib.training.setup import assemble, compile_step
from train_lib.training.state import HostState, Weights, to_stored

MESHES = {'one': dict(data=1, fsdp=1), 'data': dict(data=-1, fsdp=1),
          'fsdp': dict(data=-1, fsdp=8), 'both': dict(data=-1, fsdp=4)}
VIT = dict(name='vit_tiny_patch16_224', patch_size=4, embed_dim=32, depth=2, num_heads=2, scan=True)
CNN = dict(name='small_cnn', width=16, stages=2)


def settings(model: dict, **changes):
    config = common.get_config()
    config.data.source = 'digits'
    config.image.size = 16
    config.batch_size = 32
    config.duration = dict(steps=20)
    config.schedule.name = 'constant'
    config.schedule.warmup.percent = 0
    config.sharding.min_size = 0
    config.ema.decay = 0.9
    config.model = model
    for path, value in changes.items():
        *parents, last = path.split('/')
        node = config
        for name in parents:
            node = node[name]
        with config.ignore_type():
            node[last] = value
    return config


class Started:
    """A run on a mesh, at its first step."""

    def __init__(self, config, mesh: str):
        self.config = config
        self.mesh = make_mesh(MESHES[mesh])
        self.data = split_data(config, load_manifest(config))
        self.job = assemble(config, self.data, self.mesh, None, Path())
        self.state = init.begin(init.init_spec(config, self.data.manifest.classes), None,
                                self.job.state, self.job.iterator, 20).state

    def train(self, steps: int) -> list[float]:
        run = compile_step(self.job.run, self.state, self.data.parts, Clock())
        self.program = run.programs.train_step.as_text()
        losses = []
        for _ in range(steps):
            batch = shard_batch(next(self.job.iterator), self.mesh)
            self.state, loss = run.programs.train_step(self.state, batch)
            losses.append(float(loss))
        return losses

    def logits(self) -> np.ndarray:
        return predict(self.job.run.programs.eval_step, self.state.weights,
                       self.job.evals['val'], self.mesh)['class']


def share(tree) -> float:
    """What the first device holds of a tree."""
    leaves = jax.tree.leaves(tree)
    return (sum(leaf.addressable_shards[0].data.size for leaf in leaves)
            / sum(leaf.size for leaf in leaves))


def largest_gathered(program: str) -> int:
    """The numbers of the largest array that a compiled program collects from all devices."""
    kinds = re.findall(r'= (.*?) all-gather(?:-start)?\(', program)
    return max((math.prod(int(size) for size in shape.split(',') if size) for kind in kinds
                for shape in re.findall(r'\w+\[([\d,]*)\]', kind)), default=0)


def differ(left, right) -> list[str]:
    """Paths of leaves that are not equal, bit for bit."""
    left, right = ({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf
                    in jax.tree_util.tree_flatten_with_path(tree)[0]} for tree in (left, right))
    if left.keys() != right.keys():
        return sorted(set(left) ^ set(right))
    return [name for name in left if not np.array_equal(left[name], right[name])]


def meshes(model: dict, optimizer: str, rate: float, *names: str) -> dict:
    """The same run on each mesh: losses, and what differs from the first before it starts.

    Adam turns the rounding of a gradient that should be 0, as before a BatchNorm, into a full
    step; models with one take SGD.
    """
    found, first = {}, None
    for name in names:
        run = Started(settings(model, **{'optimizer/name': optimizer, 'schedule/lr': rate}), name)
        first = jax.device_get(run.state) if first is None else first
        found[name] = dict(
            started_otherwise=differ(first, run.state),
            share={key: share(getattr(run.state, key)) for key in ('params', 'opt_state', 'ema')},
            losses=run.train(20), share_after=share(run.state.params),
            gathered=largest_gathered(run.program),
            logits=run.logits()[:3].tolist())
    return found


def moved(folder: Path) -> dict:
    """Weights of a file, adapters, frozen parts: started on every mesh, saved on one mesh,
    restored on others."""
    model = models.create_model(num_classes=7, img_size=16, rngs=nnx.Rngs(5), **VIT)
    save_file(to_timm(model), folder / 'given.safetensors')
    config = settings(VIT, **{'init/pretrained': str(folder / 'given.safetensors'),
                              'init/head': 'resize', 'finetune/lora/rank': 4})
    saved = Started(config, 'fsdp')
    found = dict(frozen_share=share(saved.state.frozen),
                 started_otherwise=differ(saved.state, Started(config, 'one').state))
    for _ in range(2):
        next(saved.job.iterator)
    checkpointer = checkpoints.Checkpointer(folder / 'run/checkpoints', 1)
    checkpointer.save(2, to_stored(saved.state), saved.job.iterator, HostState().to_json())
    checkpointer.close()
    workdirs.claim(folder / 'run', config, saved.data.digest, saved.data.manifest)
    for mesh in ('one', 'both'):
        other = Started(settings(VIT, **{'finetune/lora/rank': 4, 'seed': 3}), mesh)
        state, _ = init.restore(folder / 'run/checkpoints/2', other.state, other.job.iterator)
        found[mesh] = dict(
            differ=differ(saved.state, state), next=other.job.iterator.get_state()['next_index'],
            moved=[jax.tree_util.keystr(path) for (path, a), b in zip(
                jax.tree_util.tree_flatten_with_path(state)[0], jax.tree.leaves(other.state))
                if a.sharding != b.sharding])
    adopted = Started(settings(VIT, **{'init/from': str(folder / 'run'),
                                       'finetune/lora/rank': 4, 'seed': 3}), 'fsdp')
    found['adopted'] = differ(dataclasses.replace(saved.state.weights, batch_stats={}),
                              Weights(adopted.state.params, adopted.state.frozen, {}))
    found['adopted_share'] = share(adopted.state.frozen)
    return found


def kept() -> bool:
    """Whether a step's new state lies as the old one, though XLA would choose otherwise."""
    lies = make_layout(dict(rules='auto', min_size=0), make_mesh(MESHES['fsdp'])).of('x', (8,))
    state = dict(x=place(np.zeros(8), lies))
    new, _ = keep_layout(lambda state, batch: (dict(x=jnp.arange(8.0)), batch), state)(state, 0)
    return new['x'].sharding == lies


def plan() -> str:
    text = io.StringIO()
    config = settings(CNN, **{'mesh/fsdp': 8, 'plan_memory_gb': 1e-6})
    with contextlib.redirect_stdout(text):
        show_plan(config, load_manifest(config))
    return text.getvalue()


if __name__ == '__main__':
    if sys.argv[1] == 'all':
        print(json.dumps(dict(vit=meshes(VIT, 'adamw', 0.01, *MESHES),
                              resnet18=meshes(dict(name='resnet18'), 'sgd', 0.01, *MESHES))))
    else:
        print(json.dumps(dict(
            batch=batch_sharding(make_mesh(MESHES['both'])).shard_shape((32, 4)),
            vit=meshes(VIT, 'adamw', 0.01, 'one', 'both'),
            cnn=meshes(CNN, 'sgd', 0.05, 'one', 'fsdp'),
            moved=moved(Path(sys.argv[1])), kept=kept(), plan=plan())))
