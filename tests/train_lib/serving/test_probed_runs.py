"""train_lib.load on probing runs, adapters, and pictures with transparency."""

import json

import cv2
import numpy as np
import pytest

import train_lib
from input_pipeline.errors import DataError
from main import main
from tests.train_lib.probing.test_probing import probe_config
from train_lib.metrics.scores import softmax
from train_lib.probing.run_probe import probe
from train_lib.runtime.errors import ConfigError
from train_lib.training.data import load_data


def stored(path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_the_folds_of_a_probe(tmp_path):
    config = probe_config(tmp_path, **{'probe.views': 0, 'probe.lr': (1e-2,), 'curriculum': (),
                                       'duration': dict(epochs=2)})
    manifest = load_data(config)
    probe(config, manifest, tmp_path / 'run')
    run = train_lib.load(tmp_path / 'run')
    own = stored(tmp_path / 'run/predictions/test.npz')
    place = dict(zip(manifest.table['id'], manifest.table['location']))
    paths = [place[name] for name in own['ids'].tolist()]
    found = run.predict(paths, probabilities=True)
    np.testing.assert_allclose(found[list(run.classes)], softmax(own['logits']), atol=1e-5)
    assert np.ptp(own['logits']) > 1e-3
    assert len(run.models) == 2 and 'probe' in run.config
    features = run.features(paths)  # all folds have the same backbone
    assert features.shape == (len(paths), run.models[1].backbone.num_features)
    logits = [np.asarray(one.head(features)) for one in run.models]
    np.testing.assert_allclose(found[list(run.classes)],
                               (softmax(logits[0]) + softmax(logits[1])) / 2, atol=1e-5)
    with pytest.raises(ConfigError, match=r'2 models, one per fold: use run\.models\.$'):
        _ = run.model
    name = json.loads((tmp_path / 'run/result.json').read_text())['chosen']
    (tmp_path / 'run' / name / 'fold_1/head.safetensors').write_bytes(b'no')
    with pytest.raises(ConfigError, match=r'head\.safetensors cannot be read'):
        train_lib.load(tmp_path / 'run')


@pytest.mark.slow
def test_adapters_and_transparency(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(24):
        image = rng.integers(0, 256, (30, 30, 4), np.uint8)
        image[..., 3] = 255 if number % 2 else image[..., 0]
        path = tmp_path / f'data/{"ab"[number % 2]}/{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    assert main([f'--config=configs/sketch_vit.py:folder={tmp_path / "data"}',
                 '--config.model=dict(name="vit_tiny_patch16_224", patch_size=8, embed_dim=16, '
                 'depth=2, num_heads=2, in_channels=4)', '--config.image.size=16',
                 '--config.finetune.lora.rank=2', '--config.curriculum=()',
                 '--config.duration.epochs=2', '--config.batch_size=8', '--config.ema.decay=0.5',
                 '--config.schedule.lr=0.05', f'--workdir={tmp_path / "run"}']) == 0
    run = train_lib.load(tmp_path / 'run')
    own = stored(tmp_path / 'run/predictions/train.npz')
    size = len(stored(tmp_path / 'run/predictions/val.npz')['ids'])
    paths = [tmp_path / 'data' / name for name in own['ids'].tolist()]
    found = run.predict(paths, probabilities=True, batch_size=size)
    np.testing.assert_array_equal(found[list(run.classes)].to_numpy(),
                                  softmax(own['logits']).astype(np.float32))
    arrays = [cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
              for path in paths]
    np.testing.assert_array_equal(run.predict(arrays, batch_size=size)['probability'],
                                  found['probability'])
    with pytest.raises(DataError, match=r"'images\[0\]' has no transparency"):
        run.predict([arrays[0][..., :3]])
