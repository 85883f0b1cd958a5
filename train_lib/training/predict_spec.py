"""What the verb predict is asked for: config.predict, read once."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from input_pipeline.curriculum import Stage
from input_pipeline.manifest import SPLITS
from train_lib.predictions import store
from train_lib.predictions.views import make_views, view_swaps
from train_lib.runtime.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class PredictSpec:
    """A request for logits.

    Attributes:
        source: 'train', 'val' or 'test' of the run's own data, or 'data' for config.data.
        folder: where they are stored, in predictions/.
        labelled: False for other data without labels.
        views: {name: the stage that shows a picture that way}.
        dtype: of the stored logits, one of `store.DTYPES`.
        batch_size: rows per step at most, over all devices.
        replace: whether predictions/<folder>.npz, which holds all views together, is written where
            there is one. A vote asks for more views of its members without that.
    """

    source: str
    folder: str
    labelled: bool
    views: Mapping[str, Stage]
    dtype: str
    batch_size: int
    replace: bool = True


def predict_spec(config: ConfigDict, curriculum: Sequence[Mapping] | None = None
                 ) -> PredictSpec:
    """config.predict; without a batch size of its own, that of config.eval.

    Args:
        config: of this start.
        curriculum: of the run, whose flips may swap classes (None: that of `config`).

    Raises:
        ConfigError: a value is unknown or out of range.
    """
    given = config.predict
    views = make_views(given.views, swaps=view_swaps(
        given.swap, config.curriculum if curriculum is None else curriculum))
    if given.dtype not in store.DTYPES:
        raise ConfigError(f'config.predict.dtype = {given.dtype!r}: choose one of '
                          f'{", ".join(store.DTYPES)}.')
    if given.batch_size < 0:
        raise ConfigError(f'config.predict.batch_size = {given.batch_size}: give 1 or more, or '
                          f'0 for eval.batch_size.')
    return PredictSpec(given.source, _folder(given.source, given.name), given.labelled, views,
                       given.dtype, given.batch_size or config.eval.batch_size)


def _folder(source: str, name: str) -> str:
    """The folder in predictions/: the split's, or the one named for other data."""
    if source in SPLITS:
        return source
    if source != 'data':
        raise ConfigError(f'config.predict.source = {source!r}: choose one of '
                          f'{", ".join(SPLITS)}, or data for the data of config.data.')
    name = name or 'data'
    if not re.fullmatch(r'\w[\w.-]*', name) or name == store.OUT_OF_FOLD:
        raise ConfigError(f'config.predict.name = {name!r}: give a plain name that is not '
                          f'{store.OUT_OF_FOLD}, nor that of a split of the run.')
    return name
