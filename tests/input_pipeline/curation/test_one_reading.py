"""One reading of each file finds what the single passes of curate find."""

import warnings

import cv2
import numpy as np
import pandas as pd

from input_pipeline import descriptors, sources
from input_pipeline.curation import picture_statistics
from input_pipeline.curation.measures import measure
from input_pipeline.curation.one_reading import look_at
from input_pipeline.sources import second_set

DATA = dict(allow_outside=False, zip_encoding='', rules=2)


def written(folder):
    """A large JPEG, a PNG, one of a single pixel, and two of 12 bits."""
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.integers(0, 256, (600, 800, 3)).astype(np.uint8), (0, 0), 5)
    cv2.imwrite(str(folder / 'a.jpg'), smooth)
    cv2.imwrite(str(folder / 'b.png'), smooth[:50, :70])
    cv2.imwrite(str(folder / 'dot.png'), smooth[:1, :1])
    for k in (1, 2):
        cv2.imwrite(str(folder / f'deep{k}.png'),
                    (cv2.cvtColor(smooth[:64, :64], cv2.COLOR_BGR2GRAY).astype(np.uint16) * 8 * k))
    return second_set.load(str(folder), DATA)


def test_all_is_as_the_single_passes_find_it(tmp_path):
    manifest = written(tmp_path)
    for cache in (None, str(tmp_path / 'cache'), str(tmp_path / 'cache')):
        found = look_at(manifest, range16='auto', cache_dir=cache, described=True)
        assert (found.problems == '').all() and found.manifest.range16 == (0, 4095)
        assert '2 pictures have 16 bits per value and use 12 of them' in found.range_note
        expected = measure(found.manifest)
        pd.testing.assert_frame_equal(found.measures.table, expected.table)
        for name in ('hashes', 'thumbs', 'tints'):
            assert (getattr(found.measures, name) == getattr(expected, name)).all()
        assert (found.statistics == picture_statistics.measure(found.manifest)).all()
        assert (found.descriptors == descriptors.describe_all(found.manifest).astype(np.float16)
                ).all()
    assert look_at(manifest, range16='auto', cache_dir=cache).descriptors.shape == (5, 0)


def test_only_16_bit_pictures_are_read_twice(tmp_path, monkeypatch):
    manifest, reads = written(tmp_path), []
    read = sources.read_bytes
    monkeypatch.setattr('input_pipeline.sources.read_bytes',
                        lambda root, location: reads.append(location) or read(root, location))
    look_at(manifest, range16='auto', cache_dir=None, described=True)
    assert sorted(reads) == ['a.jpg', 'b.png', *['deep1.png'] * 2, *['deep2.png'] * 2, 'dot.png']


def test_a_single_pixel_has_finite_statistics():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        values = picture_statistics.statistics(np.full((1, 1, 3), 120, np.uint8)).values()
    assert np.isfinite(list(values)).all()
