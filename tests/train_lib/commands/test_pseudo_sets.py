"""Pseudo-labels of runs that have a head with several labels per picture beside another one."""

import csv
import json

import pytest

import main
from tests.train_lib.tagged_pictures import make_tagged

TRAIN = ['--config=configs/sketch_cnn.py', '--config.data.source=csv', '--config.image.size=16',
         '--config.curriculum=()', '--config.batch_size=16', '--config.log.tensorboard=false',
         '--config.model=dict(name="small_cnn", width=4, stages=1)',
         '--config.data.columns.labels=tags,kind', '--config.data.multi_label=tags',
         '--config.loss.name={"tags":"asymmetric"}', '--config.duration.steps=2',
         '--config.report.heat_maps=false']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run that was trained on the first 40 of 60 pictures, which lie in one folder."""
    folder = tmp_path_factory.mktemp('tagged')
    table = make_tagged(folder)
    rows = list(csv.reader(table.read_text().splitlines()))
    with open(folder / 'few.csv', 'w', newline='') as file:
        csv.writer(file).writerows(rows[:41])
    workdir = folder / 'run'
    assert main.main([*TRAIN, f'--config.data.csv={folder}/few.csv', f'--workdir={workdir}']) == 0
    return workdir


def test_pictures_that_members_have_with_a_label_are_left_out(run, tmp_path):
    out = tmp_path / 'pseudo.csv'
    assert main.main(['pseudo', f'--members={run}', f'--images={run.parent / "t.csv"}',
                      f'--out={out}', '--config.heads=kind']) == 0
    about = json.loads(out.with_suffix('.json').read_text())
    assert about['left_out']['own'] == 40 and about['pictures'] == 20
    assert about['not_checked'] == []


def test_several_labels_per_picture_are_refused(run, tmp_path, capsys):
    assert main.main(['pseudo', f'--members={run}', f'--images={run.parent / "t.csv"}',
                      f'--out={tmp_path / "pseudo.csv"}']) == 2
    assert (f"The head 'tags' of {run} has several labels per picture, and pseudo-labels are one "
            'per picture: name the others by --config.heads=kind.') in capsys.readouterr().err
