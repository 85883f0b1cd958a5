"""Random input to whatever reads what a user wrote or a disk kept.

Only the exceptions that main.py turns into one sentence may come out, within seconds and a
gigabyte. The short form draws the same examples each time; `pytest -m faults` draws FUZZ_EXAMPLES
(2,000) new ones for each reader.
"""

import io
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.faults.attempt import REFUSED, at_most_a_gigabyte_more, attempt
from tests.faults.fuzz_readers import (
    CONFIG,
    INDEX,
    METRICS,
    READERS,
    RESULT,
    STORE,
    npz_bytes,
    zip_bytes,
)


def _parquet(**columns) -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame({'id': ['a', 'b'], 'location': ['x', 'y'], 'label/class': [0, 1], **columns}
                 ).to_parquet(buffer)
    return buffer.getvalue()


_DEEP = b'[' * 99_999
_SOUND = {'config.json': CONFIG, 'result.json': RESULT, 'metrics.jsonl': METRICS}
# What once came out as a traceback, or went in without a word: tried first, in both forms.
FOUND = {
    'overrides': [[('model', f'dict(name={text})')] for text in (
        '{[]: 1}', '{1, 2}', '1j', '1, name=2', '**{}', '(' * 300, '9' * 5000, "b'x'")]
    + [[('schedule.lr', 'nan')], [('mesh.data', '9' * 5000)],
       [('curriculum[' + '9' * 5000 + ']', '1')], [('model', '{"a.b": 1}')], [('a\nb', '1')]],
    'arguments': [('configs/sketch_cnn.py', f'data={"9" * 5000}')],
    'csv': [b'image,label\n0.png,1\n1.png,nan\n', 'image,label\n'.encode('utf-16-le')],
    'manifest_csv': [(b'id,location,label/class\na,packed:x,0\n', b'{}'),
                     (b'id,location,label/class\na,tfds:x,0\n', _DEEP),
                     (b'id,location\na,b\n', b'[]')],
    'manifest_parquet': [_parquet(id=['a', '\u00b3']).replace('\u00b3'.encode(), b'\xb3\xb3'),
                         _parquet(id=[b'\x80', b'a']), _parquet(location=['a', None]),
                         _parquet(**{'label/class': [1.0, float('nan')]}),
                         _parquet(**{'label/class': [1.0, 2.0**63]}),
                         _parquet(**{'label/class': [[1], [2]]}), _parquet(weight=[1.0, None])],
    'predictions': [npz_bytes(True, labels=np.full(12, 7)),
                    npz_bytes(True, logits=np.full((12, 3), np.nan)),
                    npz_bytes(True, classes=np.arange(3)), npz_bytes(True, ids=np.arange(12))],
    'store': [STORE | {'meta.json': text} for text in (b'[]', b'{}', _DEEP)],
    'workdir': [_SOUND | {'split.csv': b'', **more} for more in (
        {'config.json': _DEEP}, {'config.json': b'[]'}, {'config.json': b'{"split": 3}'},
        {'config.json': b'{"split": {"folds": "x"}}'}, {'config.json': b'{"a.b": 1}'},
        {'result.json': b'[]'}, {'split.csv': b'id,split\na,dev\n'}, {'split.csv': b'x,y\n1,2\n'},
        {'metrics.jsonl': _DEEP})],
    'settings': [[pair] for pair in (
        ('seed', '9' * 21), ('image.mean', '(1, 2)'), ('curriculum', '0.5'), ('mixing', '[1]'),
        ('split.seed', '0.5'), ('data.separate', '(1,)'), ('resample.length', '9' * 21),
        ('sharding.rules', '1e-9'), ('data.decisions', '[{}]'), ('data.doodles.heads', '[{}]'))],
    'archive': [
        zip_bytes().replace(b'0.png', b'\xff.png').replace('café'.encode(), b'caf\xff\xff')],
    'packed': [b'{"kind": "packed images", "version": 1}', b'[]', _DEEP,
               INDEX.replace(b'images-00000', b'../../x')],
}
PARTLY = ('manifest_csv', 'manifest_parquet', 'workdir')  # in these some are read after all
SLOW = {'report': 8, 'settings': 4}  # of these so many times fewer


def fuzz(name, folder, examples, **options):
    drawn, reader = READERS[name]

    @settings(max_examples=examples, deadline=None, database=None, print_blob=False,
              suppress_health_check=list(HealthCheck), **options)
    @given(drawn)
    def run(one):
        with at_most_a_gigabyte_more():
            attempt(reader, folder, one)

    for one in FOUND.get(name, ()):
        with at_most_a_gigabyte_more():
            assert attempt(reader, folder, one) is REFUSED or name in PARTLY, one
    run()


@pytest.mark.parametrize('name', READERS)
def test_only_sentences_come_out(name, tmp_path):
    fuzz(name, tmp_path, 25 // SLOW.get(name, 1), derandomize=True, phases=[Phase.generate])


@pytest.mark.faults
@pytest.mark.parametrize('name', READERS)
def test_only_sentences_come_out_of_many(name, tmp_path):
    fuzz(name, tmp_path, int(os.environ.get('FUZZ_EXAMPLES', '2000')) // SLOW.get(name, 1))
