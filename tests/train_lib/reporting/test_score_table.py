"""The interval in the headline of a run's report."""

import numpy as np
import pytest
from synthetic_run import noise_image, run_manifest, run_workdir

from input_pipeline.manifest import make_manifest
from train_lib.metrics.intervals import accuracy_interval
from train_lib.metrics.scores import wilson_interval
from train_lib.reporting.inputs import read_run
from train_lib.reporting.run_page import write_report
from train_lib.reporting.score_table import headline


def shown(workdir, manifest):
    return headline(read_run(workdir, manifest, lambda location: None, 4))


def test_pictures_of_a_group_are_not_independent(tmp_path):
    manifest = run_manifest({'class': ['a', 'b', 'c']})
    workdir = run_workdir(tmp_path / 'run', manifest)
    top, = shown(workdir, manifest)
    with np.load(workdir / 'predictions/test.npz') as file:
        right = file['logits'].argmax(1) == file['labels']
    groups = manifest.table.loc[manifest.table['split'] == 'test', 'group'].to_numpy()
    assert top['interval'] == pytest.approx(accuracy_interval(right, groups))
    assert top['interval'] != pytest.approx(wilson_interval(right.mean(), len(right)))
    assert top['about'] == 'for new groups of pictures, from 7'
    page = write_report(workdir, manifest=manifest, read_image=noise_image).read_text()
    assert 'for new groups of pictures, from 7' in page


@pytest.mark.parametrize(('group', 'about'), [
    ('', 'if the pictures are independent'), ('all', 'no interval from a single group')])
def test_no_group_and_a_single_group(tmp_path, group, about):
    heads = {'class': ['a', 'b', 'c']}
    table = run_manifest(heads).table
    manifest = make_manifest({name: table[name].to_numpy() for name in table} | {
        'group': np.full(len(table), group)}, heads)
    workdir = run_workdir(tmp_path / 'run', manifest)
    top, = shown(workdir, manifest)
    assert top['about'].startswith(about) and (top['interval'] is None) == bool(group)
    assert about in write_report(workdir, manifest=manifest, read_image=noise_image).read_text()


def test_each_of_several_heads_has_its_own(tmp_path):
    manifest = run_manifest({'kind': ['a', 'b', 'c'], 'size': ['s', 'l']})
    first, second = shown(run_workdir(tmp_path / 'run', manifest), manifest)
    assert {first['head'], second['head']} == {'kind', 'size'}
    for top in (first, second):
        assert top['about'].startswith('for new groups')
        assert top['interval'][0] < top['accuracy'] < top['interval'][1]
