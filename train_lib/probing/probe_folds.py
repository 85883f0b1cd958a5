"""The folds of a probing run: rows of one manifest, whose features are cached once for all."""

import dataclasses

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from input_pipeline.long_tail import cut_tail
from input_pipeline.manifest import SPLITS, Manifest
from input_pipeline.splits import assign_splits, parts_of, several_folds


@dataclasses.dataclass(frozen=True)
class Fold:
    """Which rows of the whole manifest a fold uses for what; each int [n]."""

    name: str
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


@dataclasses.dataclass(frozen=True)
class FoldedData:
    """A manifest, whose order all folds share, and the folds that config.split asks for."""

    manifest: Manifest
    folds: tuple[Fold, ...]

    def rows_of(self, fold: Fold) -> Manifest:
        """The rows of a fold, with the split that they have there."""
        split = np.full(len(self.manifest), '', object)
        for name in SPLITS:
            split[getattr(fold, name)] = name
        return self.manifest.with_column('split', split).select(split != '')


def make_folds(config: ConfigDict, manifest: Manifest) -> FoldedData:
    """Splits a manifest as config.split says: all folds, one of them, or a single split.

    Raises:
        DataError: the rows cannot be split so.
    """
    numbers = several_folds(config.split) or [config.split.fold]
    splits = [config.split.to_dict() | dict(fold=number) for number in numbers]
    assigned = [assign_splits(manifest, split, seed=config.seed) for split in splits]
    whole = assigned[0]  # has every row, even those that `cut_tail` drops from a fold
    index = pd.Index(whole.table['id'])
    folds = []
    for split, of_fold in zip(splits, assigned):
        of_fold = cut_tail(of_fold, config.data.long_tail.to_dict(), seed=config.seed)
        rows = {name: index.get_indexer(part.table['id'])
                for name, part in parts_of(of_fold, split).items()}
        name = f'fold_{split["fold"]}' if config.split.kind == 'kfold' else 'fold_0'
        folds.append(Fold(name, **rows))
    return FoldedData(whole, tuple(folds))
