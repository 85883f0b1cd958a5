"""Out-of-fold predictions of a k-fold run, joined to a manifest by id."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline.class_names import number_labels
from input_pipeline.manifest import Manifest
from train_lib.metrics.scores import softmax
from train_lib.run_dir.ancestors import ancestry_of
from train_lib.run_dir.npz import read_npz
from train_lib.run_dir.seen_rows import seen_of
from train_lib.run_dir.unknown_workdir import neighbours
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)
_KEY = 'config.curate.labels.predictions'


def read_probabilities(path: Path, manifest: Manifest, head: str) -> np.ndarray:
    """Probabilities float64 [N, C] for the rows and classes of the manifest; NaN for rows that the
    run did not predict.

    Args:
        path: a workdir, or its predictions/out_of_fold.npz.
        manifest: classes that the run did not know have the probability 0.
        head: of the manifest.

    Raises:
        ConfigError: the file cannot be read, lacks the head, or shares no id or class; or an
            ancestor of the run trained on what it predicted, and it was not told to accept that.
    """
    file = path / 'predictions' / 'out_of_fold.npz' if path.is_dir() else path
    try:
        arrays = read_npz(file)
        tail = '' if 'logits' in arrays else f'/{head}'
        ids = arrays['ids'].astype(str)
        logits = arrays[f'logits{tail}'].astype(np.float64)
        names = arrays[f'classes{tail}'].astype(str)
    except (OSError, ValueError, KeyError) as error:
        hint = 'give the workdir of a finished k-fold run.'
        if not path.exists():
            hint = neighbours(path, hint)
        raise ConfigError(f'{_KEY} = {str(path)!r} cannot be used ({error}): {hint}') from None
    _check_ancestors(path if path.is_dir() else path.parent.parent, path)
    wanted = manifest.classes[head]
    places = np.array([-1 if k is None else k for k in number_labels(names.tolist(), wanted)])
    rows = pd.Index(ids).get_indexer(manifest.table['id'])
    if not (rows >= 0).any() or not (places >= 0).any():
        what = 'ids' if (places >= 0).any() else 'classes'
        raise ConfigError(f'{_KEY} = {str(path)!r} shares no {what} with the data: '
                          f'give predictions of these data.')
    found = np.zeros((len(manifest), len(wanted)))
    found[:, places[places >= 0]] = softmax(logits)[rows][:, places >= 0]
    found[rows < 0] = np.nan
    return found


def _check_ancestors(workdir: Path, path: Path) -> None:
    """Refuses predictions of rows that an ancestor of the run, or of one of its folds, trained on:
    it has learnt their labels, the wrong ones too."""
    runs = sorted(one for one in workdir.glob('fold_*') if one.is_dir()) or [workdir]
    if not any((run / 'split.csv').exists() for run in runs):
        log.warning('labels   not checked: what made %s trained on (it lies in no run)', path)
        return
    for run in runs:
        ancestry = ancestry_of(run)
        seen = len(seen_of(run, ancestry)['val']) if ancestry.rows else 0
        if seen and not ancestry.accepted:
            raise ConfigError(f'{_KEY} = {str(path)!r}: {run} predicted {seen} rows that '
                              f'{ancestry.runs[0]["workdir"]} or an ancestor of it trained on, so '
                              f'wrong labels look right to it: give a k-fold run without that '
                              f'start, or start it again with --config.init.seen=accept (a '
                              f'finished run only evaluates).')
        if seen:
            log.warning('labels   %s: an ancestor trained on %d of its rows (init.seen=accept)',
                        run.name, seen)
        for clause in ancestry.unknown:
            log.warning('labels   %s, not checked: %s', run.name, clause)
