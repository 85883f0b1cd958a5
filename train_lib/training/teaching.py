"""What a run learns from other runs: pseudo-labelled rows, and what teachers say of its own."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.errors import counted
from input_pipeline.extra_rows import Extra, SoftRows
from input_pipeline.manifest import Manifest
from train_lib.losses.soft_targets import Distillation
from train_lib.run_dir import seen_rows, workdirs
from train_lib.run_dir.ancestors import Ancestry, joined
from train_lib.runtime.errors import ConfigError
from train_lib.training import extra_data, stored_teachers

log = logging.getLogger(__name__)
FACT = 'taught'  # in config.json and result.json


@dataclasses.dataclass(frozen=True, eq=False)
class Teaching:
    """What a run learns from other runs.

    Attributes:
        extra: rows that only train; None without.
        teacher: {head: what teachers say of the training rows}; {} without.
        distillation: how much that counts; None without.
        ancestry: what those trained on who made all this.
        facts: {'extra': ..., 'distill': ...}, files, digests, numbers of rows.
    """

    extra: Extra | None
    teacher: dict[str, SoftRows]
    distillation: Distillation | None
    ancestry: Ancestry
    facts: dict[str, Any]


def is_taught(config: ConfigDict) -> bool:
    """Whether the config asks for extra rows or teachers."""
    return bool(config.data.extra.file or config.distill.teachers)


def read_teaching(config: ConfigDict, manifest: Manifest, train: Manifest, run: Path | None
                  ) -> Teaching | None:
    """What config.data.extra and config.distill ask for; None for nothing.

    Args:
        config: of this start; config.split.fold is a number in a k-fold run.
        manifest: of all rows, with the column `split`.
        train: the training rows.
        run: the workdir of the run that goes on; it need not hold one.

    Raises:
        ConfigError: a wrong value or file; who made the labels trained on rows that this run holds
            out, and config.init.seen is not 'accept'; or the run began with other ones.
    """
    if not config.data.extra.file:
        extra_data.check_unused(config.data.extra)
    stored_teachers.distillation_of(config.distill)
    if not is_taught(config):
        return None
    extra, teacher, distillation = None, {}, None
    ancestry, facts = Ancestry(), {}
    before = workdirs.start_facts(run) if run else {}
    known = before.get(FACT, {})
    accepted = seen_rows.accepts(config.init.seen)
    if config.data.extra.file:
        found = extra_data.read_extra(config, manifest)
        extra, ancestry, facts['extra'] = found.extra, found.ancestry, found.facts
        if not accepted and not before:
            _refuse_seen(config, found.ancestry, manifest)
    if config.distill.teachers:
        # A run that goes on keeps its teachers.
        told = stored_teachers.read_teachers(
            config, manifest, train, known.get('distill', {}).get('accepted', accepted))
        teacher, distillation, facts['distill'] = told.rows, told.distillation, told.facts
        ancestry = joined(ancestry, told.ancestry)
    if before:
        _refuse_changed(known, facts, run)
    return Teaching(extra, teacher, distillation, ancestry, facts)


def _refuse_seen(config: ConfigDict, ancestry: Ancestry, manifest: Manifest) -> None:
    table = manifest.table
    seen = seen_rows.seen_rows(ancestry, table['id'].tolist(), table['split'].tolist(),
                               seen_rows.groups_of(manifest, config.split.grouped))
    held = {name: seen[name] for name in seen_rows.HELD_OUT if seen[name]}
    if not held:
        return
    sizes = table['split'].value_counts()
    counts = ' and '.join(f'{len(ids)} of the {sizes[name]} {name} rows'
                          for name, ids in held.items())
    raise ConfigError(
        f'config.{extra_data.KEY} = {config.data.extra.file!r}: who made its labels trained on '
        f'{counts} of this run ({next(iter(held.values()))[0]!r}, ...), so their scores would mean '
        f'nothing: keep the split of those runs, fold by fold (`main.py pseudo --folds=each`), or '
        f'accept it by --config.init.seen=accept, which is marked in every result.')


def _refuse_changed(before: dict[str, Any], facts: dict[str, Any], run: Path | None) -> None:
    for key, name in (('extra', extra_data.KEY), ('distill', stored_teachers.KEY)):
        old, new = before.get(key, {}).get('digest'), facts.get(key, {}).get('digest')
        if old != new:
            raise ConfigError(f'{run} was started with other labels than config.{name} has today '
                              f'(the digests differ): put them back, or give a new --workdir.')


def announce(teaching: Teaching | None, start: int) -> None:
    """Logs what a run learns from others; `start`: the step from which extra rows are shown."""
    if teaching is None:
        return
    if teaching.extra is not None:
        facts = teaching.facts['extra']
        log.info('extra    %s, round %d, weight %g, %.0f %% of a batch%s',
                 counted(facts['rows'], 'pseudo-labelled picture'), facts['round'],
                 teaching.extra.weight, 100 * teaching.extra.share,
                 f', from step {start:,} on' if start else '')
    if teaching.teacher:
        stored_teachers.say(teaching.facts['distill'])
