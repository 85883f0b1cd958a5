"""A workdir as a run leaves it, without a run: for tests of the report."""

import json

import numpy as np

from input_pipeline.manifest import digest, make_manifest
from train_lib.metrics import scores

HOSTILE = ['<script>alert(1)</script>', '"quoted" & \'single\'', '나무', 'a/b<img src=x onerror=y>',
           '{{ 7 * 191 }}', '$x_1$ \\frac']


def run_manifest(heads, n=90):
    rng = np.random.default_rng((3, n))
    split = np.array(['train', 'train', 'val', 'test'])[np.arange(n) % 4]
    columns = {'id': [f'dir/<b>{k}</b>.png' for k in range(n)],
               'location': [f'{k}' for k in range(n)], 'split': split,
               'group': [f'g{k % 7}' for k in range(n)]}
    for name, classes in heads.items():
        columns[f'label/{name}'] = rng.integers(len(classes), size=n)
    return make_manifest(columns, heads)


def noise_image(location):
    rng = np.random.default_rng((4, int(location)))
    return np.repeat(rng.integers(0, 256, (40, 60, 1), np.uint8), 3, axis=2)


def run_workdir(path, manifest, skill=1.5):
    """Predictions, of which many are right if `skill` is above 1, heat maps of all errors, ..."""
    (path / 'predictions').mkdir(parents=True)
    test = manifest.select((manifest.table['split'] == 'test').to_numpy())
    rng = np.random.default_rng((5, len(test)))
    several = len(manifest.heads) > 1
    arrays, result = {'ids': test.table['id'].to_numpy(str)}, {}
    heat = {'ids': arrays['ids'],
            'pictures': rng.integers(0, 256, (len(test), 24, 24, 3), np.uint8),
            'rollout': rng.random((len(test), 3, 3)).astype(np.float16)}
    for head in manifest.heads:
        labels, classes = test.labels(head), manifest.classes[head]
        logits = rng.normal(size=(len(test), len(classes))).astype(np.float32)
        logits[np.arange(len(test)), labels] += skill
        tail = f'/{head}' if several else ''
        arrays.update({f'labels{tail}': labels, f'logits{tail}': logits,
                       f'classes{tail}': np.array(classes)})
        heat[f'class/{head}'] = np.array(classes)[logits.argmax(1)]
        heat[f'CAM/{head}'] = rng.normal(size=(len(test), 3, 3)).astype(np.float16)
        values = scores.scores(logits, labels)
        result = {**result, head: values} if several else values
    np.savez(path / 'predictions/test.npz', **arrays)
    np.savez(path / 'heatmaps.npz', **heat)
    (path / 'config.json').write_text(json.dumps(
        {'seed': 17, 'model': {'name': 'tiny<i>net', 'depth': 3},
         'defaults': {'model.name': 'the<i>usual', 'model.depth': None}, 'data_digest': 'x',
         'curriculum': [{'transforms': []}, {'transforms': [{'name': 'elastic'}]}]}))
    lines = [{'step': k, 'epoch': k / 10, 'split': 'train', 'loss': 2 / k, 'accuracy': 1 - 1 / k,
              'lr': 1e-3 / k, 'stage': int(k > 20)} for k in range(1, 41)]
    lines += [{'step': k, 'epoch': k / 10, 'split': 'val', 'loss': 2 / k, 'accuracy': .5}
              for k in range(10, 41, 10)]
    (path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    (path / 'result.json').write_text(json.dumps({
        'status': 'done', 'val': result, 'test': result, 'steps': 40, 'epochs': 4, 'best_step': 30,
        'seconds': {'step': 60.0, 'data': 20.0, 'total': 100.0}, 'parameters': 12345,
        'device': 'a <u>device', 'code_digest': 'c0de' * 16, 'data_digest': digest(manifest)}))
    return path
