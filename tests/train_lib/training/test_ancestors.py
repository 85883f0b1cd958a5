"""What starts from another run knows it: what an ancestor trained on is not scored unasked."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import main
from configs import common
from input_pipeline.sources import load_source
from train_lib.ensembles.soups import check_ingredients
from train_lib.metrics.out_of_fold import read_probabilities
from train_lib.predictions import members
from train_lib.predictions.store import members_of
from train_lib.run_dir import ancestors, seen_rows
from train_lib.runtime.errors import ConfigError
from train_lib.training import init
from train_lib.training.soup_run import start_of

TINY = ['--config.image.size=16', '--config.curriculum=()', '--config.batch_size=16',
        '--config.model=dict(name="small_cnn", width=8, stages=2)', '--config.duration.steps=2',
        '--config.log.tensorboard=false', '--config.report.heat_maps=false',
        '--config.split.val=0.2', '--config.split.test=0.2']
FOLDS = ['--config.split.kind=kfold', '--config.split.folds=2', '--config.split.fold=all']
ACCEPT = '--config.init.seen=accept'


@pytest.fixture(scope='module')
def pictures(tmp_path_factory) -> Path:
    """60 pictures of two classes by 15 people, who are the groups."""
    folder, rng = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0)
    for k in range(60):
        path = folder / 'ab'[k % 2] / f'{k // 4:02}_{k:02}.png'
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 255, (16, 16, 3), np.uint8))
    return folder


@pytest.fixture(scope='module')
def train(pictures):
    """(workdir, *flags) -> exit code."""
    def run(workdir, *flags):
        given = {flag.partition('=')[0]: flag for flag in (*TINY, *flags)}  # the last one counts
        return main.main([f'--config=configs/sketch_cnn.py:folder={pictures}', *given.values(),
                          r'--config.data.group_regex=/(\d+)_', f'--workdir={workdir}'])
    return run


@pytest.fixture(scope='module')
def first(train, tmp_path_factory) -> Path:
    """A run of seed 0."""
    workdir = tmp_path_factory.mktemp('first') / 'a'
    assert train(workdir) == 0
    return workdir


@pytest.fixture(scope='module')
def kfold(train, tmp_path_factory) -> Path:
    """A run of two folds."""
    workdir = tmp_path_factory.mktemp('kfold') / 'folds'
    assert train(workdir, *FOLDS) == 0
    return workdir


@pytest.fixture(scope='module')
def accepted(train, first, tmp_path_factory) -> Path:
    """A run of another split that was started from the first all the same."""
    workdir = tmp_path_factory.mktemp('accepted') / 'b'
    assert train(workdir, '--config.seed=1', f'--config.init.from={first}', ACCEPT) == 0
    return workdir


def last_line(capfd) -> str:
    return capfd.readouterr().err.strip().splitlines()[-1]


def result_of(workdir) -> dict:
    return json.loads((workdir / 'result.json').read_text())


def sides(workdir) -> dict[str, str]:
    with open(workdir / 'split.csv', newline='') as file:
        return {row['id']: row['split'] for row in csv.DictReader(file)}


def trained_on(workdir) -> set[str]:
    return {name for name, side in sides(workdir).items() if side == 'train'}


def without_record(workdir, target) -> Path:
    """The run as a version without records would have left it."""
    shutil.copytree(workdir, target)
    for name in (ancestors.NAME, ancestors.ROWS):
        (target / name).unlink(missing_ok=True)
    saved = json.loads((target / 'config.json').read_text())
    del saved['init']['seen'], saved['sha256']
    (target / 'config.json').write_text(json.dumps(saved))
    return target


def test_a_run_without_ancestors_says_so(first):
    result = result_of(first)
    assert result['ancestors'] == [] and result['seen'] == dict(train=0, val=0, test=0)
    assert not (first / ancestors.NAME).exists()


def test_another_split_is_refused_and_nothing_is_written(train, first, tmp_path, capfd):
    assert train(tmp_path / 'b', '--config.seed=1', f'--config.init.from={first}') == 2
    line = last_line(capfd)
    for remedy in (f'--config.split.file={first}/split.csv', 'k-fold workdir of the same folds',
                   '--config.init.seen=accept'):
        assert remedy in line
    assert not (tmp_path / 'b/config.json').exists()


def test_what_was_accepted_is_marked(first, accepted):
    mine, theirs = sides(accepted), trained_on(first)
    wanted = {name: sum(side == name and row in theirs for row, side in mine.items())
              for name in ('train', 'val', 'test')}
    assert wanted['test'] > 0
    result = result_of(accepted)
    assert result['seen'] == wanted and result['seen_accepted']
    run, = result['ancestors']
    saved = json.loads((first / 'config.json').read_text())
    assert run['workdir'] == str(first) and run['rows'] == len(theirs)
    assert run['data_digest'] == saved['data_digest'] == result['data_digest']
    assert run['split_digest'] == saved['split_digest'] and len(run['checkpoint']) == 64
    page = (accepted / 'report.html').read_text()
    assert f'{wanted["test"]} of the {result["test"]["n"]} test pictures were trained on' in page


def test_the_split_of_the_ancestor_is_a_remedy(train, first, tmp_path):
    flags = ['--config.seed=1', '--config.split.kind=given',
             f'--config.split.file={first}/split.csv']
    assert train(tmp_path / 'b', f'--config.init.from={first}', *flags) == 0
    result = result_of(tmp_path / 'b')
    assert result['seen'] == dict(train=len(trained_on(first)), val=0, test=0)
    assert result['ancestors'][0]['workdir'] == str(first)


def test_a_chain_is_known_after_its_runs_are_gone(train, first, tmp_path, capfd):
    """a -> b -> c: b trains only on a part of what a trained on, and a is gone when c begins."""
    a, b, c = (tmp_path / name for name in 'abc')
    shutil.copytree(first, a)
    rows = sides(a)
    person = min(name.split('/')[1][:2] for name in trained_on(a))
    with open(tmp_path / 'b.csv', 'w', newline='') as file:
        csv.writer(file).writerows([('id', 'split'), *(
            (name, 'val' if f'/{person}_' in name else 'train') for name in rows)])
    given = ['--config.split.test=0', '--config.split.kind=given']
    flags = [*given, f'--config.split.file={tmp_path}/b.csv', f'--config.init.from={a}']
    assert train(b, *flags) == 2
    assert train(b, *flags, ACCEPT) == 0
    shutil.rmtree(a)
    found = ancestors.ancestry_of(b)
    assert [run['workdir'] for run in found.runs] == [str(a)]
    assert set(found.rows) == trained_on(first)
    # What b validated on, c must not validate on: a trained on it.
    flags = [*given, f'--config.split.file={tmp_path}/b.csv', f'--config.init.from={b}']
    assert train(c, *flags) == 2
    line = last_line(capfd)
    assert f'{b} or its ancestors trained on 4 of the 4 val rows' in line
    assert train(c, *flags, ACCEPT) == 0
    assert [run['workdir'] for run in result_of(c)['ancestors']] == [str(b), str(a)]


def test_a_group_counts_as_its_rows(first, pictures):
    table = sides(first)
    held = [name for name, side in table.items() if side == 'test']
    person = {name: name.split('/')[1].split('_')[0] for name in table}
    # An ancestor with one other picture of each person.
    found = ancestors.Ancestry(rows={f'new/{person[name]}': person[name] for name in held[:1]})
    seen = seen_rows.seen_rows(found, list(table), list(table.values()), person)
    assert seen['test'] and {person[name] for name in seen['test']} == {person[held[0]]}
    assert not any(seen_rows.seen_rows(found, list(table), list(table.values()), None).values())


def test_copies_are_followed_from_one_run_to_the_next():
    """p and q share a group to one run, q and r to the other; r was trained on."""
    parts = seen_rows.connected([{'p': 'x', 'q': 'x', 's': 'z', 'r': ''}, {'q': 'y', 'r': 'y'}])
    assert seen_rows.related('pqrst', {'r'}, parts) == ['p', 'q', 'r']
    assert seen_rows.related('pqrst', {'r', 't'}, {}) == ['r', 't']


def test_an_older_run_goes_on_and_is_marked(train, first, accepted, tmp_path, capfd):
    old = without_record(accepted, tmp_path / 'old')
    assert train(old, '--config.seed=1', f'--config.init.from={first}',
                 '--config.duration.steps=3') == 0
    assert 'test rows were trained on by an ancestor (as this run began)' in \
        capfd.readouterr().err
    result = result_of(old)
    assert result['seen'] == result_of(accepted)['seen'] and not result['seen_accepted']
    assert (old / ancestors.NAME).exists()


@pytest.mark.slow
def test_what_cannot_be_known_is_said(train, first, accepted, tmp_path, capfd):
    assert train(tmp_path / 'b', f'--config.init.from={first}') == 0
    old = without_record(tmp_path / 'b', tmp_path / 'old')
    saved = json.loads((old / 'config.json').read_text())
    saved['init']['from'] = str(tmp_path / 'nowhere')
    (old / 'config.json').write_text(json.dumps(saved))
    assert seen_rows.facts(old)['not_checked'] == [
        f'what {tmp_path / "nowhere"} trained on (the folder is not there)']
    capfd.readouterr()
    assert train(tmp_path / 'c', f'--config.init.from={old}') == 0
    assert 'not checked: what' in capfd.readouterr().err
    assert 'Not checked: what' in (tmp_path / 'c/report.html').read_text()


def test_a_damaged_record_is_refused(accepted, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(accepted, run)
    text = (run / ancestors.ROWS).read_text()
    (run / ancestors.ROWS).write_text(text.replace('"a/', '"b/', 1))
    with pytest.raises(ConfigError, match=r'ancestors.json cannot be used \(ancestors.csv has'):
        ancestors.ancestry_of(run)


@pytest.mark.slow
def test_resume_from_has_the_ancestors_of_the_run_it_copies(train, first, accepted, tmp_path):
    new = tmp_path / 'new'
    assert train(new, '--config.seed=1', f'--config.init.resume_from={accepted}', ACCEPT,
                 '--config.duration.steps=3') == 0
    assert result_of(new)['seen'] == result_of(accepted)['seen']
    assert result_of(new)['ancestors'] == result_of(accepted)['ancestors']


@pytest.mark.slow
def test_heads_on_features_of_a_run_that_saw_the_rows(train, first, tmp_path, capfd):
    probe = ['--config.probe.heads=[dict(name="linear")]', f'--config.probe.cache={tmp_path}/cache',
             f'--config.init.from={first}']
    assert train(tmp_path / 'p', *probe, '--config.seed=1') == 2
    assert 'init.seen=accept' in last_line(capfd)
    assert train(tmp_path / 'p', *probe, '--config.seed=1', ACCEPT) == 0
    assert result_of(tmp_path / 'p')['seen']['test'] > 0
    assert train(tmp_path / 'q', *probe, *FOLDS) == 2  # the rows of all folds
    assert not (tmp_path / 'q/config.json').exists()


# --- what is made of such runs -------------------------------------------------------------------


def vote(workdir, members, *flags) -> int:
    return main.main(['vote', '--config=configs/vote/digits.py', f'--workdir={workdir}',
                      f'--config.members={members}', '--config.bootstrap=20', *flags])


def test_a_vote_marks_what_was_accepted_and_refuses_what_was_not(accepted, tmp_path, capfd):
    """The temperature is fitted on validation rows, which an ancestor saw too."""
    assert vote(tmp_path / 'v', accepted) == 0
    log = capfd.readouterr().err
    seen = result_of(accepted)['seen']
    result = json.loads((tmp_path / 'v/vote.json').read_text())
    assert result['seen'] == {accepted.name: seen['test']}
    assert result['fit']['seen'] == {accepted.name: seen['val']}
    assert result['not_checked'] == []
    sentence = f'An ancestor of {accepted.name} trained on {seen["test"]} of the'
    assert sentence in log and sentence in (tmp_path / 'v/report.html').read_text()
    old = without_record(accepted, tmp_path / 'old')
    assert vote(tmp_path / 'w', old) == 2
    line = last_line(capfd)
    assert 'The member old started from' in line and '--config.init.seen=accept' in line


def test_a_soup_has_its_members_as_ancestors(first, accepted, tmp_path):
    for name in 'ab':
        shutil.copytree(accepted, tmp_path / name)
    assert vote(tmp_path / 'v', f'{tmp_path}/a,{tmp_path}/b', '--config.soup=uniform') == 0
    found = seen_rows.facts(tmp_path / 'v/soup')
    assert [run['workdir'] for run in found['ancestors']] == [
        f'{tmp_path}/a', str(first), f'{tmp_path}/b']
    assert found['seen']['test'] == result_of(accepted)['seen']['test'] and found['seen_accepted']
    member, = members_of(tmp_path / 'v/soup', 'test')
    assert len(members.inherited(member, member.ids)) == found['seen']['test']


def test_wrong_labels_are_not_looked_for_where_they_were_learnt(kfold, first, pictures, tmp_path,
                                                                caplog):
    """As if the folds had been started from a run that saw them."""
    run = tmp_path / 'run'
    shutil.copytree(kfold, run)
    manifest = load_source(dict(source='folder', folder=str(pictures)))
    assert np.isfinite(read_probabilities(run, manifest, 'class')).any()
    learnt = ancestors.of_several([first])
    ancestors.save(run / 'fold_1', learnt)
    with pytest.raises(ConfigError, match=r'fold_1 predicted \d+ rows that .*init.seen=accept'):
        read_probabilities(run, manifest, 'class')
    with pytest.raises(ConfigError, match='started from'):
        members.out_of_fold(run)
    ancestors.save(run / 'fold_1', dataclasses.replace(learnt, accepted=True))
    read_probabilities(run, manifest, 'class')
    assert 'an ancestor trained on' in caplog.text
    whole = members.out_of_fold(run)
    assert len(members.inherited(whole, whole.ids)) == len(seen_rows.seen_of(
        run / 'fold_1', learnt)['val']) > 0
    caplog.clear()
    shutil.copyfile(kfold / 'predictions/out_of_fold.npz', tmp_path / 'alone.npz')
    read_probabilities(tmp_path / 'alone.npz', manifest, 'class')
    assert 'not checked' in caplog.text


@pytest.mark.slow
def test_curation_by_features_that_know_the_pictures_says_so(first, pictures, tmp_path, capfd):
    assert main.main(['curate', f'--config=configs/sketch_cnn.py:folder={pictures}', *TINY,
                      f'--workdir={tmp_path}/curate', f'--config.init.from={first}',
                      '--config.curate.features=model', '--config.curate.detectors=labels',
                      f'--config.probe.cache={tmp_path}/cache']) == 0
    said = f'features of a run that trained on {len(trained_on(first))} of these 60 pictures'
    assert said in capfd.readouterr().err


# --- folds ---------------------------------------------------------------------------------------


def test_a_fold_from_a_run_that_saw_it_is_refused_before_any_trains(train, first, tmp_path, capfd):
    assert train(tmp_path / 'k', *FOLDS, f'--config.init.from={first}') == 2
    assert 'val rows' in last_line(capfd)
    assert not (tmp_path / 'k/config.json').exists() and not (tmp_path / 'k/fold_0').exists()


def test_a_fold_that_the_source_lacks_is_refused_before_any_trains(train, kfold, tmp_path, capfd):
    theirs = shutil.copytree(kfold, tmp_path / 'theirs')
    shutil.rmtree(theirs / 'fold_1')
    assert train(tmp_path / 'b', *FOLDS, f'--config.init.from={theirs}') == 2
    line = last_line(capfd)
    assert str(theirs / 'fold_1') in line and 'has no checkpoints' in line
    assert not (tmp_path / 'b/config.json').exists()


def test_each_fold_starts_from_its_own(train, kfold, tmp_path, capfd):
    again = tmp_path / 'again'
    assert train(again, *FOLDS, f'--config.init.from={kfold}') == 0
    log = capfd.readouterr().err
    for fold in (0, 1):
        assert f'init: weights of {kfold}/fold_{fold}/checkpoints' in log
        result = result_of(again / f'fold_{fold}')
        assert [run['workdir'] for run in result['ancestors']] == [f'{kfold}/fold_{fold}']
        assert result['seen']['val'] == result['seen']['test'] == 0 < result['seen']['train']
    whole = result_of(again)
    assert whole['seen'] == dict(out_of_fold=0, test=0) and len(whole['ancestors']) == 2
    one = common.get_config()
    one.split.update(kind='kfold', folds=2, fold=1)
    one.init['from'] = str(kfold)
    assert init.init_spec(one).source == f'{kfold}/fold_1'
    # Weights with different starts make no soup.
    starts = [start_of(members_of(again / f'fold_{fold}', 'test')[0]) for fold in (0, 1)]
    with pytest.raises(ConfigError, match='one common start'):
        check_ingredients([{}, {}], ['a', 'b'], starts)


@pytest.mark.parametrize('flags, words', [
    ((), 'give one of its folds, as in'),
    ((*FOLDS, '--config.split.folds=3'), 'has 2 folds and this run 3'),
    ((*FOLDS, '--config.split.seed=7'), 'the digests of the splits differ')])
def test_other_folds_are_refused(train, kfold, tmp_path, capfd, flags, words):
    assert train(tmp_path / 'k', *flags, f'--config.init.from={kfold}') == 2
    assert words in last_line(capfd)
    assert not (tmp_path / 'k/config.json').exists()
