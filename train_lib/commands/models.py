"""The verb models: what can be trained, what it costs, and which weights are known."""

import fnmatch
import textwrap
from collections.abc import Sequence

from input_pipeline.errors import counted, did_you_mean
from models import list_models
from models.costs import costs, measure
from models.licences import licence
from models.tags import STATISTICS, Tag, tags_of
from train_lib.commands.command import Command
from train_lib.runtime.errors import ConfigError

FEW = 5  # up to so many models, every tag is shown on a line of its own
_WIDTH = 80  # columns of a terminal
_LINE = '{:27} {:>7} {:>7} {:>4}  {}'


def print_models(command: Command) -> int:
    """Prints the table. Returns the exit code.

    Raises:
        ConfigError: no model has such a name.
    """
    names = matching(command.words[0] if command.words else '')
    print(_LINE.format('model', 'params', 'GFLOPs', 'px', 'timm weights (first: default)'))
    for name in names:
        print('\n'.join(_lines(name, full=len(names) <= FEW)))
    used = {tag.statistics for name in names for tag in tags_of(name)}
    for word in STATISTICS:
        if word in used:
            mean, std = (' '.join(f'{value:.4g}' for value in values)
                         for values in STATISTICS[word])
            print(f'{word:9} mean {mean}, std {std}')
    if len(names) > FEW:
        for line in _licence_lines(names):
            print(line)
    print('params for 1,000 classes; GFLOPs per image, where a multiply-add counts as 2.')
    return 0


def matching(pattern: str) -> list[str]:
    """Names that match a shell pattern, or contain a word.

    Raises:
        ConfigError: there are none; the message names the nearest.
    """
    known = list_models()
    names = fnmatch.filter(known, pattern or '*') or [name for name in known if pattern in name]
    if not names:
        hint = did_you_mean(pattern, known, n=3, cutoff=0.4, show=str,
                            otherwise='try `main.py models`.')
        raise ConfigError(f'There is no model {pattern!r}; {hint}')
    return names


def _lines(name: str, full: bool) -> list[str]:
    cost = costs().get(name) or measure(name)
    tags = tags_of(name)
    if not tags:
        shown = '-'
    elif full:
        shown = f'{tags[0].statistics} statistics'
    else:
        more = f' (+{len(tags) - 1})' if len(tags) > 1 else ''
        shown = f'{tags[0].tag}{more}{" *" if licence(tags[0].license).special else ""}'
    numbers = f'{cost.parameters / 1e6:.1f}M', f'{cost.gflops:.2f}', cost.image_size
    lines = [_LINE.format(name, *numbers, shown)]
    if len(lines[0]) > _WIDTH:  # the tag goes under the others
        lines = [_LINE.format(name, *numbers, '').rstrip(),
                 f'{"":{max(0, min(50, _WIDTH - len(shown)))}}{shown}']
    if not full:
        return lines
    lines += [_describe(tag) for tag in tags]
    for one in dict.fromkeys(tag.license for tag in tags):
        lines += _wrapped(f' licence {licence(one)}: '
                          f'{", ".join(tag.tag for tag in tags if tag.license == one)}')
    return lines


def _licence_lines(names: Sequence[str]) -> list[str]:
    """What the mark means: licences that are not for any use, and where else they occur."""
    special = [tag for name in names for tag in tags_of(name) if licence(tag.license).special]
    lines = [f'* {licence(one)}' for one in sorted({tag.license for tag in special})]
    others = list(dict.fromkeys(tag.model for tag in special if tag != tags_of(tag.model)[0]))
    if others:
        lines += _wrapped(f'* also of further weights of {", ".join(others)}')
    return lines


def _describe(tag: Tag) -> str:
    classes = counted(tag.classes, 'class', 'classes') if tag.classes else 'no classifier'
    return (f'  {tag.tag:28} {tag.image_size:>4} px, {tag.crop_mode} {tag.crop_pct:g}, '
            f'{tag.statistics}, {classes}')


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=' ', break_on_hyphens=False)
