"""What the fuzzing draws for each reader of a user's or a disk's bytes, and how it is read.

READERS: name -> (what is drawn, what reads it in a folder).
"""

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save as safetensors

from configs import common
from input_pipeline.curation.decisions import apply_decisions
from input_pipeline.decode import decode
from input_pipeline.diagnosis import problem
from input_pipeline.manifest import digest
from input_pipeline.manifest_files import save as save_manifest
from input_pipeline.readable import check_readable
from input_pipeline.sources import array_records, load_source, read_bytes
from input_pipeline.splits import assign_splits, save_splits
from models.weight_files import open_weights
from tests.faults.attempt import REFUSED, attempt
from tests.faults.fuzz_inputs import CLASSES, manifest_of, picture, pixels, spoiled
from train_lib.commands import command_line
from train_lib.predictions.run_folders import splits_of
from train_lib.predictions.store import open_member
from train_lib.reporting.inputs import read_json, read_metrics, read_predictions
from train_lib.reporting.run_page import write_report
from train_lib.run_dir import workdirs
from train_lib.run_dir.dotted_keys import by_dotted_key
from train_lib.run_dir.overrides import apply_overrides
from train_lib.run_dir.run_config import config_of_run
from train_lib.runtime.sharding import make_mesh
from train_lib.training import checks, setup
from train_lib.training.data import load_manifest, split_data

ROOT = Path(__file__).parents[2]
SPLIT = common.get_config().split.to_dict()

def _literals():
    leaf = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
            | st.sampled_from(['epochs', 'cutmix', 'name', 'head', '.*', (), b'x', ...]))
    tree = st.recursive(leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.text(max_size=5) | st.sampled_from(['epochs', 'a.b', 'items']), inner, max_size=3)
        | st.tuples(inner, inner), max_leaves=5)
    return tree.map(repr)


_PATHS = list(by_dotted_key(common.get_config()))
_TEXTS = st.one_of(
    st.text(st.characters(codec='utf-8'), max_size=12), _literals(),
    st.sampled_from(['', 'None', 'True', '-1', '0', '1e9', 'nan', 'inf', '1e999', '9' * 5000,
                     'dict(epochs=5)', 'dict(**{})', 'dict(a=1,a=2)', '{[]: 1}', '{1, 2}', '1j',
                     '(' * 300, '[' * 5000, '\udcff', 'dict(dict)', '__import__("os")', '1 if 1']))
_SEGMENT = st.sampled_from(sorted({word for path in _PATHS for word in path.split('.')})) | st.text(
    'abc_.[]0129-é ', max_size=6) | st.sampled_from(
    ['items', '__class__', 'keys', 'lock', '[0]', 'epochs', 'steps', '_fields'])
_OVERRIDES = st.lists(st.tuples(
    st.sampled_from(_PATHS) | st.lists(_SEGMENT, min_size=1, max_size=4).map('.'.join)
    | st.tuples(st.sampled_from(_PATHS), _SEGMENT).map('.'.join), _TEXTS), max_size=3)
_CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'configs').rglob('*.py')
                  if path.name != 'common.py'
                  and 'def get_config(' in path.read_text(encoding='utf-8'))


def overrides(folder, drawn):
    command = command_line.parse(['--config=configs/common.py',
                                  *(f'--config.{path}={text}' for path, text in drawn)])
    json.loads(command.config.to_json())


_ARGUMENTS = st.tuples(
    st.sampled_from(_CONFIGS), st.lists(st.tuples(
        st.sampled_from(['data', 'folder', 'csv', 'images', 'tfds', 'packed', 'model', 'size',
                         'recipe', 'fold', 'init', 'members']) | st.text(max_size=5),
        st.sampled_from(['=', '=', '=', '', ':']), _TEXTS.filter(lambda text: '\0' not in text)),
        max_size=3).map(lambda parts: ','.join(map(''.join, parts))))


def arguments(folder, drawn):
    config, arg = drawn
    verb = ('vote' if '/vote/' in config else 'study' if '/studies/' in config else 'train')
    command_line.parse([verb, f'--config={config}:{arg}'])


_CSV = ('image,label,id,group,weight,split\r\n'
        '0.png,ant,a,p,1,train\r\n1.png,bee,b,p,0.5,train\r\n"2.png","café",c,q,2,val\r\n'
        '3.png,ant,d,,1,test\r\n4.png,,e,q,1,val\r\n').encode()


def csv_bytes(folder, drawn):
    (folder / 't.csv').write_bytes(drawn)
    manifest = load_source({'source': 'csv', 'csv': str(folder / 't.csv')})
    digest(manifest)
    assign_splits(manifest, SPLIT, seed=0)


def _saved(name):
    folder = Path(os.environ.get('TMPDIR', '/tmp')) / f'fuzz-{os.getpid()}'
    folder.mkdir(exist_ok=True)
    manifest = manifest_of(group=['p', 'q'] * 6, weight=[1.0, 0.5] * 6,
                           split=['train', 'val', 'test'] * 4)
    try:
        if name == 'split.csv':
            save_splits(manifest, str(folder / name))
        else:
            save_manifest(manifest, str(folder / name))
        return [path.read_bytes() for path in sorted(folder.iterdir())]
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def manifest_csv(folder, drawn):
    for name, data in zip(('m.csv', 'm.csv.json'), drawn):
        (folder / name).write_bytes(data)
    loaded = load_source({'source': 'csv', 'csv': str(folder / 'm.csv'), 'allow_outside': True})
    digest(assign_splits(loaded, SPLIT, seed=0))
    for location in loaded.table['location']:
        attempt(read_bytes, loaded.root, location)


_PARQUET_VALUES = st.lists(st.none() | st.integers() | st.floats() | st.text(max_size=3)
                           | st.binary(max_size=3) | st.lists(st.integers(), max_size=2),
                           min_size=2, max_size=2)


@st.composite
def _odd_parquet(draw):
    import pyarrow as pa
    import pyarrow.parquet
    table = {'id': ['a', 'b'], 'location': ['0.png', '1.png'], 'label/class': [0, 1],
             'group': ['p', 'q'], 'weight': [1.0, 2.0], 'split': ['train', 'val']}
    for name in draw(st.lists(st.sampled_from(sorted(table)), max_size=2)):
        one = draw(_PARQUET_VALUES)
        try:
            table[name] = pa.array(one)
        except (pa.ArrowException, OverflowError):
            table[name] = [None, None]
    about = draw(st.sampled_from(['{}', '[]', '3', '{"classes": 3}', '{"classes": {"class": "ab"}}',
                                  '{"classes": {"class": ["x", "y"]}}', '{"root": 3}', '[' * 9999,
                                  '{"classes": {"class": []}, "root": "a\\u0000"}']))
    rows = pa.table(table).replace_schema_metadata({b'manifest': about.encode()})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(rows, buffer)
    return buffer.getvalue()


def manifest_parquet(folder, drawn):
    (folder / 'm.parquet').write_bytes(drawn)
    loaded = load_source({'source': 'csv', 'csv': str(folder / 'm.parquet')})
    digest(assign_splits(loaded, SPLIT, seed=0))


_DECISIONS = ('id,action,reason,duplicate_group,twin,label,weight,score/x\n'
              '0.png,drop,"a, b",1,1.png,,,0.5\n1.png,keep,,1,,bee,0.5,\n'
              '2.png,review,,,,café,,nan\n').encode()


def decisions(folder, drawn):
    (folder / 'd.csv').write_bytes(drawn)
    digest(apply_decisions(manifest_of(), [str(folder / 'd.csv')]))


_WEIGHTS = safetensors({'fc.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
                        'fc.bias': np.zeros(2, np.float16)})


def weights(folder, drawn):
    (folder / 'w.safetensors').write_bytes(drawn)
    shapes, read, _ = open_weights(folder / 'w.safetensors')
    for key in shapes:
        read(key)


def npz_bytes(compressed, **changed) -> bytes:
    ids = [f'{k}.png' for k in range(12)]
    arrays = dict(ids=np.array(ids), labels=np.arange(12, dtype=np.int32) % 3,
                  logits=np.zeros((12, 3), np.float32), classes=np.array(CLASSES)) | changed
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


@st.composite
def _odd_npz(draw):
    odd = st.sampled_from([
        np.zeros((12, 3)), np.zeros((0, 3)), np.zeros(()), np.full((12, 3), np.nan), np.arange(12),
        np.array(['x'] * 12), np.zeros((12, 3), complex), np.zeros((12, 3), 'M8[s]'),
        np.zeros(12, [('a', 'i4')]), np.full(12, 7), np.full(12, -5), np.array([], str),
        np.zeros((12, 0)), np.array([b'x'] * 3), np.zeros(12, bool)])
    return npz_bytes(True, **draw(st.dictionaries(st.sampled_from(
        ['ids', 'labels', 'logits', 'classes', 'logits/age', 'labels/age', 'classes/age']), odd,
        max_size=3)))


def predictions(folder, drawn):
    (folder / 'predictions').mkdir(exist_ok=True)
    (folder / 'predictions/test.npz').write_bytes(drawn)
    read_predictions(folder)
    open_member(folder / 'predictions/test.npz')


_META = json.dumps(dict(format=1, rows=12, dtype='float16', classes=[['class', CLASSES]], step=3,
                        digest='d', model='small_cnn', rows_done=12)).encode()


def _npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


STORE = {'ids.npy': _npy(np.array([f'{k}.png' for k in range(12)])), 'meta.json': _META,
          'labels.npy': _npy(np.zeros(12, np.int32)), 'logits.npy': _npy(np.zeros((12, 3), 'f2'))}


def store(folder, drawn):
    view = folder / 'predictions/test/identity'
    view.mkdir(parents=True, exist_ok=True)
    for name, data in drawn.items():
        (view / name).write_bytes(data)
    open_member(view)


CONFIG = json.dumps(json.loads(common.get_config().to_json()) | {'data_digest': 'x'}).encode()
RESULT = json.dumps(dict(status='done', best_step=3, test=dict(n=3, accuracy=0.5, loss=1.0),
                          seconds=dict(total=3.0), steps=3)).encode()
METRICS = ''.join(json.dumps(dict(step=k, epoch=k / 2, split=split, loss=1 / (k + 1), stage=0))
                   + '\n' for k in range(4) for split in ('train', 'val')).encode()


@st.composite
def _odd_config(draw):
    """A config whose values are of other types."""
    config = json.loads(CONFIG)
    for path in draw(st.lists(st.sampled_from(_PATHS), max_size=3)):
        node, (*parents, last) = config, path.split('.')
        cut = draw(st.integers(0, len(parents)))
        for name in parents[:cut]:
            node = node[name] if isinstance(node.get(name), dict) else {}
        node[(*parents, last)[cut]] = draw(st.sampled_from(
            [None, 3, 2.5, 'x', [], [1], {}, {'epochs': 1}, True, -1, {'a.b': 1}, {'items': 2}]))
    return json.dumps(config).encode()


def workdir(folder, drawn):
    for name, data in drawn.items():
        (folder / name).write_bytes(data)
    attempt(lambda: [config_of_run(folder)[name].to_dict()
                     for name in ('data', 'split', 'image', 'loss', 'schedule', 'curate')])
    attempt(workdirs.best_step, folder, 3)
    attempt(workdirs.ids, folder)
    attempt(splits_of, folder)
    for name in ('config.json', 'result.json'):
        read_json(folder / name)
    read_metrics(folder / 'metrics.jsonl')


def report(folder, drawn):
    """The page of a run whose files are damaged."""
    (folder / 'predictions').mkdir(exist_ok=True)
    for name, data in drawn.items():
        (folder / name).write_bytes(data)
    manifest = manifest_of(split=['train', 'val', 'test'] * 4)
    write_report(folder, manifest=manifest, read_image=lambda location: pixels())


_SETTINGS = [path for path in _PATHS if path.partition('.')[0] not in (
    'distributed', 'compile_cache', 'lr_find', 'profile', 'curate', 'pack', 'predict', 'study')]
_VALUES = st.sampled_from(
    ['', 'x', 'None', 'True', '-1', '0', '1', '3', '1e9', '1e-9', 'inf', '-0.5', '100000000', '()',
     '(1,)', 'dict(epochs=5)', 'dict(steps=0)', 'dict(percent=300)', '{}', '[{}]',
     "[dict(kind='x')]", "[dict(kind='hflip')]", 'a,b', 'all', 'class', '[[1,2],[3]]',
     "[('.*', dict(lr=1))]", '9' * 21]) | _TEXTS.filter(lambda text: len(text) < 500)


def run_settings(folder, drawn):
    """A run with odd settings, up to its first step."""
    small = [('data.doodles.classes', '3'), ('data.doodles.per_class', '8'), ('batch_size', '4'),
             ('data.doodles.writers', '6'), ('data.doodles.size', '16'), ('image.size', '16'),
             ('model', "dict(name='small_cnn', width=4, stages=1)")]
    config = apply_overrides(apply_overrides(common.get_config(), small), drawn)
    manifest = load_manifest(config)
    mesh = make_mesh(config.mesh)
    checks.check_values(config, mesh.size)
    data = split_data(config, manifest)
    setup.assemble(config, data, mesh, None, folder, abstract=True).iterator.close()


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as file:
        for k in range(3):
            file.writestr(f'{CLASSES[k]}/{k}.png', picture(seed=k))
    return buffer.getvalue()


def archive(folder, drawn):
    path = folder / f'{abs(hash(drawn))}.zip'  # another name, for archives stay open
    path.write_bytes(drawn)
    try:
        manifest = load_source({'source': 'folder', 'folder': str(path)})
        check_readable(manifest, policy='drop', workers=1)
    finally:
        path.unlink()


_PICTURES = [picture('PNG'), picture('JPEG', quality=90), picture('JPEG', progressive=True),
             picture('WEBP'), picture('BMP'), picture('GIF'), picture('WEBP', lossless=True)]


def image(folder, drawn):
    reason = problem(drawn)
    found = attempt(decode, drawn, name='x', min_size=(4, 4))
    # What is called sound is decoded, too.
    assert reason or found is not REFUSED


INDEX = json.dumps(dict(
    kind='packed images', version=1, digest='0', images=3, shard_records=3,
    shards=[dict(name='images-00000.array_record', records=3, bytes=9, sha256='0')],
    manifest=dict(bytes=3, sha256='0'))).encode()


def packed(folder, drawn):
    (folder / 'index.json').write_bytes(drawn)
    array_records.verify(str(folder))


def files(**sound):
    """Each as it is or spoiled."""
    return st.fixed_dictionaries({name: st.just(data) | spoiled(data)
                                  for name, data in sound.items()})


READERS = {
    'overrides': (_OVERRIDES, overrides),
    'arguments': (_ARGUMENTS, arguments),
    'csv': (spoiled(_CSV) | st.binary(max_size=60), csv_bytes),
    'manifest_csv': (st.tuples(*map(spoiled, _saved('m.csv'))), manifest_csv),
    'manifest_parquet': (spoiled(_saved('m.parquet')[0]) | _odd_parquet(), manifest_parquet),
    'decisions': (spoiled(_DECISIONS), decisions),
    'weights': (spoiled(_WEIGHTS), weights),
    'predictions': (spoiled(npz_bytes(True)) | spoiled(npz_bytes(False)) | _odd_npz(), predictions),
    'store': (files(**STORE), store),
    'workdir': (files(**{'result.json': RESULT, 'metrics.jsonl': METRICS,
                         'split.csv': _saved('split.csv')[0]}).flatmap(
        lambda rest: (spoiled(CONFIG) | _odd_config()).map(
            lambda config: rest | {'config.json': config})), workdir),
    'report': (files(**{'config.json': CONFIG, 'result.json': RESULT, 'metrics.jsonl': METRICS,
                        'predictions/test.npz': npz_bytes(False)}), report),
    'settings': (st.tuples(st.sampled_from(_SETTINGS), _VALUES).map(lambda one: [one]),
                 run_settings),
    'archive': (spoiled(zip_bytes()), archive),
    'image': (st.sampled_from(_PICTURES).flatmap(spoiled), image),
    'packed': (spoiled(INDEX), packed),
}
