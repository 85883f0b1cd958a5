"""Makes docs/config.md from the comments of the knobs, in the files of `PARTS`.

    python docs/make_config_md.py

The files are parsed, not imported. A knob's comment stands behind its value, where it may go on in
the lines below, aligned; or above its line. A section's comment stands above it or behind `dict(`.
"""

import ast
import dataclasses
import io
import re
import tokenize
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / 'docs/config.md'
UNITS = {'epochs', 'steps', 'examples', 'percent'}  # a dict of one of these is a duration
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
[configs/sections/other_verbs.py](../configs/sections/other_verbs.py) and
[configs/vote/common.py](../configs/vote/common.py): edit those.
"""
PARTS = (('A run', 'configs/common.py'), ('Other verbs', 'configs/sections/other_verbs.py'),
         ('A vote', 'configs/vote/common.py'))
FUNCTIONS = {'get_config', 'add_verb_sections'}  # that set the knobs


@dataclasses.dataclass(frozen=True)
class Section:
    """Knobs that stand together: their path ('' for those of the config itself), what they are
    for, and (key, default as it is written, comment) of each."""

    path: str
    comment: str
    knobs: list[tuple[str, str, str]]


class _Comments:
    """The comments of a file, by line."""

    def __init__(self, source: str):
        self._found = {}  # line: (column, text, whether it has the line for itself)
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                (line, column), text = token.start, token.string.lstrip('#').strip()
                self._found[line] = column, text, not token.line[:column].strip()

    def above(self, line: int, column: int) -> list[str]:
        """The comment lines directly above a line, with the same indentation."""
        found = []
        while self._own(line - 1) == column:
            line -= 1
            found.insert(0, self._found[line][1])
        return found

    def behind(self, line: int) -> list[str]:
        """The comment behind a line, and its continuation in the lines below."""
        if line not in self._found or self._own(line) is not None:
            return []
        column, text, _ = self._found[line]
        found = [text]
        while self._own(line + 1) == column:
            line += 1
            found.append(self._found[line][1])
        return found

    def _own(self, line: int) -> int | None:
        column, _, alone = self._found.get(line, (None, '', False))
        return column if alone else None


def sections(path: Path) -> list[Section]:
    """The sections of a file of knobs, in their order; the config's own knobs first."""
    source = path.read_text(encoding='utf-8')
    comments, found = _Comments(source), [Section('', '', [])]
    function, = (node for node in ast.parse(source).body
                 if isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS)
    for node in function.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            _add(found, found[0], node.targets[0].attr, node, node.value, source, comments)
    return found


def _add(found: list[Section], inside: Section, key: str, where: ast.AST, value: ast.expr,
         source: str, comments: _Comments) -> None:
    """Adds one knob to the section that it stands in, or a section with its knobs to the end."""
    above = comments.above(where.lineno, where.col_offset)
    items = _items(value)
    if items is None:
        comment = ' '.join([*above, *comments.behind(value.end_lineno)])
        inside.knobs.append((key, _default(value, source), comment))
        return
    section = Section(key, ' '.join([*above, *comments.behind(value.lineno)]), [])
    found.append(section)
    for name, (node, one) in items.items():
        _add(found, section, f'{key}.{name}', node, one, source, comments)


def _items(value: ast.expr) -> Mapping[str, tuple[ast.AST, ast.expr]] | None:
    """{name: (where it begins, value)} of a section; None for any other value."""
    if isinstance(value, ast.Dict) and value.keys:
        return {key.value: (key, one) for key, one in zip(value.keys, value.values)}
    if isinstance(value, ast.Call) and getattr(value.func, 'id', '') == 'dict':
        names = {keyword.arg for keyword in value.keywords}
        if names and not names <= UNITS:
            return {keyword.arg: (keyword, keyword.value) for keyword in value.keywords}
    return None


def _default(value: ast.expr, source: str) -> str:
    if isinstance(value, ast.Call) and getattr(value.func, 'id', '') == '_anything':
        value = value.args[0]
    return ' '.join(ast.get_source_segment(source, value).split())


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
