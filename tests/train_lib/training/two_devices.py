"""Unlabelled pictures and a teacher on two simulated devices, in a process of its own; prints one
JSON object: of each mesh the losses, the logits and the sums after a few steps.

    XLA_FLAGS=--xla_force_host_platform_device_count=2 \\
        python -m tests.train_lib.training.two_devices TEACHER
"""

import json
import sys

import jax

from tests.train_lib.training import eight_devices
from tests.train_lib.training.eight_devices import CNN, Started, settings, share

MESHES = {'one': dict(data=1, fsdp=1), 'data': dict(data=2, fsdp=1), 'fsdp': dict(data=1, fsdp=2)}
KINDS = {'fixmatch': {'unlabelled/kind': 'fixmatch', 'unlabelled/threshold': 0.0},
         'mean_teacher': {'unlabelled/kind': 'mean_teacher', 'unlabelled/weight': 20.0}}


def run(mesh: str, changes: dict) -> dict:
    started = Started(settings(dict(CNN, width=8), **{
        'optimizer/name': 'sgd', 'schedule/lr': 0.05, 'data/long_tail/per_class': 12,
        'unlabelled/batch_size': 16, 'unlabelled/strong': ('rotate',),
        'init/seen': 'accept'} | changes), mesh)
    losses = started.train(4)
    state = started.state
    return dict(losses=losses, logits=started.logits()[:20].tolist(),
                sums={name: float(value) for name, value in state.metric_sums.items()},
                teacher=share(state.teacher) if state.teacher else None)


def main() -> None:
    assert len(jax.devices()) == 2
    eight_devices.MESHES.update(MESHES)
    taught = {'teacher/workdir': sys.argv[1], 'teacher/features': 2.0}
    print(json.dumps({kind: {mesh: run(mesh, changes | (taught if kind == 'fixmatch' else {}))
                             for mesh in MESHES} for kind, changes in KINDS.items()}))


if __name__ == '__main__':
    main()
