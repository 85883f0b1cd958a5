"""Out-of-fold predictions of a k-fold run, joined to a manifest by id."""

from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline.class_names import number_labels
from input_pipeline.manifest import Manifest
from train_lib.metrics.scores import softmax
from train_lib.run_dir.npz import read_npz
from train_lib.runtime.errors import ConfigError

_KEY = 'config.curate.labels.predictions'


def read_probabilities(path: Path, manifest: Manifest, head: str) -> np.ndarray:
    """Probabilities float64 [N, C] for the rows and classes of the manifest; NaN for rows that the
    run did not predict.

    Args:
        path: a workdir, or its predictions/out_of_fold.npz.
        manifest: classes that the run did not know have the probability 0.
        head: of the manifest.

    Raises:
        ConfigError: the file cannot be read, lacks the head, or shares no id or class.
    """
    file = path / 'predictions' / 'out_of_fold.npz' if path.is_dir() else path
    try:
        arrays = read_npz(file)
        tail = '' if 'logits' in arrays else f'/{head}'
        ids = arrays['ids'].astype(str)
        logits = arrays[f'logits{tail}'].astype(np.float64)
        names = arrays[f'classes{tail}'].astype(str)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f'{_KEY} = {str(path)!r} cannot be used ({error}): give the workdir of '
                          f'a finished k-fold run.') from None
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
