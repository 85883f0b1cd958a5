"""Which row is in which split, now and when the run was started."""

import logging
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline.errors import DataError, counted
from input_pipeline.kept_splits import split_digest
from input_pipeline.long_tail import cut_tail
from input_pipeline.manifest import Manifest, digest
from input_pipeline.splits import assign_splits
from train_lib.run_dir import workdirs

log = logging.getLogger(__name__)


def split_rows(config: ConfigDict, manifest: Manifest, run: Path | None) -> Manifest:
    """The rows that a run has, each in its split.

    Args:
        config, manifest: of this start.
        run: the workdir of the run that goes on, which keeps its split even if today's libraries
            would cut it differently; it need not hold a run.

    Raises:
        ConfigError: its split.csv is damaged. DataError: its split cannot be kept.
    """
    def cut(known: Mapping[str, str] | None) -> Manifest:
        split = assign_splits(manifest, config.split.to_dict(), seed=config.seed, known=known)
        return cut_tail(split, config.data.long_tail.to_dict(), seed=config.seed)

    today = cut(None)
    before = workdirs.start_facts(run) if run else {}
    if run is None or not before or before.get('split_digest') == split_digest(today.table['id'],
                                                                today.table['split']):
        return today
    known = workdirs.known_sides(run)
    if not known:
        return today
    try:
        kept = cut(known)
    except DataError:
        if config.data.changed != 'accept' and before.get('data_digest') != digest(today):
            return today  # it is refused when the digests are compared
        raise
    if before.get('data_digest') == digest(kept):
        if not kept.table['split'].equals(today.table['split']):
            log.info('split    as the run was started with; today it would be cut differently')
    elif config.data.changed == 'accept':
        ids = set(kept.table['id'])
        log.info('split    %s new, %s gone; the others stay where they were',
                 counted(len(ids - known.keys()), 'picture is', 'pictures are'),
                 counted(len(known.keys() - ids), 'is', 'are'))
    return kept
