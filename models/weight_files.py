"""Weight files: names, shapes and arrays, read one at a time and never unpickled."""

import hashlib
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

import numpy as np

from models.errors import ModelError
from models.torch_files import open_torch
from models.torch_pickle import NotWeightsError

Opened = tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray], str]
FILES = ('.safetensors', '.pth', '.pt', '.bin')
# Pages of a mapped file stay in memory once read; reopening it after so many bytes frees them.
_MAPPED_BYTES = 1 << 28


def open_weights(source: str | os.PathLike) -> Opened:
    """Opens weights without reading the arrays.

    Args:
        source: a .safetensors file; a .pth, .pt or .bin file of torch.save with a state_dict
            (read without torch, and never unpickled); or a Hugging Face repository `owner/name`
            with a model.safetensors, which is taken from the local cache if it is there.

    Returns:
        (shapes by key, a function from key to array, a name for messages)

    Raises:
        ModelError: there is no such file, it is damaged or has another format, or the repository
            cannot be reached.
    """
    text = os.fspath(source)
    path = Path(text).expanduser()
    if not path.exists() and _is_repository(text):
        path = download(text.removeprefix('hf-hub:').removeprefix('hf_hub:'))
    if not path.is_file():
        raise ModelError(f'{text!r} is neither a file of weights nor a Hugging Face repository '
                         f'(owner/name): check the path.')
    if path.suffix == '.safetensors':
        return _open_safetensors(path)
    if path.suffix in FILES[1:]:
        return _open_torch(path)
    raise ModelError(f'{text!r} is not a .safetensors, .pth, .pt or .bin file: convert the weights '
                     f'to .safetensors.')


def _is_repository(text: str) -> bool:
    owner, slash, name = text.removeprefix('hf-hub:').removeprefix('hf_hub:').partition('/')
    return bool(owner and slash and name) and '/' not in name and \
        not text.endswith(FILES) and owner not in ('.', '..', '~')


def download(repository: str) -> Path:
    """The model.safetensors of a Hugging Face repository, from the cache or the network.

    The file is checked against the SHA-256 that the hub states.

    Raises:
        ModelError: huggingface_hub is not installed, the file is neither cached nor reachable, or
            its SHA-256 is another one.
    """
    if not _has_client():
        raise ModelError(f'{repository!r} is on Hugging Face, and huggingface_hub is not '
                         f'installed: pip install huggingface_hub.')
    path = cached(repository) or _fetch(repository)
    check_digest(path, repository)
    return path


def cached(repository: str) -> Path | None:
    """The model.safetensors of a Hugging Face repository in the local cache, or None."""
    if not _has_client():
        return None
    from huggingface_hub import hf_hub_download
    try:  # a cached file needs no network, not even to look for a newer version
        return Path(hf_hub_download(repository, 'model.safetensors', local_files_only=True))
    except Exception:  # not cached; the errors have many types
        return None


def _has_client() -> bool:
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        return False
    return True


def _fetch(repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    try:
        _check_network()
        return Path(hf_hub_download(repository, 'model.safetensors'))
    except Exception as error:
        reason = ' '.join(str(error).split())[:160] or type(error).__name__
        raise ModelError(
            f'The weights {repository!r} are not in the local cache and could not be fetched from '
            f'Hugging Face ({reason}): check name and network, or download model.safetensors '
            f'elsewhere and give its path.') from None


def check_digest(path: Path, repository: str, found: str = '') -> None:
    """Checks a large file against the SHA-256 that names it in the cache of Hugging Face's client.

    The client itself checks only the size of what it gets by plain HTTP. In its cache the file name
    is a link to the SHA-256; on a file system without links there is nothing to check against.
    `found` is its SHA-256, if that is known.

    Raises:
        ModelError: it is damaged.
    """
    stated = os.path.basename(os.readlink(path)) if path.is_symlink() else ''
    if not re.fullmatch('[0-9a-f]{64}', stated):
        return
    if (found or sha256(path)) != stated:
        raise ModelError(f'The weights {repository!r} in {str(path)!r} are damaged (their SHA-256 '
                         f'is not the one that Hugging Face states): delete '
                         f'{os.path.realpath(path)!r}, and start again to fetch them.')


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        with open(path, 'rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest()
    except OSError as error:
        raise ModelError(f'{str(path)!r} cannot be read ({error.strerror}): check its '
                         f'rights.') from None


def _check_network() -> None:
    """Looks up the address of the hub: without a network its client would retry for minutes."""
    from huggingface_hub.constants import ENDPOINT
    if not getproxies():
        socket.getaddrinfo(urlparse(ENDPOINT).hostname, None)


def _open_safetensors(path: Path) -> Opened:
    from safetensors import SafetensorError, safe_open
    handle, used = None, 0

    def broken(error):
        return ModelError(f'{str(path)!r} is not a readable safetensors file '
                          f'({" ".join(str(error).split())}): download or export it again.')

    try:
        with safe_open(path, framework='np') as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise broken(error) from None

    def read(key: str) -> np.ndarray:
        nonlocal handle, used
        try:
            if handle is None or used > _MAPPED_BYTES:
                handle, used = safe_open(path, framework='np'), 0
            value = handle.get_tensor(key)
        except (SafetensorError, OSError, TypeError, ValueError) as error:
            raise broken(error) from None
        used += value.nbytes
        return value

    return shapes, read, str(path)


def _open_torch(path: Path) -> Opened:
    def refused(error):
        return ModelError(f'{str(path)!r} could not be read as plain weights '
                          f'({" ".join(str(error).split())[:160]}): save model.state_dict(), or, '
                          f'if you trust the file, convert it to .safetensors.')

    try:
        tensors, read = open_torch(path)
    except (NotWeightsError, OSError) as error:
        raise refused(error) from None

    def as_float32(key: str) -> np.ndarray:
        try:
            return read(key).astype(np.float32)
        except (NotWeightsError, OSError) as error:
            raise refused(error) from None

    return {key: tensor.shape for key, tensor in tensors.items()}, as_float32, str(path)
