"""JPEG files for benchmarks/input_pipeline.py: copies of a user's photographs, or drawn ones."""

import os
import zipfile
from pathlib import Path

import cv2
import numpy as np

from input_pipeline.diagnosis import problem


def collect(args, home: Path) -> Path:
    """The folder of --photos, or ''."""
    if not args.photos:
        return Path()
    source, target = Path(args.photos).expanduser(), home / 'photos' / 'all'
    target.mkdir(parents=True)
    if source.suffix == '.zip':
        with zipfile.ZipFile(source) as archive:
            archive.extractall(home / 'zip')
        source = home / 'zip'
    files = sorted(path for path in source.rglob('*') if path.suffix.lower() in ('.jpg', '.jpeg'))
    np.random.default_rng(0).shuffle(files)
    for path in files:
        data = path.read_bytes()
        if len(os.listdir(target)) < args.pictures and not problem(data):
            (target / f'{len(os.listdir(target)):05}.jpg').write_bytes(data)
    return target.parent


def draw_files(target: Path, count: int, photos: Path) -> None:
    """JPEGs of 500x400, quality 90: cut from photos of that size, otherwise fractal noise."""
    (target / 'all').mkdir(parents=True)
    found = [image for path in sorted(photos.glob('all/*')) if photos != Path()
             for image in [cv2.imread(str(path))] if min(image.shape[:2]) >= 400]
    rng = np.random.default_rng(0)
    for number in range(count):
        if found:
            image = found[number % len(found)]
            image = cv2.resize(image, (500, 400), interpolation=cv2.INTER_AREA)
            image = cv2.flip(image, 1) if number // len(found) % 2 else image
        else:
            image = np.zeros((400, 500, 3), np.float32)
            for octave in range(9):
                noise = rng.normal(0, 60 / 1.7**octave, (2 + 2**octave, 2 + 2**octave, 3))
                image += cv2.resize(noise.astype(np.float32), (500, 400))
            image = np.clip(image + 128, 0, 255).astype(np.uint8)
        cv2.imwrite(str(target / 'all' / f'{number:05}.jpg'), image,
                    [cv2.IMWRITE_JPEG_QUALITY, 90])
