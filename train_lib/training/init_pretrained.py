"""Published weights, or a file of them, in a new model: config.init.pretrained."""

import logging
from pathlib import Path

from ml_collections import ConfigDict

from models.heads import Classifier
from models.pretrained import load_timm
from models.tags import find_tag, tags_of
from models.weight_files import FILES
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)


def load_pretrained(config: ConfigDict, model: Classifier) -> bool:
    """Fills the model from config.init.pretrained, if that is what this run starts from.

    The classifier is left as it is (config.init.head='reset'), kept, or cut to size.

    Raises:
        ModelError: there are no such weights, or they don't fit; ConfigError: a wrong value.
    """
    name, source, head = config.model.name, config.init.pretrained, config.init.head
    if not source:
        return False
    tag = find_tag(name, source)
    is_file = source.endswith(FILES) or Path(source).exists()
    if tag and not is_file:
        source = tag.repository
    elif not tag and not is_file and '/' not in source:
        known = [tag.tag for tag in tags_of(name)]
        raise ConfigError(f'config.init.pretrained = {source!r} is not a file, not a '
                          f'repository (owner/name) and not a tag of {name}: '
                          f'{"choose one of " + ", ".join(known) if known else "it has no tags"}.')
    head = 'reset' if head == 'auto' else head
    for note in load_timm(model, source, head=head):
        log.info('init     %s', note)
    log.info('start    pretrained: %s, head %s', source, head)
    return True
