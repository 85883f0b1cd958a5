"""The verb report: writes the report.html of a workdir again, from the files in it."""

import logging

from input_pipeline import sources
from train_lib.commands.command import Command
from train_lib.run_dir.run_config import config_of_run
from train_lib.training.data import load_data
from train_lib.training.row_splits import split_rows

log = logging.getLogger(__name__)


def report(command: Command) -> int:
    """The verb report. Returns the exit code."""
    workdir = command.workdir
    config = command.config or config_of_run(workdir)
    manifest = split_rows(config, load_data(config, workdir), workdir)
    from train_lib.reporting.run_page import write_report  # loads matplotlib

    path = write_report(workdir, manifest=manifest,
                        read_image=sources.reader(manifest),
                        max_errors=config.report.errors)
    log.info('report   %s', path)
    return 0
