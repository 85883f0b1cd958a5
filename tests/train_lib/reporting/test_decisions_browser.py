"""The gallery of curate in a real browser, from disk: its buttons, and the file that it saves."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import urllib.parse

import numpy as np
import pytest

from input_pipeline.curation.decisions import (
    Finding,
    apply_decisions,
    decide,
    read_decisions,
    save_decisions,
)
from input_pipeline.manifest import make_manifest
from train_lib.reporting.decisions_page import write_decisions_page

CHROMIUM = next(filter(None, map(shutil.which, (
    'chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync',
         '--enable-logging=stderr', '--v=0', '--virtual-time-budget=4000', '--dump-dom')
IDS = ['plain.png', 'comma, "quoted".png', ' blank .png', '나무/한글;x.png', 'tab\tand\nline\r.png',
       '<b>&amp;\\n.png', 'kept.png', 'also kept.png']
# Presses buttons, and notes what the page shows and what it would save.
PROBE = """
var found = { saved: [], requests: [] };
URL.createObjectURL = function (blob) {
  blob.arrayBuffer().then(function (bytes) {
    found.saved.push(btoa(String.fromCharCode.apply(null, new Uint8Array(bytes)))); });
  return '#blob'; };
HTMLAnchorElement.prototype.click = function () { found.name = this.download; };
var choices = Array.from(document.querySelectorAll('.choice'));
var pressed = function () { return choices.map(function (choice) {
  return [choice.dataset.row, Array.from(choice.querySelectorAll('[aria-pressed=true]')).map(
    function (one) { return one.value; }).join('+')]; }); };
var counts = function () { return ['drop', 'review', 'keep'].map(function (name) {
  return document.querySelector('[data-count=' + name + ']').textContent; }); };
var press = function (row, name) {
  document.querySelector('.choice[data-row="' + row + '"] button[value=' + name + ']').click(); };
found.shown = getComputedStyle(document.querySelector('.choice')).display;
found.before = [pressed(), counts(), document.querySelector('.state').textContent];
[0, 1, 2, 3, 4, 5].forEach(function (row) { press(row, row % 2 ? 'review' : 'keep'); });
press(6, 'drop');
found.after = [pressed(), counts(), document.querySelector('.state').textContent];
found.leaving = !dispatchEvent(new Event('beforeunload', { cancelable: true }));
document.querySelector('.save button').click();
found.state = document.querySelector('.state').textContent;
found.wide = document.documentElement.scrollWidth - window.innerWidth;
found.requests = performance.getEntriesByType('resource').map(function (one) { return one.name; });
setTimeout(function () { parent.postMessage(JSON.stringify(found), '*'); }, 500);
"""


def hash_of(script):
    return 'sha256-' + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def decided():
    """(manifest, table, findings): six pictures to drop, of which one is found twice; two kept."""
    manifest = make_manifest({'id': IDS, 'location': IDS, 'label/class': [0] * 8},
                             {'class': ('<i>x</i>',)})
    text = lambda values: np.array(values, object)
    first = Finding('duplicates', np.ones(8), text(['drop'] * 6 + ['keep'] * 2),
                    text(['the same file as kept.png'] * 6 + [''] * 2),
                    group=text(['0'] * 7 + ['']), twin=np.array([6] * 6 + [-1] * 2),
                    beside=np.array([6] * 6 + [-1] * 2), chips=[('mirrored',)] + [()] * 7)
    second = Finding('photographs', np.linspace(.9, .1, 8), text(['drop'] + ['keep'] * 7),
                     text(['a photograph'] + [''] * 7), weight=np.array([.5] + [np.nan] * 7))
    return manifest, decide(manifest, [first, second]), [first, second]


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    """(what the probe found, what the browser logged, the folder)"""
    if CHROMIUM is None:
        pytest.skip('there is no Chromium on this machine')
    folder = tmp_path_factory.mktemp('gallery')
    manifest, table, findings = decided()
    picture = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    path = write_decisions_page(folder / 'gallery.html', manifest, findings, table, head='class',
                                overlaps=None, read_image=lambda location: picture)
    save_decisions(table, str(folder / 'decisions.csv'))
    page = path.read_text('utf-8')
    assert page.count("script-src 'sha256-") == 1 and page.count('<script') == 1
    page = page.replace("script-src '", f"script-src '{hash_of(PROBE)}' '")
    page = page.replace('</body>', f'<script>{PROBE}</script></body>')
    (folder / 'page.html').write_text(page, 'utf-8', newline='')
    (folder / 'frame.html').write_text(
        '<pre></pre><script>addEventListener("message", function (event) { document.querySelector('
        '"pre").textContent = encodeURIComponent(event.data); });</script>'
        '<iframe src="page.html" width="390" height="900"></iframe>')
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f'--user-data-dir={folder / "profile"}',
         (folder / 'frame.html').as_uri()], capture_output=True, text=True, timeout=120)
    found = json.loads(urllib.parse.unquote(re.search(r'<pre>(.*?)</pre>', done.stdout, re.S)[1]))
    return found, done.stderr, folder


def test_it_opens_from_disk_without_an_error_or_a_request(seen):
    found, log, _ = seen
    assert not [line for line in log.splitlines() if 'CONSOLE' in line]
    assert found['requests'] == [] and found['shown'] == 'grid' and found['wide'] <= 0


def test_the_buttons_show_what_is_decided_wherever_a_picture_is_shown(seen):
    before, after = seen[0]['before'], seen[0]['after']
    assert before[1] == ['6', '0', '2'] and before[2] == 'Nothing is changed yet.'
    assert after[1] == ['1', '3', '4'] and after[2] == '7 changed, 7 not saved.'
    for cards, actions in ((before[0], ['drop'] * 6 + ['keep'] * 2),
                           (after[0], ['keep', 'review'] * 3 + ['drop', 'keep'])):
        shown = [int(row) for row, _ in cards]
        assert set(shown) == set(range(8)) and shown.count(0) == 2  # found by both detectors
        assert [action for _, action in cards] == [actions[row] for row in shown]


def test_the_file_that_is_saved_is_obeyed(seen):
    found, _, folder = seen
    assert found['name'] == 'decisions.csv' and len(found['saved']) == 1
    assert found['leaving'] and found['state'] == '7 changed, all saved.'
    data = base64.b64decode(found['saved'][0])
    assert data.startswith(b'\xef\xbb\xbfid,action,')
    path = folder / 'saved.csv'
    path.write_bytes(data)
    table = read_decisions(str(path)).set_index('id')
    before = read_decisions(str(folder / 'decisions.csv')).set_index('id')
    assert list(table.index) == IDS
    assert table['action'].tolist() == ['keep', 'review'] * 3 + ['drop', 'keep']
    for column in table.columns.drop(['action']):
        assert table[column].astype(str).tolist() == before[column].astype(str).tolist(), column
    manifest = decided()[0]
    alone = apply_decisions(manifest, [str(path)])
    assert alone.table['id'].tolist() == IDS[:6] + IDS[7:]
    assert alone.table['weight'].tolist() == [.5] + [1] * 6
    for order in ([path, folder / 'decisions.csv'], [folder / 'decisions.csv', path]):
        both = apply_decisions(manifest, list(map(str, order)))  # what was pressed goes first
        assert both.table.equals(alone.table)


def test_a_real_download_is_named_and_complete(seen, tmp_path):
    """Without the probe's replacement of the download: the browser writes the file."""
    page = (seen[2] / 'gallery.html').read_text('utf-8')
    press = 'document.querySelector(".save button").click();'
    page = page.replace("script-src '", f"script-src '{hash_of(press)}' '")
    (tmp_path / 'page.html').write_text(
        page.replace('</body>', f'<script>{press}</script></body>'), 'utf-8', newline='')
    profile = tmp_path / 'profile/Default'
    profile.mkdir(parents=True)
    (profile / 'Preferences').write_text(json.dumps(
        {'download': {'default_directory': str(tmp_path / 'got'), 'prompt_for_download': False}}))
    subprocess.run([CHROMIUM, *FLAGS, f'--user-data-dir={tmp_path / "profile"}',
                    (tmp_path / 'page.html').as_uri()], capture_output=True, timeout=120)
    file = tmp_path / 'got/decisions.csv'
    if not file.exists():
        pytest.skip('this Chromium downloads nothing while it is headless')
    assert read_decisions(str(file))['action'].tolist() == ['drop'] * 6 + ['keep'] * 2
