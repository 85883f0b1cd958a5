"""The verb pack: any source as ArrayRecord files, which read faster and travel well."""

import logging

from input_pipeline import packing, sources
from input_pipeline.preprocessing import fallback_by_class
from train_lib.commands.command_line import Command
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.progress import bar
from train_lib.training.run import load_data

log = logging.getLogger(__name__)


def pack_command(command: Command) -> int:
    """Packs config.data into config.pack.folder and verifies it. Returns the exit code.

    Raises:
        ConfigError: no folder; DataError: whatever the source or the folder has wrong.
    """
    config = command.config
    options = config.pack.to_dict()
    folder = options.pop('folder') or str(command.workdir or '')
    if not folder:
        raise ConfigError('config.pack.folder is empty: say where to write, '
                          'as in --config.pack.folder=PATH.')
    manifest = load_data(config)
    progress = bar(total=len(manifest), unit='image')

    def show(done, total):
        progress.update(min(done, total) - progress.n)

    packed = packing.pack(manifest, sources.read_bytes, folder, progress=show, **options)
    progress.close()
    packing.verify(folder)
    if options['preprocess']:
        failed = fallback_by_class(packed, packing.load_records(folder), packed.heads[0])
        if len(failed.columns):
            log.info('Share of pictures that a step could do nothing with (where classes differ '
                     'much, that itself tells them apart):\n%s',
                     failed.to_string(float_format='{:.3f}'.format))
    log.info('packed   %s images into %s, verified; train from it by data.source=packed, '
             'data.packed=%s', f'{len(packed):,}', packed.root, folder)
    return 0
