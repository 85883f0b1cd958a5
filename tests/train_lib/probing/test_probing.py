"""Cached features and stacked heads, compared with ordinary training of the same thing."""


import numpy as np
import pytest

from configs import common
from tests.train_lib.probing.trained_alone import assert_alone_is_together
from train_lib.commands.command_line import parse
from train_lib.predictions import members
from train_lib.probing import feature_cache as caching
from train_lib.probing import stacked_heads as stacked
from train_lib.probing.head_scores import Scoring
from train_lib.probing.probe_folds import make_folds
from train_lib.probing.probe_spec import read_probe_spec
from train_lib.probing.run_probe import load_features, probe
from train_lib.run_dir.goodput import Clock
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.signals import Interrupted
from train_lib.training import run
from train_lib.training.data import load_data

TINY = dict(name='vit_tiny_patch16_224', patch_size=8, embed_dim=16, depth=1, num_heads=2)


def probe_config(tmp_path, **changes):
    config = common.get_config()
    config.data.doodles.update(classes=4, per_class=12, writers=8)
    config.image.size = 32
    config.model = TINY
    config.split.kind, config.split.fold, config.split.folds = 'kfold', 'all', 2
    config.duration = dict(epochs=3)
    config.batch_size = 8
    config.curriculum = (dict(until=dict(epochs=1), transforms=[]),
                         dict(transforms=['hflip', dict(kind='rotate', degrees=15)]))
    config.probe.update(views=3, dtype='float32', cache=str(tmp_path / 'cache'), lr=(1e-2, 1e-3),
                        heads=(dict(name='linear', head='linear'),
                               dict(name='mlp', head='mlp', head_hidden=8)))
    config.schedule.warmup = dict(steps=0)
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


def test_a_head_that_is_not_a_dict_is_named(tmp_path):
    config = probe_config(tmp_path)
    config.probe.heads = ('linear',)
    with pytest.raises(ConfigError, match=r"heads\[0\] = 'linear' is not a valid head"):
        read_probe_spec(config)


def test_rates_may_come_as_texts_from_the_command_line(tmp_path):
    said = parse(['--config=configs/sketch_eva_probe.py', '--config.probe.lr=0.1,1e-3',
                  f'--workdir={tmp_path}/run']).config
    assert read_probe_spec(said).rates == (0.1, 1e-3)
    for wrong in (('0.1', 'x'), (-1.0,), (True,), (float('nan'),)):
        config = probe_config(tmp_path, **{'probe.lr': wrong})
        with pytest.raises(ConfigError, match=r'config\.probe\.lr = .* is not a number of 0 or'):
            read_probe_spec(config)


@pytest.mark.parametrize('key, value, message', [
    ('batch_size', 0, r'config\.batch_size = 0: give a number'),
    ('precision', 'float16', r"config\.precision = 'float16': choose one of"),
    ('eval.answer', 'mean', r"config\.eval\.answer = 'mean': choose one of probable, median"),
    ('eval.thresholds', 'none', r"config\.eval\.thresholds = 'none': choose one of f1, half"),
    ('loss.label_smoothing', 2.0, r'config\.loss\.label_smoothing = 2\.0'),
    ('probe.views', -1, r'config\.probe\.views = -1: give a number of views')])
def test_wrong_values_are_refused_as_in_training(tmp_path, key, value, message):
    config = probe_config(tmp_path, **{key: value})
    with pytest.raises(ConfigError, match=message):
        probe(config, load_data(config), tmp_path / 'run')
    assert not (tmp_path / 'run/config.json').exists()


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp('probe')
    config = probe_config(folder)
    manifest = load_data(config)
    result = probe(config, manifest, folder / 'run')
    return folder, config, manifest, result


def test_every_head_and_fold_leaves_predictions_of_its_own_rows(done):
    folder, _, _, result = done
    assert len(result['heads']) == 4
    for name in ('linear-lr0.01', 'linear-lr0.001', 'mlp-lr0.01', 'mlp-lr0.001'):
        ids = [set(np.load(folder / f'run/{name}/fold_{k}/predictions/val.npz')['ids'])
               for k in range(2)]
        assert not ids[0] & ids[1]
    assert {row['name'] for row in result['heads']} == {
        'linear-lr0.01', 'linear-lr0.001', 'mlp-lr0.01', 'mlp-lr0.001'}
    best = max(result['heads'], key=lambda row: row['accuracy'])
    assert result['chosen'] == best['name']
    stored = np.load(folder / 'run/predictions/out_of_fold.npz')
    right = np.mean(stored['logits'].argmax(1) == stored['labels'])
    assert result['out_of_fold']['accuracy'] == pytest.approx(right)
    assert (folder / 'run/report.html').exists()


def test_the_setting_is_chosen_by_the_metric_of_the_config(done):
    """Of errors the smallest is best; without validation every setting is worse than any score."""
    folder, config, manifest, _ = done
    config = config.copy_and_resolve_references()
    config.eval.metric = 'nll'
    again = probe(config, manifest, folder / 'by_nll')
    assert again['chosen'] == min(again['heads'], key=lambda row: row['nll'])['name']
    for metric, good, bad in (('nll', 0.2, 0.3), ('mae', 0.0, 1.0), ('qwk', 0.5, -0.5),
                              ('f1_macro', 0.5, 0.4)):
        by = Scoring(metric=metric)
        assert by.value({metric: good}) > by.value({metric: bad}) > by.value({})


def test_every_head_is_a_member_that_knows_what_it_trained_on(done):
    folder, _, manifest, _ = done
    heads = members.find_members([folder / 'run/*-lr0.01'], 'out_of_fold')
    assert [member.name for member in heads] == ['linear-lr0.01', 'mlp-lr0.01']
    rows = members.join(heads)
    members.refuse_leakage(heads, heads[0].ids[rows[0]])
    one = members.find_members([folder / 'run/mlp-lr0.01/fold_1'], 'val')[0]
    group = manifest.table.set_index('id')['group']
    trained = {group[name] for name, role in one.roles.items() if role == 'train'}
    others = [name for name in heads[0].ids if group[name] in trained]
    assert others and members.leakage(one, heads[0].ids) == others


def test_stacked_heads_are_those_that_train_alone(done):
    assert_alone_is_together(*done[1:])


def test_a_probe_is_training_with_a_frozen_backbone(done, tmp_path):
    """The same order, the same augmentation, the same head: the same logits. One stage, because
    a batch on the border of two epochs has one stage in training and two among the views."""
    folder, config, manifest, _ = done
    frozen = config.copy_and_resolve_references()
    with frozen.ignore_type():
        frozen.probe.heads = ()
        frozen.curriculum = config.curriculum[1:]
        frozen.split.fold = 0
        frozen.model.head_init = 'zeros'
        frozen.finetune.table = (('head/.*', {}), ('.*', dict(train=False)))
        frozen.schedule.lr = 1e-2
        frozen.eval.every = dict(percent=100)  # the last weights are the best
    run.train_one(frozen, manifest, tmp_path / 'frozen')
    probed = probe_config(folder)
    with probed.ignore_type():
        probed.probe.heads = (dict(name='linear', head='linear', head_init='zeros'),)
        probed.probe.lr = (1e-2,)
        probed.split.fold = 0
        probed.curriculum = config.curriculum[1:]
    probe(probed, manifest, tmp_path / 'probe')
    a = np.load(tmp_path / 'frozen/predictions/test.npz')
    b = np.load(tmp_path / 'probe/linear-lr0.01/fold_0/predictions/test.npz')
    assert list(a['ids']) == list(b['ids'])
    np.testing.assert_allclose(a['logits'], b['logits'], atol=5e-4 * np.abs(a['logits']).max())


def test_a_second_start_computes_no_feature_and_other_pixels_do(done, monkeypatch):
    folder, config, manifest, result = done
    computed = []
    monkeypatch.setattr(caching, '_store', lambda *args: computed.append(args))
    again = probe(config, manifest, folder / 'again')
    assert not computed and again['features'] == result['features']
    other = probe_config(folder, **{'data.doodles.seed': 1})
    about = caching.digest_pixels(load_data(other))
    assert about != caching.digest_pixels(manifest)


def test_a_stopped_cache_goes_on_where_it_was(tmp_path, monkeypatch):
    config = probe_config(tmp_path, **{'eval.batch_size': 8})
    manifest = load_data(config)
    spec, data = read_probe_spec(config), make_folds(config, manifest)
    calls = []

    def stop_after(count):
        calls.clear()
        return lambda: calls.append(1) or len(calls) > count

    clock = Clock()
    with pytest.raises(Interrupted):
        load_features(config, spec, data, clock, stop_after(9))
    stored = []
    original = caching._store
    monkeypatch.setattr(caching, '_store',
                        lambda *args: (stored.append(args[1:3]), original(*args))[1])
    resumed = load_features(config, spec, data, clock, lambda: False)
    assert len(stored) == 4 * 6 - 8  # views x batches, less those that were stored
    fresh_config = probe_config(tmp_path / 'fresh', **{'eval.batch_size': 8})
    fresh = load_features(fresh_config, read_probe_spec(fresh_config), data, clock, lambda: False)
    np.testing.assert_array_equal(resumed.views, fresh.views)


def test_views_differ_where_the_curriculum_says_so(done):
    views = np.load(f'{done[3]["features"]}/features.npy')
    np.testing.assert_array_equal(views[0], views[3])  # the first stage is plain
    assert np.abs(views[1] - views[2]).max() > 0


def test_a_head_needs_a_name(tmp_path):
    config = probe_config(tmp_path, **{'probe.heads': (dict(head='linear'),)})
    with pytest.raises(ConfigError, match=r'probe\.heads\[0\]\.name'):
        read_probe_spec(config)


def test_shorter_folds_stop_at_their_own_end():
    task = stacked.HeadTask(
        num_features=4, classes={'class': 3}, rates=(1.0,),
        rate_factors=np.array([[1, 1, 1], [1, 1, 0]], np.float32), batch_size=2, views=2,
        label_smoothing=0.0, head_weights={'class': 1.0}, seed=0)
    rows = [stacked.FoldRows(np.arange(6), lambda p: (p // 6, p % 6)),
            stacked.FoldRows(np.arange(4), lambda p: (p // 4, p % 4))]
    data = stacked.TrainingRows(rows, {'class': np.zeros(6, np.int32)})
    plan, used = stacked.plan_chunk(task, data, 0, 3)
    assert plan['rate_factor'].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert plan['row'][0].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert plan['row'][1].tolist() == [[0, 1], [2, 3], [0, 1]]
    assert used.tolist() == [0, 1] and plan['view'][:, 2].tolist() == [[0, 0], [1, 1]]


def test_heads_weigh_no_row_twice():
    task = stacked.HeadTask(num_features=2, classes={'class': 2}, rates=(1.0,),
                            rate_factors=np.ones((2, 4), np.float32), batch_size=3, views=0,
                            label_smoothing=0.0, head_weights={'class': 1.0}, seed=0)
    folds = [stacked.FoldRows(np.arange(6), lambda position: (0, position % 6), end)
             for end in (None, 3)]
    rows = stacked.TrainingRows(folds, {'class': np.zeros(6, np.int32)}, np.full(6, 5.0))
    plan, _ = stacked.plan_chunk(task, rows, 2, 4)
    assert plan['weight'].tolist() == [[[5] * 3, [5] * 3], [[5] * 3, [1] * 3]]
