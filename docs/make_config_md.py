"""Makes docs/config.md from the comments of the knobs, in the files of `PARTS`.

    python docs/make_config_md.py

How the comments are read: train_lib/commands/knob_comments.py.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from train_lib.commands.knob_comments import sections  # noqa: E402

TARGET = ROOT / 'docs/config.md'
INTRODUCTION = """\
# Every knob

    python main.py --config=configs/sketch_vit.py --config.schedule.lr=3e-4 --config.seed=1

This trains with another learning rate and another seed. Every key below is set like that, with
`--config.` before it, or in a config file as `config.schedule.lr = 3e-4`. An unknown key or a value
of the wrong type is refused, and the nearest right one is named. A value that is not a plain number
or word is written in Python, in quotes: `--config.mixing="[dict(kind='mixup', alpha=0.2)]"`.

A **duration** is written in any unit: `dict(epochs=30)`, `dict(steps=1000)`,
`dict(examples=50_000)` or `dict(percent=10)` of the whole run; on the command line
`--config.duration.steps=1000`. A **share** is a number from 0 to 1.

This page is made by `python docs/make_config_md.py` from the comments in
[configs/common.py](../configs/common.py),
[configs/sections/flat_minima.py](../configs/sections/flat_minima.py),
[configs/sections/without_labels.py](../configs/sections/without_labels.py),
[configs/sections/devices.py](../configs/sections/devices.py),
[configs/sections/other_verbs.py](../configs/sections/other_verbs.py) and
[configs/vote/common.py](../configs/vote/common.py): edit those.
"""
PARTS = (('A run', 'configs/common.py'), ('Flat minima', 'configs/sections/flat_minima.py'),
         ('Without labels', 'configs/sections/without_labels.py'),
         ('Devices', 'configs/sections/devices.py'),
         ('Other verbs', 'configs/sections/other_verbs.py'),
         ('A vote', 'configs/vote/common.py'))


def render() -> str:
    """The text of docs/config.md."""
    lines = [INTRODUCTION]
    for title, file in PARTS:
        lines += [f'## {title}', '', f'`{file}`', '']
        for section in sections(ROOT / file):
            if section.path:
                lines += [f'### {section.path}', '']
            if section.comment:
                lines += [_cell(section.comment) + '.', '']
            if section.knobs:
                lines += ['| key | default | meaning |', '|---|---|---|']
                lines += [f'| `{key}` | {_code(default)} | {_cell(comment)} |'
                          for key, default, comment in section.knobs] + ['']
    return '\n'.join(lines).rstrip() + '\n'


def _cell(comment: str) -> str:
    """A comment in Markdown, beginning with a capital if it begins with a plain word."""
    return re.sub('^[a-z]+(?= )', lambda word: word[0].capitalize(), _prose(comment)).rstrip('.')


def _prose(comment: str) -> str:
    """Markdown of a comment: quoted words, dict(...), () and {} as code, pages as links."""
    code = re.compile(r"`([^`]+)`|((?:(?<!\w)[\w.]+=)?(?<!\w)r?'[^']*'(?!\w)"
                      r"|dict\((?:[^()]|\([^()]*\))*\)|(?<!\w)\(\)|\{\})")
    found, end = [], 0
    for match in code.finditer(comment):
        found += [_plain(comment[end:match.start()]), _code(match[1] or match[2])]
        end = match.end()
    return ''.join([*found, _plain(comment[end:])])


def _plain(text: str) -> str:
    return re.sub(r'docs/(\w+\.md)', r'[\1](\1)', re.sub(r'([|<*])', r'\\\1', text))


def _code(text: str) -> str:
    return f'`{text}`'.replace('|', r'\|')


if __name__ == '__main__':
    TARGET.write_text(render(), encoding='utf-8')
    print(f'{TARGET.relative_to(ROOT)} written')
