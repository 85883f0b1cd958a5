"""Sections of the config as frozen dataclasses."""

import dataclasses

import pytest

from configs import common
from train_lib.optim.optimizers import read_optimizer
from train_lib.optim.schedules import read_schedule
from train_lib.runtime.config_section import read_section
from train_lib.runtime.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Section:
    rate: float
    steps: int = 3


def test_keys_become_fields():
    assert read_section(Section, dict(rate=0.5), 'sweep') == Section(0.5, 3)
    assert read_section(Section, dict(rate=0.5, steps=4), 'sweep') == Section(0.5, 4)


@pytest.mark.parametrize('section, words', [
    (dict(rate=1.0, step=2), r"config\.sweep\.step is unknown: did you mean 'steps'\?"),
    (dict(steps=2), r'config\.sweep\.rate is missing: start from the section sweep of')])
def test_unknown_and_missing_keys_are_refused(section, words):
    with pytest.raises(ConfigError, match=words):
        read_section(Section, section, 'sweep')


@pytest.mark.parametrize('name, read', [('optimizer', read_optimizer),
                                        ('schedule', read_schedule)])
def test_every_key_of_the_section_is_a_field(name, read):
    section = common.get_config()[name].to_dict()
    spec = read(section)
    assert {key: getattr(spec, key) for key in section} == section
    with pytest.raises(ConfigError, match=rf'config\.{name}\.nmae is unknown'):
        read(section | dict(nmae=1))
