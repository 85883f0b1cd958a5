"""Columns of several heads in a submission: each head, words, and probabilities."""

import csv

import numpy as np
import pytest

from configs.vote import common
from train_lib.ensembles import vote_files
from train_lib.ensembles.aligned import align
from train_lib.ensembles.read_specs import read_specs
from train_lib.ensembles.vote_scores import count_votes
from train_lib.predictions import store
from train_lib.runtime.errors import ConfigError

HEADS = dict(hat=('no', 'yes'), age=('old', 'mid', 'young'))
YES_NO = dict(hat=('no', 'yes'), coat=('no', 'yes'))
IDS = ('1', '02', '3', '4')


def probs(classes, seed):
    drawn = np.random.default_rng(seed).gamma(1.0, size=(len(IDS), classes))
    return drawn / drawn.sum(1, keepdims=True)


def submission(tmp_path, heads, sample, **columns):
    """The rows that two members vote, and the mean probabilities by head."""
    members, mean = [], {}
    for name in 'ab':
        found = {head: probs(len(names), [ord(name), k]) for k, (head, names) in
                 enumerate(heads.items())}
        folder = tmp_path / name / 'predictions/new/identity'
        writer = store.Writer(folder, dict(model='m', step=1, digest=name, data='', view=''),
                              np.array(IDS), dict.fromkeys(heads, np.full(4, -1)), heads,
                              'float32')
        writer.write(np.arange(4), {head: np.log(values) for head, values in found.items()})
        writer.commit()
        members.append(store.open_member(folder))
        mean = {head: mean.get(head, 0) + values / 2 for head, values in found.items()}
    config = common.get_config().to_dict() | dict(columns=columns, sample='')
    if sample:
        (tmp_path / 's.csv').write_text(sample)
        config['sample'] = str(tmp_path / 's.csv')
    aligned = align(config, members)
    specs = read_specs(config, aligned)
    votes = count_votes(aligned, specs, specs[0].name, None)
    vote_files.write_submission(tmp_path / 'out.csv', config, aligned, votes)
    with open(tmp_path / 'out.csv', newline='') as file:
        return list(csv.DictReader(file)), mean


def test_heads_by_name_index_and_probability(tmp_path):
    rows, mean = submission(tmp_path, HEADS, 'id,a,b,c,d,e,f\n' + ''.join(
        f'{name},,,,,,x{name}\n' for name in reversed(IDS)), id='id', a='age', b='index:age',
        c='probability:hat', d='probability:young', e='probability:yes/mid', f='copy')
    best = mean['age'].argmax(1)[::-1]
    assert [row['id'] for row in rows] == [*reversed(IDS)]
    assert [row['f'] for row in rows] == [f'x{name}' for name in reversed(IDS)]
    assert [row['a'] for row in rows] == [HEADS['age'][k] for k in best]
    assert [row['b'] for row in rows] == [str(k) for k in best]
    for column, wanted in (('c', mean['hat'][:, 1]), ('d', mean['age'][:, 2]),
                           ('e', mean['hat'][:, 1] * mean['age'][:, 1])):
        np.testing.assert_allclose([float(row[column]) for row in rows], wanted[::-1], rtol=1e-5)


@pytest.mark.parametrize('heads', [HEADS, YES_NO])
def test_names_with_spaces_between(tmp_path, heads):
    rows, mean = submission(tmp_path, heads, '', ID='id', tags='names')
    best = {head: values.argmax(1) for head, values in mean.items()}
    said = [[head for head in heads if best[head][k]] if heads is YES_NO else
            [names[best[head][k]] for head, names in heads.items()] for k in range(4)]
    assert [row['tags'] for row in rows] == [' '.join(words) for words in said]
    assert len({row['tags'] for row in rows}) > 1


def test_a_content_that_the_members_lack(tmp_path):
    with pytest.raises(ConfigError, match="'p': 'probability:hat'"):
        submission(tmp_path, HEADS, '', ID='id', p='probability:hut')
    with pytest.raises(ConfigError, match="'c' holds"):
        submission(tmp_path, HEADS, '', ID='id', c='copy')
