"""A Python package with weights, as pip leaves it, and its line in the table."""

import hashlib
from pathlib import Path

import pytest

from models.weight_packages import Package


def distribution(folder: Path, content: bytes, model: str, tag: str, stages=(1, 2)) -> Package:
    """Writes it; importing it would end the program."""
    info = folder / 'fake_weights-0.3.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: fake-weights\nVersion: 0.3\n')
    (folder / 'fake_weights').mkdir()
    (folder / 'fake_weights/__init__.py').write_text('raise SystemExit("it was imported")\n')
    (folder / 'fake_weights/weights.pth').write_bytes(content)
    return Package(model, tag, 'fake-weights', '0.3', 'fake_weights/weights.pth',
                   hashlib.sha256(content).hexdigest(), stages)


def tabled(patch: pytest.MonkeyPatch, *packages: Package) -> None:
    """Lets these be all the packages that are known."""
    table = {package.model: package for package in packages}
    for place in ('models.weight_places', 'models.tags', 'train_lib.training.init_pretrained'):
        patch.setattr(f'{place}.packages', lambda: table)
