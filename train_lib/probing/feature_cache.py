"""Features of every picture in several views, computed once and kept in a file.

With a frozen backbone the features of a view never change, so a run of E epochs over N pictures
needs at most E x N forward passes, whatever number of heads, folds and learning rates follow.
View v of a picture is what training would show of it in epoch v; one more view is the plain
picture. A cache belongs to its pixels, its backbone and its views: another of any of these is
another folder. One that a kill cut short goes on where it stopped.
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

from input_pipeline import loader
from input_pipeline.curriculum import Stage
from input_pipeline.manifest import Manifest
from train_lib.run_dir.metrics_log import write_json
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.progress import bar
from train_lib.runtime.sharding import shard_batch
from train_lib.training.evaluate import Interrupted

log = logging.getLogger(__name__)
DTYPES = ('float16', 'float32')


@dataclasses.dataclass(frozen=True)
class Features:
    """views: memory map [V + 1, N, D], the last view is the plain picture; folder: its home."""

    views: np.ndarray
    folder: Path

    @property
    def plain(self) -> np.ndarray:
        """Features of the plain pictures, [N, D]."""
        return self.views[-1]


def digest_weights(weights: dict) -> str:
    """SHA-256 over names, shapes and values of a tree of arrays."""
    hasher = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]:
        value = np.asarray(leaf)
        hasher.update(f'{jax.tree_util.keystr(path)}{value.dtype}{value.shape}'.encode())
        hasher.update(np.ascontiguousarray(value).tobytes())
    return hasher.hexdigest()


def digest_pixels(manifest: Manifest) -> str:
    """SHA-256 over ids and places of the pictures, and size and time of those that are files."""
    hasher = hashlib.sha256(os.fsencode(os.path.abspath(manifest.root)))
    for name, location in zip(manifest.table['id'], manifest.table['location']):
        hasher.update(f'\0{name}\0{location}'.encode('utf-8', 'surrogateescape'))
        try:
            stat = os.stat(os.path.join(manifest.root, location))
            hasher.update(f'\0{stat.st_size}\0{stat.st_mtime_ns}'.encode())
        except OSError:  # drawn, packed or zipped: the location says it all
            pass
    return hasher.hexdigest()


def cached_features(manifest: Manifest, spec: loader.ImageSpec, stages: Sequence[Stage],
                    starts: Sequence[int], embed: Callable, weights: dict, *, key: dict, seed: int,
                    batch_size: int, folder: Path, dtype: str, mesh, threads: int, cache_mb: float,
                    stop: Callable[[], bool] = lambda: False) -> Features:
    """Computes what is missing of a cache and opens it.

    Args:
        manifest: the pictures.
        spec, stages, seed: as for `loader.train_iterator`.
        starts: of each view, the step at which its epoch begins (its stage of the curriculum).
        embed: (weights, uint8 images [B, H, W, 3]) -> features [B, D].
        weights: of the backbone.
        key: what else the features depend on (JSON): model, preparation, precision.
        batch_size: pictures a step.
        folder: where caches live.
        dtype: of the file, 'float16' or 'float32'.
        mesh: shares a batch.
        threads, cache_mb: of the loader.
        stop: asked between batches.

    Raises:
        ConfigError: an unknown dtype, or the folder cannot be written to.
        Interrupted: `stop` became true; what is done is kept.
    """
    if dtype not in DTYPES:
        raise ConfigError(f'config.probe.dtype = {dtype!r}: choose one of {", ".join(DTYPES)}.')
    stages_used = [stages[loader.curricula.stage_at(stages, start)] for start in starts]
    transforms = hashlib.sha256(repr([stage.transforms for stage in stages_used]).encode())
    about = dict(key, pixels=digest_pixels(manifest), weights=digest_weights(weights),
                 transforms=transforms.hexdigest(), seed=seed, spec=dataclasses.asdict(spec),
                 dtype=dtype, views=len(starts))
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:20]
    home = Path(folder).expanduser() / name
    sample = jax.eval_shape(embed, weights, np.zeros((1, spec.size, spec.size, 3), np.uint8))
    batches = -(-len(manifest) // batch_size)
    shape = (len(starts) + 1, len(manifest), sample.shape[-1])
    try:
        home.mkdir(parents=True, exist_ok=True)
        write_json(home / 'about.json', about)
        views = _open(home / 'features.npy', shape, dtype)
        done = _open(home / f'done-{batch_size}.npy', (len(starts) + 1, batches), 'bool')
    except (OSError, ValueError) as error:
        raise ConfigError(f'The cache of features {str(home)!r} cannot be written or read '
                          f'({error}): remove it, or set config.probe.cache to another '
                          f'folder.') from None
    missing = int(done.size - np.count_nonzero(done))
    log.info('features %s: %s of %s batches are there (%.1f GB in all)', home,
             f'{done.size - missing:,}', f'{done.size:,}', views.nbytes / 1e9)
    progress = bar(total=missing, unit='batch')
    pictures = loader.Pictures(manifest, spec, cache_mb)
    for view in range(len(starts) + 1):
        if done[view].all():
            continue
        stage = stages_used[view] if view < len(starts) else Stage(0, ())
        todo = np.flatnonzero(~done[view])
        batches_of = loader.view_iterator(pictures, manifest, stage, epoch=view, seed=seed,
                                          batch_size=batch_size, batches=todo, threads=threads)
        waiting = None
        try:
            for number, batch in zip(todo, batches_of):
                if stop():
                    raise Interrupted
                images = shard_batch({'image': batch['image']}, mesh)['image']
                current = number, embed(weights, images)
                if waiting is not None:
                    _store(views, done, view, *waiting, batch_size)
                    progress.update()
                waiting = current
            _store(views, done, view, *waiting, batch_size)
            progress.update()
        finally:
            batches_of.close()
            views.flush()  # the features are on disk before the note that they are
            done.flush()
    progress.close()
    return Features(np.load(home / 'features.npy', mmap_mode='r'), home)


def _open(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    if path.exists():
        opened = np.load(path, mmap_mode='r+', allow_pickle=False)
        if opened.shape != shape:
            raise ValueError(f'{path.name} has the shape {opened.shape} instead of {shape}')
        return opened
    return np.lib.format.open_memmap(path, 'w+', dtype, shape)


def _store(views, done, view: int, number: int, values, batch_size: int) -> None:
    start = number * batch_size
    end = min(start + batch_size, views.shape[1])
    views[view, start:end] = np.asarray(values)[:end - start]
    done[view, number] = True
