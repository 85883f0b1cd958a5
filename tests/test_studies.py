"""Every arm of every study is a run that can start, and no row of a table is missing."""

import importlib
from functools import partial
from pathlib import Path

import pytest

import models
from input_pipeline.curriculum import make_stages
from input_pipeline.durations import to_steps
from input_pipeline.resampling import RESAMPLINGS
from train_lib.commands.command_line import parse
from train_lib.commands.study import study_of
from train_lib.commands.train import run_any
from train_lib.losses.losses import LOSSES
from train_lib.losses.mixing import make_mixings
from train_lib.optim.optimizers import make_optimizer
from train_lib.optim.schedules import make_schedule
from train_lib.studies.definition import Arm, configured
from train_lib.training.data import load_data, load_manifest
from train_lib.training.preprocess_spec import preprocess_spec

FOLDER = Path(__file__).parents[1] / 'configs' / 'studies'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py')
               if path.stem not in ('__init__', 'designs'))
WITH_SIZE = [name for name in NAMES if name != 'curriculum']
# Arguments that add arms.
FULL = {
    'food_sampling': 'folder=dishes,from=runs/food',
    'illustration': 'folder=pictures,rare=owl+newt',
    'people_models': 'csv=x.csv,images=faces,from=runs/a,decisions=d.csv,faces=packed',
    'sketch': 'folder=sketches.zip',
    'trees': 'folder=letters.zip',
}
CLASSES = {'illustration': {'class': ('owl', 'newt')}}
FACES = {'mask': ('worn', 'wrong', 'none'), 'gender': ('female', 'male'),
         'age': ('young', 'middle', 'old')}


def read(name, arg=''):
    return study_of(parse(['study', f'--config={FOLDER / name}.py{":" * bool(arg)}{arg}']))


def check(arm, classes):
    """Everything that a run is made of but data, model and step."""
    config = arm.config
    steps = partial(to_steps, examples_per_epoch=1000, batch_size=config.batch_size)
    total = steps(config.duration, key='duration', total_steps=None)

    def in_run(duration, key):
        return steps(duration, key=key, total_steps=total)

    stages = make_stages(config.curriculum, in_run)
    make_schedule(config.schedule.to_dict(), total, in_run, stages, batch_size=config.batch_size)
    make_optimizer(config.optimizer.to_dict())
    if config.data.combine:
        classes = people_product(classes)
    make_mixings(config.mixing, classes, in_run)
    preprocess_spec(config)
    assert set(config.model) - {'name'} <= set(models.model_settings(config.model.name))
    assert config.loss.name in LOSSES and config.resample.kind in RESAMPLINGS
    return config


def people_product(classes):
    names = ['']
    for of_head in classes.values():
        names = [f'{left}/{right}'.strip('/') for left in names for right in of_head]
    return {'/'.join(classes): tuple(names)}


@pytest.mark.parametrize('name', NAMES)
def test_every_arm_can_start(name):
    study = read(name, FULL.get(name, ''))
    arms = study.arms
    if study.search:  # what its trials may be
        arms += tuple(Arm(key, '', {}, configured(key, {key: value}, study.base))
                      for key, one in study.search.space.items() for value in one.ends())
    classes = FACES if name == 'people_models' else {'class': ('a', 'b')}
    for arm in arms:
        check(arm, classes)
    assert len(arms) > 1


@pytest.mark.parametrize('name', WITH_SIZE)
def test_a_tiny_study_needs_nothing_but_a_cpu(name):
    study = read(name, 'size=tiny')
    manifests = {}
    for arm in study.arms:
        key = str((arm.config.data.to_dict(), arm.config.seed))
        if key not in manifests:
            manifests[key] = load_manifest(arm.config)
        manifest = manifests[key]
        config = check(arm, people_classes(manifest) if arm.config.data.combine else
                       manifest.classes)
        assert not config.init.pretrained and config.image.size == 32
        assert config.data.source == ('digits' if name in ('digits', 'search') else 'doodles')
        assert config.duration.to_dict() == {'steps': 8}
        assert set(dict(config.resample.multipliers)) <= set(manifest.classes[manifest.heads[0]])
    assert len(study.cells()) <= 2 * len(study.arms)


def people_classes(manifest):
    """The heads before they were combined."""
    (head, names), = manifest.classes.items()
    parts = zip(*(name.split('/') for name in names))
    return {key: tuple(dict.fromkeys(of_head)) for key, of_head in zip(head.split('/'), parts)}


def arms_of(name):
    return {arm.name: arm.config for arm in read(name, FULL.get(name, '')).arms}


def test_the_tables_have_their_rows():
    assert len(read('illustration', 'size=tiny').arms) == 34
    rare = arms_of('illustration')['cnn_final, rare x3'].resample
    assert (rare.kind, dict(rare.multipliers)) == ('multiply', {'owl': 3.0, 'newt': 3.0})

    people = arms_of('people_models')
    assert people['a, then c'].init['from'] == 'runs/a' and people['a, then c'].finetune.table
    assert people['a, no borders'].data.decisions == ('d.csv',)
    assert people['a, faces'].data.source == 'packed' and people['a, faces'].data.packed == 'packed'
    for plain in ('a', 'b', 'c'):
        config = people[plain]
        assert not config.init['from'] and not config.data.decisions and not config.finetune.table
        assert config.init.pretrained == 'default' and config.data.source == 'csv'

    optimizers = arms_of('food_optimizers')
    assert (optimizers['nadam, betas 0.999'].optimizer.b1,
            optimizers['nadam, betas 0.999'].optimizer.b2) == (0.999, 0.999)
    assert optimizers['sgd'].optimizer.momentum == 0 and optimizers['adam'].optimizer.b1 == 0.9
    assert len(arms_of('food_augmentation')) == 8 + 2  # all sets of three, and two denoisings
    assert all(config.init['from'] == 'runs/food' and config.optimizer.decay == 'coupled'
               for config in arms_of('food_sampling').values())


def test_the_schedules_of_the_sketches_are_those_of_the_table():
    sketch = arms_of('sketch')
    for name, epochs, cut in (('mlp, rate cut at 10 of 30 epochs', 30, 10),
                              ('mlp, rate cut at 4 of 15 epochs', 15, 4)):
        config = sketch[name]
        assert config.duration.to_dict() == {'epochs': epochs}
        assert config.schedule.every.percent * epochs / 100 == pytest.approx(cut)
    assert sketch['linear'].finetune.table and not sketch['resnet50, mlp'].finetune.table
    assert sketch['resnet50, mlp'].model.to_dict() == {
        'name': 'resnet50', **importlib.import_module('configs.sketch_eva').HEADS['mlp']}
    assert preprocess_spec(sketch['mlp']).mean[0] == 0.48145466  # CLIP's
    assert preprocess_spec(sketch['mlp, ImageNet statistics']).mean[0] == 0.485


def models_of(name, *words):
    command = parse(['study', f'--config={FOLDER / name}.py:{words[0]}', *words[1:]])
    return {arm.name: arm.config.model.name for arm in study_of(command).arms}


def test_a_study_is_tiny_by_its_arguments_and_not_by_its_pixels():
    small = models_of('food_models', 'size=32,folder=dishes')
    assert small['resnet50'] == 'resnet50' and len(set(small.values())) == len(small)
    assert models_of('sketch', 'size=32,folder=sketches')['resnet50, mlp'] == 'resnet50'
    assert 'resnet_inception' in models_of('illustration', 'size=32,folder=x').values()
    tiny = models_of('food_models', 'size=tiny', '--config.image.size=48')
    assert set(tiny.values()) == {'small_cnn'}
    batches = [arm.config.batch_size for arm in read('food_batch', 'size=32,folder=dishes').arms]
    assert batches == [16, 32, 64, 128]


@pytest.mark.slow
@pytest.mark.parametrize('name', WITH_SIZE)
def test_the_arms_of_a_tiny_study_train(name, tmp_path):
    study = read(name, 'size=tiny')
    for cell in (study.cells()[0], study.cells()[-1]):
        config = cell.config()
        config.compile_cache = False
        folder = tmp_path / cell.folder
        run_any(config, load_data(config, folder), folder)
        assert (folder / 'result.json').exists() and (folder / 'report.html').exists()


def test_a_distance_is_an_error():
    assert not read('ordered').less_is_better  # test.qwk
    found = study_of(parse(['study', f'--config={FOLDER / "ordered.py"}',
                            '--config.study.metric=test.mae']))
    assert found.less_is_better
    found = study_of(parse(['study', f'--config={FOLDER / "ordered.py"}',
                            '--config.study.metric=test.age.mae_median']))
    assert found.less_is_better
