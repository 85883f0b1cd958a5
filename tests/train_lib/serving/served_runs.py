"""Small data sets of every kind of file, and runs on them."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from main import main

CLASSES = ('Round, or so', 'flat', 'tall')


def picture(rng, kind: int, channels: int = 3) -> np.ndarray:
    """A bright shape on noise, of another size each time."""
    height, width = rng.integers(30, 60, 2)
    image = rng.integers(0, 90, (height, width, channels), np.uint8)
    part = (slice(8, -8), slice(8, -8), slice(None)) if kind == 0 else (
        (slice(10, 16), slice(None)) if kind == 1 else (slice(None), slice(10, 16)))
    image[part] += 150
    return image


def write(path: Path, image: np.ndarray, form: int) -> None:
    """JPEG, PNG, a JPEG that its EXIF turns, a transparent PNG, or a PNG of 16 bits (12 used)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = Image.fromarray(image)
    if form == 1:
        pixels.save(path.with_suffix('.png'))
    elif form == 2:
        exif = Image.Exif()
        exif[0x0112] = 6
        pixels.save(path.with_suffix('.jpg'), exif=exif)
    elif form == 3:
        alpha = np.full(image.shape[:2], 255, np.uint8)
        alpha[:, :9] = 60
        Image.fromarray(np.dstack([image, alpha])).save(path.with_suffix('.png'))
    elif form == 4:
        cv2.imwrite(str(path.with_suffix('.png')), image[..., 0].astype(np.uint16) * 16)
    else:
        pixels.save(path.with_suffix('.jpg'), quality=90)


def make_folder(folder: Path, count: int = 60) -> Path:
    rng = np.random.default_rng(0)
    for number in range(count):
        kind = number % 3
        write(folder / CLASSES[kind] / f'{number:03d}', picture(rng, kind), number % 5)
    return folder


def train(workdir: Path, config: str, *flags: str, channels: int = 3) -> Path:
    assert main([f'--config={config}', f'--workdir={workdir}', '--config.curriculum=()',
                 f'--config.model=dict(name="small_cnn", width=8, stages=2, '
                 f'in_channels={channels})',
                 '--config.batch_size=16', '--config.duration.epochs=1',
                 '--config.report.heat_maps=False', '--config.log.tensorboard=False',
                 *flags]) == 0
    return workdir


def stored(run: Path, split: str) -> dict[str, np.ndarray]:
    with np.load(run / f'predictions/{split}.npz', allow_pickle=False) as file:
        return dict(file)
