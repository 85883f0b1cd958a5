"""A training loop of one's own: pictures from `input_pipeline`, a model from `models`, no more.

    python examples/own_loop.py [FOLDER]
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))

import models
from input_pipeline import curriculum, durations, loader, resampling, sources, splits
from input_pipeline.pictures import PreprocessSpec

BATCH = 32


def main(folder: str = '', epochs: float = 6) -> float:
    """Trains on PATH/<class>/**/picture.jpg, or on scikit-learn's digits; returns the accuracy on
    the validation rows, 0 to 1."""
    # The rows: a table of ids, places and labels. No picture is opened yet.
    data = dict(source='folder', folder=folder) if folder else dict(source='digits')
    rows = sources.load_source(data)
    holdout = dict(kind='holdout', val=0.2, test=0, grouped=True, head='', val_groups=(),
                   test_groups=(), tolerance=0.3)
    rows = splits.assign_splits(rows, dict.fromkeys(splits.KEYS) | holdout, seed=0)
    train, val = (splits.split_of(rows, name) for name in ('train', 'val'))
    head, = rows.heads

    # The course: transforms from the second epoch on, and rare classes more often.
    def to_steps(duration, key):
        return durations.to_steps(duration, key=key, examples_per_epoch=len(train),
                                  batch_size=BATCH)

    stages = curriculum.make_stages([
        dict(until=dict(epochs=1), transforms=[]),
        dict(transforms=[dict(kind='rotate', degrees=10), 'shift', 'brightness'])], to_steps)
    order = resampling.make_order(train, dict.fromkeys(resampling.KEYS) | dict(kind='sqrt'),
                                  seed=0, batch_size=BATCH, to_steps=to_steps)
    course = loader.Course(stages=stages, steps=to_steps(dict(epochs=epochs), 'epochs'),
                           seed=0, order=order)

    # The batches: dict(image=uint8 [B, H, W, 3], 'label/<head>'=int32 [B]), made by threads.
    spec = PreprocessSpec(size=16)
    batches = loader.train_iterator(train, spec, course, batch_size=BATCH)
    model = models.create_model('small_cnn', num_classes=len(rows.classes[head]), width=16,
                                stages=2, rngs=nnx.Rngs(0))
    rate = optax.cosine_onecycle_schedule(course.steps, 3e-3)
    optimizer = nnx.Optimizer(model, optax.adamw(rate), wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer, images, labels):
        def loss_of(model):
            logits = model(normalised(images))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, gradient = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradient)
        return loss

    @nnx.jit
    def predict(model, images):
        return models.eval_view(model)(normalised(images)).argmax(axis=-1)

    for step, batch in enumerate(batches, start=1):
        loss = train_step(model, optimizer, batch['image'], batch[f'label/{head}'])
        if step % 50 == 0 or step == course.steps:
            stage = curriculum.stage_at(stages, step - 1)
            print(f'step {step}/{course.steps}  stage {stage}  loss {loss:.3f}')

    # Every row once, in order; the last batch is filled up with rows whose mask is False.
    right = [predict(model, batch['image'])[batch['mask']] == batch[f'label/{head}'][batch['mask']]
             for batch in loader.eval_dataset(val, spec, batch_size=BATCH)()]
    accuracy = float(np.concatenate(right).mean())
    print(f'accuracy on {len(val)} validation pictures: {accuracy:.3f}')
    return accuracy


def normalised(images):
    """uint8 0 to 255 -> float32 -1 to 1."""
    return images.astype(jnp.float32) / 127.5 - 1


if __name__ == '__main__':
    main(*sys.argv[1:])
