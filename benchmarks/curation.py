"""Planted near duplicates: how many are found, and how many of the found pairs are true.

    python benchmarks/curation.py                                  # doodles, 48 classes x 80
    python benchmarks/curation.py --folder=sketches.zip
    python benchmarks/curation.py --folder=photos.zip --pictures=1000 --sheet=unplanted.png
    python benchmarks/curation.py --hashes=100000                  # all pairs of random hashes
    python benchmarks/curation.py --folder=photos.zip --pictures=700 --features=WEIGHTS

With --features (see backbone_features.py) three columns: as curate does it, with nearest neighbours
by these features among the candidates (config.curate.features), and by the cosine of the features
alone, at the least threshold whose pairs have the precision of the first column.

Pictures of a folder may have duplicates of their own, which count as wrong here: `--sheet` draws
the pairs that were not planted, so that a person can judge them.
"""

import argparse
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.backbone_features import add_flags, embedder
from input_pipeline import sources
from input_pipeline.curation.duplicates import find_duplicates
from input_pipeline.curation.hashes import near_pairs, position
from input_pipeline.curation.measures import Measures
from input_pipeline.curation.picture_measures import NUMBERS, WORDS, measure_picture


def crop(share: float):
    """Cuts the share off height and width, at a random place, and scales back."""
    def alter(picture, rng):
        height, width = picture.shape[:2]
        down, across = max(1, round(height * share)), max(1, round(width * share))
        top, left = rng.integers(down + 1), rng.integers(across + 1)
        part = picture[top:height - down + top, left:width - across + left]
        return cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)
    return alter


def jpeg(quality: int):
    """Encodes again."""
    def alter(picture, rng):
        data = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return cv2.imdecode(data, cv2.IMREAD_COLOR)
    return alter


def brighter(factor: float):
    """Multiplies the grey levels."""
    return lambda picture, rng: np.clip(picture * factor + 0.5, 0, 255).astype(np.uint8)


def chain(*steps):
    """One alteration after another."""
    def alter(picture, rng):
        for step in steps:
            picture = step(picture, rng)
        return picture
    return alter


mirror = lambda picture, rng: np.ascontiguousarray(picture[:, ::-1])
ALTERATIONS = {
    'jpeg 50': jpeg(50), 'brightness x1.2': brighter(1.2), 'brightness x0.8': brighter(0.8),
    'crop 3 %': crop(0.03), 'crop 10 %': crop(0.1), 'mirrored': mirror,
    'mirrored, jpeg 50': chain(mirror, jpeg(50)), 'mirrored, crop 3 %': chain(mirror, crop(0.03)),
    'turned by 90': lambda picture, rng: np.ascontiguousarray(np.rot90(picture)),
    'half the size': lambda picture, rng: cv2.resize(picture, None, fx=0.5, fy=0.5,
                                                     interpolation=cv2.INTER_AREA),
}


def planted(args) -> tuple[Measures, np.ndarray, list[str], float, np.ndarray | None]:
    """Measures of the pictures and their copies, the row that each is a copy of (or itself),
    the alterations of the copies, the seconds per picture that measuring took on one core, and
    features of all, or None."""
    data = (dict(source='folder', folder=args.folder) if args.folder else
            dict(source='doodles', doodles=dict(per_class=args.per_class)))
    manifest = sources.load_source(data, seed=args.seed)
    rng = np.random.default_rng(args.seed)
    if 0 < args.pictures < len(manifest):
        manifest = manifest.select(np.sort(rng.permutation(len(manifest))[:args.pictures]))
    locations, count = manifest.table['location'].tolist(), len(manifest)
    copied = rng.permutation(count)[:round(args.share * count)]
    kinds = [list(ALTERATIONS)[k % len(ALTERATIONS)] for k in range(len(copied))]

    def picture(k):
        if k < count:
            return sources.read_image(manifest.root, locations[k])
        original = sources.read_image(manifest.root, locations[copied[k - count]])
        return ALTERATIONS[kinds[k - count]](original, np.random.default_rng((args.seed, k)))

    def row(k):
        return measure_picture(picture(k))

    since = time.process_time()
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(row, range(count + len(copied))))
    seconds = (time.process_time() - since) / len(rows)
    table = pd.DataFrame([row.numbers for row in rows], columns=list(NUMBERS))
    table[list(WORDS)] = [row.words for row in rows]
    measures = Measures(table, np.stack([row.hashes for row in rows]),
                        np.stack([row.thumb for row in rows]), np.stack([row.tint for row in rows]))
    embed = embedder(args)
    features = embed and embed(map(picture, range(len(rows))))
    return measures, np.concatenate([np.arange(count), copied]), kinds, seconds, features


def by_cosine(features: np.ndarray, origin: np.ndarray, precision: float) -> np.ndarray:
    """bool [N, N]: the pairs whose cosine reaches the least threshold at which this share of them
    is planted; features float [N, D], origin int [N]."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    first, second = np.triu_indices(len(unit), 1)
    values = cosines[first, second]
    order = np.argsort(-values)
    true = (origin[first] == origin[second])[order]
    enough = np.flatnonzero(np.cumsum(true) / np.arange(1, len(true) + 1) >= precision)
    return cosines >= (values[order[enough[-1]]] if len(enough) else np.inf)


def compare(measures: Measures, origin: np.ndarray, kinds: list[str], features: np.ndarray) -> None:
    """Prints the table of --features."""
    copies, kind = np.arange(len(origin))[-len(kinds):], np.array(kinds)
    hits, precisions = [], []
    for given in (None, features):
        found = find_duplicates(measures, features=given)
        hits.append((found.group[copies] >= 0) & (
            found.group[copies] == found.group[origin[copies]]))
        pairs = found.pairs[['first', 'second']].to_numpy(int)
        precisions.append((origin[pairs[:, 0]] == origin[pairs[:, 1]]).mean())
    near = by_cosine(features, origin, precisions[0])
    hits.append(near[copies, origin[copies]])
    pairs = np.stack(np.nonzero(np.triu(near, 1)), 1)
    precisions.append((origin[pairs[:, 0]] == origin[pairs[:, 1]]).mean() if len(pairs) else 1.0)
    print(f'{"recall":20} {"curate":>8} {"and features":>13} {"cosine":>8}     n')
    for name in (*ALTERATIONS, 'all'):
        rows = kind == name if name != 'all' else np.ones(len(kind), bool)
        print(f'{name:20} ' + ' '.join(f'{hit[rows].mean():{width}.3f}' for hit, width in
                                       zip(hits, (8, 13, 8))) + f' {rows.sum():5}')
    print(f'{"precision":20} ' + ' '.join(f'{one:{width}.3f}' for one, width in
                                          zip(precisions, (8, 13, 8))))


def all_pairs(count: int) -> None:
    """Times all pairs of random hashes in all eight positions."""
    hashes = np.random.default_rng(0).integers(0, 2**63, (count, 8)).astype(np.uint64)
    since, used = time.perf_counter(), time.process_time()
    found = near_pairs(hashes, 10)
    took, used = time.perf_counter() - since, time.process_time() - used
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f'all pairs of {count:,} hashes in 8 positions: {took:.1f} s, {used:.1f} s of one core, '
          f'peak memory {memory:.2f} GiB, {len(found[0])} near')


def main(argv: list[str]) -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--folder', default='', help='pictures of a folder or .zip, not doodles')
    parser.add_argument('--per_class', type=int, default=80, help='doodles per class')
    parser.add_argument('--pictures', type=int, default=0, help='so many of them (0: all)')
    parser.add_argument('--share', type=float, default=0.3, help='of the pictures, copied')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--sheet', default='', help='PNG of found pairs that were not planted')
    parser.add_argument('--hashes', type=int, default=0, help='only time all pairs of so many')
    add_flags(parser)
    args = parser.parse_args(argv)
    if args.hashes:
        return all_pairs(args.hashes)
    measures, origin, kinds, seconds, features = planted(args)
    if features is not None:
        return compare(measures, origin, kinds, features)
    copies = np.arange(len(origin))[-len(kinds):]
    since, used = time.perf_counter(), time.process_time()
    found = find_duplicates(measures)
    took, used = time.perf_counter() - since, time.process_time() - used
    group = found.group
    hit = (group[copies] >= 0) & (group[copies] == group[origin[copies]])
    for kind in ALTERATIONS:
        of_kind = np.array([one == kind for one in kinds])
        print(f'{kind:20} recall {hit[of_kind].mean():.3f}  (n {of_kind.sum()})')
    pairs = found.pairs
    true = origin[pairs['first'].to_numpy(int)] == origin[pairs['second'].to_numpy(int)]
    print(f'{"all":20} recall {hit.mean():.3f}  precision {true.mean():.4f}  ({len(pairs)} pairs, '
          f'{(~true).sum()} not planted, {(~true & (pairs["kind"] == "near")).sum()} of them near)')
    print(f'{len(origin):,} pictures: measured in {1e3 * seconds:.1f} ms of one core each, '
          f'compared in {took:.1f} s, {used:.1f} s of one core')
    if args.sheet:
        wrong = pairs[~true & (pairs['kind'] == 'near')].sort_values('correlation')
        tiles = [np.vstack([measures.thumbs[pair.first],
                            position(measures.thumbs[pair.second], pair.position)])
                 for pair in wrong.itertuples()]
        tiles += [np.full((128, 64), 128, np.uint8)] * (-len(tiles) % 16)
        if tiles:
            cv2.imwrite(args.sheet, np.vstack([np.hstack(tiles[k:k + 16])
                                               for k in range(0, len(tiles), 16)]))


if __name__ == '__main__':
    main(sys.argv[1:])
