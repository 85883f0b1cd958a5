"""Seconds of KMeans (k from 2 to 8 by silhouette) and DBSCAN (eps from the knee) of many features.

    python benchmarks/curation_clusters.py [--rows=25000] [--width=512]
    python benchmarks/curation_clusters.py --folder=ZIP [--pictures=1000] [--features=WEIGHTS]

The features are 40 clouds of different widths, in which most directions are noise. With --folder:
how well KMeans, with as many clusters as classes, agrees with the classes (adjusted mutual
information, 5 seeds), by the descriptor and by features of a backbone (see backbone_features.py).
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.backbone_features import add_flags, embedder
from input_pipeline import sources
from input_pipeline.curation import clusters
from input_pipeline.descriptors import describe_all


def in_folder(args) -> None:
    """The table of --folder."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score
    manifest = sources.load_source({'source': 'folder', 'folder': args.folder})
    if 0 < args.pictures < len(manifest):
        order = np.random.default_rng(0).permutation(len(manifest))
        manifest = manifest.select(np.sort(order[:args.pictures]))
    truth, embed = manifest.labels('class'), embedder(args)
    kinds = {'descriptor': describe_all(manifest)}
    if embed:
        kinds['features'] = embed(sources.read_image(manifest.root, location)
                                  for location in manifest.table['location'])
    for kind, features in kinds.items():
        found = []
        for seed in range(5):
            points = clusters.reduce(features, seed)
            labels = KMeans(len(np.unique(truth)), n_init=3, random_state=seed).fit_predict(points)
            found.append(adjusted_mutual_info_score(truth, labels))
        print(f'{kind:10} AMI {np.mean(found):.3f}, {min(found):.3f} to {max(found):.3f}  '
              f'({len(truth):,} pictures, {len(np.unique(truth))} classes)', flush=True)


def main(argv: list[str]) -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rows', type=int, default=25_000)
    parser.add_argument('--width', type=int, default=512)
    parser.add_argument('--folder', default='')
    parser.add_argument('--pictures', type=int, default=0, help='so many of them (0: all)')
    add_flags(parser)
    args = parser.parse_args(argv)
    if args.folder:
        return in_folder(args)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, args.width)).astype(np.float32)
    points = centres[rng.integers(40, size=args.rows)]
    points += rng.standard_normal(points.shape).astype(np.float32) * rng.uniform(
        .3, 1, (args.rows, 1)).astype(np.float32)
    print(f'{args.rows:,} x {args.width}: seconds, CPU seconds, clusters')
    for name, function in (('reduce', clusters.reduce), ('kmeans', clusters.kmeans),
                           ('dbscan', clusters.dbscan)):
        begin, used = time.perf_counter(), time.process_time()
        found = function(points)
        count = '' if name == 'reduce' else len(np.unique(found[found >= 0]))
        points = found if name == 'reduce' else points
        print(f'{name:8} {time.perf_counter() - begin:8.1f} {time.process_time() - used:8.1f}  '
              f'{count}', flush=True)
    print(f'peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB')


if __name__ == '__main__':
    main(sys.argv[1:])
