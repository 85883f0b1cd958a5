"""What a step learns besides labels: from pictures without labels, and from a teacher.

Labelled pictures and the views of unlabelled ones go through the model as one batch, as in the code
of FixMatch: BatchNorm normalises them together and its running statistics are those of all of them.
What answers instead of a label (a moving average, a teacher) is in inference mode.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from input_pipeline.two_views import STRONG, TRUTH, WEAK
from train_lib.losses.consistency import FIXMATCH, Consistency
from train_lib.losses.soft_answers import distillation, similarity
from train_lib.training.state import TrainState, Weights

Logits = Mapping[str, jax.Array]  # by head, [B, C]; pooled features [B, D] are FEATURES
FEATURES = '/features'  # no head is called so
_UNLABELLED, _TEACHER = 'unlabelled/loss', 'teacher/loss'  # sums of metrics
_ALIKE = 'teacher/features'


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A model that answers training pictures.

    Attributes:
        answer: (Weights, images as the student's step has them) -> float32 logits by head, of the
            student's heads that it knows and in the order of the student's classes; with
            `features` also FEATURES.
        weight: share of the loss that is the teacher's, 0 to 1, of those heads.
        temperature: see `soft_answers.distillation`.
        features: of `soft_answers.similarity`, which is added to the loss; 0 leaves it out.
    """

    answer: Callable
    weight: float
    temperature: float
    features: float = 0.0


@dataclasses.dataclass(frozen=True)
class BesideLabels:
    """What a step learns besides labels; nothing by default.

    Attributes:
        consistency: of unlabelled pictures; batches then hold WEAK and STRONG, maybe TRUTH.
        teacher: whose weights are in the state.
    """

    consistency: Consistency | None = None
    teacher: Teacher | None = None

    @property
    def wants_features(self) -> bool:
        """Whether the logits come with FEATURES."""
        return self.teacher is not None and self.teacher.features > 0

    def sums(self, heads: Sequence[str]) -> list[str]:
        """Names of the sums that a step adds to `TrainState.metric_sums`."""
        found = [_TEACHER] if self.teacher else []
        if self.wants_features:
            found.append(_ALIKE)
        if self.consistency:
            found += [_UNLABELLED, 'unlabelled/pictures', *(
                f'unlabelled/{what}/{head}' for head in heads
                for what in ('above', 'known', 'right'))]
        return found

    def arrays(self, batch: Mapping) -> dict[str, jax.Array]:
        """The unlabelled part of a batch."""
        if not self.consistency:
            return {}
        return {name: value for name, value in batch.items()
                if name in (WEAK, STRONG) or name.startswith(TRUTH)}

    def guides(self, state: TrainState) -> dict[str, Weights]:
        """The weights that answer instead of labels."""
        found = {}
        if self.teacher:
            assert state.teacher is not None
            found['teacher'] = state.teacher
        if self.consistency and self.consistency.kind != FIXMATCH:
            assert state.ema is not None
            found['average'] = Weights(state.ema.params, state.frozen, state.ema.batch_stats)
        return found

    def answers(self, guides: Mapping[str, Weights], images: jax.Array, more: Mapping,
                own: Callable) -> dict[str, Logits]:
        """What the guides say of the pictures of a batch; `own`: (Weights, images) -> logits of the
        model that trains."""
        found: dict[str, Logits] = {}
        if self.teacher:
            found['teacher'] = self.teacher.answer(guides['teacher'], images)
        if 'average' in guides:
            found['average'] = own(guides['average'], more[WEAK])
        return found

    def together(self, normalise: Callable, images: jax.Array, more: Mapping) -> jax.Array:
        """The input of the model: labelled pictures and views as one batch."""
        parts = [images, *(more[name] for name in self._views())]
        return normalise(images) if len(parts) == 1 else _joined(list(map(normalise, parts)))

    def apart(self, logits: Logits, count: int, more: Mapping) -> tuple[Logits, dict[str, Logits]]:
        """(logits of `count` labelled pictures, those of the views by name)"""
        names = self._views()
        if not names:
            return logits, {}
        sizes = [count, *(len(more[name]) for name in names)]
        parts = {head: _apart(values, sizes) for head, values in logits.items()}
        return ({head: values[0] for head, values in parts.items()},
                {name: {head: values[place] for head, values in parts.items()}
                 for place, name in enumerate(names, 1)})

    def _views(self) -> tuple[str, ...]:
        if not self.consistency:
            return ()
        return (WEAK, STRONG) if self.consistency.kind == FIXMATCH else (STRONG,)

    def objective(self, losses: Mapping[str, jax.Array], logits: Logits,
                  views: Mapping[str, Logits], answers: Mapping[str, Logits], given: 'Given'
                  ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(the loss that is differentiated, float32 []; the sums of metrics)

        Args:
            losses: of each head by labels, times its factor.
            logits, views: of `apart`.
            answers: of `answers`.
            given: the rest.
        """
        loss: Any = sum(losses.values())
        sums: dict[str, jax.Array] = {}
        if self.teacher:
            known, teacher = answers['teacher'], self.teacher
            count = len(next(iter(logits.values()))) * given.parts
            taught: Any = sum(given.factors[head] * jnp.sum(distillation(
                logits[head], known[head], teacher.temperature)) / count
                for head in known if head != FEATURES)
            of_labels = sum(losses[head] for head in known if head != FEATURES)
            loss = loss + teacher.weight * (taught - of_labels)
            sums[_TEACHER] = taught
            if self.wants_features:
                sums[_ALIKE] = jnp.sum(similarity(logits[FEATURES], known[FEATURES])) / count
                loss = loss + teacher.features * sums[_ALIKE]
        if self.consistency:
            targets = views[WEAK] if self.consistency.kind == FIXMATCH else answers['average']
            added, more = self._unlabelled(targets, views[STRONG], given)
            loss = loss + self.consistency.strength(given.step) * added
            sums |= more
        return loss, sums

    def _unlabelled(self, targets: Logits, strong: Logits, given: 'Given'):
        """(the loss without its weight, the sums of metrics)"""
        assert self.consistency is not None
        pictures = len(next(iter(strong.values())))
        total, sums = jnp.zeros((), jnp.float32), {}
        for head, values in strong.items():
            if head == FEATURES:
                continue
            losses, sure = self.consistency.losses(targets[head], values)
            total += given.factors[head] * jnp.sum(losses) / (pictures * given.parts)
            truth = given.more.get(TRUTH + head, jnp.full(pictures, -1, jnp.int32))
            known = sure & (truth >= 0)
            right = known & (jnp.argmax(targets[head], axis=-1) == truth)
            for what, flags in (('above', sure), ('known', known), ('right', right)):
                sums[f'unlabelled/{what}/{head}'] = jnp.sum(flags, dtype=jnp.float32)
        return total, sums | {_UNLABELLED: total,
                              'unlabelled/pictures': jnp.float32(pictures)}


NOTHING = BesideLabels()


@dataclasses.dataclass(frozen=True)
class Given:
    """What a loss needs besides logits.

    Attributes:
        step: int32 [].
        factors: of the heads.
        parts: into which the batch is cut; the losses of the parts add up to that of the batch.
        more: the unlabelled arrays of this part.
    """

    step: jax.Array
    factors: Mapping[str, float]
    parts: int
    more: Mapping[str, jax.Array]


def row_of(sums: Mapping[str, float], heads: Sequence[str]) -> dict[str, float | None]:
    """What a row of metrics.jsonl says of a log interval, from its sums.

    Returns:
        teacher_loss; teacher_features_loss and unlabelled_loss: without their weights;
        unlabelled_share: of answers that were targets, 0 to 1; unlabelled_accuracy: of those whose
        label is known, None for none. With several heads also <head>/unlabelled_share and
        _accuracy, the first being their mean.
    """
    steps, found = sums['steps'], {}
    if _TEACHER in sums:
        found['teacher_loss'] = sums[_TEACHER] / steps if steps else None
    if _ALIKE in sums:
        found['teacher_features_loss'] = sums[_ALIKE] / steps if steps else None
    if _UNLABELLED not in sums:
        return found
    found['unlabelled_loss'] = sums[_UNLABELLED] / steps if steps else None
    shares = [_ratio(sums[f'unlabelled/above/{head}'], sums['unlabelled/pictures'])
              for head in heads]
    right = [_ratio(sums[f'unlabelled/right/{head}'], sums[f'unlabelled/known/{head}'])
             for head in heads]
    for name, values in (('unlabelled_share', shares), ('unlabelled_accuracy', right)):
        known = [value for value in values if value is not None]
        found[name] = sum(known) / len(known) if known else None
        if len(heads) > 1:
            found |= {f'{head}/{name}': value for head, value in zip(heads, values)}
    return found


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _joined(parts: Sequence[jax.Array]) -> jax.Array:
    """One batch of several, of which each device keeps its own examples where they are split over
    devices: the parts are interleaved."""
    rows = math.gcd(*map(len, parts))
    return jnp.concatenate([part.reshape(rows, -1, *part.shape[1:]) for part in parts],
                           axis=1).reshape(-1, *parts[0].shape[1:])


def _apart(values: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """The inverse of `_joined`, for batches of these sizes."""
    rows, found, start = math.gcd(*sizes), [], 0
    values = values.reshape(rows, -1, *values.shape[1:])
    for size in sizes:
        end = start + size // rows
        found.append(values[:, start:end].reshape(size, *values.shape[2:]))
        start = end
    return found
