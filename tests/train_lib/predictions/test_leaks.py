"""What a vote finds beyond the split of each member, and what it says that it cannot know."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from tests.train_lib.predictions.test_store import IDS, write
from train_lib.predictions import members, provenance
from train_lib.predictions.store import members_of
from train_lib.run_dir import digests
from train_lib.run_dir.npz import write_npz
from train_lib.runtime.errors import ConfigError

# Every id validates; x and y are trained on.
ROLES = dict.fromkeys(IDS, 'val') | {'x': 'train', 'y': 'train'}


def found(*workdirs) -> list:
    return members.find_members([str(path) for path in workdirs], 'val')


def config(workdir, **split) -> None:
    (workdir / 'config.json').write_text(json.dumps(dict(split=split)))


def commit(workdir, step=5, content=b'weights') -> str:
    """A checkpoint; returns its digest."""
    folder = workdir / f'checkpoints/{step}'
    folder.mkdir(parents=True)
    (folder / 'state').write_bytes(content)
    digests.write_digests(folder)
    return digests.identity(folder)


def test_a_copy_that_only_another_member_knows(tmp_path):
    """a trained on x; only the decisions of b say that x shows the same as a row to be scored."""
    write(tmp_path / 'a', roles=ROLES)
    write(tmp_path / 'b', roles=dict.fromkeys(IDS, 'val') | {'y': 'train', 'x': 'val'},
          groups={'x': 'copies of x', IDS[0]: 'copies of x'})
    alone, pair = found(tmp_path / 'a'), found(tmp_path / 'a', tmp_path / 'b')
    members.refuse_leakage(alone, IDS)
    with pytest.raises(ConfigError, match=r'member a trained on 1 of the 8 .*groups of other mem'):
        members.refuse_leakage(pair, IDS)
    members.refuse_leakage(pair, IDS, shared=False)
    assert members.marks(pair, IDS, shared=False)['not_checked'][0].startswith(
        'groups that only other members know')


def test_copies_of_copies_over_two_members(tmp_path):
    """a knows that x shows what y shows, b that y shows a row to be scored; c trained on x."""
    held = dict.fromkeys(IDS, 'val')
    write(tmp_path / 'a', roles=held | {'x': 'test', 'y': 'test'}, groups={'x': 'p', 'y': 'p'})
    write(tmp_path / 'b', roles=held | {'y': 'val'}, groups={'y': 'q', IDS[3]: 'q'})
    write(tmp_path / 'c', roles=held | {'x': 'train'})
    every = found(*(tmp_path / name for name in 'abc'))
    members.refuse_leakage(every[:2], IDS)
    with pytest.raises(ConfigError, match=f'member c trained on 1 of the 8 .*{IDS[3]}'):
        members.refuse_leakage(every, IDS)


def test_groups_on_two_sides_are_a_leak_beside_members_that_keep_them_apart(tmp_path):
    groups = {'x': 'w', IDS[0]: 'w'}
    write(tmp_path / 'a', roles=ROLES, groups=groups)
    config(tmp_path / 'a', grouped=False)
    alone = found(tmp_path / 'a')
    members.refuse_leakage(alone, IDS)  # as it was asked to
    assert members.marks(alone, IDS)['not_checked'][0] == (
        'groups: a allowed them on two sides (split.grouped=False)')
    write(tmp_path / 'b', roles=dict.fromkeys([*IDS, 'x'], 'val'), groups=groups)
    both = found(tmp_path / 'a', tmp_path / 'b')
    with pytest.raises(ConfigError, match='member a trained on 1 of the 8'):
        members.refuse_leakage(both, IDS)


def test_a_member_without_a_split_is_not_checked_and_that_is_said(tmp_path):
    write(tmp_path / 'a', digest=commit(tmp_path / 'a'))
    assert members.marks(found(tmp_path / 'a'), IDS) == dict(seen={}, not_checked=[])
    (tmp_path / 'a/split.csv').unlink()
    assert members.marks(found(tmp_path / 'a'), IDS)['not_checked'] == [
        'what a trained on (no split.csv)']


def test_predictions_belong_to_the_checkpoint_that_made_them(tmp_path):
    for name in 'ab':
        write(tmp_path / name, digest=commit(tmp_path / name, content=name.encode()), roles=ROLES)
    assert not any(one.doubt for one in found(tmp_path / 'a', tmp_path / 'b'))
    shutil.rmtree(tmp_path / 'b/predictions')
    shutil.copytree(tmp_path / 'a/predictions', tmp_path / 'b/predictions')
    with pytest.raises(ConfigError, match=r'copied from another workdir.*main.py predict'):
        found(tmp_path / 'b')
    # Once the checkpoints are removed, as after a study, result.json tells.
    digest = digests.identity(tmp_path / 'b/checkpoints/5')
    shutil.rmtree(tmp_path / 'b/checkpoints')
    (tmp_path / 'b/result.json').write_text(json.dumps(dict(best_step=5, checkpoint=digest)))
    with pytest.raises(ConfigError, match='copied from another workdir'):
        found(tmp_path / 'b')
    (tmp_path / 'b/result.json').unlink()
    said, = members.marks(found(tmp_path / 'b'), IDS)['not_checked']
    assert said == ('whether the predictions of b are their own (the checkpoint that they were '
                    'made with is gone)')


def npz(workdir, checkpoint='') -> None:
    """What training writes, besides `write`."""
    shutil.rmtree(workdir / 'predictions/val')
    path = workdir / 'predictions/val.npz'
    with open(path, 'wb') as file:
        write_npz(file, dict(ids=IDS, labels=np.zeros(8, np.int32), classes=np.array(['c', 'd']),
                             logits=np.eye(2, dtype=np.float32)[[0] * 8]))
    if checkpoint:
        provenance.record(path, checkpoint)


def test_a_file_of_predictions_belongs_to_its_run(tmp_path):
    for name in 'abc':
        write(tmp_path / name, roles=ROLES)
        digest = commit(tmp_path / name, content=name.encode())
        npz(tmp_path / name, digest if name != 'c' else '')
    assert [one.doubt for one in found(tmp_path / 'a', tmp_path / 'b')] == ['', '']
    said, = members.marks(found(tmp_path / 'c'), IDS)['not_checked']
    assert 'val.npz does not say with which checkpoint it was made' in said
    content = (tmp_path / 'a/predictions/val.npz').read_bytes()
    (tmp_path / 'b/predictions/val.npz').write_bytes(content + b' ')
    assert 'was replaced' in found(tmp_path / 'b')[0].doubt
    for name in ('val.npz', provenance.NAME):
        shutil.copyfile(tmp_path / 'a/predictions' / name, tmp_path / 'b/predictions' / name)
    with pytest.raises(ConfigError, match='copied from another workdir'):
        found(tmp_path / 'b')


def test_many_members_are_named_shortly(tmp_path):
    write(tmp_path / 'a', roles=ROLES)
    one, = members_of(tmp_path / 'a', 'val')
    many = [dataclasses.replace(one, name=f'm{k}', roles={}) for k in range(5)]
    assert members.marks(many, IDS)['not_checked'][0] == (
        'what m0, m1, m2 and 2 more trained on (no split.csv)')
