"""Sound inputs for the fuzzing, and how they are spoiled."""

import io

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from input_pipeline.manifest import make_manifest

CLASSES = ('ant', 'bee', 'café')
TOKENS = [b'', b'\0', b'\n', b'\r', b',', b';', b'"', b'\xff\xfe', b'\xef\xbb\xbf', b'-1', b'nan',
          b'inf', b'1e999', b'99999999999999999999', b'../', b'/etc/passwd', b'null', b'true',
          b'{}', b'[]', b'[' * 2000, b'"x"', b'0', b'\xc3', b'\xff' * 8, b'doodles:', b'zip:',
          b'packed:1', 'e\u0301'.encode(), b'<script>', b'keep', b'<f8', b'|O', b'(1, -1)']


@st.composite
def spoiled(draw, sound: bytes):
    """The bytes with a few edits: flipped, cut, inserted, deleted, doubled."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(('flip', 'insert', 'replace', 'delete', 'double', 'cut')))
        size = draw(st.integers(1, 12))
        if kind == 'flip' and at < len(data):
           data[at] ^= draw(st.integers(1, 255))
        elif kind == 'insert':
           data[at:at] = draw(st.sampled_from(TOKENS) | st.binary(max_size=12))
        elif kind == 'replace':
           data[at:at + size] = draw(st.sampled_from(TOKENS))
        elif kind == 'delete':
           del data[at:at + size]
        elif kind == 'double':
           data[at:at] = data[at:at + 8 * size]
        elif kind == 'cut' and draw(st.booleans()):
           del data[at:]
    return bytes(data)


def pixels(size=9, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def picture(kind='PNG', seed=0, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed=seed)).save(buffer, kind, **options)
    return buffer.getvalue()


def manifest_of(count=12, **columns):
    return make_manifest(
        {'id': [f'{k}.png' for k in range(count)], 'location': [f'{k}.png' for k in range(count)],
         'label/class': np.arange(count) % 3, **columns}, {'class': CLASSES})
