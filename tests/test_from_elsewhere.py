"""docs/from-elsewhere.md: this project beside what was measured of other libraries.

tests/peers.json holds what they do, with their versions; `python benchmarks/peers.py
--write=tests/peers.json` measured it. Each row of the page names its test here. Where a library is
installed, it is measured again.
"""

import functools
import importlib.util
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from benchmarks import peers
from configs import common
from input_pipeline import auto_augment, erasing, geometry, pull_maps, warp
from input_pipeline.resize import _cover, resize_target
from input_pipeline.transforms import TRANSFORMS
from train_lib.losses.losses import LossSpec, Mixed, head_loss
from train_lib.losses.mixing import MIXINGS
from train_lib.metrics.scores import expected_calibration_error, reliability
from train_lib.optim import param_groups
from train_lib.optim.optimizers import make_optimizer
from train_lib.optim.schedules import make_schedule
from train_lib.runtime.errors import ConfigError
from train_lib.training.step import make_ema_decay

HERE = Path(__file__).parent
KEPT = json.loads((HERE / 'peers.json').read_text('utf-8'))
PAGE = HERE.parent / 'docs/from-elsewhere.md'
THEIRS = {name: kept['values'] for name, kept in KEPT.items()}


# --- what is kept is what the libraries do ------------------------------------------------------


def close(kept, found, rel: float) -> bool:
    if isinstance(kept, dict):
        return kept.keys() == found.keys() and all(close(kept[key], found[key], rel)
                                                   for key in kept)
    if isinstance(kept, list):
        return len(kept) == len(found) and all(map(functools.partial(close, rel=rel), kept, found))
    return kept == (found if isinstance(kept, str) else pytest.approx(found, rel=rel, abs=1e-4))


@pytest.mark.parametrize('name', peers.MEASURES)
def test_the_libraries_still_do_so(name):
    for library in peers.MEASURES[name][1]:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f'{library} is not installed: pip install as benchmarks/peers.py says')
    found = peers.measure(name)
    drawn = name in ('elastic', 'erasing')  # at random, by generators that may change
    assert close(KEPT[name]['values'], found['values'], 0.05 if drawn else 1e-3), found


def test_everything_that_can_be_measured_is_kept():
    assert KEPT.keys() == peers.MEASURES.keys()
    for name, (_, libraries) in peers.MEASURES.items():
        assert tuple(KEPT[name]['versions']) == libraries
    assert close({'a': [1.0]}, {'a': [1.04]}, 0.05) and not close([1.0], [1.1], 0.05)


# --- the pages ----------------------------------------------------------------------------------


def rows(text: str) -> list[list[str]]:
    """The rows of all tables, without their heads."""
    found = []
    for table in re.findall(r'(?:^\|.*\n)+', text, re.M):
        found += [[cell.strip() for cell in line.strip('|').split(' | ')]
                  for line in table.splitlines()[2:]]
    return found


def test_each_row_of_the_page_has_a_test_here():
    named = [re.fullmatch(r'`(test_\w+)`\s*\|?', row[-1]) for row in rows(PAGE.read_text('utf-8'))]
    assert len(named) >= 16 and all(named)
    of_rows = [name for name in globals() if name.startswith('test_')]
    of_rows = set(of_rows[of_rows.index('test_elastic'):])
    assert {match[1] for match in named} == of_rows


def test_the_page_has_the_versions_that_were_measured():
    text = PAGE.read_text('utf-8')
    for kept in KEPT.values():
        for library, version in kept['versions'].items():
            assert f'{library} {version}' in text


# --- pictures -----------------------------------------------------------------------------------


def test_elastic():
    """The table in docs/augmentation.md, and that the strengths it gives are those meant."""
    text = (HERE.parent / 'docs/augmentation.md').read_text('utf-8')
    section = text.partition('### How strong elastic is')[2].partition('\nColour')[0]
    found = rows(section)
    assert len(found) == 1 + len(THEIRS['elastic'])
    for label, at_224, at_448, pixels, shares in found:
        words = label.split()
        alpha, sigma = map(float, re.findall(r'\d+', label.partition(' (its')[0])[-2:])
        if words[0] == 'here':
            theirs = dict.fromkeys(('224', '448'), geometry.elastic_deviation(alpha, sigma))
        else:
            noise = re.findall('gaussian|uniform', label)
            theirs = THEIRS['elastic'][f'{" ".join([words[0], *noise])} {alpha:g}/{sigma:g}']
            assert f'{words[0]} {KEPT["elastic"]["versions"][words[0]]}' in label
        assert (at_224, at_448) == tuple(f'{theirs[size]:.2f}' for size in ('224', '448'))
        ours, share = (eval(f'dict({cell.strip("`|")})') for cell in (pixels, shares.rstrip('| ')))
        assert geometry.elastic_deviation(**ours) == pytest.approx(theirs['224'], rel=0.02)
        assert share['alpha'] * 224 == pytest.approx(theirs['224'], rel=0.1)
        assert share['sigma'] * 224 == pytest.approx(ours['sigma'], rel=0.02) == sigma


@pytest.mark.parametrize(('border', 'level', 'who'), [
    ('edge', 50, []), ('reflect', 200, ['keras', 'fastai']),
    ('black', 0, ['albumentations', 'torchvision']), ('white', 255, [])])
def test_rotation(border, level, who):
    picture = np.full((65, 65, 3), 200, np.uint8)
    picture[[0, -1]] = picture[:, [0, -1]] = 50
    turned = warp.warp(picture, [geometry.rotation(45, (65, 65))], border)
    assert abs(int(turned[0, 0, 0]) - level) <= 1
    assert [name for name, found in THEIRS['rotation'].items() if found == border] == who
    assert THEIRS['rotation']['timm'] == 'mean of ImageNet'  # none of BORDERS
    assert common.get_config().image.border == 'edge' and border in pull_maps.BORDERS


def strengths(magnitude: int, bins: int) -> list[float]:
    """As peers.rand_augment has them."""
    size, strength = (224, 224), magnitude / (bins - 1)
    shear, translate, rotate, brightness, posterize, solarize = (
        auto_augment._RAND[number](strength, 1, size)[1] for number in (1, 3, 5, 6, 10, 11))
    levels = np.arange(256)
    table = np.asarray(posterize)[0]
    solarized = np.asarray(solarize)[0]
    return [np.degrees(np.arcsin(abs(rotate.matrix[1, 0]))), abs(shear.matrix[0, 1]),
            abs(float(translate.pull(0.0, 0.0)[0])) / 224,
            float(np.asarray(brightness)[0, 100]) / 100 - 1,
            np.log2(len(set(table))), np.flatnonzero(solarized != levels)[0]]


def test_rand_augment():
    theirs = THEIRS['rand_augment']
    of_torchvision, of_timm = theirs['torchvision 9 of 31 bins'], theirs['timm 9']
    ours = strengths(9, 31)
    # its shift is rounded down to a share of 150 / 331 of the width, 30.45 px of 224
    np.testing.assert_allclose(ours[:5], of_torchvision[:5], rtol=1e-2)
    assert abs(ours[5] - of_torchvision[5]) <= 1
    ours = strengths(9, 11)
    np.testing.assert_allclose(ours[:4], of_timm[:4], rtol=1e-2)
    assert abs(ours[5] - of_timm[5]) <= 1
    assert (ours[4], of_timm[4], theirs['timm 10'][4]) == (4, 1, 0)  # bits that posterize keeps
    assert strengths(10, 11)[4] == 4
    assert len(auto_augment._RAND) == theirs['torchvision operations'] == 14
    assert (theirs['timm operations'], theirs['timm applies']) == (15, 0.5)


def test_random_erasing():
    theirs, size = THEIRS['erasing'], (64, 64)
    picture = np.full((*size, 3), 77, np.uint8)

    def holes(fill):
        covered, levels = [], []
        for seed in range(600):
            step = erasing.KINDS['random_erasing'][0](
                np.random.default_rng(seed), size, fill=fill,
                **{key: TRANSFORMS['random_erasing'].defaults[key] for key in ('scale', 'ratio')})
            after = step(picture)
            covered.append((after != picture).any(-1).mean())
            levels.append(after[after != 77])
        return np.mean(covered), np.concatenate(levels)

    share, noise = holes('noise')
    for name in ('torchvision', 'timm const', 'timm pixel'):
        assert share == pytest.approx(theirs[name]['covered'], abs=0.012)
    # uniform over the bytes; theirs has deviation 1 after normalisation, about 58 levels
    assert noise.std() == pytest.approx(255 / 12 ** 0.5, rel=0.02)
    assert theirs['timm pixel']['std'] == theirs['fastai']['std'] == 1
    assert (holes('black')[1] == 0).all() and theirs['torchvision']['mean'] == 0


@pytest.mark.parametrize(('size', 'share'), [(224, 0.875), (224, 0.9), (224, 0.95), (240, 0.882),
                                             (288, 0.95), (384, 1.0)])
def test_crop_percentage(size, share):
    theirs = THEIRS['crop']
    assert resize_target((size, size), share) == (theirs[f'{size} at {share}'],) * 2
    assert resize_target((224, 224), 0.9655) == (232, 232)
    height, width = _cover((200, 301, 3), (64, 64))
    assert [width, height] == theirs['301 x 200 to 64']


# --- models and training ------------------------------------------------------------------------


def test_ema_warm_up():
    theirs = THEIRS['ema']
    ours = make_ema_decay(dict(decay=0.9998, warmup=True, warmup_kind='timm'))
    # timm counts updates from 1, this project steps from 0
    np.testing.assert_allclose([ours(jnp.int32(update - 1)) for update in (
        1, 2, 10, 100, 1000, 10_000, 1_000_000)], theirs['timm warm-up'], atol=2e-6)
    reaches = theirs['timm warm-up reaches .9998 at update']
    assert 353_000 < reaches < 354_000
    default = make_ema_decay(dict(common.get_config().ema) | dict(decay=0.9998))
    assert float(default(jnp.int32(45_000))) == pytest.approx(0.9998, abs=1e-7)
    assert float(default(jnp.int32(44_000))) < 0.9998
    with pytest.raises(ConfigError, match=r"config\.ema\.warmup_kind = 'tim': did you mean timm"):
        make_ema_decay(dict(decay=0.5, warmup=True, warmup_kind='tim'))


LOGITS, LABELS = jnp.array(peers.LOGITS), jnp.array(peers.LABELS)


def test_label_smoothing_and_mixup():
    theirs = THEIRS['smoothing']
    spec = LossSpec(label_smoothing=peers.SMOOTHING)
    for name in ('torch', 'timm', 'keras'):
        assert float(head_loss(spec, LOGITS, LABELS)) == pytest.approx(theirs[name], rel=1e-5)
    mixed = Mixed(LABELS, LABELS[::-1], jnp.full(4, peers.LAM))
    for name in ('timm mixup', 'keras mixup'):
        assert float(head_loss(spec, LOGITS, mixed)) == pytest.approx(theirs[name], rel=1e-5)
    assert 'mixup' in MIXINGS


def test_class_weights_and_label_smoothing():
    theirs = THEIRS['smoothing']
    spec = LossSpec(label_smoothing=peers.SMOOTHING, class_weights=tuple(peers.WEIGHTS))
    ours = float(head_loss(spec, LOGITS, LABELS))
    assert ours == pytest.approx(theirs['torch weights'], rel=1e-5)
    # fastai smooths without the weights; keras weighs by the label alone and divides by the batch
    plain = float(head_loss(LossSpec(class_weights=tuple(peers.WEIGHTS)), LOGITS, LABELS))
    log_probs = np.asarray(LOGITS) - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    assert theirs['fastai weights'] == pytest.approx(
        0.9 * plain - 0.1 * log_probs.mean(), rel=1e-5)
    each = [float(head_loss(LossSpec(label_smoothing=0.1), LOGITS[i:i + 1], LABELS[i:i + 1]))
            for i in range(4)]
    weights = np.array(peers.WEIGHTS)[peers.LABELS]
    assert theirs['keras class_weight'] == pytest.approx(np.mean(weights * each), rel=1e-5)


def one_step(start, gradients, rate=0.5, **settings):
    config = common.get_config().optimizer.to_dict() | dict(
        name='sgd', momentum=0.0, nesterov=False, weight_decay=0.0, clip_norm=0.0) | settings
    optimizer = make_optimizer(config)
    params = {str(i): {'kernel': jnp.array([[value]])} for i, value in enumerate(start)}
    change, _ = optimizer.update({str(i): {'kernel': jnp.array([[value]])}
                                  for i, value in enumerate(gradients)},
                                 optimizer.init(params), params)
    return [float((params[key]['kernel'] - rate * change[key]['kernel'])[0, 0]) for key in params]


def test_clipping_and_weight_decay():
    theirs = THEIRS['clipping']
    decoupled = one_step((3.0, 4.0), (30.0, 40.0), clip_norm=1.0, weight_decay=0.1)
    assert decoupled == pytest.approx(theirs['keras global_clipnorm and weight_decay'])
    coupled = one_step((3.0, 4.0), (30.0, 40.0), clip_norm=1.0, weight_decay=0.1, decay='coupled')
    assert coupled == pytest.approx(theirs['torch clip, then coupled decay'])
    both = one_step((0.0, 0.0), (30.0, 40.0), clip_norm=1.0)
    assert both == pytest.approx(theirs['keras global_clipnorm, two variables'])
    assert both != pytest.approx(theirs['keras clipnorm, two variables'])
    # L2(x) of keras is a decay of 2 x
    assert theirs['gradient of keras L2(0.1)'] == pytest.approx([0.2 * 3, 0.2 * 4])
    assert one_step((3.0, 4.0), (0.0, 0.0), 1.0, weight_decay=0.2, decay='coupled') == (
        pytest.approx([3 - 0.6, 4 - 0.8]))


def test_defaults_of_optimizers():
    ours, theirs = common.get_config().optimizer, THEIRS['optimizers']
    assert theirs['torch Adam'] == dict(eps=ours.eps, b2=ours.b2)
    assert theirs['torch RMSprop'] == dict(alpha=ours.alpha, eps=ours.eps)
    assert theirs['keras Adam'] == dict(eps=1e-7, b2=0.999)
    assert theirs['keras RMSprop'] == dict(alpha=0.9, eps=1e-7)
    assert theirs['fastai Adam'] == dict(eps=1e-5, b2=0.99, weight_decay=0.01)


def test_plateau_threshold():
    theirs = THEIRS['optimizers']
    assert common.get_config().schedule.plateau.min_delta == 0
    assert theirs['torch ReduceLROnPlateau'] == theirs['keras ReduceLROnPlateau'] == {
        'threshold': 1e-4}


def powers_here(name: str) -> dict[str, int]:
    """The power of the layer decay of each parameter, by timm's names."""
    model = nnx.eval_shape(lambda: models.create_model(name, 3, rngs=nnx.Rngs(0)))
    settings = common.get_config().finetune.to_dict() | dict(layer_decay=0.5)
    found = {}
    for path, rule in param_groups.plan(model, settings).items():
        path = re.sub('^head/', f'{model.timm_head}/', path)
        key = re.sub('(kernel|scale)$', 'weight', path.replace('/', '.'))
        found[key] = round(-np.log2(rule.rate))
    return found


def powers_of_timm(name: str) -> dict[str, int]:
    reference = json.loads((HERE / f'models/reference/{name}.json').read_text())
    changes, power, found = dict(map(tuple, THEIRS['layer_decay'][name])), None, {}
    for key in reference['state_dict']:
        power = changes.get(key, power)
        found[key] = power
    return found


@pytest.mark.parametrize('name', [pytest.param(
    name, marks=[pytest.mark.slow] * (name in ('inception_resnet_v2', 'densenet121')))
    for name in THEIRS['layer_decay']])
def test_layer_decay(name):
    ours, theirs = powers_here(name), powers_of_timm(name)
    both = ours.keys() & theirs.keys()
    assert len(both) >= 0.9 * len(ours)
    assert {key: ours[key] for key in both} == {key: theirs[key] for key in both}
    assert max(ours.values()) == max(theirs.values()) > 8


def rates(total: int, at, **schedule) -> list[float]:
    config = common.get_config().schedule.to_dict() | dict(lr=1.0) | schedule
    of_step = make_schedule(config, total, lambda duration, key: int(duration['steps']))
    return [float(of_step(step)) for step in at]


STEPS = {key: dict(steps=0) for key in ('warmup', 'cooldown', 'every', 'period')}


def test_cosine_after_warm_up():
    theirs = THEIRS['schedules']
    at = theirs['at']
    ours = rates(100, at, **STEPS | dict(warmup=dict(steps=5)), name='cosine')
    warm = [step for step in at if step < 5]
    # the warm-up ends at the peak here and in keras; the first step is 1/5 here and 0 there
    np.testing.assert_allclose(ours[:len(warm)], [(step + 1) / 5 for step in warm], rtol=1e-6)
    np.testing.assert_allclose(theirs['keras cosine'][:len(warm)], [step / 5 for step in warm])
    np.testing.assert_allclose(ours[len(warm):], theirs['keras cosine'][len(warm):], atol=2e-6)
    # timm's cosine begins before its warm-up, so it never reaches the peak
    whole = rates(100, at, **STEPS, name='cosine')
    np.testing.assert_allclose(whole[len(warm):], theirs['timm cosine'][len(warm):], atol=2e-6)
    assert max(theirs['timm cosine']) < 0.994 < max(ours) == 1


def test_one_cycle():
    theirs = THEIRS['schedules']['fastai one cycle at 0, 1/8, 1/4, 1/2, 1']
    ours = rates(800, (0, 100, 200, 400, 800), **STEPS, name='one_cycle', rise=0.25, low=1 / 25,
                 final=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_drop_path():
    theirs = THEIRS['drop_path']
    for name in ('vit_tiny_patch16_224', 'resnet18', 'efficientnet_b0'):
        model = nnx.eval_shape(lambda name=name: models.create_model(
            name, 3, rngs=nnx.Rngs(0), drop_path=0.1))
        ours = sorted(module.drop_path.rate for _, module in nnx.iter_modules(model)
                      if hasattr(module, 'drop_path'))
        wanted = theirs[f'timm {name}']
        np.testing.assert_allclose([rate for rate in ours if rate], wanted, atol=1e-6)
    of_torchvision = [rate for rate in theirs['torchvision efficientnet_b0'] if rate]
    assert of_torchvision == theirs['timm efficientnet_b0']


def test_calibration_error():
    """Four rows of confidence 1, three of them right, and four of .95, all right."""
    confidence = np.array([1.0] * 4 + [0.95] * 4)
    with np.errstate(divide='ignore'):
        logits = np.maximum(np.log(np.stack([confidence, 1 - confidence], 1)), -1e4)
    labels = np.array([0, 0, 0, 1, 0, 0, 0, 0])
    table = reliability(logits, labels)
    assert len(table) == 15 and table['n'].iloc[-1] == 8  # one bin
    assert expected_calibration_error(table) == pytest.approx(0.1)
    assert THEIRS['calibration']['torchmetrics'] == pytest.approx(
        0.5 * abs(3 / 4 - 1) + 0.5 * abs(1 - 0.95), abs=1e-5)  # two bins
