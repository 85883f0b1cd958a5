"""The heads of a probing run on their backbone, as models that take pictures."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import models
from models.heads import Classifier
from train_lib.predictions import store
from train_lib.probing.nearest_heads import head_of_file
from train_lib.probing.probe_inference import open_probe, read_head
from train_lib.serving.trained_models import TrainedModel
from train_lib.training.inference_rows import trained_predictions
from train_lib.training.step import split_model


class ProbedModel(nnx.Module):
    """A frozen backbone and the head that was trained on its stored features."""

    def __init__(self, backbone: Classifier, head: nnx.Module, dtype: str):
        self.backbone, self.head, self.dtype = backbone, head, dtype

    def forward_features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """As in `Classifier`."""
        return self.backbone.forward_features(x, rngs=rngs)

    def forward_head(self, x: jax.Array, *, pre_logits: bool = False,
                     rngs: nnx.Rngs | None = None):
        """As in `Classifier`; the pooled features are rounded as they were stored."""
        stored = jnp.finfo(self.dtype)
        # Casts to and fro would be taken for superfluous.
        pooled = jax.lax.reduce_precision(self.backbone.forward_head(x).astype(jnp.float32),
                                          stored.nexp, stored.nmant)
        return pooled if pre_logits else self.head(pooled)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None):
        """Normalised pictures [B, H, W, C] -> logits [B, classes] or {head: logits}."""
        return self.forward_head(self.forward_features(x))


class JointModel(nnx.Module):
    """The heads of all folds on one backbone, which so runs once.

    Args:
        folds: the models of the folds.
        heads: the names of the label heads.
    """

    def __init__(self, folds: Sequence[ProbedModel], heads: Sequence[str]):
        self.first = folds[0]
        self.others = nnx.List(fold.head for fold in folds[1:])
        self.names = tuple(heads)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        """Normalised pictures [B, H, W, C] -> {'<fold>/<head>': logits [B, classes]}"""
        pooled = self.first.forward_head(self.first.forward_features(x), pre_logits=True)
        found: dict[str, jax.Array] = {}
        for fold, head in enumerate([self.first.head, *self.others]):
            logits = head(pooled)
            by_name = logits if isinstance(logits, Mapping) else {self.names[0]: logits}
            found |= {f'{fold}/{name}': values for name, values in by_name.items()}
        return found


def read_probe(workdir: Path, config: ConfigDict) -> list[TrainedModel]:
    """The models of the folds of a probing run, which share their backbone.

    Args:
        workdir: of the run.
        config: of the run.

    Raises:
        ConfigError: it is not finished, its backbone is gone or another one today, or a head is
            damaged.
    """
    probe = open_probe(config, workdir)
    member = store.open_member(trained_predictions(probe.folds[0]))
    classes = dict(member.classes)
    sizes = {head: len(names) for head, names in classes.items()}
    backbone = nnx.merge(probe.backbone.graphdef, *probe.backbone.weights)
    zeros = {head: np.zeros(size, np.float32) for head, size in sizes.items()}
    found = []
    for fold in probe.folds:
        file = fold / 'head.safetensors'
        graphdef, like, _ = split_model(head_of_file(probe.kind, file, backbone.num_features,
                                                     sizes, probe.seed))
        head: Any = nnx.merge(graphdef, read_head(file, like))
        model = models.eval_view(ProbedModel(backbone, head, probe.dtype))
        found.append(TrainedModel(fold, config, classes, probe.backbone.preprocess, model, zeros,
                                  0, hashlib.sha256(file.read_bytes()).hexdigest(),
                                  member.multi_label))
    return found
