"""Names of files and classes that are code in HTML: on no page they are more than text. And no
module reads what could run code."""

import ast
import html
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main

ROOT = Path(__file__).parents[2]
SCRIPT = '<script>alert(1)</script>'  # as a class: the folder '<script>alert(1)<' with 'script>'
CLASSES = (SCRIPT, '"><img src=x onerror=alert(2)>', "'; onclick='alert(3)' {{ 7*7 }} $\\frac{")
FILE = '"\'><svg onload=alert(4)>&amp;{k}.png'
RUN = '<img src=x onerror=alert(6)>'
STUDY = '''
from configs.studies import digits


def get_config(arg=None):
    return digits.get_config(arg)


def study():
    return {'plain': {}, '<script>alert(5)</script>': {'schedule.lr': 1e-3}}
'''


class Page(HTMLParser):
    """The parts of a page that a browser would run or fetch, and its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.active, self.text, self.scripts = [], '', 0
        self.feed(path.read_text('utf-8'))

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == 'script'
        if tag in ('iframe', 'object', 'embed', 'link', 'base', 'form'):
            self.active.append(tag)
        for name, value in attrs:
            elsewhere = name in ('src', 'href') and re.match(r'(?!data:image/)\w+:|//', value)
            if name.startswith('on') or elsewhere:
                self.active.append((tag, name, value))

    def handle_data(self, data):
        self.text += data


def call(*argv) -> None:
    assert main.main([str(word) for word in argv]) == 0


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    """{name: path} of every kind of page, of data with hostile names."""
    home = tmp_path_factory.mktemp('pages')
    for number, name in enumerate(CLASSES):
        folder = home / 'data' / name
        folder.mkdir(parents=True)
        for k in range(10):
            # Noise, so that errors, copies and doubtful labels are there to be shown.
            draw = np.random.default_rng(0 if k == 9 else 10 * number + k)
            buffer = io.BytesIO()
            Image.fromarray(draw.integers(0, 256, (24, 24, 3), np.uint8)).save(buffer, 'PNG')
            (folder / FILE.replace('{k}', str(k))).write_bytes(buffer.getvalue())
    small = ['--config.image.size=16', '--config.batch_size=6', '--config.duration.steps=2',
             '--config.model=dict(name="small_cnn", width=4, stages=1)', '--config.curriculum=()',
             '--config.log.tensorboard=False', '--config.compile_cache=False',
             '--config.init.pretrained=', '--config.report.heat_maps=False']
    config = f'--config=configs/sketch_cnn.py:folder={home}/data'
    call('train', config, *small, '--config.split.val=0.3', '--config.split.test=0.3',
         f'--workdir={home}/{RUN}')
    # Another member, which says the opposite.
    shutil.copytree(home / RUN, home / 'other')
    with np.load(home / 'other/predictions/test.npz') as file:
        arrays = dict(file)
    np.savez(home / 'other/predictions/test.npz', **arrays | dict(logits=-arrays['logits']))
    call('explore', config, f'--workdir={home}/explore')
    call('curate', config, f'--workdir={home}/curate')
    call('vote', '--config=configs/vote/digits.py', f'--config.members={home}/{RUN},{home}/other',
         '--config.source=test', f'--workdir={home}/vote')
    yield {path.relative_to(home).as_posix(): path for path in home.glob('*/*.html')}


KINDS = {f'{RUN}/report.html': (*CLASSES, RUN), 'explore/explore.html': (*CLASSES, FILE),
         'curate/gallery.html': (FILE,), 'vote/report.html': (*CLASSES[:2], RUN)}


def test_names_are_text_on_every_page(pages):
    assert len(pages) >= len(KINDS)
    for name, path in pages.items():
        page = Page(path)
        assert not page.active, name
        assert page.scripts <= 1, name  # the page's own, which sorts tables
        for code in ('<script>alert', '<img src=x', '<svg onload'):
            assert code not in path.read_text('utf-8'), name


@pytest.mark.parametrize('kind', KINDS)
def test_the_names_are_shown(pages, kind):
    text = html.unescape(pages[kind].read_text('utf-8')).replace('<wbr>', '')
    for name in KINDS[kind]:
        assert name.partition('{k}')[0] in text, name


@pytest.mark.slow
def test_names_of_arms_are_text(tmp_path):
    (tmp_path / 'hostile.py').write_text(STUDY)
    call('study', f'--config={tmp_path}/hostile.py', '--config.duration.steps=2',
         '--config.study.seeds=(0,)', f'--workdir={tmp_path}/study')
    page = Page(tmp_path / 'study/report.html')
    assert not page.active and page.scripts <= 1 and '<script>alert(5)</script>' in page.text


# Readers that run code

FORBIDDEN = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal'}


def unsafe(tree: ast.AST):
    """Lines that load what could run code."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [
            node.module or ''] if isinstance(node, ast.ImportFrom) else []
        if FORBIDDEN & {name.partition('.')[0] for name in names}:
            yield node.lineno
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if keywords.get('allow_pickle', 'False') != 'False' or called.endswith((
                'read_pickle', 'yaml.load', 'yaml.unsafe_load', 'yaml.full_load')) or called in (
                'eval', 'exec', '__import__', 'os.system'):
            yield node.lineno
        if called in ('torch.load', 'np.load', 'numpy.load') and not (
                keywords.get('weights_only') == 'True' or called != 'torch.load'):
            yield node.lineno
        if keywords.get('shell') == 'True':
            yield node.lineno


def test_nothing_is_unpickled_or_evaluated():
    found = [f'{path.relative_to(ROOT)}:{line}'
             for folder in ('configs', 'input_pipeline', 'models', 'train_lib')
             for path in [ROOT / 'main.py', *sorted((ROOT / folder).rglob('*.py'))]
             for line in unsafe(ast.parse(path.read_text('utf-8')))]
    assert not found


@pytest.mark.parametrize('text', [
    'import pickle', 'from joblib import load', 'np.load(p, allow_pickle=True)', 'torch.load(p)',
    'torch.load(p, weights_only=False)', 'pd.read_pickle(p)', 'yaml.load(f)', 'import shelve as s',
    'eval(x)', 'subprocess.run(x, shell=True)', 'np.load(p, allow_pickle=flag)'])
def test_the_search_finds(text):
    assert list(unsafe(ast.parse(text)))
