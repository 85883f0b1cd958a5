"""Classifiers that are fitted in one look at the features of training rows: k nearest neighbours,
and the nearest class mean. Both compare by the cosine."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

_ABSENT = -100.0  # logit of a class without training rows


def unit(x: jax.Array) -> jax.Array:
    """Rows [..., D] of length 1; a row of zeros stays so."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class MeanHead(nnx.Module):
    """Nearest class mean: [B, D] -> cosine to the mean of each class / temperature, [B, C].

    Args:
        features, classes: D and C. All arrays start at 0, see `nearest_heads.fit`.
        temperature: above 0.
    """

    def __init__(self, features: int, classes: int, *, temperature: float):
        self.center = nnx.Param(jnp.zeros(features))
        self.means = nnx.Param(jnp.zeros((classes, features)))
        self.absent = nnx.Param(jnp.zeros(classes))
        self.temperature = temperature

    def __call__(self, x: jax.Array) -> jax.Array:
        x = unit(x.astype(jnp.float32) - self.center[...])
        cosines = jnp.matmul(x, self.means[...].T, precision='highest')
        return jnp.where(self.absent[...] > 0, _ABSENT, cosines / self.temperature)


class NeighbourHead(nnx.Module):
    """k nearest neighbours, each of which votes with exp(cosine / temperature), as DINO evaluates
    features (Caron et al. 2021, arXiv 2104.14294): [B, D] -> log shares of the votes, [B, C].

    One more vote is spread over all classes, so that none is impossible. Where rows have several
    labels each, they vote on every class by itself, and one more vote is half for it and half
    against it: logits of the shares.

    Args:
        features, classes, rows: D, C and the number n of training rows.
        k: neighbours, at most n of them.
        temperature: above 0.
        several: rows have sets of labels, float [n, C] of 0 and 1.
    """

    def __init__(self, features: int, classes: int, rows: int, *, k: int, temperature: float,
                 several: bool = False):
        self.center = nnx.Param(jnp.zeros(features))
        self.rows = nnx.Param(jnp.zeros((rows, features)))
        self.labels = nnx.Param(jnp.zeros((rows, classes)) if several else
                                jnp.zeros(rows, jnp.int32))
        self.classes, self.k, self.temperature = classes, min(k, rows), temperature
        self.several = several

    def __call__(self, x: jax.Array) -> jax.Array:
        x = unit(x.astype(jnp.float32) - self.center[...])
        cosines = jnp.matmul(x, self.rows[...].T, precision='highest')
        nearest, places = jax.lax.top_k(cosines, self.k)
        weights = jax.nn.softmax(nearest / self.temperature, axis=-1)
        if self.several:
            votes = jnp.zeros_like(cosines).at[jnp.arange(len(x))[:, None], places].set(weights)
            share = jnp.matmul(votes, self.labels[...], precision='highest')
            share = (self.k * jnp.clip(share, 0.0, 1.0) + 0.5) / (self.k + 1)
            return jnp.log(share) - jnp.log1p(-share)
        shares = jnp.zeros((len(x), self.classes), jnp.float32)
        shares = shares.at[jnp.arange(len(x))[:, None], self.labels[...][places]].add(weights)
        return jnp.log((self.k * shares + 1 / self.classes) / (self.k + 1))


class NearestClassifier(nnx.Module):
    """One of these heads per label, {name: head}: [B, D] -> logits, by name of several."""

    def __init__(self, heads: Mapping[str, nnx.Module]):
        self.names, self.heads = tuple(heads), nnx.List(heads.values())

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None):
        found = {name: head(x) for name, head in zip(self.names, self.heads)}
        return found if len(found) > 1 else next(iter(found.values()))
