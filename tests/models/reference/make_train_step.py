"""Writes train_<model>.npz: one training step as torch and timm compute it, in float64.

    python tests/models/reference/make_train_step.py

Weights from the recipe with seed 0, a batch of eight images, training mode without dropout, mean
cross-entropy, one step of SGD without momentum. For each parameter and running statistic the file
holds the sum, the L2 norm and eight entries of its change.
"""

import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER.parents[2])]
from timm_reference import by_recipe  # noqa: E402

MODELS: dict[str, dict] = {  # name: its settings, which are timm's too
    'resnet18': {}, 'efficientnet_b0': {},
    'vit_tiny_patch16_dinov3_qkvb': dict(num_classes=1000, img_size=64, depth=2),
    'beit_base_patch16_224': dict(img_size=64, depth=1, embed_dim=192, num_heads=3),
}
LEARNING_RATE = 0.01


def batch() -> tuple[np.ndarray, np.ndarray]:
    """(images float32 [8, 3, 64, 64], labels int [8])"""
    images = np.random.default_rng(1).standard_normal((8, 3, 64, 64)).astype(np.float32)
    return images, np.arange(8) * 100 % 1000


def digest(value: np.ndarray) -> np.ndarray:
    """Ten numbers: the sum and the norm of an array, and eight entries from first to last."""
    flat = np.asarray(value, np.float64).ravel()
    entries = flat[np.linspace(0, flat.size - 1, 8).astype(int)]
    return np.concatenate([[flat.sum(), np.linalg.norm(flat)], entries])


def step(name: str, dtype: str = 'float64'):
    """(loss, logits in training mode, {key: change of that tensor})"""
    import timm
    import torch
    model = timm.create_model(name, drop_rate=0.0, drop_path_rate=0.0, **MODELS[name])
    model.load_state_dict({key: torch.from_numpy(np.asarray(by_recipe(key, list(value.shape), 0)))
                           for key, value in model.state_dict().items()})
    model.to(getattr(torch, dtype)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images, labels = map(torch.from_numpy, batch())
    logits = model(images.to(getattr(torch, dtype)))
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=LEARNING_RATE).step()
    added = {key: (value - before[key]).numpy() for key, value in model.state_dict().items()
             if not key.endswith('num_batches_tracked')}
    return loss.item(), logits.detach().numpy(), added


def main():
    for name in MODELS:
        loss, logits, added = step(name)
        path = FOLDER / f'train_{name}.npz'
        np.savez_compressed(path, loss=loss, logits=logits.astype(np.float32), keys=list(added),
                            digests=np.float32([digest(value) for value in added.values()]))
        print(f'{path.name}: {path.stat().st_size} bytes, loss {loss:.6f}')


if __name__ == '__main__':
    main()
