"""Heads without a backbone, for features that were computed before."""

import jax
import jax.numpy as jnp
from flax import nnx

from models.errors import ModelError
from models.heads import Classifier


class FeatureClassifier(Classifier):
    """Any head of `Classifier.add_heads` on pooled features: [B, D] -> logits.

    Raises:
        ModelError: a branch or a pool of its own is asked for, which need maps.
    """

    def __init__(self, num_features: int):
        self.num_features = num_features

    def add_heads(self, num_classes, *, head: str = 'linear', head_pool: str = 'shared',
                  **settings):
        """As in Classifier; only heads that take pooled features."""
        if head in ('shallow', 'deep') or head_pool == 'separate':
            raise ModelError(f'head={head!r} with head_pool={head_pool!r} needs the maps of the '
                             f'backbone, and features are pooled: use linear or mlp.')
        super().add_heads(num_classes, head=head, head_pool=head_pool, **settings)

    def forward_features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [B, D] as they are."""
        return x

    def pool(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [B, D] in float32."""
        return x.astype(jnp.float32)
