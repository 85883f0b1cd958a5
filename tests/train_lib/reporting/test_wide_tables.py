"""Every table stands in a box that scrolls, and on a phone a table that is too wide shows it."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import urllib.parse
from html.parser import HTMLParser

import pytest

from train_lib.reporting.page import TEMPLATES, environment

CHROMIUM = next(filter(None, map(shutil.which, (
    'chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
WIDTH = 390  # of a phone
PAGE = """{% extends 'base.html.jinja' %}{% block main %}{% for columns in (40, 2) %}
<div class="scroll"><table><thead><tr>{% for _ in range(columns) %}<th>column</th>{% endfor %}</tr>
</thead><tbody><tr>{% for _ in range(columns) %}<td>value</td>{% endfor %}</tr></tbody></table>
</div>{% endfor %}{% endblock %}"""
# A timeline of scrolling is read when a frame is drawn, and there may be no second frame: so one
# page is scrolled before its first.
PROBE = """
var boxes = Array.from(document.querySelectorAll('.scroll'));
if (location.search) { boxes.forEach(function (box) { box.scrollLeft = box.scrollWidth; }); }
setTimeout(function () {
  var found = boxes.map(function (box) {
    var style = getComputedStyle(box), first = box.querySelector('tbody td');
    return { wider: box.scrollWidth - box.clientWidth, fade: style.getPropertyValue('--fade'),
      can: CSS.supports('animation-timeline', 'scroll()'),
      edge: getComputedStyle(first).getPropertyValue('--edge'),
      left: first.getBoundingClientRect().left - box.getBoundingClientRect().left }; });
  parent.postMessage(JSON.stringify([location.search, found,
    document.documentElement.scrollWidth - window.innerWidth]), '*');
}, 600);
"""


class _Tables(HTMLParser):
    """The tables of a template that do not stand in a box of class `scroll`."""

    def __init__(self, text: str):
        super().__init__()
        self.stack, self.tables, self.bare = [], 0, []
        self.feed(re.sub(r'\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}', '', text, flags=re.S))

    def handle_starttag(self, tag, attrs):
        if tag == 'div':
            self.stack.append((dict(attrs).get('class') or '').split())
        elif tag == 'table':
            self.tables += 1
            if not any('scroll' in names for names in self.stack):
                self.bare.append(self.getpos())

    def handle_endtag(self, tag):
        if tag == 'div' and self.stack:
            self.stack.pop()


def test_every_table_of_every_template_stands_in_a_box_that_scrolls():
    found = {path.name: _Tables(path.read_text('utf-8'))
             for path in sorted(TEMPLATES.glob('*.jinja'))}
    assert sum(tables.tables for tables in found.values()) > 25
    assert {name: tables.bare for name, tables in found.items() if tables.bare} == {}


def test_a_table_without_a_box_is_found():
    assert _Tables('<div class="scroll"><table></table></div>{{ x }}<table>').bare == [(1, 41)]


def test_ids_and_names_are_not_cut_off():
    """What is cut off with dots can be read by nobody without a mouse."""
    cut = [(path.name, rule.group(1).strip()) for path in sorted(TEMPLATES.iterdir())
           for rule in re.finditer(r'([^{}\n]*)\{[^{}]*(?:ellipsis|line-clamp)[^{}]*\}',
                                   path.read_text('utf-8'))]
    # The names over the columns of a matrix, which are those of its rows, and along a heat map.
    assert sorted(cut) == [('page.css', '.heat .tops span, .heat .lefts span'),
                           ('page.css', '.matrix thead th span')]


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    """What the probe found on a phone: at the left end of the tables, and at the right end."""
    if CHROMIUM is None:
        pytest.skip('there is no Chromium on this machine')
    folder = tmp_path_factory.mktemp('page')
    page = environment().from_string(PAGE).render()
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    page = page.replace("script-src '", f"script-src 'sha256-{digest}' '")
    (folder / 'page.html').write_text(page.replace('</body>', f'<script>{PROBE}</script></body>'))
    frames = ''.join(f'<iframe src="page.html{end}" width="{WIDTH}" height="400"></iframe>'
                     for end in ('', '?end'))
    (folder / 'frames.html').write_text(
        '<pre></pre><script>addEventListener("message", function (event) { document.querySelector('
        '"pre").textContent += encodeURIComponent(event.data) + " "; });</script>' + frames)
    done = subprocess.run(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic',
         '--no-first-run', '--disable-background-networking', '--disable-component-update',
         '--disable-sync', '--virtual-time-budget=4000', '--window-size=900,900', '--dump-dom',
         f'--user-data-dir={folder / "profile"}', (folder / 'frames.html').as_uri()],
        capture_output=True, text=True, timeout=120)
    found = [json.loads(urllib.parse.unquote(one))
             for one in re.search('<pre>(.*?)</pre>', done.stdout)[1].split()]
    return {end: (boxes, aside) for end, boxes, aside in found}


def test_a_table_that_is_too_wide_fades_out_until_its_end(seen):
    (wide, narrow), (at_end, _) = seen[''][0], seen['?end'][0]
    if not wide['can']:
        pytest.skip('this Chromium has no scroll-driven animations: a shadow takes their place')
    assert wide['wider'] > 1000 and float(wide['fade'].removesuffix('px')) > 20
    assert narrow['wider'] == 0 and narrow['fade'] == '0px'
    assert at_end['fade'] == '0px'
    assert wide['edge'] != at_end['edge']  # the first column lies over the others now


def test_the_first_column_stays_and_the_page_does_not_move(seen):
    (wide, _), (at_end, _) = seen[''][0], seen['?end'][0]
    assert wide['left'] == at_end['left'] == 0
    assert all(aside <= 0 for _, aside in seen.values())
