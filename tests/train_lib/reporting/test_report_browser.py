"""The report in a real browser: opened from disk, on a phone's and on a desk's width."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
import urllib.parse

import pytest
from synthetic_run import HOSTILE, noise_image, run_manifest, run_workdir

from train_lib.reporting.page import TEMPLATES, percent
from train_lib.reporting.run_page import write_report

CHROMIUM = next(filter(None, map(shutil.which, (
    'chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync',
         '--enable-logging=stderr', '--v=0', '--virtual-time-budget=4000', '--dump-dom')
WIDTHS = (390, 1200)
PROBE = """
var table = document.querySelector('table.classes'), found = { orders: [] };
var column = function (k) { return Array.from(table.tBodies[0].rows).map(function (row) {
  var cell = row.cells[k]; return (cell.querySelector('.name') || cell).textContent.trim(); }); };
Array.from(table.tHead.rows[0].cells).forEach(function (head, k) {
  var button = head.querySelector('button');
  [0, 1].forEach(function () {
    button.focus(); button.click();
    found.orders.push({ text: head.classList.contains('text'), values: column(k),
      rows: column(0), sort: head.getAttribute('aria-sort'),
      sorted: table.querySelectorAll('[aria-sort]').length,
      focused: document.activeElement === button }); }); });
var shown = function (name) {
  return getComputedStyle(document.querySelector('.matrix .' + name)).display; };
found.cells = [shown('n'), shown('s')];
document.querySelector('.as-shares').click();
found.cells.push(shown('n'), shown('s'));
found.wide = document.documentElement.scrollWidth - window.innerWidth;
found.inner = window.innerWidth;
found.pictures = Array.from(document.images).filter(function (one) {
  one.loading = 'eager'; return one.src.slice(0, 5) !== 'data:'; }).length;
found.requests = performance.getEntriesByType('resource').map(function (one) { return one.name; });
found.title = document.title;
parent.postMessage(JSON.stringify(found), '*');
"""


def hash_of(script):
    return 'sha256-' + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    """({width: what the probe found}, what the browser logged)"""
    if CHROMIUM is None:
        pytest.skip('there is no Chromium on this machine')
    folder = tmp_path_factory.mktemp('page')
    manifest = run_manifest({'class': (*HOSTILE, 'm10', 'm9')}, 400)
    run_workdir(folder / 'run', manifest)
    path = write_report(folder / 'run', manifest=manifest, read_image=noise_image)
    return look(folder, path.read_text('utf-8'))


def look(folder, page):
    """({width: what the probe found in a page}, what the browser logged)"""
    assert page.count("script-src 'sha256-") == 1
    # The page as it is, with one more script that its policy allows.
    page = page.replace("script-src '", f"script-src '{hash_of(PROBE)}' '")
    page = page.replace('</body>', f'<script>{PROBE}</script></body>')
    (folder / 'page.html').write_text(page, 'utf-8')
    frames = ''.join(f'<iframe src="page.html" width="{width}" height="900"></iframe>'
                     for width in WIDTHS)
    (folder / 'frames.html').write_text(
        '<pre></pre><script>addEventListener("message", function (event) { document.querySelector('
        '"pre").textContent += encodeURIComponent(event.data) + " "; });</script>' + frames)
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f'--user-data-dir={folder / "profile"}',
         (folder / 'frames.html').as_uri()], capture_output=True, text=True, timeout=120)
    found = [json.loads(urllib.parse.unquote(one))
             for one in re.search(r'<pre>(.*?)</pre>', done.stdout, re.S)[1].split()]
    return {one['inner']: one for one in found}, done.stderr


def test_it_opens_without_an_error_or_a_request(seen):
    found, log = seen
    assert set(found) == set(WIDTHS)
    assert not [line for line in log.splitlines() if 'CONSOLE' in line]
    for one in found.values():
        assert one['requests'] == [] and one['pictures'] == 0
        assert one['title'] == 'run'


def test_the_class_table_sorts_by_every_column(seen):
    for one in seen[0].values():
        assert len(one['orders']) == 14
        classes = set(one['orders'][0]['rows'])
        for order in one['orders']:
            assert order['focused'] and order['sorted'] == 1
            assert set(order['rows']) == classes and len(order['rows']) == 8
            if not order['text']:
                numbers = [float(value) for value in order['values'] if value != '–']
                assert numbers == sorted(numbers, reverse=order['sort'] == 'descending')
        up, down = one['orders'][:2]
        assert (up['sort'], down['sort']) == ('ascending', 'descending')
        assert up['rows'] == down['rows'][::-1]
        assert up['rows'].index('m9') < up['rows'].index('m10')  # numbers in names are numbers
        lists = {tuple(order['rows']) for order in one['orders']}
        assert len(lists) > 4  # by different columns, different orders


def test_shares_that_are_rounded_sort_by_size(tmp_path):
    if CHROMIUM is None:
        pytest.skip('there is no Chromium on this machine')
    shares = [percent(share) for share in (.5, .00001, 1.0, .001, .99999, 0.0, None, .999)]
    cells = ''.join(f'<tr><td>{html.escape(share)}</td></tr>' for share in shares)
    (tmp_path / 'page.html').write_text(
        '<table class="classes"><thead><tr><th><button>share</button></th></tr></thead><tbody>'
        f'{cells}</tbody></table><script>{(TEMPLATES / "sort.js").read_text("utf-8")}</script>'
        '<script>document.querySelector("button").click()</script>', 'utf-8')
    done = subprocess.run([CHROMIUM, *FLAGS, f'--user-data-dir={tmp_path / "profile"}',
                           (tmp_path / 'page.html').as_uri()],
                          capture_output=True, text=True, timeout=120)
    found = [html.unescape(one) for one in re.findall('<td>(.*?)</td>', done.stdout)]
    assert found == ['0.0 %', '< 0.1 %', '0.1 %', '50.0 %', '99.9 %', '> 99.9 %', '100.0 %', '–']


def test_the_matrix_shows_counts_or_shares(seen):
    for one in seen[0].values():
        assert one['cells'] == ['inline', 'none', 'none', 'inline']


def test_nothing_is_wider_than_a_phone(seen):
    for one in seen[0].values():
        assert one['wide'] <= 0
