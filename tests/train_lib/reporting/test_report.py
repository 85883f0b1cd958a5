import base64
import hashlib
import html.parser
import json
import re
import time
import warnings
from functools import partial

import cv2
import numpy as np
import pandas as pd
import pytest
from synthetic_run import HOSTILE, noise_image, run_manifest, run_workdir

from input_pipeline.manifest import digest, make_manifest
from train_lib.metrics.confusions import Confusions
from train_lib.reporting import figures
from train_lib.reporting.inputs import read_metrics, read_predictions
from train_lib.reporting.run_page import write_report

SECTIONS = ('Scores', 'Learning curves', 'Classes and errors', 'Data', 'Time', 'Settings')


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page, and whether its tags nest."""

    VOID = ('meta', 'img', 'br', 'wbr', 'hr', 'link', 'path', 'input')

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


@pytest.fixture(autouse=True)
def _strict():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
    manifest = run_manifest({'class': tuple(HOSTILE)})
    path = run_workdir(tmp_path_factory.mktemp('run') / 'run', manifest)
    report = write_report(path, manifest=manifest, read_image=noise_image, title='<em>T</em>')
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
                  digest(run_manifest({'class': tuple(HOSTILE)}))):
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
    manifest = run_manifest({'class': tuple(HOSTILE)})
    path = run_workdir(tmp_path / 'run', manifest)
    report = write_report(path, manifest=manifest, read_image=noise_image, title='<em>T</em>')
    assert report.read_text('utf-8') == hostile[0]
    assert [p.name for p in path.glob('report*')] == ['report.html']


@pytest.mark.parametrize('name, words', [
    ('config.json', 'config.json is missing'),
    ('metrics.jsonl', 'metrics.jsonl is missing'),
    ('result.json', 'result.json is missing'),
    ('predictions/test.npz', 'predictions/test.npz and val.npz are missing'),
])
def test_a_missing_file_is_said(tmp_path, name, words):
    manifest = run_manifest({'class': ('a', 'b', 'c')})
    path = run_workdir(tmp_path / 'run', manifest)
    (path / name).unlink()
    page = Page(write_report(path, manifest=manifest, read_image=noise_image).read_text('utf-8'))
    assert not page.open
    assert words in page.text


def test_damaged_files_are_said(tmp_path):
    manifest = run_manifest({'class': ('a', 'b', 'c')})
    path = run_workdir(tmp_path / 'run', manifest)
    names = ('config.json', 'metrics.jsonl', 'result.json', 'predictions/test.npz')
    for name in names:
        (path / name).write_bytes(b'{"broken')
    page = Page(write_report(path, manifest=manifest, read_image=noise_image).read_text('utf-8'))
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
    path = run_workdir(tmp_path / 'run', run_manifest({'class': ('a', 'b', 'c')}))
    with np.load(path / 'predictions/test.npz', allow_pickle=False) as arrays:
        arrays = dict(arrays)
    change(arrays)
    np.savez(path / 'predictions/test.npz', **arrays)
    _, heads, note = read_predictions(path)
    assert not heads
    assert 'test.npz could not be used' in note
    assert words in note


def test_an_empty_workdir(tmp_path):
    manifest = run_manifest({'class': ('a', 'b')})
    text = write_report(tmp_path, manifest=manifest, read_image=noise_image).read_text('utf-8')
    assert 'No scores yet' in text
    assert text.count('is missing') >= 3
    for section in SECTIONS:
        assert f'>{section}</h2>' in text


def test_scores_come_from_the_predictions_without_a_result(tmp_path):
    manifest = run_manifest({'class': ('a', 'b', 'c')})
    path = run_workdir(tmp_path / 'run', manifest)
    want = json.loads((path / 'result.json').read_text())['test']
    (path / 'result.json').unlink()
    text = write_report(path, manifest=manifest, read_image=noise_image).read_text('utf-8')
    assert f'{want["accuracy"]:.3f}' in text
    assert f'{want["nll"]:.3f}' in text


def test_validation_stands_in_for_an_unlabelled_test(tmp_path):
    manifest = run_manifest({'class': ('a', 'b', 'c')})
    path = run_workdir(tmp_path / 'run', manifest)
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
    manifest = run_manifest({'class': ('a', 'b', 'c'),
                             'tool<x>': tuple(f't/{k}' for k in range(40))})
    path = run_workdir(tmp_path / 'run', manifest)
    text = write_report(path, manifest=manifest, read_image=noise_image).read_text('utf-8')
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
    manifest = run_manifest({'class': ('a', 'b', 'c')})
    path = run_workdir(tmp_path / 'run', manifest)

    def broken(location):
        raise OSError(location)

    text = write_report(path, manifest=manifest, read_image=broken).read_text('utf-8')
    assert 'This picture could not be read' in text
    assert not re.search(r'<img class="pic(?! look)', text)


def test_names_that_are_not_unicode(tmp_path):
    bad = b'\xff\xfe.png'.decode('utf-8', 'surrogateescape')
    manifest = run_manifest({'class': ('a', 'b', bad)})
    path = run_workdir(tmp_path / 'run', manifest)
    write_report(path, manifest=manifest, read_image=noise_image).read_text('utf-8')


def test_what_was_changed_and_what_made_it(hostile):
    text, _ = hostile
    words = Page(text).text
    changed = words[words.index('Changed from the defaults'):words.index('Made with')]
    assert 'model.name tiny<i>net the<i>usual model.depth 3 none' in changed
    assert 'seed' not in changed
    assert 'c0de' * 16 in words[words.index('Made with'):words.index('All settings')]
    assert 'the<i>usual' not in words[words.index('All settings'):]


def test_scripts_need_the_digest_of_the_policy(hostile):
    text, _ = hostile
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    [script] = re.findall(r'<script>(.*?)</script>', text, re.S)
    digest_ = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest_}';" in policy
    assert 'img-src data:;' in policy


def test_hardest_and_easiest_are_marked_in_the_table(hostile):
    text, _ = hostile
    table = text[text.index('<table class="classes'):].partition('</table>')[0]
    rows = re.findall(r'<tr( class="(?:hardest|easiest)")?><td class="text">', table)
    assert [row.strip()[7:-1] for row in rows] == ['hardest'] * 3 + ['easiest'] * 3


def test_errors_show_where_the_model_looked(tmp_path):
    manifest = run_manifest({'class': ('a', 'b', 'c')})
    path = run_workdir(tmp_path / 'run', manifest, skill=0.3)
    report = partial(write_report, path, manifest=manifest, read_image=noise_image)
    text = report().read_text('utf-8')
    cards = text.count('class="card error')
    assert cards and text.count('class="card error mapped"') == cards
    assert text.count('<figcaption>CAM<') == text.count('<figcaption>attention<') == cards
    with np.load(path / 'heatmaps.npz') as arrays:
        arrays = dict(arrays)
    arrays['class/class'] = np.full(len(arrays['ids']), 'a')  # what was explained no longer holds
    np.savez(path / 'heatmaps.npz', **arrays)
    assert 0 < report().read_text('utf-8').count('class="card error mapped"') < cards
    (path / 'heatmaps.npz').write_bytes(b'PK')
    text = report().read_text('utf-8')
    assert 'heatmaps.npz could not be used' in text and 'mapped"' not in text
    (path / 'heatmaps.npz').unlink()
    assert report().read_text('utf-8').count('class="card error"') == cards


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


def test_a_stage_outside_the_picture_has_no_label():
    """The first evaluation may come after the first stage, whose label would lie left of it."""
    table = pd.DataFrame({'epoch': [1.0, 2.0, 3.0], 'f1_macro': [0.1, 0.2, 0.3]})
    svg = str(figures.curve({'val': table}, 'f1_macro', 'epoch', unit_range=True,
                            stages=[(0.0, 0.5, 'stage 0'), (0.5, 3.0, 'stage 1')]))
    assert 'stage 1' in svg and 'stage 0' not in svg


def of_matrix(matrix):
    true, predicted = np.nonzero(matrix)
    return Confusions(true, predicted, matrix[true, predicted], len(matrix))


def test_heat_map_keeps_single_mistakes():
    matrix = np.diag(np.full(100, 50))
    matrix[3, 70] = 1
    uri = figures.heat_map(of_matrix(matrix), side=700)
    data = np.frombuffer(base64.b64decode(uri.split(',')[1]), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    assert picture.shape == (700, 700, 4)
    assert tuple(picture[24, 493, :3]) == figures._BLUE
    assert picture[24, 493, 3] > 60
    assert picture[24, 300, 3] == 0
    assert tuple(picture[24, 24, :3]) == figures._GREY
    many = np.zeros((301, 301), np.int64)
    many[7, 300] = 1
    uri = figures.heat_map(of_matrix(many), 50)
    data = np.frombuffer(base64.b64decode(uri.split(',')[1]), np.uint8)
    small = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    assert small.shape[0] <= 100
    assert (small[..., 3] > 0).sum() == 1


def test_ten_thousand_pictures_are_quick_and_small(tmp_path):
    rng = np.random.default_rng(0)
    n, classes = 12_000, tuple(f'class {k}' for k in range(136))
    manifest = make_manifest({
        'id': [f'{k:05d}' for k in range(n)], 'location': [f'{k}' for k in range(n)],
        'split': np.where(np.arange(n) < 2000, 'train', 'test'),
        'label/class': rng.integers(136, size=n)}, {'class': classes})
    path = run_workdir(tmp_path / 'run', manifest)

    def noise(location):
        return np.random.default_rng(int(location)).integers(0, 256, (96, 96, 3), np.uint8)

    start = time.process_time()
    report = write_report(path, manifest=manifest, read_image=noise)
    assert time.process_time() - start < 20
    assert report.stat().st_size < 5_000_000
