"""The peers of input_pipeline.py: what else reads, decodes and augments pictures in Python.

Peers that are not installed are left out. torch's DataLoader feeds all of them, with one process
per core.
"""

import importlib
import math
import os

import cv2
import numpy as np

from benchmarks.pipeline_measures import BATCH, CORES, SIZE, Speed, batches_a_second, source_of

os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')


def module(name: str):
    """The module, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def versions() -> str:
    """Of all peers."""
    return ', '.join(f'{name} {peer.__version__ if peer else "is not installed: left out"}'
                     for name, peer in ((name, module(name)) for name in (
                         'albumentations', 'torch', 'torchvision', 'kornia_rs')))


def albumentations(specs, p: float | None = None, size: int | None = SIZE):
    """A stage in albumentations, with its own defaults where ours lacks the parameter."""
    A = module('albumentations')
    made = {
        'hflip': lambda s: A.HorizontalFlip(p=p or s.get('p', 0.5)),
        'vflip': lambda s: A.VerticalFlip(p=p or s.get('p', 0.5)),
        'rotate': lambda s: A.Rotate(limit=s['degrees'], p=p or 1),
        'elastic': lambda s: A.ElasticTransform(alpha=s['alpha'], sigma=s['sigma'], p=p or 1),
        'grid_distortion': lambda s: A.GridDistortion(
            num_steps=s['steps'], distort_limit=s['limit'], p=p or 1),
        'random_resized_crop': lambda s: A.RandomResizedCrop((SIZE, SIZE), p=1)}
    crops = any(spec['kind'] == 'random_resized_crop' for spec in specs)
    resize = [] if crops or size is None else [A.Resize(size, size)]
    return A.Compose(resize + [made[spec['kind']](spec) for spec in specs])


def _by_albumentations(specs, p):
    compose = albumentations(specs, p)

    def show(path: str) -> np.ndarray:
        return compose(image=cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB))['image']
    return show


def _by_torchvision(specs, p):
    """Flip and crop by torchvision.transforms.v2; its decoder is Pillow, if it was built without
    libjpeg."""
    from torchvision import io
    from torchvision.transforms import v2

    crop = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomResizedCrop(SIZE, antialias=True)])
    try:
        io.decode_jpeg(module('torch').zeros(2, dtype=module('torch').uint8))
    except RuntimeError as error:
        fast = 'extension' not in str(error)
    else:
        fast = True

    def show(path: str) -> np.ndarray:
        if fast:
            return crop(io.decode_image(path, io.ImageReadMode.RGB)).numpy()
        with module('PIL.Image').open(path) as image:
            return np.asarray(crop(image.convert('RGB')))
    return show


def _by_kornia_rs(specs, p):
    """Flip and crop by kornia_rs, which draws no resized crops: drawn as torchvision does."""
    K = module('kornia_rs')
    rng = np.random.default_rng(os.getpid())

    def show(path: str) -> np.ndarray:
        image = np.asarray(K.io.read_image_jpegturbo(path))
        rows, columns = image.shape[:2]
        for _ in range(10):
            area = rng.uniform(0.08, 1) * rows * columns
            shape = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            width, height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < width <= columns and 0 < height <= rows:
                break
        else:
            width, height = columns, rows
        left, top = int(rng.integers(columns - width + 1)), int(rng.integers(rows - height + 1))
        part = np.ascontiguousarray(image[top:top + height, left:left + width])
        part = np.asarray(K.imgproc.resize(part, (SIZE, SIZE), 'bilinear'))
        return np.asarray(K.imgproc.horizontal_flip(part)) if rng.random() < 0.5 else part
    return show


CROPPING = {'albumentations': _by_albumentations, 'torchvision': _by_torchvision,
            'kornia_rs': _by_kornia_rs}


def loaders(path: str, specs, p: float | None, count: int) -> dict:
    """{peer: measure of its pipeline in a DataLoader} for the peers that know the stage."""
    if not module('torch'):
        return {}
    names = CROPPING if any(s['kind'] == 'random_resized_crop' for s in specs) else (
        'albumentations',)
    return {name: _loader(path, CROPPING[name](specs, p), count)
            for name in names if module(name)}


def _loader(path: str, show, count: int):
    from torch.utils.data import DataLoader, Dataset

    source = source_of(path)
    paths = [os.path.join(source.root, name) for name in source.table['location']]

    class Files(Dataset):
        def __len__(self):
            return 10**6

        def __getitem__(self, index):
            return show(paths[index % len(paths)]), 0

    def measure() -> Speed:
        workers = DataLoader(Files(), BATCH, num_workers=CORES,
                             worker_init_fn=lambda _: cv2.setNumThreads(0))
        iterator = iter(workers)
        try:
            return batches_a_second(iterator, 2 * CORES, count)
        finally:
            iterator._shutdown_workers()
    return measure
