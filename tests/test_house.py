"""The rules of the house, read from the imports of every file, those inside functions included.

Each rule is a function (root) -> a list of sentences, one per violation. It must be empty for this
repository, and must not be for a small tree in which one violation was planted.
"""

import ast
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ('configs', 'models', 'input_pipeline', 'train_lib')
# Who may import whom: a package or room imports from itself and from those of the groups below it.
# Members of one group do not know each other.
FLOORS = (
    {'main'},
    {'train_lib.commands'},
    {'train_lib.studies'},
    {'train_lib.serving'},
    {'train_lib.probing'},
    {'train_lib.planning'},
    {'train_lib.training'},
    {'train_lib.reporting'},
    {'train_lib.ensembles.fit'},
    {'train_lib.ensembles'},
    {'train_lib.predictions'},
    {'train_lib.metrics'},
    {'train_lib.run_dir', 'train_lib.losses', 'train_lib.optim'},
    {'train_lib.runtime'},
    {'train_lib'},
    {'models', 'input_pipeline', 'configs'},
)
# The command line and workdirs read the defaults of configs/common.py; nobody else does.
READS_CONFIGS = {'train_lib.commands.command_line', 'train_lib.run_dir.workdirs'}
# What `train_lib.load` imports when it is called; `import train_lib` itself imports nothing.
FRONT_DOOR = {('train_lib', 'train_lib.serving.loaded_run'),
              ('train_lib', 'train_lib.runtime.platform')}
MOST_LINES = 400
MOST_ARGUMENTS = 8  # then some of them are fields of one thing
# One per package: where its exceptions are.
IN_EVERY_PACKAGE = {'__init__', 'errors'}


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of main.py and of every module of the packages."""
    files = [root / 'main.py', *(path for package in PACKAGES
                                 for path in sorted((root / package).rglob('*.py')))]
    return {'.'.join(path.relative_to(root).with_suffix('').parts).removesuffix('.__init__'): path
            for path in files if path.exists()}


def imports(root: Path) -> Iterator[tuple[str, str]]:
    """(module, imported module) for every import of ours, wherever in the file it stands; also of
    modules that are named in a string such as 'train_lib.commands.pack:pack_command'."""
    known = modules(root)
    for name, path in known.items():
        tree = ast.parse(path.read_text('utf-8'))
        package = name if path.name == '__init__.py' else name.rpartition('.')[0]
        for node in ast.walk(tree):
            targets = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                parts = package.split('.')
                base = '.'.join(parts[:len(parts) - node.level + 1]) if node.level else ''
                source = '.'.join(filter(None, (base, node.module)))
                targets = [f'{source}.{alias.name}' if f'{source}.{alias.name}' in known else source
                           for alias in node.names]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                target = re.fullmatch(r'([a-z_]+(?:\.[a-z_0-9]+)+):\w+', node.value)
                targets = [target[1]] if target else []
            yield from ((name, target) for target in targets
                        if target in known or target.split('.')[0] in PACKAGES)


def room_of(name: str, root: Path) -> str:
    """The entry of FLOORS that a module belongs to."""
    if (root / name.replace('.', '/')).is_dir():
        name += '.__init__'
    rooms = sorted(set().union(*FLOORS), key=len, reverse=True)
    return next((room for room in rooms if f'{name}.'.startswith(f'{room}.')), name)


def imports_upwards(root: Path) -> list[str]:
    floor = {room: level for level, group in enumerate(FLOORS) for room in group}
    found = []
    for source, target in imports(root):
        here, there = room_of(source, root), room_of(target, root)
        if here == there or (there == 'configs' and source in READS_CONFIGS):
            continue
        if (source, target) in FRONT_DOOR:
            continue
        unknown = [name for name, room in ((source, here), (target, there)) if room not in floor]
        if unknown:
            found.append(f'{unknown[0]} is in no room of FLOORS')
        elif floor[there] <= floor[here] or there == 'configs':
            found.append(f'{source} imports {target}, which is not below it')
    return found


def circles(root: Path) -> list[str]:
    """Modules, and rooms of train_lib, that import each other, directly or by way of others."""
    edges = set(imports(root)) - FRONT_DOOR
    by_room = {(room_of(a, root), room_of(b, root)) for a, b in edges}
    return [f'a circle: {" -> ".join(path)}' for graph in (edges, by_room)
            for path in _circles({(a, b) for a, b in graph if a != b})]


def _circles(edges: set[tuple[str, str]]) -> list[list[str]]:
    below: dict[str, list[str]] = {}
    for a, b in sorted(edges):
        below.setdefault(a, []).append(b)
    state: dict[str, int] = {}  # 1: on the path, 2: done
    path: list[str] = []
    found = []

    def visit(node: str) -> None:
        state[node] = 1
        path.append(node)
        for other in below.get(node, ()):
            if state.get(other) == 1:
                found.append([*path[path.index(other):], other])
            elif other not in state:
                visit(other)
        path.pop()
        state[node] = 2

    for node in list(below):
        if node not in state:
            visit(node)
    return found


def modules_in_the_root(root: Path) -> list[str]:
    return [f'{path.relative_to(root)} stands in no room'
            for path in sorted((root / 'train_lib').glob('*.py')) if path.name != '__init__.py']


def twins(root: Path) -> list[str]:
    """Modules of one name; configs are experiments, which may be called as they like."""
    seen: dict[str, list[str]] = {}
    for name, path in modules(root).items():
        if name.split('.')[0] != 'configs' and path.stem not in IN_EVERY_PACKAGE:
            seen.setdefault(path.stem, []).append(name)
    return [f'{" and ".join(names)} have one name' for names in seen.values() if len(names) > 1]


def long_files(root: Path) -> list[str]:
    # Where there are tests and benchmarks, they are files of the house too.
    places = (root, *(root / name for name in (*PACKAGES, 'benchmarks', 'tests')))
    paths = [path for place in places
             for path in (place.glob('*.py') if place == root else place.rglob('*.py'))]
    return [f'{path.relative_to(root)} has {count} lines' for path in sorted(paths)
            if (count := len(path.read_text('utf-8').splitlines())) > MOST_LINES]


def long_signatures(root: Path) -> list[str]:
    """Functions with too many arguments; models are left out, whose settings are timm's."""
    found = []
    for name, path in modules(root).items():
        if name.split('.')[0] not in ('train_lib', 'input_pipeline'):
            continue
        for node in ast.walk(ast.parse(path.read_text('utf-8'))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                given = node.args
                count = sum(map(len, (given.posonlyargs, given.args, given.kwonlyargs)))
                count += bool(given.vararg) + bool(given.kwarg)
                count -= bool(given.args) and given.args[0].arg in ('self', 'cls')
                if count > MOST_ARGUMENTS:
                    found.append(f'{name}.{node.name} takes {count} arguments')
    return found


def rooms_without_a_word(root: Path) -> list[str]:
    """Every folder of train_lib says in its __init__ what it is for."""
    folders = sorted({path.parent for path in (root / 'train_lib').rglob('*.py')})
    return [f'{folder.relative_to(root)} does not say what it is for' for folder in folders
            if not (folder / '__init__.py').exists()
            or not ast.get_docstring(ast.parse((folder / '__init__.py').read_text('utf-8')))]


def backend_questions(root: Path) -> list[str]:
    """Whoever asks JAX for the backend makes a program for this machine; models ask for no device
    at all. What JAX asks on our behalf: tests/train_lib/serving/test_backend_questions.py."""
    found = []
    for name, path in modules(root).items():
        of_model = name.split('.')[0] == 'models'
        words = {'default_backend'} | ({'devices', 'local_devices'} if of_model else set())
        found += [f'{name} asks for jax.{node.attr}'
                  for node in ast.walk(ast.parse(path.read_text('utf-8')))
                  if isinstance(node, ast.Attribute) and node.attr in words
                  and isinstance(node.value, ast.Name) and node.value.id == 'jax']
    return found


RULES = (imports_upwards, circles, modules_in_the_root, twins, long_files, long_signatures,
         rooms_without_a_word, backend_questions)


@pytest.mark.parametrize('rule', RULES)
def test_the_house_keeps_its_rules(rule):
    assert rule(ROOT) == []


def test_imports_are_found():
    """A reader that finds nothing would pass everything."""
    found = set(imports(ROOT))
    assert len(found) > 300
    assert ('main', 'train_lib.runtime.platform') in found


SMALL = {  # a tree that keeps every rule
    'main.py': "RUNNERS = {'train': 'train_lib.commands.train:train'}\n",
    'configs/common.py': '',
    'models/resnet.py': '', 'input_pipeline/manifest.py': '',
    'train_lib/__init__.py': '"""All of it."""\n',
    'train_lib/commands/__init__.py': '"""Verbs."""\n',
    'train_lib/commands/train.py': 'from train_lib.training import loop\n',
    'train_lib/training/__init__.py': '"""Training."""\n',
    'train_lib/training/loop.py': 'from train_lib.runtime.signals import stop\n'
                                  'import models.resnet\n',
    'train_lib/training/step.py': '',
    'train_lib/runtime/__init__.py': '"""The machine."""\n',
    'train_lib/runtime/signals.py': 'def stop():\n    pass\n',
}


def planted(tmp_path: Path, **changes: str) -> Path:
    for name, text in (SMALL | changes).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize('rule', RULES)
def test_a_small_house_keeps_them_too(tmp_path, rule):
    assert rule(planted(tmp_path)) == []


UP = 'def f():\n    from train_lib.training import loop\n    return loop\n'


@pytest.mark.parametrize(('rule', 'changes'), [
    (imports_upwards, {'train_lib/runtime/signals.py': UP}),
    (imports_upwards, {'train_lib/runtime/signals.py': 'import train_lib.training.loop\n'}),
    (imports_upwards, {'train_lib/__init__.py': '"""All."""\ndef load():\n'
                                                '    import train_lib.training.loop\n'}),
    (imports_upwards, {'models/resnet.py': 'import input_pipeline.manifest\n'}),
    (imports_upwards, {'models/resnet.py': 'from train_lib.runtime import signals\n'}),
    (imports_upwards, {'configs/common.py': 'import models.resnet\n'}),
    (imports_upwards, {'train_lib/training/loop.py': 'from configs import common\n'}),
    (imports_upwards, {'train_lib/training/loop.py': "RUN = 'train_lib.commands.train:train'\n"}),
    (imports_upwards, {'train_lib/training/loop.py': 'from ..commands import train\n'}),
    (imports_upwards, {'train_lib/attic/__init__.py': '"""Old."""\n',
                       'train_lib/attic/box.py': 'from train_lib.runtime import signals\n',
                       'train_lib/training/loop.py': 'from train_lib.attic import box\n'}),
    (circles, {'train_lib/training/step.py': 'from train_lib.training.loop import x\n',
               'train_lib/training/loop.py': 'def f():\n    import train_lib.training.step\n'}),
    (circles, {'train_lib/runtime/signals.py': UP}),
    (circles, {'train_lib/runtime/other.py': 'from train_lib.training import step\n'}),
    (modules_in_the_root, {'train_lib/helpers.py': ''}),
    (twins, {'train_lib/runtime/resnet.py': ''}),
    (twins, {'train_lib/runtime/step.py': ''}),
    (long_files, {'train_lib/training/step.py': 'x = 1\n' * (MOST_LINES + 1)}),
    (long_files, {'tests/test_x.py': 'x = 1\n' * (MOST_LINES + 1)}),
    (long_signatures, {'train_lib/training/step.py':
                       'class A:\n    def f(self, a, b, c, d, e, *, f, g, h, **more): ...\n'}),
    (backend_questions, {'train_lib/training/step.py': "cpu = jax.default_backend() == 'cpu'\n"}),
    (backend_questions, {'models/resnet.py': 'def f():\n    return jax.devices()[0].platform\n'}),
    (rooms_without_a_word, {'train_lib/training/__init__.py': ''}),
    (rooms_without_a_word, {'train_lib/attic/box.py': ''})])
def test_a_planted_violation_is_found(tmp_path, rule, changes):
    assert rule(planted(tmp_path, **changes))


def test_an_import_of_a_room_that_is_no_module_is_found(tmp_path):
    """`import train_lib.commands` loads a room above as well."""
    root = planted(tmp_path, **{'train_lib/training/step.py': 'import train_lib.commands\n'})
    assert imports_upwards(root)


def test_the_front_door_is_open_and_costs_nothing(tmp_path):
    """`train_lib.load` may reach up, and `import train_lib` imports neither that nor JAX."""
    door = ('"""All."""\ndef load():\n    import train_lib.runtime.platform\n'
            '    import train_lib.serving.loaded_run\n')
    root = planted(tmp_path, **{
        'train_lib/__init__.py': door, 'train_lib/serving/__init__.py': '"""Serving."""\n',
        'train_lib/serving/loaded_run.py': '', 'train_lib/runtime/platform.py': '',
        'train_lib/training/step.py': 'import train_lib\n'})
    assert imports_upwards(root) == circles(root) == []
    code = ('import sys, train_lib; '
            'print([name for name in sys.modules if name.startswith("train_lib.") or '
            'name in ("jax", "numpy", "pandas")], train_lib.load.__doc__ is None)')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == '[] False\n'


def test_every_room_is_there():
    rooms = set(itertools.chain(*FLOORS)) - {'main'}
    assert all((ROOT / room.replace('.', '/') / '__init__.py').exists() for room in rooms)
    folders = {'.'.join(path.parent.relative_to(ROOT).parts)
               for path in (ROOT / 'train_lib').rglob('__init__.py')}
    assert folders == {room for room in rooms if room.startswith('train_lib')}
