"""The knobs of the configs with their defaults and comments, for docs/config.md and for the help.

The files are parsed, not imported. A knob's comment stands behind its value, where it may go on in
the lines below, aligned; or above its line. A section's comment stands above it or behind `dict(`.
"""

import ast
import dataclasses
import functools
import io
import tokenize
from collections.abc import Mapping
from pathlib import Path

UNITS = {'epochs', 'steps', 'examples', 'percent'}  # a dict of one of these is a duration
FUNCTIONS = {'get_config', 'add_verb_sections', 'add_flat_minima_sections',
             'add_unlabelled_sections', 'add_device_sections'}  # that set the knobs


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


@functools.cache
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
