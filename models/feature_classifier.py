"""Heads without a backbone, for cached features."""

import jax
import jax.numpy as jnp
from flax import nnx

from models.errors import ModelError
from models.heads import Classifier


class FeatureClassifier(Classifier):
    """Heads of `Classifier` on pooled features: [B, D] -> logits."""

    def __init__(self, num_features: int):
        self.num_features = num_features

    def add_heads(self, num_classes, *, head: str = 'linear', head_pool: str = 'shared',
                  **settings):
        """As in `Classifier`.

        Raises:
            ModelError: a branch or separate pooling is asked for, which need feature maps.
        """
        if head in ('shallow', 'deep') or head_pool == 'separate':
            raise ModelError(f'head={head!r} with head_pool={head_pool!r} needs feature maps, and '
                             f'cached features are pooled: use head linear or mlp, and head_pool '
                             f'shared.')
        super().add_heads(num_classes, head=head, head_pool=head_pool, **settings)

    def forward_features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [B, D], unchanged."""
        return x

    def pool(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features [B, D] in float32."""
        return x.astype(jnp.float32)
