"""main.py, but at the steps that HARMED_STEPS lists the loss is not finite."""

import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))


def harm(steps: list[int]) -> None:
    import jax.numpy as jnp

    from train_lib.training import step as step_module

    head_loss = step_module.head_loss

    def harmed_loss(spec, logits, targets, weights, step, divisor=None):
        loss = head_loss(spec, logits, targets, weights, step, divisor)
        return jnp.where((step == jnp.array(steps)).any(), jnp.nan, loss)

    step_module.head_loss = harmed_loss


if __name__ == '__main__':
    harm([int(step) for step in os.environ['HARMED_STEPS'].split(',')])
    runpy.run_path(str(ROOT / 'main.py'), run_name='__main__')
