"""No p value is written as 0, wherever it stands."""

import re

import numpy as np
import pytest

from train_lib.metrics.p_values import p_sentence, p_text
from train_lib.reporting.page import TEMPLATES, environment


@pytest.mark.parametrize(('p', 'text', 'sentence'), [
    (0.0, '< .001', 'p < .001'), (3e-9, '< .001', 'p < .001'), (0.00099, '< .001', 'p < .001'),
    (0.001, '0.001', 'p = 0.001'), (0.0124, '0.012', 'p = 0.012'), (1.0, '1.000', 'p = 1.000'),
    (None, '–', 'p = –'), (np.nan, '–', 'p = –')])
def test_a_small_p_is_less_than_something(p, text, sentence):
    assert (p_text(p), p_sentence(p)) == (text, sentence)
    for name, wanted in (('p', text), ('p_sentence', sentence)):
        shown = environment().from_string('{{ p | ' + name + ' }}').render(p=p)
        assert shown == wanted.replace('<', '&lt;')


def test_every_p_of_a_page_goes_through_the_filter():
    """{{ row.p | r3 }} would write 0.000."""
    shown = [(path.name, *found) for path in sorted(TEMPLATES.glob('*.jinja'))
             for found in re.findall(r'\{\{ *[\w.]*\.(p|p_holm) *\| *(\w+) *\}\}',
                                     path.read_text('utf-8'))]
    assert len(shown) >= 3
    assert {name for *_, name in shown} <= {'p', 'p_sentence'}
