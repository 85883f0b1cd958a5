"""The verb pack: any source as ArrayRecord files, which read faster and travel well."""

import logging

from input_pipeline import packing, sources
from input_pipeline.errors import counted
from input_pipeline.preprocessing import fallback_by_class
from input_pipeline.sources import array_records
from train_lib.commands.command import Command
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.progress import counting_bar
from train_lib.training.data import load_data

log = logging.getLogger(__name__)


def pack(command: Command) -> int:
    """Packs config.data into config.pack.folder and verifies it. Returns the exit code.

    Raises:
        ConfigError: no folder was given. DataError: the source or the folder has a fault.
    """
    config = command.config
    options = config.pack.to_dict()
    folder = options.pop('folder') or str(command.workdir or '')
    if not folder:
        raise ConfigError('config.pack.folder is empty: say where to write, '
                          'as in --config.pack.folder=PATH.')
    manifest = load_data(config)
    with counting_bar('pack', 'image') as progress:
        packed = packing.pack(manifest, sources.read_bytes, folder, packing.PackSpec(**options),
                              progress=progress)
    array_records.verify(folder)
    if options['preprocess']:
        failed = fallback_by_class(packed, array_records.load_records(folder), packed.heads[0])
        if len(failed.columns):
            log.info('failed   share of pictures that a step could not process (if it differs '
                     'much between classes, it gives them away):')
            log.info('%s', failed.to_string(float_format='{:.3f}'.format))
    log.info('packed   %s, verified', counted(len(packed), 'image'))
    log.info('folder   %s', packed.root)
    log.info('         train with --config.data.source=packed')
    log.info('         --config.data.packed=%s', folder)
    return 0
