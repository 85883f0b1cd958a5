"""The documents say what is there: links, keys, commands, names and defaults."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from configs import common
from configs.vote import common as vote
from docs import make_config_md
from input_pipeline.durations import UNITS
from input_pipeline.preprocessing import PREPROCESSORS
from input_pipeline.resampling import RESAMPLINGS
from input_pipeline.sources import SOURCES
from input_pipeline.transforms import TRANSFORMS
from train_lib.commands import command_line
from train_lib.ensembles.rules import RULES
from train_lib.losses.losses import LOSSES
from train_lib.losses.mixing import MIXINGS
from train_lib.optim.optimizers import OPTIMIZERS
from train_lib.optim.schedules import SCHEDULES
from train_lib.predictions.views import SETS, VIEWS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('benchmarks/*.md')])
CONFIGS = sorted(ROOT.glob('configs/**/*.py'))
MANUAL = ('data', 'augmentation', 'training', 'models', 'scaling', 'studies', 'voting',
          'resuming', 'workdir', 'config')
FILE_ENDINGS = ('json', 'html', 'md', 'py', 'csv', 'npz', 'png', 'txt')


def text_of(path: Path) -> str:
    """A page, or the docstring of a config."""
    text = path.read_text(encoding='utf-8')
    return ast.get_docstring(ast.parse(text)) or '' if path.suffix == '.py' else text


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- links --------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r'^#+ (.*)$', text, flags=re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def broken_links(page: Path) -> list[str]:
    found = []
    for target in re.findall(r'\]\(([^)\s]+)\)', text_of(page)):
        if re.match('https?:', target):
            continue
        file, _, anchor = target.partition('#')
        path = page.parent / file if file else page
        if not path.exists() or (anchor and anchor not in anchors(path.read_text('utf-8'))):
            found.append(target)
    return found


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page):
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('# A title\n[a](page.md#a-title) [b](nowhere.md) [c](page.md#other) [d](https://x)')
    assert broken_links(page) == ['nowhere.md', 'page.md#other']


def missing_paths(text: str) -> list[str]:
    """Paths in backticks, and Python files anywhere, that begin with a folder of the project and do
    not exist."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    named = re.findall(r'`((?:[\w.-]+/)+[\w.-]*)`', text)
    named += re.findall(r'(?<![\w/.`-])((?:[\w-]+/)+\w+\.py)', text)
    return [path for path in named if path.partition('/')[0] in folders
            and '/NAME.' not in path and not (ROOT / path).exists()]


@pytest.mark.parametrize('page', [*PAGES, *CONFIGS], ids=name_of)
def test_every_path_named_exists(page):
    assert missing_paths(text_of(page)) == []


def test_a_missing_path_is_found():
    assert missing_paths('`configs/common.py`, `train_lib/`, `train_lib/nowhere/`, `runs/x`, or '
                         'tests/test_nothing.py') == ['train_lib/nowhere/', 'tests/test_nothing.py']


def test_every_folder_of_the_code_is_in_the_map():
    block = text_of(ROOT / 'CONTRIBUTING.md').split('```')[1]
    for package in ('input_pipeline', 'train_lib', 'configs'):
        for path in (ROOT / package).iterdir():
            if (path / '__init__.py').exists():
                assert re.search(rf'\b{path.name}/', block), path


# --- keys ---------------------------------------------------------------------------------------


def known_keys(config, above: str = '') -> set[str]:
    """Dotted paths of sections and leaves; a duration has every unit."""
    found = set()
    for key, value in config.items():
        path = f'{above}{key}'
        found.add(path)
        if hasattr(value, 'items'):
            found |= known_keys(value, f'{path}.')
            if set(value) & set(UNITS):
                found |= {f'{path}.{unit}' for unit in UNITS}
    # A duration whose default is None may be given in any unit, and a model any keyword.
    return found | {f'{path}.{unit}' for path in found if path.endswith('patience')
                    for unit in UNITS}


KEYS = known_keys(common.get_config()) | known_keys(vote.get_config())
SECTIONS = {key for key in KEYS if '.' not in key}


def unknown_keys(text: str) -> list[str]:
    """Keys named in a text that no config has: `--config.a.b`, `config.a.b`, and in backticks
    `a.b` where `a` is a section."""
    named = re.findall(r'(?<![\w/.])(?:--)?config\.([a-z_]\w*(?:\.\w+)*)', text)
    named += [path for path in re.findall(r'`([a-z_]+(?:\.[a-z_]\w*)+)(?==|`)', text)
              if path.partition('.')[0] in SECTIONS]
    return [path for path in named if path not in KEYS and not path.startswith('model.')
            and path.rpartition('.')[2] not in FILE_ENDINGS]


@pytest.mark.parametrize('page', [*PAGES, *CONFIGS], ids=name_of)
def test_every_key_named_is_a_key(page):
    assert unknown_keys(text_of(page)) == []


def test_a_misspelt_key_is_found():
    assert unknown_keys('--config.schedule.lr=1 --config.schedul.lr=1 and `split.val_group=3`, '
                        '`config.guard.skp`, `report.html`, config.json, `guard.skip`') == [
        'schedul.lr', 'guard.skp', 'split.val_group']


# --- commands -----------------------------------------------------------------------------------


def commands(text: str) -> list[str]:
    """What stands in indented lines and begins `python main.py`, continued lines joined."""
    code = '\n'.join(line.strip() for line in text.splitlines() if line.startswith('    '))
    found = [line[line.index('python main.py'):].split('&&')[0].strip()
             for line in re.sub(r' *\\+\n', ' ', code).splitlines() if 'python main.py' in line]
    # A command that another one runs, as in ssh HOST 'cd x && python main.py ...', lost a quote.
    return [line.removesuffix("'") if line.count("'") % 2 else line for line in found]


def test_commands_are_found():
    assert commands('text\n\n    pip install x && python main.py --config=a \\\n        --b=c\n'
                    "python main.py no\n    ssh 'cd y && python main.py --config=c'\n") == [
        'python main.py --config=a --b=c', 'python main.py --config=c']


CASES = [(name_of(page), command) for page in [*PAGES, *CONFIGS]
         for command in dict.fromkeys(commands(text_of(page))) if '/NAME.py' not in command]


@pytest.mark.parametrize(('page', 'command'), CASES)
def test_every_command_is_understood(page, command):
    """Verb, config file, its arguments, keys and types of values; of a command that goes on from
    a workdir only the keys."""
    arguments = shlex.split(command, comments=True)[2:]
    if not any(word.startswith('--config=') for word in arguments):
        verbs = [word for word in arguments if not word.startswith('-')]
        assert verbs[0] in ('predict', 'report', 'models', 'submit', 'export', 'compare', 'help',
                                'pseudo')
        return
    parsed = command_line.parse(arguments)
    file = parsed.config_file.partition(':')[0]
    assert (ROOT / file).is_file() and parsed.config is not None


# --- names and defaults -------------------------------------------------------------------------


@pytest.mark.parametrize(('page', 'names'), [
    ('data', SOURCES), ('data', PREPROCESSORS), ('augmentation', TRANSFORMS),
    ('augmentation', RESAMPLINGS), ('augmentation', MIXINGS), ('training', LOSSES),
    ('training', OPTIMIZERS), ('training', SCHEDULES), ('voting', RULES), ('voting', VIEWS),
    ('voting', SETS),
])
def test_every_name_of_a_table_is_described(page, names):
    text = (ROOT / f'docs/{page}.md').read_text(encoding='utf-8')
    code = set(re.findall(r'\w+', ' '.join(re.findall(r'`([^`\n]+)`', text))))
    assert set(names) <= code


def test_the_defaults_of_the_transforms_are_those_of_the_code():
    text = (ROOT / 'docs/augmentation.md').read_text(encoding='utf-8')
    described = {}
    for kinds, defaults in re.findall(r'^\| ((?:`\w+`(?:, )?)+) \| `([^`]+)` \| ', text, re.M):
        for kind in re.findall(r'\w+', kinds):
            described[kind] = {'p': 1, **eval(f'dict({defaults})')}  # of our own page
    assert described == {name: kind.defaults for name, kind in TRANSFORMS.items()}


@pytest.mark.parametrize('page', MANUAL)
def test_a_page_of_the_manual_begins_with_a_command(page):
    title, _, rest = (ROOT / f'docs/{page}.md').read_text(encoding='utf-8').partition('\n\n')
    assert title.startswith('# ') and commands(rest.partition('\n\n')[0])


def test_the_readme_is_short_and_leads_to_every_page():
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert len(readme.splitlines()) <= 150
    assert {name_of(page) for page in ROOT.glob('docs/*.md')} <= set(
        re.findall(r'\]\(([^)]+)\)', readme))


# --- docs/config.md -----------------------------------------------------------------------------


def test_config_md_is_current():
    assert make_config_md.TARGET.read_text(encoding='utf-8') == make_config_md.render(), (
        'run python docs/make_config_md.py')


def leaves(config, above: str = '') -> dict:
    """{dotted.path: default}, a duration being one value."""
    found = {}
    for key, value in config.items():
        if hasattr(value, 'items') and value and not set(value) <= set(UNITS):
            found |= leaves(value, f'{above}{key}.')
        else:
            found[f'{above}{key}'] = value.to_dict() if hasattr(value, 'to_dict') else value
    return found


@pytest.mark.parametrize(('files', 'config'), [
    (('configs/common.py', 'configs/sections/flat_minima.py', 'configs/sections/without_labels.py',
      'configs/sections/devices.py', 'configs/sections/other_verbs.py'), common.get_config()),
    (('configs/vote/common.py',), vote.get_config())])
def test_config_md_has_every_knob_with_its_default_and_a_comment(files, config):
    assert set(files) <= {file for _, file in make_config_md.PARTS}
    described = {key: (default, comment) for file in files
                 for section in make_config_md.sections(ROOT / file)
                 for key, default, comment in section.knobs}
    assert {key: eval(default) for key, (default, _) in described.items()} == leaves(config)
    assert [key for key, (_, comment) in described.items() if len(comment) < 5] == []


def test_a_comment_is_read_wherever_it_stands(tmp_path):
    path = tmp_path / 'common.py'
    path.write_text('''
def get_config():
    config.seed = 0  # the seed
    # Above,
    # in two lines.
    config.rows = _anything(())
    config.part = dict(  # a section
        name='a',  # 'a' |
                   # 'b'
        every=dict(epochs=1),  # a duration
        inner=dict(x=1,  # of x
                   ),
    )
    return config
''')
    plain, part, inner = make_config_md.sections(path)
    assert plain.knobs == [('seed', '0', 'the seed'), ('rows', '()', 'Above, in two lines.')]
    assert (part.path, part.comment) == ('part', 'a section')
    assert part.knobs == [('part.name', "'a'", "'a' | 'b'"),
                          ('part.every', 'dict(epochs=1)', 'a duration')]
    assert inner.path == 'part.inner' and inner.knobs == [('part.inner.x', '1', 'of x')]
