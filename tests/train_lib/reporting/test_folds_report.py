"""report.html of a k-fold run: its folds together."""

import json
import re

import numpy as np
import pytest
from synthetic_run import HOSTILE, noise_image
from test_report_browser import CHROMIUM, WIDTHS, look

from input_pipeline.manifest import digest, make_manifest
from input_pipeline.splits import save_splits
from train_lib.metrics import scores
from train_lib.reporting.folds_page import write_folds_report


def folds_manifest(heads, n=240):
    rng = np.random.default_rng(7)
    columns = {'id': [f'dir/<b>{k}</b>.png' for k in range(n)],
               'location': [f'{k}' for k in range(n)],
               'group': [f'g{k % 40}' for k in range(n)]}
    for name, classes in heads.items():
        columns[f'label/{name}'] = rng.integers(len(classes), size=n)
    return make_manifest(columns, heads)


def folds_workdir(path, manifest, fold='all', skill=1.5):
    """Five folds of four fifths of the groups, the rest is the test; those of `fold` are there."""
    place = np.arange(len(manifest)) % 40
    numbers = range(5) if fold == 'all' else fold
    several = len(manifest.heads) > 1
    rng = np.random.default_rng(8)
    pooled, results = {}, []
    for number in numbers:
        side = np.where(place >= 35, 'test', np.where(place % 5 == number, 'val', 'train'))
        folder = path / f'fold_{number}'
        folder.mkdir(parents=True)
        save_splits(manifest.with_column('split', side.tolist()), folder / 'split.csv')
        (folder / 'config.json').write_text('{"data_digest": "x"}')
        (folder / 'report.html').write_text('a report')
        values = {}
        for name in ('val', 'test'):
            part = manifest.select(side == name)
            of_heads = {}
            for head in manifest.heads:
                labels = part.labels(head)
                logits = rng.normal(size=(len(part), len(manifest.classes[head])))
                logits[np.arange(len(part)), labels] += skill
                of_heads[head] = scores.scores(logits, labels)
                if name == 'val':
                    tail = f'/{head}' if several else ''
                    pooled.setdefault(f'logits{tail}', []).append(logits.astype(np.float32))
                    pooled.setdefault(f'labels{tail}', []).append(labels)
            if name == 'val':
                pooled.setdefault('ids', []).append(part.table['id'].to_numpy(str))
            values[name] = {'n': len(part), **of_heads} if several else of_heads[head]
        results.append(dict(values, status='done', best_step=number + 1, device='a <u>device',
                            seconds={'total': 60.0 + number}))
        (folder / 'result.json').write_text(json.dumps(results[-1]))
    arrays = {key: np.concatenate(parts) for key, parts in pooled.items()}
    whole = {}
    for head, classes in manifest.classes.items():
        tail = f'/{head}' if several else ''
        arrays[f'classes{tail}'] = np.array(classes)
        whole[head] = scores.scores(arrays[f'logits{tail}'], arrays[f'labels{tail}'])
    (path / 'predictions').mkdir()
    np.savez(path / 'predictions/out_of_fold.npz', **arrays)
    (path / 'config.json').write_text(json.dumps(dict(
        model=dict(name='tiny<i>net'), split=dict(kind='kfold', folds=5, fold=fold),
        data_digest=digest(manifest))))
    (path / 'result.json').write_text(json.dumps(dict(
        status='done', folds=results, seconds=dict(step=200.0, total=310.0),
        out_of_fold=whole if several else whole[head])))
    return arrays


def text_of(page):
    return re.sub(r'\s+', ' ', re.sub(r'<[^>]+>', ' ', page.partition('</style>')[2]))


def written(tmp_path, heads, **more):
    manifest = folds_manifest(heads)
    arrays = folds_workdir(tmp_path / 'run', manifest, **more)
    path = write_folds_report(tmp_path / 'run', manifest=manifest, read_image=noise_image)
    return path.read_text('utf-8'), arrays


def test_what_it_shows(tmp_path):
    page, arrays = written(tmp_path, {'class': tuple(HOSTILE)})
    text = text_of(page)
    found = scores.scores(arrays['logits'], arrays['labels'])
    assert f'out-of-fold accuracy {found["accuracy"]:.3f} 95 % interval' in text
    assert f'n = {len(arrays["ids"])} pictures in 35 groups' in text and len(arrays['ids']) == 210
    for key in ('f1_macro', 'nll', 'ece'):
        assert f' {found[key]:.3f} ' in text
    results = [json.loads((tmp_path / f'run/fold_{k}/result.json').read_text()) for k in range(5)]
    for number, result in enumerate(results):
        assert f'href="fold_{number}/report.html"' in page
        assert re.search(rf'fold {number} 42 {result["val"]["accuracy"]:.3f} ', text)
    for split in ('val', 'test'):
        accuracies = [result[split]['accuracy'] for result in results]
        assert f' {np.mean(accuracies):.3f} ' in text
        assert f' {np.std(accuracies, ddof=1):.3f} ' in text
    wrong = int((arrays['logits'].argmax(1) != arrays['labels']).sum())
    assert f'24 of {wrong} errors' in text and 'Confusion' in text and 'Hardest classes' in text
    assert 'that the folds validate, 6 classes' in text
    # The data by fold, the test last, and the digest is that of the run.
    assert re.search(r'fold 0 42 7 .*fold 4 42 7 .*test 30 5 ', text)
    assert 'are not those of the run' not in text
    assert '<script>alert' not in page and '<u>device' not in page and 'tiny<i>' not in page
    assert page.count('<script') == 1


def test_intervals_hold_the_scores_and_are_no_narrower_than_by_pictures(tmp_path):
    page, _ = written(tmp_path, {'class': ('a', 'b', 'c')})
    rows = re.findall(r'(\w+) ([\d.]+) ([\d.]+) to ([\d.]+)', text_of(page).partition('Folds')[2]
                      .partition('Scores')[2].partition('Folds')[0])
    rows = {name: tuple(map(float, values)) for name, *values in rows}
    assert set(rows) == {'accuracy', 'F1'}  # no interval of the NLL covers
    assert all(low < value < high for value, low, high in rows.values())


def test_some_folds(tmp_path):
    page, arrays = written(tmp_path, {'class': ('a', 'b', 'c')}, fold=[0, 3])
    text = text_of(page)
    assert '0, 3 of 5' in text and 'fold 3' in text and 'fold 1' not in text
    assert f'n = {len(arrays["ids"])} pictures' in text and len(arrays['ids']) == 84


def test_two_heads_have_a_row_per_fold_each(tmp_path):
    page, _ = written(tmp_path, {'age': ('young', 'old'), 'mask': ('no', 'yes', 'half')})
    text = text_of(page)
    assert text.count('out-of-fold accuracy') == 2
    assert re.findall(r'fold 2 (age|mask)', text) == ['age', 'mask']


@pytest.mark.parametrize('harm', ['result.json', 'config.json', 'predictions/out_of_fold.npz',
                                  'fold_1/result.json', 'fold_1/split.csv', 'fold_1/config.json',
                                  'fold_1/report.html'])
@pytest.mark.parametrize('how', ['gone', 'damaged'])
def test_missing_and_damaged_files_are_named(tmp_path, harm, how):
    manifest = folds_manifest({'class': ('a', 'b', 'c')}, 120)
    folds_workdir(tmp_path / 'run', manifest)
    path = tmp_path / 'run' / harm
    path.unlink()
    if how == 'damaged':
        path.write_text('[{')
    page = write_folds_report(tmp_path / 'run', manifest=manifest,
                              read_image=noise_image).read_text('utf-8')
    if harm.endswith(('result.json', 'out_of_fold.npz')) or harm == 'config.json':
        assert path.name in text_of(page)
    if harm == 'fold_1/result.json':
        assert 'Fold 1 is not finished' in page and 'Folds that are not finished: 1.' in page
    if harm == 'fold_1/report.html' and how == 'gone':
        assert 'href="fold_1/' not in page and 'href="fold_2/' in page


@pytest.mark.parametrize('content', [
    dict(seconds=[1], val='x', test=5, best_step='y', device={'a': 1}),
    dict(seconds='x', out_of_fold=[1], folds=3, val=dict(accuracy='high', n='many', nll=None))])
def test_values_of_other_types_are_dashes(tmp_path, content):
    manifest = folds_manifest({'class': ('a', 'b', 'c')}, 80)
    folds_workdir(tmp_path / 'run', manifest)
    for name in ('result.json', 'fold_0/result.json'):
        (tmp_path / 'run' / name).write_text(json.dumps(content))
    (tmp_path / 'run/config.json').write_text(json.dumps(dict(split=5, model=[], data_digest=3)))
    page = write_folds_report(tmp_path / 'run', manifest=manifest, read_image=noise_image)
    assert re.search(r'fold 0 (– )+', text_of(page.read_text('utf-8')))


def test_a_workdir_that_holds_nothing_yet(tmp_path):
    manifest = folds_manifest({'class': ('a', 'b')}, 20)
    page = write_folds_report(tmp_path, manifest=manifest, read_image=noise_image).read_text()
    assert 'No scores yet' in page and 'out_of_fold.npz is missing' in page


@pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium on this machine')
def test_it_fits_a_phone_and_a_desk(tmp_path):
    page, _ = written(tmp_path, {'class': (*HOSTILE, 'm10', 'm9')})
    found, log = look(tmp_path, page)
    assert set(found) == set(WIDTHS)
    assert not [line for line in log.splitlines() if 'CONSOLE' in line]
    for one in found.values():
        assert one['wide'] <= 0 and one['requests'] == [] and one['pictures'] == 0
        assert len(one['orders']) == 12  # the class table sorts by each of its six columns
