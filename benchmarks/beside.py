"""A second set beside the data: copies found, and how well the two sets are told apart.

    python benchmarks/beside.py --sketches=omniglot.zip --photos=masks.zip --drawings=emoji.zip

    halves           sketches, and photographs, split at random
    halves, planted  the sketches, with 30 pictures of the first half planted in the second:
                     encoded again, resized, or both
    brighter         half of the photographs, and the other half with grey levels x1.15
    jpeg 50          the same, with the other half encoded again
    same, ...        all photographs beside the same photographs altered: every one is a copy
    drawings         drawings beside photographs

With --splits=20 it only splits each set at random so often, a third and the rest, and counts the
intervals that hold 0.5.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs import common
from input_pipeline import sources
from input_pipeline.curation import two_samples
from input_pipeline.curation.beside import look_beside
from input_pipeline.curation.exploration import Exploration, explore_pictures
from input_pipeline.manifest import Manifest
from input_pipeline.sources import second_set

PLANTED = 30


def jpeg(picture: np.ndarray, quality: int = 50) -> tuple[str, bytes]:
    """Encoded again; with its file ending."""
    return '.jpg', cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def brighter(picture: np.ndarray) -> tuple[str, bytes]:
    """Grey levels x1.15, without loss."""
    return '.png', cv2.imencode('.png', np.clip(picture * 1.15 + 0.5, 0, 255).astype(np.uint8)
                                )[1].tobytes()


def resized(picture: np.ndarray) -> tuple[str, bytes]:
    """Three quarters of the size, as a JPEG of quality 80 or without loss, in turn."""
    small = cv2.resize(picture, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    return jpeg(small, 80) if picture.sum() % 2 else (
        '.png', cv2.imencode('.png', small)[1].tobytes())


def write(manifest: Manifest, rows: np.ndarray, folder: Path, *alter: Callable) -> None:
    """Writes pictures as files, unchanged, or altered by the functions in turn."""
    folder.mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        location = manifest.table['location'][row]
        if alter:
            picture = sources.read_image(manifest.root, location)[..., ::-1]
            ending, data = alter[number % len(alter)](np.ascontiguousarray(picture))
        else:
            ending, data = Path(location).suffix, sources.read_bytes(manifest.root, location)
        (folder / f'{alter[0].__name__ if alter else ""}{row:05}{ending}').write_bytes(data)


@contextlib.contextmanager
def silent(what, unit):
    """No progress bar."""
    yield lambda done, total: None


def explored(manifest: Manifest) -> Exploration:
    """What explore finds out about a set."""
    return explore_pictures(manifest, common.get_config().curate.to_dict(), None, seed=0,
                            cache_dir=None, described=True, progress=silent)


def coverage(name: str, manifest: Manifest, splits: int) -> None:
    """Prints how many of the intervals of random splits hold 0.5."""
    found = explored(manifest)
    group, count = found.duplicates.group, len(manifest)
    group = np.where(group < 0, -1 - np.arange(count), group)
    features = two_samples.inputs_of(found.descriptors, found.statistics)
    told = [two_samples.compare(features, np.random.default_rng(k).permutation(count) < count // 3,
                                group) for k in range(splits)]
    held = sum(one.low <= 0.5 <= one.high for one in told)
    print(f'{name:9} {count:6,} pictures: {held} of {splits} intervals hold 0.5; mean AUC '
          f'{np.mean([one.auc for one in told]):.3f}, width of the intervals '
          f'{np.mean([one.high - one.low for one in told]):.3f}', flush=True)


def look(case: str, first: Path, second: Path) -> None:
    """Prints one line."""
    config = common.get_config()
    since, used = time.perf_counter(), time.process_time()
    one, other = (explored(second_set.load(str(path), config.data.to_dict()))
                  for path in (first, second))
    alone = time.process_time() - used
    found = look_beside(one, other, config.curate.to_dict(), seed=0, progress=silent)
    told, copies = found.told, found.copies
    planted = other.manifest.table['id'].str.contains('^jpeg|^resized|^brighter').to_numpy()
    ids = np.array([*one.manifest.table['id'], ''], object)
    right = np.array([Path(ids[row]).stem == Path(name).stem[-5:]
                      for row, name in zip(copies.of, other.manifest.table['id'])])
    print(f'{case:16} {len(one.manifest):6,} {len(other.manifest):6,}  AUC {told.auc:.3f} '
          f'[{told.low:.3f}, {told.high:.3f}]  copies {(copies.of >= 0).sum():4}, of '
          f'{planted.sum():4} altered {(planted & right).sum():4} by their origin; '
          f'{alone:.0f} + {time.process_time() - used - alone:.0f} s of CPU, '
          f'{time.perf_counter() - since:.0f} s', flush=True)


def main(argv: list[str]) -> None:
    """Prints one line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ('sketches', 'photos', 'drawings'):
        parser.add_argument(f'--{name}', required=True, help='a folder or .zip')
    parser.add_argument('--most', type=int, default=1000, help='pictures of a set, at most')
    parser.add_argument('--splits', type=int, default=0, help='only split at random, so often')
    args = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    kinds = {name: sources.load_source(dict(source='folder', folder=getattr(args, name)))
             for name in ('sketches', 'photos', 'drawings')}
    if args.splits:
        for name, manifest in kinds.items():
            coverage(name, manifest.select(rng.permutation(len(manifest))[:args.most]), args.splits)
        return
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        for name, manifest in kinds.items():
            rows = rng.permutation(len(manifest))[:args.most]
            half = len(rows) // 2
            write(manifest, rows, base / name)
            write(manifest, rows[:half], base / f'{name}_first')
            write(manifest, rows[half:], base / f'{name}_second')
            if name == 'sketches':
                write(manifest, rows[half:], base / 'planted')
                write(manifest, rows[:PLANTED // 2], base / 'planted', jpeg)
                write(manifest, rows[PLANTED // 2:PLANTED], base / 'planted', resized)
            if name == 'photos':
                for alter in (brighter, jpeg):
                    write(manifest, rows, base / f'same_{alter.__name__}', alter)
                    write(manifest, rows[half:], base / f'other_{alter.__name__}', alter)
        look('halves', base / 'sketches_first', base / 'sketches_second')
        look('halves, planted', base / 'sketches_first', base / 'planted')
        look('halves, photos', base / 'photos_first', base / 'photos_second')
        look('brighter', base / 'photos_first', base / 'other_brighter')
        look('jpeg 50', base / 'photos_first', base / 'other_jpeg')
        look('same, brighter', base / 'photos', base / 'same_brighter')
        look('same, jpeg 50', base / 'photos', base / 'same_jpeg')
        look('drawings', base / 'drawings', base / 'photos')


if __name__ == '__main__':
    main(sys.argv[1:])
