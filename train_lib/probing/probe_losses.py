"""What heads on cached features learn by: a cross-entropy, of a multi-label head a loss of
`set_losses.SET_LOSSES`."""

from ml_collections import ConfigDict

from input_pipeline.errors import listed
from input_pipeline.manifest import Manifest, class_counts
from train_lib.losses.losses import LossSpec
from train_lib.losses.objectives import objectives
from train_lib.probing.probe_spec import ProbeSpec
from train_lib.runtime.errors import ConfigError


def probe_losses(config: ConfigDict, manifest: Manifest) -> dict[str, LossSpec]:
    """The losses of the multi-label heads, {head: loss}; other heads have a cross-entropy.

    Raises:
        ConfigError: config.loss names a loss that a head cannot learn by, or has a setting out of
            range.
    """
    counts = {head: class_counts(manifest, head) for head in manifest.heads}
    found = objectives(config, manifest.classes, counts, lambda duration, key: 0,
                       multi_label=tuple(manifest.label_sets))
    for head, loss in found.items():
        if head not in manifest.label_sets and loss.name != 'cross_entropy':
            raise ConfigError(f'config.loss.name = {loss.name!r} has no effect on the head '
                              f'{head!r}, which learns from cached features by a cross-entropy: '
                              f'leave it out there, or train without config.probe.heads.')
    return {head: found[head] for head in manifest.label_sets}


def check_losses(config: ConfigDict, spec: ProbeSpec, manifest: Manifest) -> None:
    """Refuses settings of config.loss, and heads that do not go with several labels per picture.

    Raises:
        ConfigError: with the first of them.
    """
    probe_losses(config, manifest)
    if not manifest.label_sets:
        return
    means = [kind.name for kind in spec.nearest if kind.kind == 'prototypes']
    if means:
        raise ConfigError(f"config.probe.heads: {listed(means)} of kind 'prototypes' answers with "
                          f'one class, and pictures have several labels of the head '
                          f"{next(iter(manifest.label_sets))!r}: use kind='knn' or a trained "
                          f'head.')
