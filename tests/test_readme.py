"""README.ko.md says what README.md says: the same headings, commands, tables, links, numbers."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGLISH, KOREAN = ((ROOT / name).read_text(encoding='utf-8')
                   for name in ('README.md', 'README.ko.md'))


def parts(text: str) -> tuple[list[str], str]:
    """(the lines of code, the rest)"""
    code, rest, fenced = [], [], False
    for line in text.splitlines():
        fence = line.startswith('```')
        if fence or fenced or line.startswith('    '):
            code.append(line)
        else:
            rest.append(line)
        fenced ^= fence
    return code, '\n'.join(rest)


def headings(text: str) -> list[int]:
    """The levels of the headings, in their order."""
    return [len(found) for found in re.findall(r'^(#+) ', parts(text)[1], flags=re.M)]


def tables(text: str) -> list[tuple[int, int]]:
    """(rows, columns) of every table."""
    found = re.findall(r'(?:^\|.*\n?)+', parts(text)[1], flags=re.M)
    return [(len(rows := table.splitlines()), rows[1].count('|')) for table in found]


def links(text: str) -> list[str]:
    """Targets of links and pictures, but for those between the two files."""
    return [target for target in re.findall(r'\]\((.*?)\)', parts(text)[1])
            if not target.startswith('README')]


def knobs(text: str) -> set[str]:
    """Whatever stands in backticks: files, keys, values."""
    return set(re.findall(r'`([^`]+)`', parts(text)[1]))


def test_the_code_is_the_same():
    assert parts(ENGLISH)[0] == parts(KOREAN)[0]


@pytest.mark.parametrize('what', [headings, tables, links])
def test_the_structure_is_the_same(what):
    assert what(ENGLISH) == what(KOREAN)


def test_the_same_knobs_and_files_are_named():
    # A class folder and a "who" may be translated; everything else is a name.
    ours = {'PATH/<class>/**/image.*'}
    theirs = {'PATH/<클래스>/**/image.*', '{점으로 이은 경로: 값}', '{dotted.path: value}'}
    assert knobs(ENGLISH) - ours - theirs == knobs(KOREAN) - theirs


def test_every_file_linked_is_there():
    for target in links(ENGLISH):
        assert (ROOT / target.partition('#')[0]).exists(), target


def test_the_numbers_are_the_same():
    """Every decimal number of the text: 0.962, 7e-6, 3.7."""
    def numbers(text):
        return sorted(re.findall(r'\d*\.\d+|\de-\d', parts(text)[1]))
    assert numbers(ENGLISH) == numbers(KOREAN)
