"""The verb models: what can be trained, what it costs, and which weights are known."""

import fnmatch

from input_pipeline.errors import counted, did_you_mean
from models import list_models
from models.costs import costs, measure
from models.tags import STATISTICS, Tag, tags_of
from train_lib.commands.command import Command
from train_lib.runtime.errors import ConfigError

FEW = 5  # up to so many models, every tag is shown on a line of its own
_LINE = '{:27} {:>7} {:>7} {:>4}  {}'
_WIDEST = 80  # columns of a terminal


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
        shown = f'{tags[0].tag}{more}'
    numbers = f'{cost.parameters / 1e6:.1f}M', f'{cost.gflops:.2f}', cost.image_size
    lines = [_LINE.format(name, *numbers, shown)]
    if len(lines[0]) > _WIDEST:  # the tag goes under the others
        lines = [_LINE.format(name, *numbers, '').rstrip(), f'{"":50}{shown}']
    return lines + ([_describe(tag) for tag in tags] if full else [])


def _describe(tag: Tag) -> str:
    classes = counted(tag.classes, 'class', 'classes') if tag.classes else 'no classifier'
    return (f'  {tag.tag:28} {tag.image_size:>4} px, {tag.crop_mode} {tag.crop_pct:g}, '
            f'{tag.statistics}, {classes}')
