"""Photographs among drawings: what the detector finds, against the truth, over several seeds.

    python benchmarks/curation_photographs.py --photos=PHOTOS [--sketches=SKETCHES]
        [--drawings=1200] [--shares=0,0.05] [--seeds=3] [--kinds=sketches] [--grey]
        [--features=WEIGHTS]

PHOTOS and SKETCHES are folders of classes, or zip archives of such folders. The drawings are
doodles, SKETCHES, and illustrations that `illustration` draws: flat and graded areas, outlines, cel
shading, airbrush, hatching, grain, hair and text-like strokes, as JPEG or PNG. Printed is the F1 of
the photographs by statistics alone; by KMeans and DBSCAN of the statistics; and with 20 marked
pictures, on those that are not marked: 10 photographs and 10 drawings at random, or the 20 nearest
the border, which `main.py curate` writes to to_mark.csv. A share of 0 shows how many drawings
are dropped wrongly. --grey takes the colours from the photographs. With --features (see
backbone_features.py) the regressions and the clusters use features of a backbone instead of the
descriptor and the statistics; the first column is then what config.curate.features=model gives.
AUC: of the probability by statistics, mean of the seeds.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from sklearn.metrics import f1_score, roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.backbone_features import add_flags, embedder
from input_pipeline import sources
from input_pipeline.curation import clusters, photographs
from input_pipeline.curation.picture_statistics import SIDE, statistics
from input_pipeline.decode import UnreadableImage
from input_pipeline.descriptors import describe

SUPER = 2  # drawn so many times larger, for smooth edges


def illustration(seed: int, number: int) -> np.ndarray:
    """Illustration `number`: uint8 [H, W, 3], RGB, 120 to 360 pixels a side."""
    rng = np.random.default_rng((seed, 0x11A5, number))
    height, width = rng.integers(120, 361, 2)
    canvas = _background(rng, height * SUPER, width * SUPER)
    palette = _palette(rng)
    outline = (0, 0, 0) if rng.random() < .5 else tuple(int(v) for v in rng.integers(0, 90, 3))
    thick = 0 if rng.random() < .25 else int(rng.integers(2, 7))
    soft = rng.random() < .3  # an illustrator with an airbrush
    for _ in range(rng.integers(4, 22)):
        points = _outline_points(rng, *canvas.shape[:2])
        _fill(rng, canvas, points, palette[rng.integers(len(palette))], soft)
        if thick:
            cv2.polylines(canvas, [points], True, outline, thick, cv2.LINE_AA)
    for _ in range(rng.integers(0, 5)):
        _hair(rng, canvas, palette[rng.integers(len(palette))])
    if rng.random() < .35:
        _letters(rng, canvas)
    if rng.random() < .2:
        _paper(rng, canvas)
    if rng.random() < .12:
        canvas[:] = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)[..., None]
    image = cv2.resize(canvas, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    if rng.random() < .7:
        _, data = cv2.imencode('.jpg', image[..., ::-1],
                               [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(55, 97))])
        image = np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
    return image


def _palette(rng) -> np.ndarray:
    """Five to nine colours, some muted, some loud, [K, 3]."""
    count = rng.integers(5, 10)
    hue = (rng.integers(180) + rng.integers(-60, 61, count)) % 180
    loud = rng.uniform(20, 255, count) if rng.random() < .7 else rng.uniform(0, 90, count)
    hsv = np.stack([hue, loud, rng.uniform(60, 256, count)], 1).astype(np.uint8)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0].astype(int)


def _grade(rng, height: int, width: int, first, second) -> np.ndarray:
    """A linear or radial gradient between two colours, float32 [H, W, 3]."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    if rng.random() < .5:
        angle = rng.uniform(0, 2 * np.pi)
        at = np.cos(angle) * x / width + np.sin(angle) * y / height
    else:
        at = np.hypot(x / width - rng.random(), y / height - rng.random())
    at = ((at - at.min()) / max(np.ptp(at), 1e-6)).astype(np.float32)[..., None]
    return np.asarray(first, np.float32) * (1 - at) + np.asarray(second, np.float32) * at


def _background(rng, height: int, width: int) -> np.ndarray:
    palette = _palette(rng)
    kind = rng.choice(['white', 'flat', 'grade', 'stripes', 'dots', 'scene'],
                      p=[.25, .2, .25, .08, .07, .15])
    if kind == 'white':
        return np.full((height, width, 3), 255, np.uint8)
    if kind == 'grade':
        return _grade(rng, height, width, palette[0], palette[1]).astype(np.uint8)
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = palette[0]
    step = int(rng.integers(16, 60))
    if kind == 'stripes':
        for at in range(-height, width, 2 * step):
            cv2.line(canvas, (at, 0), (at + height, height), palette[1].tolist(), step,
                     cv2.LINE_AA)
    elif kind == 'dots':
        for top in range(0, height, step):
            for left in range(0, width, step):
                cv2.circle(canvas, (left, top), step // 4, palette[1].tolist(), -1, cv2.LINE_AA)
    elif kind == 'scene':  # sky, hills, a sun
        canvas[:] = _grade(rng, height, width, palette[0], palette[1]).astype(np.uint8)
        cv2.circle(canvas, tuple(int(v * rng.random()) for v in (width, height)),
                   int(height * rng.uniform(.05, .15)), palette[2].tolist(), -1, cv2.LINE_AA)
        x = np.linspace(0, 1, 40)
        for layer in range(3):
            y = .5 + .15 * layer + .08 * np.sin(2 * np.pi * (rng.uniform(.5, 3) * x + rng.random()))
            hill = np.stack([x * width, y * height], 1)
            hill = np.concatenate([hill, [[width, height], [0, height]]]).astype(np.int32)
            cv2.fillPoly(canvas, [hill], palette[3 % len(palette) + layer % 2].tolist(),
                         cv2.LINE_AA)
    return canvas


def _outline_points(rng, height: int, width: int) -> np.ndarray:
    """A polygon, an ellipse or a smooth blob, int32 [K, 2]."""
    center = rng.random(2) * (width, height)
    radius = rng.uniform(.04, .35) * min(height, width)
    if rng.random() < .3:
        angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        r = radius * rng.uniform(.6, 1.2, len(angle))
    else:
        angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        waves = [rng.uniform(0, .35 / k) * np.cos(k * angle + rng.uniform(0, 6)) for k in (2, 3, 5)]
        r = radius * (1 + sum(waves))
    points = np.stack([np.cos(angle), np.sin(angle) * rng.uniform(.5, 1.4)], 1) * r[:, None]
    return (center + points).astype(np.int32)


def _fill(rng, canvas: np.ndarray, points: np.ndarray, color: np.ndarray, soft: bool) -> None:
    mask = np.zeros(canvas.shape[:2], np.uint8)
    cv2.fillPoly(mask, [points], 255, cv2.LINE_AA)
    box = cv2.boundingRect(mask)
    if not box[2]:
        return
    part = np.s_[box[1]:box[1] + box[3], box[0]:box[0] + box[2]]
    tone = np.clip(color * rng.uniform(.55, .85), 0, 255)
    kind = rng.random()
    if soft or kind < .25:
        paint = _grade(rng, box[3], box[2], color, tone)
    else:
        paint = np.empty((box[3], box[2], 3), np.float32)
        paint[:] = color
        if kind < .6:  # cel shading: a darker second tone, cut hard
            cut = np.zeros((box[3], box[2]), np.uint8)
            cv2.ellipse(cut, (int(box[2] * .7), int(box[3] * .7)),
                        (max(1, box[2] // 2), max(1, box[3] // 2)), 0, 0, 360, 255, -1, cv2.LINE_AA)
            paint += (cut[..., None] / 255.0) * (tone - color)
        elif kind < .72:  # hatching
            for at in range(-box[3], box[2], int(rng.integers(6, 16))):
                cv2.line(paint, (at, 0), (at + box[3], box[3]), tone.tolist(), 2, cv2.LINE_AA)
    cover = mask[part][..., None] / 255.0
    canvas[part] = np.clip(canvas[part] * (1 - cover) + paint * cover, 0, 255).astype(np.uint8)


def _hair(rng, canvas: np.ndarray, color: np.ndarray) -> None:
    """A bundle of curved strokes."""
    height, width = canvas.shape[:2]
    start, bend = rng.random(2) * (width, height), rng.uniform(-.4, .4, 2) * (width, height)
    t = np.linspace(0, 1, 20)[:, None]
    for _ in range(rng.integers(5, 40)):
        end = start + bend + rng.normal(0, .08, 2) * (width, height)
        middle = (start + end) / 2 + rng.normal(0, .1, 2) * (width, height)
        line = start * (1 - t) ** 2 + 2 * middle * t * (1 - t) + end * t ** 2
        shade = np.clip(color * rng.uniform(.7, 1.2), 0, 255).tolist()
        cv2.polylines(canvas, [line.astype(np.int32)], False, shade, int(rng.integers(1, 4)),
                      cv2.LINE_AA)


def _letters(rng, canvas: np.ndarray) -> None:
    """Lines of text-like strokes."""
    height, width = canvas.shape[:2]
    size, color = int(rng.integers(10, 34)), rng.integers(0, 256, 3).tolist()
    top, left = rng.integers(0, max(height - size, 1)), rng.integers(0, width // 2)
    for row in range(rng.integers(1, 4)):
        for x in range(left, width - size, int(size * 1.2)):
            glyph = (rng.random((rng.integers(2, 5), 2)) * size
                     + (x, top + row * size * 1.6)).astype(np.int32)
            cv2.polylines(canvas, [glyph], False, color, max(1, size // 8), cv2.LINE_AA)


def _paper(rng, canvas: np.ndarray) -> None:
    """The grain of paper or of a brush, over everything."""
    noise = rng.normal(0, rng.uniform(2, 9), canvas.shape[:2]).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), rng.uniform(.6, 3)) * 2
    canvas[:] = np.clip(canvas + noise[..., None], 0, 255).astype(np.uint8)


def described(pictures, embed=None) -> tuple[np.ndarray, np.ndarray]:
    """(statistics, descriptors) of pictures; with `embed`, features in place of descriptors"""
    if embed:
        pictures = list(pictures)
        values = np.array([list(statistics(picture).values()) for picture in pictures], np.float32)
        return values, embed(pictures)
    both = [(list(statistics(picture).values()), describe(picture)) for picture in pictures]
    return tuple(np.array(part, np.float32) for part in zip(*both))


def of_source(path: str, count: int, **doodles):
    """Up to `count` pictures of a folder or zip, or of the doodles."""
    kind = dict(source='folder', folder=path) if path else dict(source='doodles', doodles=doodles)
    manifest = sources.load_source(kind)
    for row in np.random.default_rng(0).permutation(len(manifest))[:count]:
        try:
            yield sources.read_image(manifest.root, manifest.table['location'][row], (SIDE, SIDE))
        except UnreadableImage:
            continue


def scores(drawings, photos, share: float, seed: int, by_features: bool = False) -> list[float]:
    """F1 by: statistics, KMeans, DBSCAN, 20 marks at random, the 20 nearest the border marked; and
    the AUC of the statistics."""
    rng = np.random.default_rng(seed)
    count, drawn = round(share * len(drawings[0])), len(drawings[0])
    chosen = rng.permutation(len(photos[0]))[:count]
    values, features = (np.concatenate([a, b[chosen]]) for a, b in zip(drawings, photos))
    truth = np.arange(drawn + count) >= drawn

    def f1(odd, but=()):
        rows = np.setdiff1d(np.arange(len(truth)), but)
        found = odd[rows] > .5
        return f1_score(truth[rows], found) if count else float(found.sum())

    def marked(rows):
        marks = {int(row): bool(truth[row]) for row in rows}
        return f1(photographs.photographs(values, features=features, marks=marks, seed=seed), rows)

    alone = photographs.photographs(values, features=features, seed=seed)
    area = roc_auc_score(truth, alone) if count else np.nan
    points = clusters.reduce(features if by_features else photographs.inputs_of(values), seed)
    found = [f1(alone)] + [f1(photographs.of_clusters(values, cluster)) for cluster in
                           (clusters.kmeans(points, seed=seed), clusters.dbscan(points))]
    if count < 20:
        return [*found, np.nan, np.nan, area]
    some = np.concatenate([rng.permutation(drawn)[:10], drawn + rng.permutation(count)[:10]])
    judged = photographs.to_finding(alone, wanted='drawings', drop=.5, review=.3)
    return [*found, marked(some), marked(photographs.to_mark(judged, 20, .5)), area]


def main(argv: list[str]) -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--photos', required=True)
    parser.add_argument('--sketches', default='')
    parser.add_argument('--drawings', type=int, default=1200)
    parser.add_argument('--shares', default='0,0.05')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--kinds', default='', help='of drawings, between commas (all)')
    parser.add_argument('--grey', action='store_true', help='photographs without colours')
    add_flags(parser)
    args = parser.parse_args(argv)
    embed = embedder(args)
    shown = of_source(args.photos, args.drawings)
    if args.grey:
        shown = (np.repeat(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY)[..., None], 3, 2) for one in shown)
    photos = described(shown, embed)
    kinds = {'doodles': of_source('', args.drawings, per_class=-(-args.drawings // 48)),
             'illustrations': (illustration(0, number) for number in range(args.drawings))}
    if args.sketches:
        kinds['sketches'] = of_source(args.sketches, args.drawings)
    print('F1, mean and least of the seeds (share 0: drawings dropped)')
    print('drawings       share     statistics         kmeans         dbscan  20 at random  '
          '20 at border    AUC')
    for kind in filter(None, args.kinds.split(',') if args.kinds else kinds):
        drawings = described(kinds[kind], embed)
        for share in map(float, args.shares.split(',')):
            rows = np.array([scores(drawings, photos, share, seed, bool(embed))
                             for seed in range(args.seeds)])
            cells = ['' if np.isnan(row).any() else f'{row.mean():.3f} {row.min():.3f}'
                     for row in rows.T[:-1]]
            print(f'{kind:14} {share:5.3f}  ' + '  '.join(f'{cell:>13}' for cell in cells)
                  + ('' if np.isnan(rows[:, -1]).any() else f'  {rows[:, -1].mean():.4f}'),
                  flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
