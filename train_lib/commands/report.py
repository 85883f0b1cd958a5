"""The verb report: writes the report.html of a workdir again, from the files in it."""

import logging
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline import sources
from input_pipeline.manifest import Manifest
from input_pipeline.splits import several_folds
from train_lib.commands.command import Command
from train_lib.predictions.run_folders import folds_of
from train_lib.run_dir.run_config import config_of_run
from train_lib.training.data import load_data
from train_lib.training.row_splits import split_rows

log = logging.getLogger(__name__)


def report(command: Command) -> int:
    """The verb report. Returns the exit code."""
    workdir = command.workdir
    config = command.config or config_of_run(workdir)
    manifest = load_data(config, workdir)
    folds = several_folds(config.split)
    if folds is None or not folds_of(workdir):
        _write_one(config, manifest, workdir)
        return 0
    for fold in folds:
        if (workdir / f'fold_{fold}').is_dir():
            with config.ignore_type():
                config.split.fold = fold
            _write_one(config, manifest, workdir / f'fold_{fold}')
    from train_lib.reporting.folds_page import write_folds_report  # loads matplotlib

    log.info('report   %s', write_folds_report(
        workdir, manifest=manifest, read_image=sources.reader(manifest),
        max_errors=config.report.errors))
    return 0


def _write_one(config: ConfigDict, manifest: Manifest, workdir: Path) -> None:
    from train_lib.reporting.run_page import write_report

    manifest = split_rows(config, manifest, workdir)
    log.info('report   %s', write_report(workdir, manifest=manifest,
                                         read_image=sources.reader(manifest),
                                         max_errors=config.report.errors))
