"""Fine-tuning the same published weights here and with timm: accuracy at equal epochs, and time.

    python benchmarks/fine_tuning.py --peer=PYTHON --weights=FILE.safetensors --set=illustrations \
        --data=illustrations.zip --px=128 --epochs=16 --seeds=0,1,2 --out=fine_tuning.jsonl

PYTHON is an interpreter with torch, timm and OpenCV; FILE has the weights of
tf_efficientnet_lite0.in1k under timm's names. Both sides get the same split (the test is
sha1(path) % 5 == 0 in archives of folders, and drawers 17 to 20 of `sketches`), the same recipe
(AdamW 1e-3, one cycle, batch 32, label smoothing .1; turns of up to 0.2 rad, scale, shift and,
but for sketches, flips), all weights train, and the last weights count. They run in turns, and the
order changes from seed to seed. The side of timm keeps decoded pictures of the right size in
memory and warps them by one call of OpenCV in its own process, which is little work. A side's time
per epoch is the median over the epochs after the first, between two evaluations.
"""

import argparse
import csv
import hashlib
import io
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DRAWER = re.compile(r'_(\d+)\.png$')
PICTURES = ('.png', '.jpg', '.jpeg', '.webp')
TURN, SCALE, SHIFT = 11.5, 1.15, 0.08  # degrees, factor, share of a side


def sides_of(archive: str, drawn: bool) -> dict[str, str]:
    """'train' or 'test' of every picture of an archive, by its path."""
    names = [name for name in zipfile.ZipFile(archive).namelist()
             if name.lower().endswith(PICTURES)]

    def tests(name: str) -> bool:
        if drawn:
            return int(DRAWER.search(name)[1]) > 16
        return int(hashlib.sha1(name.encode()).hexdigest(), 16) % 5 == 0
    return {name: 'test' if tests(name) else 'train' for name in sorted(names)}


def train_ours(args: argparse.Namespace, seed: int, workdir: Path) -> dict:
    """Trains by main.py and returns accuracy, macro F1 and seconds per epoch."""
    split = workdir.with_suffix('.csv')
    split.parent.mkdir(parents=True, exist_ok=True)
    with open(split, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['id', 'split'])
        writer.writerows(sides_of(args.data, args.set == 'sketches').items())
    flips = '' if args.set == 'sketches' else "'hflip',"
    stage = (f"dict(transforms=[{flips}dict(kind='rotate',degrees={TURN}),"
             f"dict(kind='scale',factor={SCALE}),dict(kind='shift',share={SHIFT})])")
    values = {
        'data.source': 'folder', 'data.folder': args.data, 'split.kind': 'given',
        'split.file': split, 'split.val': 0.0, 'split.grouped': False, 'seed': seed,
        'model.name': args.model, 'init.pretrained': args.weights or '',
        'image.size': args.px, 'image.resize': 'squash', 'image.interpolation': 'area',
        'batch_size': 32, 'duration.epochs': args.epochs, 'schedule.name': 'one_cycle',
        'schedule.lr': 1e-3, 'schedule.warmup.percent': 0, 'optimizer.weight_decay': 0.05,
        'loss.label_smoothing': 0.1, 'log.tensorboard': False, 'log.every': 'dict(epochs=1)',
        'checkpoint.every': f'dict(epochs={args.epochs})', 'report.heat_maps': False,
        'curriculum': f'({stage},)'}
    command = [sys.executable, ROOT / 'main.py', '--config=configs/common.py',
               f'--workdir={workdir}',
               *(f'--config.{key}={value}' for key, value in values.items())]
    ends = []  # of the epochs: one line each
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, env=os.environ | {'JAX_PLATFORMS': 'cpu'}) as process:
        for line in process.stdout:
            if line.startswith('step '):
                ends.append(time.perf_counter())
            said = line
    if process.returncode:
        sys.exit(f'main.py ended with {process.returncode}: {said}')
    result = json.loads((workdir / 'result.json').read_text())
    return dict(accuracy=result['test']['accuracy'], f1=result['test']['f1_macro'],
                n=result['test']['n'],
                epoch_s=statistics.median(b - a for a, b in itertools.pairwise(ends)))


def train_timm(args: argparse.Namespace, seed: int) -> dict:
    """Trains with timm in this process and returns accuracy, macro F1 and seconds per epoch."""
    import cv2
    import numpy as np
    import safetensors.torch
    import timm
    import torch
    from PIL import Image
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    drawn = args.set == 'sketches'
    sides = sides_of(args.data, drawn)
    archive = zipfile.ZipFile(args.data)
    label_of = {name: name.rpartition('/')[0] for name in sides}
    classes = sorted(set(label_of.values()))

    def picture(name: str) -> np.ndarray:
        found = Image.open(io.BytesIO(archive.read(name)))
        if found.mode in ('RGBA', 'LA', 'P'):
            found = found.convert('RGBA')
            paper = Image.new('RGBA', found.size, 'white')
            found = Image.alpha_composite(paper, found)
        return cv2.resize(np.asarray(found.convert('RGB')), (args.px,) * 2,
                          interpolation=cv2.INTER_AREA)

    data = {}
    for side in ('train', 'test'):
        names = [name for name in sides if sides[name] == side]
        data[side] = (np.stack([picture(name) for name in names]),
                      torch.tensor([classes.index(label_of[name]) for name in names]))
    model = timm.create_model(args.model, num_classes=len(classes))
    if args.weights:
        weights = safetensors.torch.load_file(args.weights)
        missing = model.load_state_dict({key: value for key, value in weights.items()
                                         if not key.startswith('classifier.')}, strict=False)
        assert {key.split('.')[0] for key in missing.missing_keys} == {'classifier'}
    mean, std = (torch.tensor(model.default_cfg[key]).view(1, 3, 1, 1) for key in ('mean', 'std'))

    def batch(pictures: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
        return (x.float() / 255 - mean) / std

    def warped(image: np.ndarray) -> np.ndarray:
        turn = rng.uniform(-TURN, TURN)
        scale = SCALE ** rng.uniform(-1, 1)
        matrix = cv2.getRotationMatrix2D(((args.px - 1) / 2,) * 2, turn, scale)
        matrix[:, 2] += rng.uniform(-SHIFT, SHIFT, 2) * args.px
        if not drawn and rng.random() < 0.5:
            image = image[:, ::-1]
        return cv2.warpAffine(image, matrix, (args.px,) * 2, flags=cv2.INTER_LINEAR,
                              borderMode=cv2.BORDER_REPLICATE)

    pictures, labels = data['train']
    count = -(-len(pictures) // 32)  # the last batch is filled from the beginning, as ours is
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([dict(params=decayed, weight_decay=0.05),
                                   dict(params=others, weight_decay=0.0)], lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3,
                                                   total_steps=args.epochs * count)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    model.train()
    seconds = []
    for _ in range(args.epochs):
        begin = time.perf_counter()
        order = rng.permutation(len(pictures))
        for step in range(count):
            rows = np.take(order, range(step * 32, step * 32 + 32), mode='wrap')
            loss = loss_of(model(batch(np.stack([warped(pictures[row]) for row in rows]))),
                           labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        seconds.append(time.perf_counter() - begin)
    model.eval()
    pictures, labels = data['test']
    with torch.no_grad():
        found = torch.cat([model(batch(pictures[i:i + 64])).argmax(1)
                           for i in range(0, len(pictures), 64)])
    from sklearn.metrics import f1_score
    return dict(accuracy=(found == labels).float().mean().item(), n=len(labels),
                f1=float(f1_score(labels, found, average='macro')),
                epoch_s=statistics.median(seconds[1:] or seconds))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--peer', default='', help='Python with torch and timm')
    parser.add_argument('--model', default='tf_efficientnet_lite0')
    parser.add_argument('--weights', default='', help="'' for random weights")
    parser.add_argument('--set', choices=('illustrations', 'masks', 'sketches'), required=True)
    parser.add_argument('--data', required=True)
    parser.add_argument('--px', type=int, default=128)
    parser.add_argument('--epochs', type=int, default=16)
    parser.add_argument('--seeds', default='0')
    parser.add_argument('--out', default='fine_tuning.jsonl')
    parser.add_argument('--workdirs', default='runs/fine_tuning')
    parser.add_argument('--timm-seed', type=int, help='run the side of timm, in this process')
    args = parser.parse_args()
    if args.timm_seed is not None:
        print(json.dumps(train_timm(args, args.timm_seed)))
        return
    for seed in map(int, args.seeds.split(',')):
        for side in ('ours', 'timm')[::1 if seed % 2 == 0 else -1]:
            begin = time.perf_counter()
            if side == 'ours':
                workdir = ROOT / args.workdirs / f'{args.set}_{args.px}_{seed}'
                found = train_ours(args, seed, workdir)
            else:
                said = subprocess.run(
                    [args.peer, __file__, *sys.argv[1:], f'--timm-seed={seed}'], check=True,
                    stdout=subprocess.PIPE, text=True).stdout
                found = json.loads(said.splitlines()[-1])
            line = dict(set=args.set, px=args.px, epochs=args.epochs, seed=seed, side=side,
                        weights=bool(args.weights), **found,
                        whole_s=round(time.perf_counter() - begin, 1))
            print(line)
            with open(args.out, 'a') as file:
                file.write(json.dumps(line) + '\n')


if __name__ == '__main__':
    main()
