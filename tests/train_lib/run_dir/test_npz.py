"""Reading .npz files: what was written, or one sentence."""

import zipfile

import numpy as np
import pytest

from train_lib.run_dir.npz import read_npz


def test_what_was_written_comes_back(tmp_path):
    ids = np.array([f'{k}.png' for k in range(100_000)])  # packed well, and no bomb
    np.savez_compressed(tmp_path / 'x.npz', ids=ids, labels=np.zeros(100_000, np.int64))
    found = read_npz(tmp_path / 'x.npz')
    assert list(found) == ['ids', 'labels'] and (found['ids'] == ids).all()


@pytest.mark.parametrize('harm, words', [
    ('text', 'pickled'), ('cut', 'zip'), ('flipped', 'CRC|decompress'), ('object', 'pickle'),
    ('array', 'not an .npz'), ('bomb', r'would unpack .* to 536,871,040')])
def test_what_is_refused(tmp_path, harm, words):
    path = tmp_path / 'x.npz'
    if harm == 'object':
        np.savez(path, x=np.array([{}]))
    elif harm == 'bomb':
        np.savez_compressed(path, x=np.zeros(2**29, np.uint8))
        assert path.stat().st_size < 2**20
    else:
        np.savez_compressed(path, x=np.random.default_rng(0).random(1000))
        with zipfile.ZipFile(path) as archive:
            middle = archive.getinfo('x.npy').compress_size // 2
        data = path.read_bytes()
        if harm == 'array':
            np.save(tmp_path / 'x.npy', np.zeros(3))
        path.write_bytes({
            'text': b'no', 'cut': data[:-30], 'array': b'',
            'flipped': data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1:]}[harm]
            or (tmp_path / 'x.npy').read_bytes())
    with pytest.raises(ValueError, match=words):
        read_npz(path)


def test_a_missing_one_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / 'x.npz')
