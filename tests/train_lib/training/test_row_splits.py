"""A run that goes on has the rows and the sides that it was started with."""

import pytest

from configs import common
from input_pipeline.manifest import digest
from train_lib.run_dir import workdirs
from train_lib.runtime.errors import ConfigError
from train_lib.training import row_splits
from train_lib.training.data import load_manifest
from train_lib.training.row_splits import split_rows


@pytest.fixture
def started(tmp_path):
    """A config, its data, their rows, and the workdir of a run with them."""
    config = common.get_config()
    config.data.source = 'digits'
    config.data.long_tail.imbalance = 10.0
    manifest = load_manifest(config)
    rows = split_rows(config, manifest, None)
    assert len(rows) < len(manifest)
    workdirs.claim(tmp_path / 'run', config, digest(rows), rows)
    return config, manifest, rows, tmp_path / 'run'


def test_a_tail_is_cut_as_it_was(started, monkeypatch):
    config, manifest, rows, run = started
    assign = row_splits.assign_splits
    monkeypatch.setattr(row_splits, 'assign_splits', lambda manifest, split, seed, known: assign(
        manifest, split, seed=seed + 1, known=known))
    other = split_rows(config, manifest, None)
    assert digest(other) != digest(rows)
    again = split_rows(config, manifest, run)
    assert again.table[['id', 'split']].equals(rows.table[['id', 'split']])
    workdirs.claim(run, config, digest(again), again)


def test_rows_that_go_and_come_are_counted_and_kept(started, caplog):
    config, manifest, rows, run = started
    caplog.set_level('INFO')
    config.data.changed = 'accept'
    sides = dict(zip(rows.table['id'], rows.table['split']))
    kept = manifest.table['id'].isin(list(sides)[::2]).to_numpy()
    half = split_rows(config, manifest.select(kept), run)
    workdirs.claim(run, config, digest(half), half)
    # Of the rest, the tail is cut anew.
    assert f'0 pictures are new, {len(sides) - len(half)} are gone' in caplog.text
    assert len(half) < kept.sum()
    assert workdirs.known_sides(run) == sides
    back = split_rows(config, manifest, run)
    assert all(sides.get(name, 'train') == side
               for name, side in zip(back.table['id'], back.table['split']))


def test_a_damaged_split_is_written_anew_unless_it_is_needed(started):
    config, manifest, rows, run = started
    (run / 'split.csv').write_text('id,split\n')
    assert split_rows(config, manifest, run).table.equals(rows.table)
    with pytest.raises(ConfigError, match=r'split\.csv has changed since it was written'):
        workdirs.known_sides(run)
    workdirs.claim(run, config, digest(rows), rows)
    assert len(workdirs.known_sides(run)) == len(rows)
