"""What an open project has: licence, changelog, citation, settings of the tools, one version."""

import re
import tomllib
from pathlib import Path

import pytest

import train_lib

ROOT = Path(__file__).parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding='utf-8')


def test_one_version():
    released = re.findall(r'^## (\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)$', read('CHANGELOG.md'), re.M)
    assert released == sorted(released, key=lambda entry: [int(part) for part in
                                                           entry[0].split('.')], reverse=True)
    newest, date = released[0]
    citation = read('CITATION.cff')
    assert train_lib.__version__ == newest
    assert re.search(r'^version: (.*)$', citation, re.M)[1] == newest
    assert re.search(r'^date-released: (.*)$', citation, re.M)[1] == date


def test_the_changelog_has_a_place_for_what_comes():
    headings = re.findall(r'^## (.*)$', read('CHANGELOG.md'), re.M)
    assert headings[0] == 'Unreleased'


def test_the_citation_is_complete():
    """The required keys of the Citation File Format 1.2.0, and those that a citation needs."""
    keys = re.findall(r'^([a-z-]+):', read('CITATION.cff'), re.M)
    assert len(keys) == len(set(keys))
    assert {'cff-version', 'message', 'title', 'authors', 'version', 'license'} <= set(keys)
    assert 'cff-version: 1.2.0\n' in read('CITATION.cff')
    assert '- name: The Atelier authors\n' in read('CITATION.cff')
    yaml = pytest.importorskip('yaml')
    parsed = yaml.safe_load(read('CITATION.cff'))
    assert parsed['authors'] == [{'name': 'The Atelier authors'}]
    assert parsed['license'] == 'Apache-2.0' and parsed['type'] == 'software'


def test_the_licence_is_apache_2():
    text = read('LICENSE')
    assert 'Apache License' in text and 'Version 2.0, January 2004' in text
    assert 'Copyright 2026 The Atelier authors' in text and '[yyyy]' not in text
    assert [int(number) for number in re.findall(r'^   (\d)\. ', text, re.M)] == list(range(1, 10))


def test_the_tools_have_one_file_of_settings():
    settings = tomllib.loads(read('pyproject.toml'))['tool']
    assert {'ruff', 'pytest', 'mypy'} <= set(settings)
    markers = {line.partition(':')[0] for line in settings['pytest']['ini_options']['markers']}
    assert markers == {'slow', 'faults', 'slurm'}
    for name in ('pytest.ini', 'ruff.toml', 'setup.cfg', 'tox.ini', 'mypy.ini', '.mypy.ini'):
        assert not (ROOT / name).exists(), name


def test_continuous_integration_runs_every_tool(pytestconfig):
    script = read('.ci/run')
    assert re.search(r'ruff" check \.\n.*mypy"\n.*pytest\n', script, re.S)
    assert pytestconfig.inipath == ROOT / 'pyproject.toml'


def test_the_tools_are_installed_by_requirements_dev():
    names = re.findall(r'^([\w-]+)', read('requirements-dev.txt'), re.M)
    assert {'ruff', 'mypy'} <= set(names)
