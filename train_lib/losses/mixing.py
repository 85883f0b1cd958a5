"""Mixing of the images and labels of a batch, on the device, inside the training step.

A mixed image is keep * image + (1 - keep) * partner, where `keep` has one value inside a box and
another outside. A kind gives the box and both values. So any number of kinds costs one blend of the
batch; without mixing both values are 1. Everything random is a function of (seed, step).
"""

import dataclasses
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaincinv

from input_pipeline.class_names import place_of
from input_pipeline.errors import did_you_mean
from train_lib.losses.losses import Mixed
from train_lib.runtime.errors import ConfigError

_STREAM = 1  # keeps the keys apart from those of dropout, which come from (seed, step) too
_QUANTILES = 2049


@dataclasses.dataclass(frozen=True)
class Mixing:
    """One entry of config.mixing, as `make_mixings` checks it.

    Attributes:
        kind: a key of `MIXINGS`.
        p: the share of the batches that are mixed, 0 to 1.
        alpha: the share lam of the image is drawn from Beta(alpha, alpha).
        per: how often it is drawn: per 'batch' or per 'example'.
        head: whose classes `classes` and `partner` refer to.
        classes: indices of the classes that are mixed, only with each other; (): all examples are,
            also those without a label.
        partner: 'any', or one of the 'same_class'.
        labels: 'both', by their shares of the image; or only the 'first', whose image then keeps at
            least half of the weight: lam is max(lam, 1 - lam).
        start, until: the steps between which it applies; `until` is excluded, None for no end.
    """

    kind: str
    p: float = 1.0
    alpha: float = 1.0
    per: str = 'batch'
    head: str = ''
    classes: tuple[int, ...] = ()
    partner: str = 'any'
    labels: str = 'both'
    start: int = 0
    until: int | None = None


class Blend(NamedTuple):
    """How each image is blended with its partner.

    Attributes:
        box: int32 [B, 4]: top, bottom, left, right in pixels; bottom and right are excluded.
        inside, outside: float32 [B], the share of the image itself in the pixels inside and outside
            of the box, 0 to 1.
    """

    box: jax.Array
    inside: jax.Array
    outside: jax.Array


# --- kinds: (lam float32 [B], centre float32 [B, 2] in 0..1, (height, width)) -> Blend ----------


def mixup(lam: jax.Array, centre: jax.Array, size: tuple[int, int]) -> Blend:
    """lam of the image and 1 - lam of its partner (Zhang et al. 2017, arXiv 1710.09412)."""
    return Blend(jnp.zeros((len(lam), 4), jnp.int32), lam, lam)


def cutmix(lam: jax.Array, centre: jax.Array, size: tuple[int, int]) -> Blend:
    """A box of the partner, whose sides are sqrt(1 - lam) of those of the image, clipped at the
    border (Yun et al. 2019, arXiv 1905.04899)."""
    sides = jnp.array(size, jnp.int32)
    middle = jnp.floor(centre * sides).astype(jnp.int32)
    half = (jnp.sqrt(1 - lam)[:, None] * sides).astype(jnp.int32) // 2
    low, high = jnp.clip(middle - half, 0, sides), jnp.clip(middle + half, 0, sides)
    box = jnp.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)
    return Blend(box, jnp.zeros_like(lam), jnp.ones_like(lam))


def halves(lam: jax.Array, centre: jax.Array, size: tuple[int, int]) -> Blend:
    """The left half of the image and the right half of its partner; alpha and per are not used."""
    height, width = size
    box = jnp.broadcast_to(jnp.array([0, height, width // 2, width]), (len(lam), 4))
    return Blend(box, jnp.zeros_like(lam), jnp.ones_like(lam))


MIXINGS: dict[str, Callable] = {'mixup': mixup, 'cutmix': cutmix, 'halves': halves}


def mix(mixings: Sequence[Mixing], seed: int, step: jax.Array, images: jax.Array,
        labels: Mapping[str, jax.Array], weights: jax.Array | None = None,
        targets: Mapping[str, jax.Array] | None = None
        ) -> tuple[jax.Array, dict, jax.Array | None]:
    """Mixes a batch with itself; for use inside jit, on whole (also sharded) batches.

    At most one entry applies to a batch. The partner of an example is the next one in a random
    circle through the batch, through each class for partner='same_class', or through the examples
    of the listed classes. An example that is alone in its circle stays as it is.

    Args:
        mixings: of `make_mixings`.
        seed: of the run.
        step: int32 [].
        images: uint8 or float [B, H, W, C]; uint8 is rounded.
        labels: {head: int [B]}, -1 for none; of a multi-label head its targets float [B, C].
        weights: of the examples, float [B], or None.
        targets: what is mixed in place of the labels, {name: int [B] or float [B, C]}; None: these.

    Returns:
        (images, targets, weights) for `losses.head_loss`: images of the same shape and dtype,
        targets {name: Mixed}, weights float32 [B, 2] or None. Without entries all three are
        returned as they are.
    """
    targets = labels if targets is None else targets
    if not mixings:
        return images, dict(targets), weights
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), step)
    count, height, width = images.shape[:3]
    uniform = jax.random.uniform(key, (5, count))
    choice = _choice(mixings, step, uniform[4, 0])

    def chosen(values, otherwise):
        """From one array per entry, that of the entry that applies."""
        return jnp.stack([*values, otherwise])[choice]

    lam = _lam(mixings, choice, uniform[0])
    each, first = (jnp.array([*marks, False])[choice] for marks in (
        [item.per == 'example' for item in mixings], [item.labels == 'first' for item in mixings]))
    lam = jnp.where(each, lam, lam[0])
    lam = jnp.where(first, jnp.maximum(lam, 1 - lam), lam)
    centre = jnp.where(each, uniform[1:3].T, uniform[1:3, 0])
    blends = [MIXINGS[item.kind](lam, centre, (height, width)) for item in mixings]
    nothing = mixup(jnp.ones(count), centre, (height, width))
    box, inside, outside = (chosen(*parts) for parts in zip(zip(*blends), nothing))

    partner = _next_in_group(chosen([_groups(item, labels, count) for item in mixings],
                                    jnp.arange(count)), uniform[3])
    alone = partner == jnp.arange(count)
    inside, outside = jnp.where(alone, 1.0, inside), jnp.where(alone, 1.0, outside)
    top, bottom, left, right = box.T
    area = (bottom - top) * (right - left) / (height * width)
    share = jnp.where(first, 1.0, area * inside + (1 - area) * outside)

    mixed = {name: Mixed(values, values[partner], share) for name, values in targets.items()}
    if weights is not None:
        weights = jnp.stack([weights, weights[partner]], axis=1).astype(jnp.float32)
    return _blended(images, partner, Blend(box, inside, outside)), mixed, weights


def _choice(mixings: Sequence[Mixing], step: jax.Array, uniform: jax.Array) -> jax.Array:
    """The index of the entry that applies at a step; len(mixings) for none."""
    start = jnp.array([item.start for item in mixings])
    until = jnp.array([np.iinfo(np.int32).max if item.until is None else item.until
                       for item in mixings])
    share = jnp.array([item.p for item in mixings], jnp.float32)
    edges = jnp.cumsum(jnp.where((start <= step) & (step < until), share, 0.0))
    return jnp.sum(uniform >= edges)


def _lam(mixings: Sequence[Mixing], choice: jax.Array, uniform: jax.Array) -> jax.Array:
    """Draws from Beta(alpha, alpha) of the chosen entry, by its quantiles, because jax.random.beta
    takes seconds to compile."""
    table = np.stack([betaincinv(item.alpha, item.alpha, np.linspace(0, 1, _QUANTILES))
                      for item in mixings]).astype(np.float32)
    place = uniform * (_QUANTILES - 1)
    low = jnp.floor(place).astype(jnp.int32)
    row = jnp.array(table)[jnp.minimum(choice, len(mixings) - 1)]
    return row[low] + (place - low) * (row[jnp.minimum(low + 1, _QUANTILES - 1)] - row[low])


def _groups(item: Mixing, labels: Mapping[str, jax.Array], count: int) -> jax.Array:
    """Which examples may be mixed with each other: those of one number, int32 [B]. An example that
    is not mixed has a number of its own."""
    own = jnp.arange(count)
    if not item.classes and item.partner == 'any':
        return jnp.zeros(count, own.dtype)
    found = labels[item.head].astype(own.dtype)
    allowed = found >= 0
    if item.classes:
        allowed = jnp.isin(found, jnp.array(item.classes))
    return jnp.where(allowed, count + (found if item.partner == 'same_class' else 0), own)


def _next_in_group(groups: jax.Array, uniform: jax.Array) -> jax.Array:
    """The partner of each example, int [B]: the next one in a random circle through its group."""
    order = jnp.lexsort((uniform, groups))
    sorted_groups = groups[order]
    following = jnp.arange(len(groups)) + 1
    first = jnp.searchsorted(sorted_groups, sorted_groups, side='left')
    last = jnp.append(sorted_groups[1:] != sorted_groups[:-1], True)
    return jnp.zeros_like(order).at[order].set(order[jnp.where(last, first, following)])


def _blended(images: jax.Array, partner: jax.Array, blend: Blend) -> jax.Array:
    rows, columns = jnp.arange(images.shape[1]), jnp.arange(images.shape[2])
    top, bottom, left, right = (edge[:, None] for edge in blend.box.T)
    in_rows, in_columns = (top <= rows) & (rows < bottom), (left <= columns) & (columns < right)
    keep = jnp.where((in_rows[:, :, None] & in_columns[:, None, :])[..., None],
                     blend.inside[:, None, None, None], blend.outside[:, None, None, None])
    mixed = keep * images.astype(jnp.float32) + (1 - keep) * images[partner].astype(jnp.float32)
    if jnp.issubdtype(images.dtype, jnp.integer):
        mixed = jnp.round(mixed)
    return mixed.astype(images.dtype)


# --- from the config --------------------------------------------------------------------------

_CHOICES = {'per': ('batch', 'example'), 'partner': ('any', 'same_class'),
            'labels': ('both', 'first')}
_KEYS = tuple(field.name for field in dataclasses.fields(Mixing))


def make_mixings(config: Sequence[Mapping], classes: Mapping[str, Sequence[str]],
                 to_steps: Callable[[Mapping, str], int], multi_label: Collection[str] = ()
                 ) -> tuple[Mixing, ...]:
    """Checks config.mixing and turns its durations into steps.

    Args:
        config: entries like `Mixing`, but classes are names, and start and until are durations.
            Everything except kind may be left out (head is then the first one); a kind alone may be
            given as text.
        classes: {head: names of its classes}.
        to_steps: (duration, config key) -> steps from the start of the run.
        multi_label: heads with several labels per picture.

    Raises:
        ConfigError: an unknown key, kind, head or class, an invalid value, an end before the start,
            classes or partners by a head with several labels, or entries whose p add up to more
            than 1 at some step.
        DataError: an invalid duration.
    """
    if not all(isinstance(entry, (str, Mapping)) for entry in config):
        raise ConfigError(f'config.mixing = {config!r}: give a list of entries, such as '
                          f"[dict(kind='mixup', alpha=0.2)].")
    mixings = tuple(_make_mixing({'kind': entry} if isinstance(entry, str) else dict(entry),
                                 f'mixing[{number}]', classes, to_steps)
                    for number, entry in enumerate(config))
    for number, item in enumerate(mixings):
        if item.head in multi_label and (item.classes or item.partner == 'same_class'):
            raise ConfigError(f'config.mixing[{number}] chooses by the class of the head '
                              f'{item.head!r}, whose pictures have several: name another head, or '
                              f"leave out classes and partner='same_class'.")
    for start in sorted({item.start for item in mixings}):
        total = sum(item.p for item in mixings if item.start <= start
                    and (item.until is None or start < item.until))
        if total > 1 + 1e-6:
            raise ConfigError(f'The values p of config.mixing add up to {total:g} at step {start}, '
                              f'and at most one entry applies to a batch: give values that add up '
                              f'to 1 or less, e.g. p={1 / len(mixings):.2g} for each.')
    return mixings


def _make_mixing(entry: dict, path: str, classes: Mapping[str, Sequence[str]],
                 to_steps: Callable[[Mapping, str], int]) -> Mixing:
    where = f'config.{path}'
    for key in entry:
        if key not in _KEYS:
            raise ConfigError(f'{where}.{key} is unknown: {did_you_mean(key, _KEYS)}')
    if entry.get('kind') not in MIXINGS:
        raise ConfigError(f'{where}.kind = {entry.get("kind")!r} is unknown: '
                          f'{did_you_mean(entry.get("kind"), MIXINGS)}')
    for key, allowed in _CHOICES.items():
        if entry.get(key, allowed[0]) not in allowed:
            raise ConfigError(f'{where}.{key} = {entry[key]!r}: use {" or ".join(allowed)}.')
    for key, low, high, wanted in (('p', 0, 1, 'from 0 to 1'),
                                   ('alpha', 1e-2, 1e4, 'from 0.01 to 10000')):
        value = entry.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not (
                low <= float(value) <= high):
            raise ConfigError(f'{where}.{key} = {value!r}: give a number {wanted}.')
    head = entry['head'] = entry.get('head') or next(iter(classes))
    if head not in classes:
        raise ConfigError(f'{where}.head = {head!r} is not a head: {did_you_mean(head, classes)}')
    names = entry.get('classes', ())
    names = [names] if isinstance(names, str) else [str(name) for name in names]
    known = [str(name) for name in classes[head]]
    for name in names:
        if place_of(name, known) is None:
            raise ConfigError(f'{where}.classes names {name!r}, which is not a class of the '
                              f'head {head!r}: {did_you_mean(name, known)}')
    entry['classes'] = tuple(place_of(name, known) for name in names)
    for key in ('start', 'until'):
        if entry.get(key):
            entry[key] = to_steps(entry[key], f'{path}.{key}')
        else:
            entry.pop(key, None)
    mixing = Mixing(**entry)
    if mixing.until is not None and mixing.until <= mixing.start:
        raise ConfigError(f'{where} ends at step {mixing.until}, and starts at step '
                          f'{mixing.start}: give a later until.')
    return mixing
