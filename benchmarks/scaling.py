"""The smallest GPUs and TPUs that recipes of competitions fit on, by the verb plan.

    python benchmarks/scaling.py [NAME ...] [--on=gpu,tpu] [--timeout=SECONDS]
    python benchmarks/scaling.py NAME --target=v5e:2x2 [--fsdp] [--remat]
    python benchmarks/scaling.py --page

Needs the compilers of requirements-plan.txt and no GPU or TPU. Targets are tried from the smallest
on, each in a process of its own: with copies of the weights on all devices, then with weights split
over them (FSDP). Where no target or only a large one is enough, the smaller ones are tried again
with `remat`. A target on which the recipe cannot fit, by what it took on another one, is left out.

Every plan goes into benchmarks/scaling.json at once, and the table between two marks of
docs/scaling.md is made from it; --page only makes the table. Without a name all recipes are
planned. --target plans one recipe on one target, prints the command and keeps nothing.
"""

import argparse
import csv
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from input_pipeline.atomic_files import write_json
from train_lib.planning.chips import CHIPS

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_suffix('.json')
PAGE = ROOT / 'docs' / 'scaling.md'
MARKS = ('<!-- made by benchmarks/scaling.py -->', '<!-- end -->')
KEPT = ('batch_size', 'mesh', 'memory_per_device_bytes', 'hbm_bytes', 'usable_bytes', 'fits',
        'flops_per_step', 'attention_kernels', 'compile_seconds')  # of plan.json
LATE = 'not compiled within'
PACKAGES = ('jax', 'jaxlib', 'libtpu', 'jax-cuda13-plugin')
FACES = {'mask': ('worn', 'wrong', 'none'), 'gender': ('female', 'male'),
         'age': ('young', 'middle', 'old')}
# From the smallest on: by the number of devices, then by their memory.
TARGETS = {
    'gpu': ('t4:1x1x1', 'l4:1x1x1', 'a100-40gb:1x1x1', 'a100:1x1x1', 'h100:1x1x1', 'h200:1x1x1',
            'l4:1x1x8', 'a100-40gb:1x1x8', 'a100:1x1x8', 'h100:1x1x8'),
    'tpu': ('v5e:1x1', 'v6e:1x1', 'v5e:2x2', 'v6e:2x2', 'v5e:2x4', 'v6e:2x4', 'v5e:4x4',
            'v6e:4x4'),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe of a competition.

    Attributes:
        title: for the table.
        config: FILE:arguments, which may name the tables that `write_data` makes.
        overrides: flags after it.
        remat: whether the model knows scan and remat; its blocks are scanned then, which compiles
            them once.
    """

    title: str
    config: str
    overrides: tuple[str, ...] = ()
    remat: bool = True


def _eva(arguments: str) -> str:
    return f'configs/sketch_eva.py:csv=sketches.csv,pretrained=,{arguments}'


GIANT = 'model=eva_giant_patch14_336,size=336,head=linear'
RECIPES = {
    'eva02_linear': Recipe('EVA-02 L 448, frozen, linear head; 5 folds', _eva('head=linear')),
    'eva02_mlp': Recipe('EVA-02 L 448, frozen, MLP head; 5 folds', _eva('head=mlp')),
    'eva02_lora': Recipe('EVA-02 L 448, LoRA of rank 8; 5 folds', _eva('train=lora')),
    'eva02_full': Recipe('EVA-02 L 448, all weights; 5 folds', _eva('train=all')),
    'giant_linear': Recipe('EVA giant 336, frozen, linear head', _eva(GIANT)),
    'giant_full': Recipe('EVA giant 336, all weights', _eva(f'{GIANT},train=all')),
    'densenet121': Recipe('DenseNet-121 224', 'configs/food_densenet.py:pretrained=', remat=False),
    'efficientnet_b4': Recipe(
        'EfficientNet-B4 224, three deep branches',
        'configs/people_multihead.py:csv=faces.csv,pretrained=,model=c', remat=False),
    'efficientnet_b4_frozen': Recipe(
        'EfficientNet-B4 224, frozen, three deep branches',
        'configs/people_multihead.py:csv=faces.csv,from=elsewhere', remat=False),
}


@dataclasses.dataclass(frozen=True)
class Way:
    """How a recipe is laid out over devices."""

    fsdp: bool = False
    remat: bool = False

    def flags(self, devices: int) -> list[str]:
        return ([f'--config.mesh.fsdp={devices}'] if self.fsdp else []) + (
            ['--config.model.remat=True'] if self.remat else [])


@dataclasses.dataclass(frozen=True)
class Plan:
    """What became of one recipe on one target in one way.

    Attributes:
        recipe, target, way: which.
        command: that makes it again, with the tables of `write_data` in the working directory.
        content: what is KEPT of plan.json, {} where there is none.
        made: versions of the packages, and the date.
        error: the last line of a plan that failed.
    """

    recipe: str
    target: str
    way: Way
    command: str
    content: dict
    made: dict
    error: str = ''

    @property
    def fits(self) -> bool:
        return bool(self.content.get('fits'))

    @property
    def needed(self) -> int:
        """Bytes per device, 0 if not known."""
        return self.content.get('memory_per_device_bytes', 0)

    @property
    def share(self) -> float:
        """Of the memory, that a program may use; 0 if not known."""
        return self.content.get('usable_bytes', 0) / self.content.get('hbm_bytes', 1)


def kind_of(target: str) -> str:
    """'v5e:2x4' -> 'v5e'."""
    return target.partition(':')[0]


def devices_of(target: str) -> int:
    """'v5e:2x4' -> 8; 'cpu' -> 1."""
    return math.prod(map(int, (target.partition(':')[2] or '1').split('x')))


def write_data(folder: Path) -> None:
    """Tables of labels, as many as those of the competitions, that all name one picture: a plan
    reads none."""
    cv2.imwrite(str(folder / 'picture.png'), np.full((64, 64, 3), 128, np.uint8))
    sketches = [('picture.png', number, f'class {number % 500}') for number in range(15_021)]
    faces = [('picture.png', number, number // 7, *(names[number // 10 % len(names)]
                                                   for names in FACES.values()))
             for number in range(18_900)]
    tables = {'sketches': (('image', 'id', 'label'), sketches),
              'faces': (('image', 'id', 'group', *FACES), faces)}
    for name, (header, rows) in tables.items():
        with (folder / f'{name}.csv').open('w', newline='', encoding='utf-8') as file:
            csv.writer(file).writerows([header, *rows])


def command_of(recipe: Recipe, target: str, way: Way, workdir: str = 'plan') -> list[str]:
    """Of the plan, without the interpreter; to be run where the tables are."""
    scan = ['--config.model.scan=True'] if recipe.remat else []
    return [str(ROOT / 'main.py'), 'plan', f'--config={ROOT / recipe.config}', *recipe.overrides,
            *scan, *way.flags(devices_of(target)), f'--config.plan.target={target}',
            f'--workdir={workdir}']


def plan(name: str, target: str, way: Way, seconds: float) -> Plan:
    """Plans a recipe in a process of its own, which gives its memory back.

    Args:
        name: of the recipe.
        target: see `TARGETS`.
        way: of laying it out.
        seconds: after which it is stopped.
    """
    command = command_of(RECIPES[name], target, way)
    shown = shlex.join(['python', *command]).replace(f'{ROOT}/', '')
    environment = os.environ | dict(JAX_PLATFORMS='cpu', ALLOW_MULTIPLE_LIBTPU_LOAD='1')
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        try:
            done = subprocess.run([sys.executable, *command], cwd=folder, env=environment,
                                  capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return Plan(name, target, way, shown, {}, versions(),
                        f'{LATE} {seconds:g} s')
        made = Path(folder) / 'plan' / 'plan.json'
        if done.returncode or not made.exists():
            return Plan(name, target, way, shown, {}, versions(), error_of(done.stderr))
        content = json.loads(made.read_text())
    if content.get('compiler_missing'):
        raise SystemExit(f'The compiler for {target} is missing ({content["compiler_missing"]}): '
                         f'pip install -r requirements-plan.txt.')
    return Plan(name, target, way, shown,
                {key: content[key] for key in KEPT if key in content}, versions())


def error_of(text: str) -> str:
    """The sentence in what a failed command wrote: that of an exception, else the last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r'[\w.]+(Error|Exception): ', line)]
    return [*raised[:1], *lines[-1:], 'no message'][0]


def at_least(target: str, way: Way, made: Iterable[Plan]) -> float:
    """Bytes per device that a recipe takes at least on a target, by plans on others: its arrays and
    activations are shared among the devices at best.

    A plan says nothing of GPUs of another side of Ampere, which lack flash attention or have it,
    nor of copies of the weights what it would take without them.
    """
    family = lambda one: (CHIPS[kind_of(one)].platform, CHIPS[kind_of(one)].capability >= '8.0')
    least = 0.0
    for each in made:
        before, now = devices_of(each.target), devices_of(target)
        copies = before > 1 and not each.way.fsdp and way.fsdp
        if (family(each.target) == family(target) and each.way.remat == way.remat
                and before <= now and not copies):
            least = max(least, each.needed * before / now)
    return least


def search(name: str, targets: Sequence[str], seconds: float, plan=plan) -> Iterator[Plan]:
    """Plans of a recipe on targets from the smallest on, until it fits; with `remat` on those that
    are smaller.

    Args:
        name: of the recipe.
        targets: of one platform.
        seconds: for each plan.
        plan: makes one.
    """
    known = [target for target in targets if kind_of(target) in CHIPS]
    made: list[Plan] = []
    share = 1.0
    for remat in (False, True) if RECIPES[name].remat else (False,):
        fitting = None
        for target in known:
            for fsdp in (False, True) if devices_of(target) > 1 else (False,):
                way = Way(fsdp, remat)
                # Compilers differ a little from chip to chip.
                if 0.9 * at_least(target, way, made) > CHIPS[kind_of(target)].memory * share:
                    continue
                made.append(plan(name, target, way, seconds))
                yield made[-1]
                share = made[-1].share or share
                if made[-1].error.startswith(LATE):
                    return  # other targets would take as long
                if made[-1].fits:
                    fitting = target
                    break
            if fitting:
                break
        known = known[:known.index(fitting)] if fitting else known


# --- results -------------------------------------------------------------------------------------


def read_results(path: Path) -> dict[str, list[Plan]]:
    """{recipe: its plans} of a file that `write_results` wrote, {} if there is none."""
    if not path.exists():
        return {}
    return {name: [Plan(**one | dict(way=Way(**one['way']))) for one in plans]
            for name, plans in json.loads(path.read_text())['recipes'].items()}


def write_results(path: Path, results: Mapping[str, Sequence[Plan]]) -> None:
    """Writes the plans of all recipes."""
    write_json(path, dict(recipes={name: [dataclasses.asdict(one) for one in results[name]]
                                   for name in RECIPES if name in results}))


def versions() -> dict[str, str]:
    """Of the packages that compile, and the date."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | dict(date=f'{datetime.date.today()}')


# --- the table -----------------------------------------------------------------------------------


def rows(results: Mapping[str, Sequence[Plan]]) -> Iterator[str]:
    """The lines of the table, Markdown."""
    yield ('| recipe | name | smallest | batch | mesh | GiB per device | usable, of all | '
           'FLOPs per step | compiled, s |')
    yield '|---|---|---|---|---|---|---|---|---|'
    for name, recipe in RECIPES.items():
        title = recipe.title
        for platform, targets in TARGETS.items():
            plans = [each for each in results.get(name, ()) if each.target in targets]
            fitting = [each for each in plans if each.fits]
            if plans and not fitting:
                yield f'| {title} | {name} | {_none(platform, plans)} | | | | | | |'
            for each in fitting:
                yield f'| {title} | {name} | {_cells(each)} |'


def _cells(each: Plan) -> str:
    found = each.content
    mesh = ', '.join(f'{axis} {size}' for axis, size in found['mesh'].items() if size > 1)
    cells = [each.target, found.get('batch_size', ''), (mesh or 'one device') + (
        ', remat' if each.way.remat else ''), f'{each.needed / 2**30:.2f}',
        _room(found), f'{found["flops_per_step"]:.3g}', f'{found["compile_seconds"]:.0f}']
    return ' | '.join(map(str, cells))


def _room(found: Mapping) -> str:
    every = f'{found["hbm_bytes"] / 2**30:.2f}'
    return f'{found["usable_bytes"] / 2**30:.2f} of {every}' if 'usable_bytes' in found else every


def _none(platform: str, plans: Sequence[Plan]) -> str:
    failed = [each for each in plans if each.error]
    if failed:
        return f'{platform}: {failed[-1].target}: {failed[-1].error}'.replace('|', '/')
    last = plans[-1]
    return f'{platform}: none; {last.target} would need {last.needed / 2**30:.1f} GiB per device'


def write_page(page: Path, results: Mapping[str, Sequence[Plan]]) -> None:
    """Puts the table between the marks of a page."""
    text = page.read_text(encoding='utf-8')
    before, _, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise SystemExit(f'{page} lacks the marks {" and ".join(MARKS)}.')
    page.write_text(before + table(results) + after, encoding='utf-8')


def table(results: Mapping[str, Sequence[Plan]]) -> str:
    """What stands on the page, with the marks."""
    made = sorted({', '.join(f'{package} {version}' for package, version in each.made.items())
                   for plans in results.values() for each in plans})
    return '\n'.join([MARKS[0], *rows(results), '', f'Compiled with {"; ".join(made)}.', MARKS[1]])


def main(argv: Sequence[str] | None = None) -> int:
    """Plans the recipes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', help=', '.join(RECIPES))
    parser.add_argument('--on', default='gpu,tpu', help='gpu, tpu or both')
    parser.add_argument('--target', default='', help='plan only on this one, and keep nothing')
    parser.add_argument('--fsdp', action='store_true', help='with --target')
    parser.add_argument('--remat', action='store_true', help='with --target')
    parser.add_argument('--timeout', type=float, default=3600.0, help='seconds per plan')
    parser.add_argument('--page', action='store_true', help='only make the table')
    given = parser.parse_args(argv)
    if unknown := [name for name in given.names if name not in RECIPES]:
        parser.error(f'{unknown[0]!r} is not a recipe: choose from {", ".join(RECIPES)}')
    if set(given.on.split(',')) - set(TARGETS):
        parser.error(f'--on={given.on}: choose from {", ".join(TARGETS)}')
    if given.target and not re.fullmatch(r'[\w-]+:\d+(x\d+)*', given.target):
        parser.error(f'--target={given.target}: give one such as v5e:2x4 or h100:1x1x8')
    results = read_results(RESULTS)
    if given.target:
        for name in given.names or RECIPES:
            print(said(plan(name, given.target, Way(given.fsdp, given.remat), given.timeout)))
        return 0
    for name in () if given.page else given.names or RECIPES:
        for platform in given.on.split(','):
            kept = [each for each in results.get(name, ())
                    if each.target not in TARGETS[platform]]
            for made in search(name, TARGETS[platform], given.timeout):
                print(said(made), flush=True)
                kept.append(made)
                write_results(RESULTS, results | {name: kept})
            results[name] = kept
    write_page(PAGE, results)
    return 0


def said(made: Plan) -> str:
    """A plan in two lines: its command, and what became of it."""
    outcome = made.error or (f'{made.needed / 2**30:.2f} GiB of '
                             f'{made.content["hbm_bytes"] / 2**30:.2f}: '
                             f'{"fits" if made.fits else "does not fit"}')
    return f'{made.command}\n    {outcome}'


if __name__ == '__main__':
    raise SystemExit(main())
