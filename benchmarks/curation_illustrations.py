"""`main.py curate` on real illustrations: what it finds, and what it throws away by mistake.

    python benchmarks/curation_illustrations.py --illustrations=ZIP --photos=ZIP [--seeds=3]
        [--photographs=44,53] [--plant=40]

Both are folders of classes, or zip archives of such folders; every drawing is taken for good, since
variants of one drawing (mirrored, turned, of another colour) differ on purpose. For each seed the
program runs on

- the drawings with so many photographs, without marks: photographs dropped, drawings dropped, and
  how many of the photographs that are not dropped stand in to_mark.csv;
- the drawings alone: how many have a variant among them, and how many are dropped;
- the drawings with planted copies (the same bytes; re-encoded as JPEG, WebP and PNG; half the size)
  and planted variants (mirrored, turned, of another colour): how many share the group of their
  original, how many are dropped, and whether of every drawing one picture is left. Nothing is
  planted from drawings that have a variant already: the mirror image of one may be a copy of
  another.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from input_pipeline import sources
from input_pipeline.manifest import Manifest

ROOT = Path(__file__).parents[1]


def encoded(kind: str, picture: np.ndarray) -> bytes:
    """RGB uint8 [H, W, 3] as a file of this kind, such as '.jpg'."""
    options = {'.jpg': [cv2.IMWRITE_JPEG_QUALITY, 80], '.webp': [cv2.IMWRITE_WEBP_QUALITY, 80]}
    return cv2.imencode(kind, np.ascontiguousarray(picture[..., ::-1]),
                        options.get(kind, []))[1].tobytes()


def hue_turned(picture: np.ndarray) -> np.ndarray:
    """The picture with its hues turned by 120 degrees."""
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + 60) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def half(picture: np.ndarray) -> np.ndarray:
    """Half the size."""
    return cv2.resize(picture, None, fx=.5, fy=.5, interpolation=cv2.INTER_AREA)


# name: (the ending of the file, what is done to the picture); None for the same bytes
COPIES = {'bytes': None, 'jpeg 80': ('.jpg', lambda p: p), 'webp 80': ('.webp', lambda p: p),
          'png': ('.png', lambda p: p), 'half the size': ('.png', half)}
VARIANTS = {'mirrored': ('.png', lambda p: p[:, ::-1]),
            'turned 90': ('.png', lambda p: np.rot90(p)),
            'other colour': ('.png', hue_turned)}


def visible(kind: str, picture: np.ndarray) -> bool:
    """Whether a variant differs: a grey picture has no other hue, and symmetric ones no mirror."""
    altered = VARIANTS[kind][1](picture)
    if altered.shape != picture.shape:
        return True
    small = [cv2.resize(np.ascontiguousarray(one), (32, 32), interpolation=cv2.INTER_AREA)
             for one in (picture, altered)]
    return np.abs(small[0].astype(float) - small[1]).mean() > 6


def write_all(manifest: Manifest, rows, folder: Path, prefix: str = '') -> list[str]:
    """Writes these files into a folder for each class, and returns their ids."""
    ids = []
    for row in rows:
        name = manifest.table['id'][row]
        path = folder / (f'{prefix}/{Path(name).name}' if prefix else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sources.read_bytes(manifest.root, manifest.table['location'][row]))
        ids.append(str(path.relative_to(folder)))
    return ids


def curated(folder: Path, out: Path, *flags: str) -> tuple[pd.DataFrame, list[str]]:
    """(decisions by id, ids of to_mark.csv) of the program, run on a folder."""
    subprocess.run([sys.executable, str(ROOT / 'main.py'), 'curate',
                    f'--config=configs/illustration_resnet.py:folder={folder}',
                    f'--workdir={out}', *flags], cwd=ROOT, check=True, capture_output=True)
    table = pd.read_csv(out / 'decisions.csv', na_filter=False).set_index('id')
    marks = out / 'to_mark.csv'
    return table, pd.read_csv(marks)['id'].tolist() if marks.exists() else []


def mixed(drawings: Manifest, photos: Manifest, count: int, seed: int, base: Path) -> str:
    """One line: the drawings with photographs in the classes of the drawings."""
    rng = np.random.default_rng(seed)
    folder = base / f'mix_{seed}_{count}'
    drawn = write_all(drawings, range(len(drawings)), folder)
    classes = sorted({Path(name).parts[0] for name in drawn})
    added = []
    for row in rng.permutation(len(photos))[:count]:
        added += write_all(photos, [row], folder, f'{classes[rng.integers(len(classes))]}')
    # No flag drops: black-and-white drawings would go because the config wants colours.
    table, to_mark = curated(folder, base / f'out_{seed}_{count}',
                             '--config.curate.quality_drop=()')
    action = table['action']
    missed = [name for name in added if action[name] != 'drop']
    return (f'{seed:4} {count:6} {count - len(missed):8} {(action[drawn] == "drop").sum():8} '
            f'{(action[drawn] == "review").sum():9} {len(missed):8} '
            f'{len(set(missed) & set(to_mark)):9}')


def lone(drawings: Manifest, base: Path) -> np.ndarray:
    """Rows of the drawings that are in no group; prints a line about the others."""
    drawn = write_all(drawings, range(len(drawings)), base / 'alone')
    table, _ = curated(base / 'alone', base / 'out_alone', '--config.curate.detectors=duplicates,')
    grouped = table['duplicate_group'] != ''
    print(f'\n{grouped.sum()} drawings are alike to others by themselves, '
          f'{(table["action"] == "drop").sum()} of them dropped')
    return np.flatnonzero(~grouped[drawn])


def planted(drawings: Manifest, rows: np.ndarray, each: int, seed: int, base: Path) -> list[str]:
    """The lines about copies and variants of drawings of these rows."""
    rng = np.random.default_rng((seed, 1))
    folder = base / f'plant_{seed}'
    drawn = write_all(drawings, range(len(drawings)), folder)
    order, origin, kinds = iter(rng.permutation(rows)), {}, {}
    for kind, how in (COPIES | VARIANTS).items():
        left = each
        while left:
            row = next(order)
            picture = sources.read_image(drawings.root, drawings.table['location'][row])
            if kind in VARIANTS and not visible(kind, picture):
                continue
            source = folder / drawn[row]
            ending = how[0] if how else source.suffix
            path = source.with_name(f'{source.stem}_{kind.replace(" ", "_")}{ending}')
            path.write_bytes(encoded(ending, how[1](picture)) if how else source.read_bytes())
            name = str(path.relative_to(folder))
            origin[name], kinds[name] = drawn[row], kind
            left -= 1
    table, _ = curated(folder, base / f'planted_{seed}', '--config.curate.detectors=duplicates,')
    group, kept = table['duplicate_group'], table['action'] != 'drop'
    lines = []
    for kind in COPIES | VARIANTS:
        names = [name for name in origin if kinds[name] == kind]
        together = sum(group[name] != '' and group[name] == group[origin[name]] for name in names)
        dropped = sum(not kept[name] or not kept[origin[name]] for name in names)
        lines.append(f'{seed:4} {kind:14} {len(names):6} {together:8} {dropped:8}')
    copies = {name: one for name, one in origin.items() if kinds[name] in COPIES}
    alive = {copies.get(name, name) for name in table.index[kept]}
    lines.append(f'{seed:4} drawings of which no picture is left: {len(set(drawn) - alive)} of '
                 f'{len(drawn)}')
    return lines


def main(argv: list[str]) -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--illustrations', required=True)
    parser.add_argument('--photos', required=True)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--photographs', default='44,53')
    parser.add_argument('--plant', type=int, default=40, help='pictures of each kind')
    args = parser.parse_args(argv)
    drawings, photos = (sources.load_source(dict(source='folder', folder=path))
                        for path in (args.illustrations, args.photos))
    with tempfile.TemporaryDirectory() as base:
        print(f'{len(drawings):,} drawings with photographs, no marks\n'
              'seed photos  dropped  wrongly  reviewed   missed  to_mark', flush=True)
        for count in map(int, filter(None, args.photographs.split(','))):
            for seed in range(args.seeds):
                print(mixed(drawings, photos, count, seed, Path(base)), flush=True)
        rows = lone(drawings, Path(base))
        print('\nplanted copies and variants: how many share a group, and of how many one of the '
              'two is dropped\nseed kind           number  grouped  dropped', flush=True)
        for seed in range(args.seeds):
            print('\n'.join(planted(drawings, rows, args.plant, seed, Path(base))), flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
