"""Data through the command line: made, packed, and either it works or it is refused."""

import io
import os
import re
import struct
import tempfile
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

import main

SECONDS = 20  # by which any answer is there
MEGABYTES = 400  # that an answer may take


def picture(seed=0, kind='PNG', size=8) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def png(width: int, height: int, data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    made = b'\x89PNG\r\n\x1a\n'
    for name, content in ((b'IHDR', header), *chunks, (b'IDAT', data), (b'IEND', b'')):
        made += struct.pack('>I', len(content)) + name + content
        made += struct.pack('>I', zlib.crc32(name + content))
    return made


def call(capfd, *argv) -> tuple[int, str]:
    """(exit code, stderr) of main.py; the answer is there in time and without much memory."""
    Path('/proc/self/clear_refs').write_text('5')  # the peak of the memory starts anew
    before, start = memory('VmRSS'), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        code = main.main([str(word) for word in argv])
    assert time.perf_counter() - start < SECONDS
    assert memory('VmHWM') - before < MEGABYTES
    return code, capfd.readouterr().err


def memory(what: str) -> float:
    return int(re.search(rf'{what}:\s+(\d+)', Path('/proc/self/status').read_text())[1]) / 1024


def pack(capfd, source: str, *overrides) -> tuple[int, str]:
    """Every picture read, and its bytes written, by the verb pack."""
    folder = tempfile.mkdtemp(dir=os.environ['XDG_CACHE_HOME'].removesuffix('cache'))
    return call(capfd, 'pack', f'--config=configs/sketch_cnn.py:{source}',
                f'--config.pack.folder={folder}/packed', *overrides)


def works(capfd, source, images, *overrides):
    code, text = pack(capfd, source, *overrides)
    assert code == 0 and f'packed   {images} images' in text, text


def refused(capfd, source, words, *overrides):
    code, text = pack(capfd, source, *overrides)
    assert code == 2 and 'Traceback' not in text, text
    last = text.strip().splitlines()[-1]
    assert last.startswith('main.py: ') and re.search(words, last), text
    assert len([line for line in text.splitlines() if 'main.py: ' in line]) == 1
