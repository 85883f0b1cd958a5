"""Heads that train together against heads that train alone, for runs of any kind of labels."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.manifest import Manifest
from train_lib.probing import feature_cache as caching
from train_lib.probing.head_training import train_heads
from train_lib.probing.probe_folds import make_folds
from train_lib.probing.probe_spec import read_probe_spec


def assert_alone_is_together(config: ConfigDict, manifest: Manifest, result: Mapping) -> None:
    """The stated tolerance: 1e-4 of the largest parameter, after the whole run; for the second rate
    and the second fold of each kind. `result`: of the run, whose features are read."""
    data = make_folds(config, manifest)
    features = caching.Features(np.load(f'{result["features"]}/features.npy'), None)
    spec = read_probe_spec(config)
    together = train_heads(config, spec, data, features)
    for kind in spec.heads:
        alone = train_heads(
            config, dataclasses.replace(spec, heads=(kind,), rates=(config.probe.lr[1],)),
            dataclasses.replace(data, folds=data.folds[1:]), features)
        ours = jax.tree.map(lambda leaf: leaf[1, 1], together.params[kind.name])
        theirs = jax.tree.map(lambda leaf: leaf[0, 0], alone.params[kind.name])
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
            assert np.abs(a - b).max() <= 1e-4 * max(np.abs(b).max(), 1e-3)
