"""Licences of published weights: what is marked, and where it is written."""

import pytest

import main
from models import list_models
from models.licences import licence
from models.tags import tags_of


@pytest.mark.parametrize(('name', 'commercial', 'text'), [
    ('apache-2.0', 'yes', 'apache-2.0'), ('mit', 'yes', 'mit'),
    ('cc-by-nc-4.0', 'no', 'cc-by-nc-4.0 (no commercial use)'),
    ('dinov3-license', 'terms', 'dinov3-license (terms of its own by Meta)'),
    ('', 'terms', 'not stated'), ('of-tomorrow', 'terms', 'of-tomorrow (read its terms)')])
def test_what_is_known_of_a_licence(name, commercial, text):
    found = licence(name)
    assert (found.commercial, str(found)) == (commercial, text)
    assert found.special == (commercial != 'yes')


def test_a_licence_whose_name_says_noncommercial_is_never_free():
    names = {tag.license for name in list_models() for tag in tags_of(name)}
    assert len(names) > 3
    for name in names:
        assert licence(name).special or not any(part in name for part in (
            '-nc', 'noncommercial', 'research'))


def printed(capsys, *words):
    assert main.main(['models', *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_every_tag_of_a_model_is_listed_with_its_licence(capsys):
    text = ' '.join(printed(capsys, 'resnet50'))
    for start, tag in (('licence apache-2.0: ', 'a1_in1k'), ('licence not stated: ', 'bamboo'),
                       ('licence cc-by-nc-4.0 (no commercial use): ', 'fb_ssl_yfcc100m_ft_in1k')):
        assert tag in text.partition(start)[2].partition(' licence ')[0]


def test_the_list_marks_what_is_not_for_any_use(capsys, monkeypatch):
    lines = printed(capsys)
    assert '* cc-by-nc-4.0 (no commercial use)' in lines
    assert ' resnet50,' in ' '.join(lines).partition('* also of further weights of ')[2]
    # A long tag is on a line of its own, below its model.
    marked = {(before if line.startswith('     ') else line).split()[0]
              for before, line in zip(['', *lines], lines) if line.endswith(' *')}
    assert marked == {name for name in list_models()
                      if tags_of(name) and licence(tags_of(name)[0].license).special}
    monkeypatch.setattr('train_lib.commands.models.tags_of', lambda name: tags_of(name)[::-1])
    assert any(line.startswith('resnet18 ') and line.endswith(' *')
               for line in printed(capsys)) == licence(tags_of('resnet18')[-1].license).special
