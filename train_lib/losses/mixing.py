"""Mixing of the pictures and labels of a batch, on the device, inside the training step.

A mixed picture is keep * picture + (1 - keep) * partner, where `keep` is one value inside a box
and another outside. A kind says which; so any number of kinds costs one blend of the batch, and
without mixing both values are 1. Everything random is a function of (seed, step).
"""

import dataclasses
import difflib
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaincinv

from train_lib.losses.losses import Mixed
from train_lib.runtime.errors import ConfigError

_STREAM = 1  # apart from dropout's keys of (seed, step)
_QUANTILES = 2049


@dataclasses.dataclass(frozen=True)
class Mixing:
    """One entry of config.mixing, as `make_mixings` checks it.

    kind: a name in `MIXINGS`. p: the share of the batches between the steps `start` and `until`
    (excluded). alpha: the shares lam are drawn from Beta(alpha, alpha), once a `per`: 'batch' or
    'example'. head: whose classes count below. classes: numbers of those that are mixed, with
    each other only, () for all, and for examples without a label too. partner: 'any' or
    'same_class'. labels: 'both' by their share of the picture, or 'first' alone, which then keeps
    at least half of it (lam is max(lam, 1 - lam)).
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
    """Which part of a picture stays its own: boxes [B, 4] (top, bottom, left, right; int32,
    ends excluded), and the picture's share of a pixel inside and outside, float32 [B]."""

    box: jax.Array
    inside: jax.Array
    outside: jax.Array


# --- kinds: (lam float32 [B], centre float32 [B, 2] in 0..1, (height, width)) -> Blend ----------


def mixup(lam: jax.Array, centre: jax.Array, size: tuple[int, int]) -> Blend:
    """lam of the picture and 1 - lam of its partner (Zhang et al. 2017, arXiv 1710.09412)."""
    return Blend(jnp.zeros((len(lam), 4), jnp.int32), lam, lam)


def cutmix(lam: jax.Array, centre: jax.Array, size: tuple[int, int]) -> Blend:
    """A box of the partner, sqrt(1 - lam) of each side long, clipped at the border (Yun et al.
    2019, arXiv 1905.04899)."""
    size = jnp.array(size, jnp.int32)
    middle = jnp.floor(centre * size).astype(jnp.int32)
    half = (jnp.sqrt(1 - lam)[:, None] * size).astype(jnp.int32) // 2
    low, high = jnp.clip(middle - half, 0, size), jnp.clip(middle + half, 0, size)
    box = jnp.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)
    return Blend(box, jnp.zeros_like(lam), jnp.ones_like(lam))


def halves(lam: jax.Array, centre: jax.Array, size: tuple[int, int]) -> Blend:
    """The left half of the picture, the right half of its partner; alpha and per don't count."""
    height, width = size
    box = jnp.broadcast_to(jnp.array([0, height, width // 2, width]), (len(lam), 4))
    return Blend(box, jnp.zeros_like(lam), jnp.ones_like(lam))


MIXINGS: dict[str, Callable] = {'mixup': mixup, 'cutmix': cutmix, 'halves': halves}


def mix(mixings: Sequence[Mixing], seed: int, step: jax.Array, images: jax.Array,
        labels: Mapping[str, jax.Array], weights: jax.Array | None = None
        ) -> tuple[jax.Array, dict, jax.Array | None]:
    """Mixes a batch with itself; for use inside jit, on whole (also sharded) batches.

    At most one entry applies to a batch. The partner is the next one of a random circle through
    the batch, or through each class for partner='same_class', or through the examples of the
    listed classes; an example with no one else in its circle stays as it is.

    Args:
        mixings: of `make_mixings`.
        seed: of the run.
        step: int32 [].
        images: uint8 or float [B, H, W, C]; whole numbers are rounded.
        labels: {head: int [B]}, -1 for none.
        weights: of the examples, float [B], or None.

    Returns:
        (images, targets, weights) for `losses.head_loss`: images as they came in shape and
        dtype, targets {head: Mixed}, weights float32 [B, 2] or None. Without entries all three
        come back as they are.
    """
    if not mixings:
        return images, dict(labels), weights
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), step)
    count, height, width = images.shape[:3]
    uniform = jax.random.uniform(key, (5, count))
    choice = _choice(mixings, step, uniform[4, 0])

    def chosen(values, otherwise):
        """Of one array an entry, the one of the entry that applies."""
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

    targets = {head: Mixed(values, values[partner], share) for head, values in labels.items()}
    if weights is not None:
        weights = jnp.stack([weights, weights[partner]], axis=1).astype(jnp.float32)
    return _blended(images, partner, Blend(box, inside, outside)), targets, weights


def _choice(mixings: Sequence[Mixing], step: jax.Array, uniform: jax.Array) -> jax.Array:
    """The number of the entry that applies at a step, len(mixings) for none."""
    start = jnp.array([item.start for item in mixings])
    until = jnp.array([np.iinfo(np.int32).max if item.until is None else item.until
                       for item in mixings])
    share = jnp.array([item.p for item in mixings], jnp.float32)
    edges = jnp.cumsum(jnp.where((start <= step) & (step < until), share, 0.0))
    return jnp.sum(uniform >= edges)


def _lam(mixings: Sequence[Mixing], choice: jax.Array, uniform: jax.Array) -> jax.Array:
    """Draws from Beta(alpha, alpha) of the chosen entry, by its quantiles: jax.random.beta takes
    seconds to compile."""
    table = np.stack([betaincinv(item.alpha, item.alpha, np.linspace(0, 1, _QUANTILES))
                      for item in mixings]).astype(np.float32)
    place = uniform * (_QUANTILES - 1)
    low = jnp.floor(place).astype(jnp.int32)
    row = jnp.array(table)[jnp.minimum(choice, len(mixings) - 1)]
    return row[low] + (place - low) * (row[jnp.minimum(low + 1, _QUANTILES - 1)] - row[low])


def _groups(item: Mixing, labels: Mapping[str, jax.Array], count: int) -> jax.Array:
    """Who may mix with whom: one number for each that may, int32 [B]; a unique one for no one."""
    own = jnp.arange(count)
    if not item.classes and item.partner == 'any':
        return jnp.zeros(count, own.dtype)
    found = labels[item.head].astype(own.dtype)
    allowed = found >= 0
    if item.classes:
        allowed = jnp.isin(found, jnp.array(item.classes))
    return jnp.where(allowed, count + (found if item.partner == 'same_class' else 0), own)


def _next_in_group(groups: jax.Array, uniform: jax.Array) -> jax.Array:
    """A partner for each, int [B]: the next one in a random circle through its group."""
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
                 to_steps: Callable[[Mapping, str], int]) -> tuple[Mixing, ...]:
    """Checks config.mixing and turns its durations into steps.

    Args:
        config: entries as `Mixing`, but classes are names, start and until durations; all but
            kind may be left out (head is the first then), and a kind may stand alone.
        classes: {head: names of its classes}.
        to_steps: (duration, config key) -> steps from the start of the run.

    Raises:
        ConfigError: an unknown key, kind, head or class, a value that it must not have, an end
            before the start, or entries whose p add up to more than 1 at some step.
        DataError: a duration that is none.
    """
    if not all(isinstance(entry, (str, Mapping)) for entry in config):
        raise ConfigError(f'config.mixing = {config!r}: give a list of entries, such as '
                          f"[dict(kind='mixup', alpha=0.2)].")
    mixings = tuple(_make_mixing({'kind': entry} if isinstance(entry, str) else dict(entry),
                                 f'mixing[{number}]', classes, to_steps)
                    for number, entry in enumerate(config))
    for start in sorted({item.start for item in mixings}):
        total = sum(item.p for item in mixings if item.start <= start
                    and (item.until is None or start < item.until))
        if total > 1 + 1e-6:
            raise ConfigError(f'The p of config.mixing add up to {total:g} at step {start}, and '
                              f'only one entry applies to a batch: give p that add up to 1 or '
                              f'less, e.g. p={1 / len(mixings):.2g} for each.')
    return mixings


def _make_mixing(entry: dict, path: str, classes: Mapping[str, Sequence[str]],
                 to_steps: Callable[[Mapping, str], int]) -> Mixing:
    where = f'config.{path}'
    for key in entry:
        if key not in _KEYS:
            raise ConfigError(f'{where}.{key} is unknown: {_hint(key, _KEYS)}')
    if entry.get('kind') not in MIXINGS:
        raise ConfigError(f'{where}.kind = {entry.get("kind")!r} is unknown: '
                          f'{_hint(entry.get("kind"), MIXINGS)}')
    for key, allowed in _CHOICES.items():
        if entry.get(key, allowed[0]) not in allowed:
            raise ConfigError(f'{where}.{key} = {entry[key]!r}: use {" or ".join(allowed)}.')
    for key, low, high, wanted in (('p', 0, 1, 'from 0 to 1'),
                                   ('alpha', 1e-2, 1e4, 'from 0.01 to 10000')):
        value = entry.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not (
                low <= value <= high):
            raise ConfigError(f'{where}.{key} = {value!r}: give a number {wanted}.')
    head = entry['head'] = entry.get('head') or next(iter(classes))
    if head not in classes:
        raise ConfigError(f'{where}.head = {head!r} is no head: {_hint(head, classes)}')
    names = entry.get('classes', ())
    names = [names] if isinstance(names, str) else [str(name) for name in names]
    known = [str(name) for name in classes[head]]
    for name in names:
        if name not in known:
            raise ConfigError(f'{where}.classes names {name!r}, which is no class of the head '
                              f'{head!r}: {_hint(name, known)}')
    entry['classes'] = tuple(known.index(name) for name in names)
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


def _hint(word: object, known) -> str:
    known = list(known)
    near = difflib.get_close_matches(str(word), known, n=1)
    if near:
        return f'did you mean {near[0]!r}?'
    return f'use one of {", ".join(known[:12])}{", ..." if len(known) > 12 else ""}.'
