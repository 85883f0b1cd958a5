"""Models are read with the weights, classes and offsets with which the run scored itself."""

import jax
import numpy as np
import pytest

from input_pipeline import loader
from main import main
from train_lib.predictions import store
from train_lib.runtime.errors import ConfigError
from train_lib.serving.trained_models import read_models
from train_lib.training.data import load_data
from train_lib.training.row_splits import split_rows
from train_lib.training.step import make_normalise


@pytest.fixture(scope='module')
def folds(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('served') / 'run'
    assert main(['--config=configs/sketch_cnn.py:data=digits', f'--workdir={workdir}',
                 '--config.split.kind=kfold', '--config.split.folds=2', '--config.split.fold=all',
                 '--config.eval.adjust_tau=0.5', '--config.curriculum=()',
                 '--config.duration.epochs=1',
                 '--config.image.size=16', '--config.ema.decay=0.9']) == 0
    return workdir


def test_each_fold_answers_as_it_did_in_its_run(folds):
    found = read_models(folds)
    assert [one.workdir.name for one in found] == ['fold_0', 'fold_1']
    for one in found:
        rows = split_rows(one.config, load_data(one.config, one.workdir), one.workdir)
        own = store.open_member(one.workdir / 'predictions/val.npz')
        part = rows.select(rows.table['id'].isin(own.ids.tolist()).to_numpy())
        batches = loader.eval_dataset(part, one.preprocess, batch_size=len(part),
                                      shard=loader.Shard())
        images = next(iter(batches(0)))['image']
        normalise = make_normalise(one.preprocess.mean, one.preprocess.std, np.float32)
        logits = jax.jit(lambda x, one=one, normalise=normalise: one.model(normalise(x)))(images)
        values = np.asarray(logits)[:len(part)] + one.offsets['class']
        order = {name: row for row, name in enumerate(part.table['id'])}
        np.testing.assert_allclose(values[[order[name] for name in own.ids.tolist()]],
                                   own.logits['class'], atol=1e-4)


def test_an_unfinished_workdir_is_refused(tmp_path):
    with pytest.raises(ConfigError, match='nowhere'):
        read_models(tmp_path / 'nowhere')
