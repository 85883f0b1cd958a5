"""Which row is in which split, today and when the run was started."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.kept_splits import keep_split, split_digest
from input_pipeline.long_tail import cut_tail
from input_pipeline.manifest import Manifest, digest
from input_pipeline.splits import assign_splits
from train_lib import workdirs
from train_lib.errors import ConfigError

log = logging.getLogger(__name__)


def split_rows(config: ConfigDict, manifest: Manifest, run: Path | None) -> Manifest:
    """The rows that a run has, each in its split.

    Args:
        config, manifest: of this start.
        run: the workdir of the run that goes on, which keeps its split even if today's libraries
            would cut otherwise; it need not hold one.

    Raises:
        ConfigError: its split.csv is damaged. DataError: it cannot be kept.
    """
    def cut(split: Manifest) -> Manifest:
        return cut_tail(split, config.data.long_tail.to_dict(), seed=config.seed)

    split = assign_splits(manifest, config.split.to_dict(), seed=config.seed)
    today = cut(split)
    before = workdirs.records(run) if run else {}
    if before.get('split_digest') in (None, split_digest(today.table['id'], today.table['split'])):
        return today
    same_data = before['data_digest'] == digest(today)
    if not same_data and config.data.changed != 'accept':
        return today  # which is refused when it is compared
    known = workdirs.known_sides(run)
    kept = cut(keep_split(split, known, grouped=config.split.grouped, given=(
        config.split.kind == 'given' or bool(config.split.file) or 'split' in manifest.table)))
    _check_listed(kept, config.split)
    if not same_data:
        log.info('split    %d pictures are new, %d are gone; the others stay where they were',
                 np.count_nonzero(~kept.table['id'].isin(known.keys())),
                 len(known.keys() - set(kept.table['id'])))
    elif split_digest(kept.table['id'], kept.table['split']) == before['split_digest']:
        log.info('split    as the run has it; today it would be cut otherwise')
    else:
        raise ConfigError(f'{run} cannot keep its split: these versions of the libraries leave '
                          f'out other pictures (config.data.long_tail); use those of then, or '
                          f'give a new --workdir.')
    return kept


def _check_listed(manifest: Manifest, split: Mapping) -> None:
    for side in ('val', 'test'):
        for group in split[f'{side}_groups']:
            found = manifest.table.loc[manifest.table['group'] == group, 'split']
            if (found != side).any():
                raise ConfigError(f'config.split.{side}_groups has {group!r}, which is new: a run '
                                  f'that goes on takes no new group there; leave it out, or give '
                                  f'a new --workdir.')
