"""Pages of the house: one HTML file that needs no network and no other file.

Templates stand in this folder, extend `base.html.jinja`, take what they like of
`macros.html.jinja`, and have the filters r3, whole, duration, percent and soft; whatever they print
is escaped. A page may hold no script but `sort.js`, which its policy tells by its digest.
"""

import base64
import functools
import hashlib
import math
import os
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup


def write_page(path: Path, template: str, **values) -> None:
    """Fills a template of this folder and writes it.

    Written aside first: a page cut short by a kill never takes the place of a whole one.
    """
    text = environment().get_template(template).render(**values)
    partial = path.with_name(f'{path.name}.partial')
    partial.write_bytes(text.encode('utf-8', 'replace'))  # file names may hold other bytes
    os.replace(partial, path)


@functools.cache
def environment() -> jinja2.Environment:
    """Where templates are found, with the filters."""
    script = (Path(__file__).parent / 'sort.js').read_text('utf-8')
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(r3=r3, r4=r4, whole=whole, duration=duration, percent=percent, soft=soft)
    made.globals.update(script=Markup(script), script_hash='sha256-' + base64.b64encode(
        hashlib.sha256(script.encode()).digest()).decode())
    return made


def soft(name: str) -> Markup:
    """The escaped name, which may break after its slashes."""
    return Markup('/<wbr>').join(name.split('/'))


def number(value) -> float | None:
    """A finite number or None; a bool is no number."""
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
    """A share as percent; never 0 or 100 unless it is."""
    share = number(share)
    if share is None:
        return '–'
    if 0.9995 <= share < 1:
        return '> 99.9 %'
    if 0 < share < 0.0005:
        return '< 0.1 %'
    return f'{100 * share:.1f} %'


def duration(seconds) -> str:
    """Seconds in words."""
    seconds = number(seconds)
    if seconds is None:
        return '–'
    if seconds < 59.5:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f'{minutes} min {rest} s'
    return f'{minutes // 60} h {minutes % 60} min'
