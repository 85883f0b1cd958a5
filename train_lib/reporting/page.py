"""Pages: each is one HTML file that needs no network and no other file.

Its template in templates/ extends `base.html.jinja`, may use `macros.html.jinja`, and has the
filters r3, r4, p, p_sentence, whole, duration, percent and soft; whatever it prints is escaped. A
page has one script, `sort.js` or the one of SCRIPTS that its template names by `script`: its policy
names the digest of that.
"""

import base64
import dataclasses
import functools
import hashlib
import math
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from input_pipeline.atomic_files import atomic_open
from train_lib.metrics.p_values import p_sentence, p_text

TEMPLATES = Path(__file__).parent / 'templates'
SCRIPTS = ('sort', 'decide')


@dataclasses.dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        anchor: its id on the page.
        title: the heading, as text or Markup.
        body: the HTML below the heading.
        label: how the list of sections calls it, where that is a name from the data; '' for title.
    """

    anchor: str
    title: str
    body: Markup
    label: str = ''


def write_page(path: Path, template: str, **values) -> None:
    """Fills a template and writes the page, whole or not at all."""
    with atomic_open(path, errors='replace') as file:  # file names may hold other bytes
        file.write(render(template, **values))


def render(template: str, **values) -> Markup:
    """A template of templates/, filled."""
    return Markup(environment().get_template(template).render(**values))


@functools.cache
def environment() -> jinja2.Environment:
    """What fills the templates."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(r3=r3, r4=r4, p=p_text, p_sentence=p_sentence, whole=whole,
                        duration=duration, percent=percent, soft=soft)
    made.globals.update(scripts={name: _script(name) for name in SCRIPTS})
    return made


def _script(name: str) -> dict[str, str]:
    text = (TEMPLATES / f'{name}.js').read_text('utf-8')
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return dict(text=Markup(text), digest=f'sha256-{digest}')


def soft(name: str) -> Markup:
    """The escaped name, which may break after its slashes."""
    return Markup('/<wbr>').join(name.split('/'))


def number(value) -> float | None:
    """A finite number as a float, None for anything else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return None
    return float(value) if math.isfinite(value) else None


def r3(value) -> str:
    """A number with three decimals, a dash for none."""
    value = number(value)
    return '–' if value is None else f'{value:.3f}'


def r4(value) -> str:
    """A number with four decimals, a dash for none."""
    value = number(value)
    return '–' if value is None else f'{value:.4f}'


def whole(value) -> str:
    """A number without decimals, a dash for none."""
    value = number(value)
    return '–' if value is None else f'{value:,.0f}'


def percent(share) -> str:
    """A share as percent; '0.0 %' and '100.0 %' only where it is exact."""
    share = number(share)
    if share is None:
        return '–'
    if 0.9995 <= share < 1:
        return '> 99.9 %'
    if 0 < share < 0.0005:
        return '< 0.1 %'
    return f'{100 * share:.1f} %'


def duration(seconds) -> str:
    """Such as 5.3 s, 4 min 12 s or 3 h 20 min; a dash for none."""
    seconds = number(seconds)
    if seconds is None:
        return '–'
    if seconds < 59.5:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f'{minutes} min {rest} s'
    return f'{minutes // 60} h {minutes % 60} min'
