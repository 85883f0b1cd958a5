"""Reading .npz files: what was written, or one sentence."""

import io
import zipfile

import numpy as np
import pytest

from train_lib.run_dir.npz import read_npz, write_npz


def test_what_was_written_comes_back(tmp_path):
    ids = np.array([f'{k}.png' for k in range(100_000)])  # packed well, and no bomb
    np.savez_compressed(tmp_path / 'x.npz', ids=ids, labels=np.zeros(100_000, np.int64))
    found = read_npz(tmp_path / 'x.npz')
    assert list(found) == ['ids', 'labels'] and (found['ids'] == ids).all()


def test_small_files_have_the_bytes_of_numpy_and_large_noise_is_not_packed(tmp_path):
    rng = np.random.default_rng(0)
    small = dict(ids=np.array(['나', 'b']), labels=np.array([1, -1]), logits=rng.random((2, 3)),
                 none=np.zeros((0, 3), np.float32))
    ours, theirs = io.BytesIO(), io.BytesIO()
    write_npz(ours, small)
    np.savez_compressed(theirs, **small)
    assert ours.getvalue() == theirs.getvalue()
    large = dict(logits=rng.normal(size=(5000, 1000)).astype(np.float32),
                 zeros=np.zeros((5000, 1000), np.float32))
    with open(tmp_path / 'x.npz', 'wb') as file:
        write_npz(file, large)
    with zipfile.ZipFile(tmp_path / 'x.npz') as archive:
        kinds = {one.filename: one.compress_type for one in archive.infolist()}
    assert kinds == {'logits.npy': zipfile.ZIP_STORED, 'zeros.npy': zipfile.ZIP_DEFLATED}
    np.testing.assert_array_equal(read_npz(tmp_path / 'x.npz')['logits'], large['logits'])


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
