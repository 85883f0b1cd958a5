"""Writes photographs at five levels of blur, a task whose classes have an order.

    python benchmarks/blur_levels.py --photos=FOLDER_OR_ZIP --out=blurred --count=1500

Each photograph is cut to a square, reduced to 32 px and blurred once, by a Gaussian of 0, 0.35,
0.7, 1.05 or 1.4 px that is drawn from its name: `blurred/<level>/<name>.png`. Prints how many there
are of each.
"""

import argparse
import hashlib
import zipfile
from pathlib import Path

import cv2
import numpy as np

SIDE, SIGMAS = 32, (0.0, 0.35, 0.7, 1.05, 1.4)  # px


def pictures(place: str):
    """(name, bytes) of every picture of a folder or a .zip, in the order of their names."""
    endings = ('.jpg', '.jpeg', '.png')
    if place.endswith('.zip'):
        with zipfile.ZipFile(place) as archive:
            for name in sorted(archive.namelist()):
                if name.lower().endswith(endings):
                    yield name, archive.read(name)
    else:
        for path in sorted(Path(place).rglob('*')):
            if path.suffix.lower() in endings:
                yield path.relative_to(place).as_posix(), path.read_bytes()


def blurred(image: np.ndarray, level: int) -> np.ndarray:
    """A photograph uint8 [h, w, 3] -> [32, 32, 3], blurred."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    small = cv2.resize(image[top:top + side, left:left + side], (SIDE, SIDE),
                       interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (0, 0), SIGMAS[level]) if level else small


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--photos', required=True)
    parser.add_argument('--out', required=True)
    parser.add_argument('--count', type=int, default=1500)
    args = parser.parse_args(argv)
    counts = [0] * len(SIGMAS)
    for name, data in pictures(args.photos):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is None or min(image.shape[:2]) < SIDE or sum(counts) == args.count:
            continue
        digest = hashlib.blake2b(name.encode('utf-8', 'surrogateescape')).hexdigest()
        level = int(digest[:8], 16) % len(SIGMAS)
        path = Path(args.out) / str(level) / f'{digest[:12]}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), blurred(image, level))
        counts[level] += 1
    print('level  sigma px  pictures')
    for level, count in enumerate(counts):
        print(f'{level:5}  {SIGMAS[level]:8}  {count:8}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
