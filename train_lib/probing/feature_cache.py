"""Features of every image in several views, computed once and kept in a file.

With a frozen backbone the features of a view never change. So E epochs over N images need at most
E x N forward passes, however many heads, folds and learning rates follow. View v of an image is
what training would show of it in epoch v; one more view is the plain image. The folder of a cache
is named after its pixels, its backbone and its views, so a change of any of these begins another
one. A cache that a kill interrupted is completed from where it stopped.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import loader
from input_pipeline.atomic_files import write_json
from input_pipeline.curriculum import Stage
from input_pipeline.errors import counted
from input_pipeline.manifest import Manifest
from input_pipeline.pictures import Pictures
from input_pipeline.sixteen_bits import FULL
from train_lib.probing.backbone import Backbone, make_backbone
from train_lib.runtime.cache_folder import cache_folder
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.progress import bar
from train_lib.runtime.sharding import shard_batch
from train_lib.runtime.signals import Interrupted
from train_lib.training.init_pretrained import with_found_weights
from train_lib.training.preprocess_spec import loader_spec, preprocess_spec

log = logging.getLogger(__name__)
DTYPES = ('float16', 'float32')
_PLAIN = Stage(0, ())


@dataclasses.dataclass(frozen=True)
class FeatureCacheSpec:
    """Where features are kept and how they are computed.

    Attributes:
        folder: holds one folder per cache.
        dtype: of the stored features, 'float16' or 'float32'.
        seed: of the augmentation.
        batch_size: images per step; it is rounded up to a multiple of the devices.
        loading: how batches of images are made.
    """

    folder: Path
    dtype: str
    seed: int
    batch_size: int
    loading: loader.LoaderSpec


def feature_cache_spec(config: ConfigDict) -> FeatureCacheSpec:
    """What config.probe, config.eval, config.loader and config.image say about the cache.

    Raises:
        ConfigError: an unknown dtype.
    """
    if config.probe.dtype not in DTYPES:
        raise ConfigError(f'config.probe.dtype = {config.probe.dtype!r}: choose one of '
                          f'{", ".join(DTYPES)}.')
    folder = Path(config.probe.cache or Path(cache_folder()) / 'features')
    return FeatureCacheSpec(
        folder.expanduser(), config.probe.dtype, config.seed, config.eval.batch_size,
        loader_spec(config))


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of N images in V views.

    Attributes:
        views: a memory map [V + 1, N, D], float16 or float32; the last view is the plain image.
        folder: of the cache.
        pretrained: of the backbone.
    """

    views: np.ndarray
    folder: Path
    pretrained: list[dict] = dataclasses.field(default_factory=list)

    @property
    def plain(self) -> np.ndarray:
        """Features of the plain images, [N, D]."""
        return self.views[-1]


def plain_features(config: ConfigDict, manifest: Manifest) -> np.ndarray:
    """Features of the plain images, float32 [N, D]; only those missing in the cache are computed.

    Raises:
        ConfigError, ModelError: as `make_backbone` and `cached_features`.
    """
    config = with_found_weights(config)
    preprocess_spec(config, say=True)
    found = cached_features(manifest, make_backbone(config), (), feature_cache_spec(config))
    return np.asarray(found.plain, np.float32)


def cached_features(manifest: Manifest, backbone: Backbone, views: Sequence[Stage],
                    spec: FeatureCacheSpec, stop: Callable[[], bool] = lambda: False) -> Features:
    """Computes the features that are missing in a cache, and opens it.

    Args:
        manifest: N images.
        backbone: computes the features.
        views: the stage of the curriculum that each augmented view belongs to.
        spec: where the cache is, and how it is filled.
        stop: asked between batches.

    Raises:
        ConfigError: the cache cannot be read or written.
        Interrupted: `stop` became true; what is done is kept.
    """
    about = _identity(manifest, backbone, views, spec)
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:20]
    folder = spec.folder / name
    files = _open_files(folder, about, manifest, backbone, spec)
    missing = int(files.done.size - np.count_nonzero(files.done))
    log.info('features %s of %s are cached, %.1f GB in total', f'{files.done.size - missing:,}',
             counted(files.done.size, 'batch', 'batches'), files.views.nbytes / 1e9)
    log.info('         %s', folder)
    progress = bar(total=missing, unit='batch')
    pictures = Pictures(manifest, backbone.preprocess, spec.loading.cache_mb)
    for view, stage in enumerate((*views, _PLAIN)):
        missing_here = np.flatnonzero(~files.done[view])
        if not len(missing_here):
            continue
        batches = loader.view_iterator(
            pictures, manifest, stage, epoch=view, seed=spec.seed, batch_size=files.batch_size,
            batches=missing_here, loading=spec.loading)
        waiting: list[tuple[int, jax.Array]] = []  # one batch, so that the device is never idle
        try:
            for number, batch in zip(missing_here.tolist(), batches):
                if stop():
                    raise Interrupted
                images = shard_batch({'image': batch['image']}, backbone.mesh)['image']
                waiting.append((number, backbone.embed(backbone.weights, images)))
                if len(waiting) > 1:
                    _store(files, view, *waiting.pop(0))
                    progress.update()
            _store(files, view, *waiting.pop(0))
            progress.update()
        finally:
            batches.close()
            files.views.flush()  # features reach the disk before the note that they are done
            files.done.flush()
    progress.close()
    return Features(np.load(folder / 'features.npy', mmap_mode='r'), folder,
                    backbone.pretrained)


def _identity(manifest: Manifest, backbone: Backbone, views: Sequence[Stage],
              spec: FeatureCacheSpec) -> dict:
    """What the features depend on, as JSON; its digest names the cache."""
    transforms = hashlib.sha256(repr([stage.transforms for stage in views]).encode())
    preprocess = {name: getattr(backbone.preprocess, name) for name in (
        'size', 'resize', 'border', 'interpolation', 'crop_pct', 'reduced_decode')}
    if manifest.range16 != FULL:
        preprocess['range16'] = manifest.range16
    return dict(backbone.key, pixels=digest_pixels(manifest),
                weights=digest_weights(backbone.weights), transforms=transforms.hexdigest(),
                seed=spec.seed, spec=preprocess, dtype=spec.dtype, views=len(views))


def digest_weights(weights: tuple) -> str:
    """SHA-256 of the names, shapes and values of a tree of arrays."""
    hasher = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]:
        value = np.asarray(leaf)
        hasher.update(f'{jax.tree_util.keystr(path)}{value.dtype}{value.shape}'.encode())
        hasher.update(np.ascontiguousarray(value).tobytes())
    return hasher.hexdigest()


def digest_pixels(manifest: Manifest) -> str:
    """SHA-256 of the images' ids and locations, and of the size and time of those in files."""
    hasher = hashlib.sha256(os.fsencode(os.path.abspath(manifest.root)))
    for name, location in zip(manifest.table['id'], manifest.table['location']):
        hasher.update(f'\0{name}\0{location}'.encode('utf-8', 'surrogateescape'))
        try:
            stat = os.stat(os.path.join(manifest.root, location))
            hasher.update(f'\0{stat.st_size}\0{stat.st_mtime_ns}'.encode())
        except OSError:  # drawn, packed or zipped: the location says everything
            pass
    return hasher.hexdigest()


@dataclasses.dataclass(frozen=True)
class _Files:
    """The files of a cache, open for writing.

    Attributes:
        views: memory map [V + 1, N, D].
        done: memory map bool [V + 1, batches]; which batches of `batch_size` images are stored.
        batch_size: images per batch; another one has its own file `done`.
    """

    views: np.memmap
    done: np.memmap
    batch_size: int


def _open_files(folder: Path, about: dict, manifest: Manifest, backbone: Backbone,
                spec: FeatureCacheSpec) -> _Files:
    """Opens a cache; creates it if there is none."""
    devices, prepared = backbone.mesh.size, backbone.preprocess
    batch_size = -(-spec.batch_size // devices) * devices
    batches = -(-len(manifest) // batch_size)
    sample = jax.eval_shape(backbone.embed, backbone.weights,
                            np.zeros((1, *prepared.frame, prepared.channels), np.uint8))
    shape = (about['views'] + 1, len(manifest), sample.shape[-1])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / 'about.json', about)
        return _Files(_open(folder / 'features.npy', shape, spec.dtype),
                      _open(folder / f'done-{batch_size}.npy', (shape[0], batches), 'bool'),
                      batch_size)
    except (OSError, ValueError) as error:
        raise ConfigError(f'The feature cache {str(folder)!r} cannot be written or read '
                          f'({error}): remove it, or set config.probe.cache to another '
                          f'folder.') from None


def _open(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    if path.exists():
        opened = np.load(path, mmap_mode='r+', allow_pickle=False)
        if opened.shape != shape:
            raise ValueError(f'{path.name} has the shape {opened.shape} instead of {shape}')
        return opened
    return np.lib.format.open_memmap(path, 'w+', dtype, shape)


def _store(files: _Files, view: int, number: int, values: jax.Array) -> None:
    """Stores the features of one batch, and notes that they are done."""
    start = number * files.batch_size
    end = min(start + files.batch_size, files.views.shape[1])
    files.views[view, start:end] = np.asarray(values)[:end - start]
    files.done[view, number] = True
