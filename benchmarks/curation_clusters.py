"""Seconds of KMeans (k from 2 to 8 by silhouette) and DBSCAN (eps from the knee) of many features.

    python benchmarks/curation_clusters.py [--rows=25000] [--width=512]

The features are 40 clouds of different widths, in which most directions are noise.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from input_pipeline.curation import clusters


def main(argv: list[str]) -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rows', type=int, default=25_000)
    parser.add_argument('--width', type=int, default=512)
    args = parser.parse_args(argv)
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
