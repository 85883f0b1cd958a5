import base64
import html.parser
import json
import re
import time
import warnings

import cv2
import numpy as np
import pytest

from input_pipeline.manifest import digest, make_manifest
from train_lib import scores
from train_lib.reporting import figures, gallery
from train_lib.reporting.inputs import Head, flatten, read_metrics, read_predictions
from train_lib.reporting.report import write_report

HOSTILE = ['<script>alert(1)</script>', '"quoted" & \'single\'', '나무', 'a/b<img src=x onerror=y>',
           '{{ 7 * 191 }}', '$x_1$ \\frac']
SECTIONS = ('Scores', 'Learning curves', 'Classes and errors', 'Data', 'Time', 'Settings')


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page, and whether its tags nest."""

    VOID = ('meta', 'img', 'br', 'wbr', 'hr', 'link', 'path')

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open, self.attributes = [], [], [], []
        self.feed(text)
        self.text = ' '.join(' '.join(self.text).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or '') for name, value in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or '') for name, value in attributes]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, f'{tag} does not nest at {self.getpos()}'

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ('style', 'script'):
            self.text.append(data)


def _manifest(heads, n=90):
    rng = np.random.default_rng((3, n))
    split = np.array(['train', 'train', 'val', 'test'])[np.arange(n) % 4]
    columns = {'id': [f'dir/<b>{k}</b>.png' for k in range(n)],
               'location': [f'{k}' for k in range(n)], 'split': split,
               'group': [f'g{k % 7}' for k in range(n)]}
    for name, classes in heads.items():
        columns[f'label/{name}'] = rng.integers(len(classes), size=n)
    return make_manifest(columns, heads)


def _read_image(location):
    rng = np.random.default_rng((4, int(location)))
    return np.repeat(rng.integers(0, 256, (40, 60, 1), np.uint8), 3, axis=2)


def _workdir(path, manifest, skill=1.5):
    (path / 'predictions').mkdir(parents=True)
    test = manifest.select((manifest.table['split'] == 'test').to_numpy())
    rng = np.random.default_rng((5, len(test)))
    several = len(manifest.heads) > 1
    arrays, result = {'ids': test.table['id'].to_numpy(str)}, {}
    for head in manifest.heads:
        labels, classes = test.labels(head), manifest.classes[head]
        logits = rng.normal(size=(len(test), len(classes))).astype(np.float32)
        logits[np.arange(len(test)), labels] += skill
        tail = f'/{head}' if several else ''
        arrays.update({f'labels{tail}': labels, f'logits{tail}': logits,
                       f'classes{tail}': np.array(classes)})
        values = scores.scores(logits, labels)
        result = {**result, head: values} if several else values
    np.savez(path / 'predictions/test.npz', **arrays)
    (path / 'config.json').write_text(json.dumps(
        {'seed': 17, 'model': {'name': 'tiny<i>net', 'depth': 3},
         'curriculum': [{'transforms': []}, {'transforms': [{'name': 'elastic'}]}]}))
    lines = [{'step': k, 'epoch': k / 10, 'split': 'train', 'loss': 2 / k, 'accuracy': 1 - 1 / k,
              'lr': 1e-3 / k, 'stage': int(k > 20)} for k in range(1, 41)]
    lines += [{'step': k, 'epoch': k / 10, 'split': 'val', 'loss': 2 / k, 'accuracy': .5}
              for k in range(10, 41, 10)]
    (path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    (path / 'result.json').write_text(json.dumps({
        'status': 'done', 'val': result, 'test': result, 'steps': 40, 'epochs': 4, 'best_step': 30,
        'seconds': {'step': 60.0, 'data': 20.0, 'total': 100.0}, 'parameters': 12345,
        'device': 'a <u>device', 'data_digest': digest(manifest)}))
    return path


@pytest.fixture(autouse=True)
def _strict():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
    manifest = _manifest({'class': tuple(HOSTILE)})
    path = _workdir(tmp_path_factory.mktemp('run') / 'run', manifest)
    report = write_report(path, manifest=manifest, read_image=_read_image, title='<em>T</em>')
    return report.read_text('utf-8'), path


def test_sections_and_numbers(hostile):
    text, path = hostile
    page = Page(text)
    assert not page.open
    assert path.joinpath('report.html').is_file()
    for section in SECTIONS:
        assert f'>{section}</h2>' in text
    result = json.loads((path / 'result.json').read_text())
    for value in (result['test']['accuracy'], result['test']['f1_macro'], result['test']['ece']):
        assert f'{value:.3f}' in page.text
    for words in ('Hardest classes', 'Easiest classes', 'Most confused pairs', 'Calibration',
                  'stage 0', 'elastic', '12,345', '1 min 40 s', 'other', '17', 'n = 22', 'depth',
                  digest(_manifest({'class': tuple(HOSTILE)}))):
        assert words in page.text, words
    assert page.tags.count('svg') == 4  # loss, accuracy, learning rate, reliability
    assert 'missing' not in page.text


def test_hostile_names_stay_text(hostile):
    text, _ = hostile
    page = Page(text)
    assert page.tags.count('script') == 1
    assert not {'em', 'b', 'u'} & set(page.tags)
    assert {tag for tag, name, _ in page.attributes if name.startswith('on')} == set()
    assert all(value.startswith('data:image/') for _, name, value in page.attributes
               if name == 'src')
    for name in HOSTILE:
        assert name.replace('/', '/ ') in page.text.replace('/ ', '/').replace('/', '/ '), name
    assert '1337' not in page.text
    assert '<em>T</em>' in page.text


def test_needs_nothing_else(hostile):
    text, _ = hostile
    assert not re.search(r'(src|href|srcset|action|data|poster)\s*=\s*["\']?\s*(https?:)?//', text)
    assert not re.search(r'@import|@font-face|<link|<iframe|<object|fetch\(|XMLHttp', text)
    assert '://' not in re.sub(r'data:image/\w+;base64,[\w+/=]+', '', text)
    assert all(name.startswith('data:') for name in re.findall(r'url\(["\']?([^)#]\S*?)\)', text))
    for anchor in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text):
        assert f'id="{anchor[0] or anchor[1]}"' in text


def test_light_dark_and_phone(hostile):
    text, _ = hostile
    assert 'prefers-color-scheme: dark' in text
    assert 'name="viewport"' in text
    assert not re.search(r'#0[1-5]0[1-5]0[1-5]', text)  # a stand-in that was not replaced
    assert 'var(--accent)' in re.search(r'<svg.*?</svg>', text, re.S)[0]


def test_same_input_same_report(hostile, tmp_path):
    manifest = _manifest({'class': tuple(HOSTILE)})
    path = _workdir(tmp_path / 'run', manifest)
    report = write_report(path, manifest=manifest, read_image=_read_image, title='<em>T</em>')
    assert report.read_text('utf-8') == hostile[0]
    assert [p.name for p in path.glob('report*')] == ['report.html']


@pytest.mark.parametrize('name, words', [
    ('config.json', 'config.json is missing'),
    ('metrics.jsonl', 'metrics.jsonl is missing'),
    ('result.json', 'result.json is missing'),
    ('predictions/test.npz', 'predictions/test.npz and val.npz are missing'),
])
def test_a_missing_file_is_said(tmp_path, name, words):
    manifest = _manifest({'class': ('a', 'b', 'c')})
    path = _workdir(tmp_path / 'run', manifest)
    (path / name).unlink()
    page = Page(write_report(path, manifest=manifest, read_image=_read_image).read_text('utf-8'))
    assert not page.open
    assert words in page.text


def test_damaged_files_are_said(tmp_path):
    manifest = _manifest({'class': ('a', 'b', 'c')})
    path = _workdir(tmp_path / 'run', manifest)
    names = ('config.json', 'metrics.jsonl', 'result.json', 'predictions/test.npz')
    for name in names:
        (path / name).write_bytes(b'{"broken')
    page = Page(write_report(path, manifest=manifest, read_image=_read_image).read_text('utf-8'))
    for name in names:
        assert re.search(rf'{name} could not be|of {name} could not be', page.text), name


@pytest.mark.parametrize('change, words', [
    (lambda a: a.update(logits=a['logits'] * np.nan), 'not finite'),
    (lambda a: a.update(logits=a['logits'][:, :2]), 'classes'),
    (lambda a: a.update(labels=a['labels'][:-1]), 'ids'),
    (lambda a: a.pop('classes'), 'classes'),
    (lambda a: a.update(ids=a['ids'].astype(object)), 'allow_pickle=False'),
])
def test_predictions_that_do_not_fit_are_said(tmp_path, change, words):
    path = _workdir(tmp_path / 'run', _manifest({'class': ('a', 'b', 'c')}))
    with np.load(path / 'predictions/test.npz', allow_pickle=False) as arrays:
        arrays = dict(arrays)
    change(arrays)
    np.savez(path / 'predictions/test.npz', **arrays)
    _, heads, note = read_predictions(path)
    assert not heads
    assert 'test.npz could not be used' in note
    assert words in note


def test_an_empty_workdir(tmp_path):
    manifest = _manifest({'class': ('a', 'b')})
    text = write_report(tmp_path, manifest=manifest, read_image=_read_image).read_text('utf-8')
    assert 'No scores yet' in text
    assert text.count('is missing') >= 3
    for section in SECTIONS:
        assert f'>{section}</h2>' in text


def test_scores_come_from_the_predictions_without_a_result(tmp_path):
    manifest = _manifest({'class': ('a', 'b', 'c')})
    path = _workdir(tmp_path / 'run', manifest)
    want = json.loads((path / 'result.json').read_text())['test']
    (path / 'result.json').unlink()
    text = write_report(path, manifest=manifest, read_image=_read_image).read_text('utf-8')
    assert f'{want["accuracy"]:.3f}' in text
    assert f'{want["nll"]:.3f}' in text


def test_validation_stands_in_for_an_unlabelled_test(tmp_path):
    manifest = _manifest({'class': ('a', 'b', 'c')})
    path = _workdir(tmp_path / 'run', manifest)
    with np.load(path / 'predictions/test.npz', allow_pickle=False) as arrays:
        arrays = dict(arrays)
    np.savez(path / 'predictions/val.npz', **arrays)
    arrays['labels'][:] = -1
    np.savez(path / 'predictions/test.npz', **arrays)
    split, heads, note = read_predictions(path)
    assert split == 'val'
    assert len(heads[0].labels) == len(arrays['ids'])
    assert 'test.npz has no labelled picture' in note


def test_several_heads(tmp_path):
    manifest = _manifest({'class': ('a', 'b', 'c'), 'tool<x>': tuple(f't/{k}' for k in range(40))})
    path = _workdir(tmp_path / 'run', manifest)
    text = write_report(path, manifest=manifest, read_image=_read_image).read_text('utf-8')
    page = Page(text)
    assert page.tags.count('section') == 7
    assert page.text.count('Most confused pairs') == 2
    assert page.text.count('Calibration') == 2
    assert 'tool<x> : classes and errors' in page.text
    assert text.count('class="heat"') == 1  # 40 classes are a picture, 3 a table
    assert text.count('class="matrix"') == 1
    result = json.loads((path / 'result.json').read_text())
    for head in manifest.heads:
        assert f'{result["test"][head]["f1_macro"]:.3f}' in page.text


def test_pictures_that_cannot_be_read(tmp_path):
    manifest = _manifest({'class': ('a', 'b', 'c')})
    path = _workdir(tmp_path / 'run', manifest)

    def broken(location):
        raise OSError(location)

    text = write_report(path, manifest=manifest, read_image=broken).read_text('utf-8')
    assert 'This picture could not be read' in text
    assert not re.search(r'<img class="pic', text)


def test_names_that_are_no_unicode(tmp_path):
    bad = b'\xff\xfe.png'.decode('utf-8', 'surrogateescape')
    manifest = _manifest({'class': ('a', 'b', bad)})
    path = _workdir(tmp_path / 'run', manifest)
    write_report(path, manifest=manifest, read_image=_read_image).read_text('utf-8')


def test_errors_are_the_confident_ones(tmp_path):
    manifest = _manifest({'class': ('a', 'b', 'c')}, n=400)
    path = _workdir(tmp_path / 'run', manifest, skill=0.3)
    _, [head], _ = read_predictions(path)
    examples = gallery.examples_by_class(manifest, head)
    thumbnail = gallery.thumbnailer(_read_image)
    locations = dict(zip(manifest.table['id'], manifest.table['location']))
    cards, count = gallery.errors(head, locations, examples, thumbnail, 6)
    probs = scores.softmax(head.logits)
    wrong = probs.argmax(1) != head.labels
    assert count == wrong.sum()
    assert [card['p_predicted'] for card in cards] == sorted(probs.max(1)[wrong])[::-1][:6]
    train = manifest.table[manifest.table['split'] == 'train']
    for name, places in examples.items():
        labels = train.set_index('location').loc[places, 'label/class']
        assert {manifest.classes['class'][k] for k in labels} == {name}
    assert all(len(card['of_true']) == len(card['of_predicted']) == 3 for card in cards)
    assert all(card['true'] != card['predicted'] for card in cards)


def test_best_and_worst_never_share_a_class():
    for classes in (1, 2, 5, 9):
        table = scores.class_table(np.eye(classes), np.arange(classes), list('abcdefghi'[:classes]))
        head = _perfect_head(classes)
        sides = gallery.extremes(head, table, {}, lambda place: None)
        names = [one['row']['class'] for side in sides for one in side['classes']]
        assert len(names) == len(set(names)) == 2 * min(3, classes // 2)


def _perfect_head(classes):
    labels = np.arange(classes)
    return Head('', labels.astype(str), labels, np.eye(classes), tuple('abcdefghi'[:classes]),
                np.eye(classes, dtype=np.int64))


def test_metrics_of_a_killed_and_resumed_run(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 1, "split": "train", "loss": 3}\n'
                    '{"step": 2, "split": "train", "loss": NaN, "tool": {"accuracy": 0.5}}\n'
                    '{"step": 1, "split": "train", "loss": 4}\n'
                    '[1]\n{"step": 3, "spl')
    table, note = read_metrics(path)
    assert list(table['step']) == [1, 2]
    assert table['loss'][0] == 4
    assert np.isnan(table['loss'][1])
    assert table['tool/accuracy'][1] == 0.5
    assert '2 lines' in note


def test_heat_map_keeps_single_mistakes():
    matrix = np.diag(np.full(100, 50))
    matrix[3, 70] = 1
    uri = figures.heat_map(matrix, side=700)
    data = np.frombuffer(base64.b64decode(uri.split(',')[1]), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    assert picture.shape == (700, 700, 4)
    assert tuple(picture[24, 493, :3]) == figures._BLUE
    assert picture[24, 493, 3] > 60
    assert picture[24, 300, 3] == 0
    assert tuple(picture[24, 24, :3]) == figures._GREY
    many = np.zeros((301, 301), np.int64)
    many[7, 300] = 1
    data = np.frombuffer(base64.b64decode(figures.heat_map(many, 50).split(',')[1]), np.uint8)
    small = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    assert small.shape[0] <= 100
    assert (small[..., 3] > 0).sum() == 1


def test_budget_of_pictures():
    thumbnail = gallery.thumbnailer(_read_image, budget=10_000)
    found = [thumbnail(str(k)) for k in range(100)]
    shown = [one for one in found if one]
    assert 0 < len(shown) < 100
    assert sum(len(one['uri']) for one in shown) < 20_000


def test_ten_thousand_pictures_are_quick_and_small(tmp_path):
    rng = np.random.default_rng(0)
    n, classes = 12_000, tuple(f'class {k}' for k in range(136))
    manifest = make_manifest({
        'id': [f'{k:05d}' for k in range(n)], 'location': [f'{k}' for k in range(n)],
        'split': np.where(np.arange(n) < 2000, 'train', 'test'),
        'label/class': rng.integers(136, size=n)}, {'class': classes})
    path = _workdir(tmp_path / 'run', manifest)

    def noise(location):
        return np.random.default_rng(int(location)).integers(0, 256, (96, 96, 3), np.uint8)

    start = time.process_time()
    report = write_report(path, manifest=manifest, read_image=noise)
    assert time.process_time() - start < 20
    assert report.stat().st_size < 5_000_000


def test_flatten():
    assert flatten({'a': {'b': {'c': 1}, 'd': []}, 'e': {}}) == {'a.b.c': 1, 'a.d': [], 'e': {}}
