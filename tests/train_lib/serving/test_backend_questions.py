"""No program asks which machine makes it: while one is traced and lowered, each question that JAX
could answer from this process is an error. Questions of JAX itself count, as those of its cuDNN."""

import contextlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported import SMALL, small
from jax import export
from jax._src import xla_bridge

from configs import common
from models import registry
from models.target import Target
from train_lib.optim.optimizers import make_optimizer
from train_lib.probing import stacked_heads
from train_lib.probing.backbone import make_backbone
from train_lib.runtime.sharding import keep_layout, make_mesh
from train_lib.serving.exported_program import make_program
from train_lib.training import network
from train_lib.training.batch_statistics import make_statistics_step
from train_lib.training.data import load_data, split_data
from train_lib.training.setup import assemble
from train_lib.training.state import Weights
from train_lib.training.step import make_normalise, split_model

TARGETS = {'cpu': Target('cpu'), 'cuda': Target('cuda', '9.0'), 'tpu': Target('tpu')}
QUESTIONS = ('default_backend', 'devices', 'local_devices', 'device_count', 'local_device_count',
             'process_index', 'process_count', 'get_backend', 'backends')
WITH_ATTENTION = ('vit', 'vit, scan, sine positions, mean', 'eva02, packed', 'eva02, apart',
                  'dinov3')
WITH_BIAS = ('beit',)  # whose attention is XLA's
CONVOLUTIONS = ('efficientnet', 'mobilenetv3', 'small_cnn', 'resnet', 'densenet', 'plain_cnn')
SLOW = ('inception_resnet_v2', 'resnet_inception')  # to trace
CASES = [*(('vit', platform) for platform in TARGETS),
         # The others are traced for all targets by the same code.
         *((name, 'cuda') for name in WITH_ATTENTION[1:-1] + CONVOLUTIONS),
         *(pytest.param(name, 'cuda', marks=pytest.mark.slow)
           for name in WITH_ATTENTION[-1:] + WITH_BIAS + SLOW)]
FORWARD, BACKWARD = '__cudnn$fmhaSoftmax', '__cudnn$fmhaSoftmaxBackward'


@contextlib.contextmanager
def no_questions():
    """JAX answers nothing about this process, but where a program without a mesh would lie."""
    def refuse(name):
        def ask(*args, **settings):
            raise AssertionError(f'{name} was asked for a program of another machine')
        return ask

    with jax.default_device(jax.devices()[0]), pytest.MonkeyPatch.context() as patch:
        for owner in (jax, xla_bridge):
            for name in QUESTIONS:
                if hasattr(owner, name):
                    patch.setattr(owner, name, refuse(f'{owner.__name__}.{name}'))
        yield


def text_of(program, platforms, *arguments) -> str:
    """A jitted function's program for one or several platforms, made without a question."""
    platforms = (platforms,) if isinstance(platforms, str) else platforms
    with no_questions():
        return program.trace(*arguments).lower(lowering_platforms=platforms).as_text()


def calls(text) -> set[str]:
    """The calls of cuDNN in a program."""
    return set(re.findall(r'__cudnn\$\w+', text))


def config_of(name):
    model, settings, size = SMALL[name]
    config = common.get_config()
    config.data.doodles.update(classes=4, per_class=12, writers=8)
    config.image.size, config.precision, config.batch_size = size, 'bfloat16', 8
    config.model = dict(name=model, **settings)
    return config


def test_every_family_is_traced():
    traced = {registry.MODELS[SMALL[name][0]][0]
              for name in WITH_ATTENTION + WITH_BIAS + CONVOLUTIONS + SLOW}
    assert traced == {family for family, _ in registry.FAMILIES}


def job_of(name, platform, monkeypatch):
    """(job of a run, shapes of its images and labels)"""
    monkeypatch.setattr(network, 'target_of', lambda device: TARGETS[platform])
    config = config_of(name)
    data = split_data(config, load_data(config))
    job = assemble(config, data, make_mesh(config.mesh), None, Path(), abstract=True)
    job.iterator.close()
    prepared = job.run.inputs.preprocess
    images = jax.ShapeDtypeStruct((8, *prepared.frame, prepared.channels), jnp.uint8)
    return job, images, {head: jax.ShapeDtypeStruct((8,), jnp.int32)
                         for head in job.run.scoring.heads}


@pytest.mark.parametrize(('name', 'platform'), CASES)
def test_training_asks_for_no_machine(name, platform, monkeypatch):
    job, images, labels = job_of(name, platform, monkeypatch)
    text = text_of(keep_layout(job.run.programs.train_step, job.state), platform, job.state,
                   dict(image=images) | {f'label/{head}': one for head, one in labels.items()})
    flash = platform == 'cuda' and name in WITH_ATTENTION
    assert calls(text) == ({FORWARD, BACKWARD} if flash else set())


@pytest.mark.parametrize('platform', TARGETS)
@pytest.mark.parametrize('name', ['vit', 'small_cnn'])
def test_evaluation_and_heat_maps_ask_for_no_machine(name, platform, monkeypatch):
    job, images, labels = job_of(name, platform, monkeypatch)
    programs, weights = job.run.programs, job.state.weights
    flash = name == 'vit' and platform == 'cuda'
    assert calls(text_of(programs.eval_step, platform, weights, images)) == (
        {FORWARD} if flash else set())
    assert calls(text_of(programs.heat_step, platform, weights, images, labels)) == (
        {FORWARD, BACKWARD} if flash else set())


def test_new_statistics_ask_for_no_machine():
    graphdef, *trees = split_model(small('resnet').model)
    step = make_statistics_step(graphdef, make_normalise((0.5,), (0.5,), jnp.bfloat16))
    text_of(jax.jit(step), 'cuda', Weights(trees[0], {}, trees[1]),
            jnp.zeros((2, 32, 32, 3), jnp.uint8))


@pytest.mark.parametrize('platform', TARGETS)
def test_features_ask_for_no_machine(platform, monkeypatch):
    monkeypatch.setattr(network, 'target_of', lambda device: TARGETS[platform])
    made = make_backbone(config_of('vit'))
    images = jax.ShapeDtypeStruct((8, *made.preprocess.frame, 3), jnp.uint8)
    assert calls(text_of(made.embed, platform, made.weights, images)) == (
        {FORWARD} if platform == 'cuda' else set())


@pytest.mark.parametrize('platform', TARGETS)
def test_heads_on_features_ask_for_no_machine(platform):
    """A CPU trains one head after another, by loops around the one over steps."""
    task = stacked_heads.HeadTask(
        num_features=6, classes={'class': 3}, rates=(0.1, 0.01),
        rate_factors=np.ones((2, 4), np.float32), batch_size=5, views=0, label_smoothing=0.0,
        head_weights={'class': 1.0}, seed=0)
    optimizer = make_optimizer(common.get_config().optimizer.to_dict())
    kind = stacked_heads.HeadKind('linear', dict(head='linear'))
    graphdef, params = stacked_heads.make_heads(kind, task)
    state = stacked_heads.start_state({'linear': params}, optimizer)
    plan, _ = stacked_heads.plan_chunk(task, stacked_heads.TrainingRows(
        [stacked_heads.FoldRows(np.arange(9), lambda position: divmod(position, 9))] * 2,
        {'class': np.arange(9) % 3}), 0, 4)
    with no_questions():
        program = stacked_heads.make_program({'linear': graphdef}, optimizer, task)
    text = text_of(program, platform, state, jnp.zeros((1, 9, 6)), plan)
    assert text.count('stablehlo.while') == (3 if platform == 'cpu' else 1)


def test_an_export_asks_for_no_machine(monkeypatch):
    seen, own = [], export.export

    def also_unasked(program, platforms):
        def trace(*shapes):
            seen.append(text_of(program, platforms, *shapes))
            return own(program, platforms=platforms)(*shapes)
        return trace

    monkeypatch.setattr(export, 'export', also_unasked)
    make_program(small('vit', 'bfloat16'))
    assert 'stablehlo.case' in seen[0]  # one program for all platforms
    assert not calls(seen[0])


def test_a_question_is_noticed():
    def asks(x):
        return x if jax.default_backend() == 'cpu' else -x

    with pytest.raises(AssertionError, match=r'jax\.default_backend was asked'):
        text_of(jax.jit(asks), 'cpu', 1.0)
