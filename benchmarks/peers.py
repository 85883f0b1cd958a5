"""What other libraries make of the numbers of a recipe, measured: docs/from-elsewhere.md.

    pip install torch torchvision timm albumentations==2.0.8 keras fastai torchmetrics
    python benchmarks/peers.py                            # prints the table
    python benchmarks/peers.py --write=tests/peers.json   # and keeps it for the tests
    python benchmarks/peers.py --only=elastic,ema

It needs no part of this project. tests/test_from_elsewhere.py compares what is kept with this
project's own behaviour, and measures again where the libraries are installed.
"""

import argparse
import importlib
import importlib.metadata
import json
import math
import os
import random
import sys
import warnings
from pathlib import Path

import numpy as np

os.environ.setdefault('KERAS_BACKEND', 'torch')
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Logits, labels and class weights of the losses below.
LOGITS = [[2.0, 0.5, -1.0], [0.0, 1.5, 0.5], [-0.5, 0.0, 1.0], [1.0, 0.0, 0.5]]
LABELS = [0, 1, 2, 1]
WEIGHTS = [0.5, 2.0, 1.0]
SMOOTHING, LAM = 0.1, 0.7


def elastic() -> dict:
    """Standard deviation of the displacement in pixels, {library alpha/sigma: {size: pixels}}."""
    import albumentations
    import torch
    from torchvision.transforms import v2

    def of_albumentations(noise, alpha, sigma, size):
        transform = albumentations.ElasticTransform(alpha=alpha, sigma=sigma, p=1,
                                                    noise_distribution=noise)
        rows, columns = np.mgrid[:size, :size]
        found = []
        for seed in range(10):
            transform.set_random_seed(seed)
            maps = transform.get_params_dependent_on_data({'shape': (size, size, 3)}, {})
            found += [maps['map_x'] - columns, maps['map_y'] - rows]
        return np.std(found)

    def of_torchvision(alpha, sigma, size):
        transform = v2.ElasticTransform(alpha=float(alpha), sigma=float(sigma))
        torch.manual_seed(0)
        picture = torch.zeros(3, size, size)
        # Half a side is 1 in the coordinates of grid_sample.
        return np.std([transform.make_params([picture])['displacement'].numpy() * size / 2
                       for _ in range(10)])

    kinds = {'albumentations gaussian': lambda *given: of_albumentations('gaussian', *given),
             'albumentations uniform': lambda *given: of_albumentations('uniform', *given),
             'torchvision': of_torchvision}
    defaults = {'albumentations gaussian': (1, 50), 'torchvision': (50, 5)}
    return {f'{name} {alpha}/{sigma}': {str(size): round(float(measure(alpha, sigma, size)), 4)
                                        for size in (224, 448)}
            for name, measure in kinds.items()
            for alpha, sigma in dict.fromkeys([(30, 4), defaults.get(name, (30, 4))])}


def rotation() -> dict:
    """What a picture rotated by 45 degrees (timm: 27) shows in its corners, by default."""
    import albumentations
    import keras
    import torch
    from fastai.torch_core import TensorImage
    from fastai.vision.augment import Rotate
    from PIL import Image
    from timm.data import create_transform
    from torchvision.transforms import v2

    picture = np.full((65, 65, 3), 200, np.uint8)
    picture[[0, -1]] = picture[:, [0, -1]] = 50  # a frame of one pixel
    tensor = torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    policy = next(part for part in create_transform(
        224, is_training=True, auto_augment='rand-m9').transforms if hasattr(part, 'ops'))
    rotate, = (op for op in policy.ops if op.name == 'Rotate')
    rotate.prob = 1.0
    turned = {
        'albumentations': albumentations.Rotate((45, 45), p=1)(image=picture)['image'],
        'torchvision': np.asarray(v2.RandomRotation((45, 45))(Image.fromarray(picture))),
        'keras': np.asarray(keras.layers.RandomRotation((0.125, 0.125))(
            picture[None].astype(np.float32), training=True))[0],
        'fastai': 255 * Rotate(max_deg=45, p=1, draw=45)(
            TensorImage(tensor), split_idx=0)[0].numpy().transpose(1, 2, 0),
        'timm': np.asarray(rotate(Image.fromarray(picture))),
    }
    names = {0: 'black', 50: 'edge', 200: 'reflect', 124: 'mean of ImageNet'}
    return {name: names[int(np.rint(found[0, 0, 0]))] for name, found in turned.items()}


def rand_augment() -> dict:
    """Strengths at magnitude 9: degrees, shear, share of the width, factor - 1, bits that are kept,
    threshold of the 8-bit levels; and how often an operation that was drawn is applied."""
    from timm.data import auto_augment
    from torchvision.transforms import v2

    space = v2.RandAugment._AUGMENTATION_SPACE
    of_torchvision = {name: float(space[name][0](31, 224, 224)[9]) for name in (
        'Rotate', 'ShearX', 'TranslateX', 'Brightness', 'Posterize', 'Solarize')}
    names = ('Rotate', 'ShearX', 'TranslateXRel', 'BrightnessIncreasing', 'PosterizeIncreasing',
             'SolarizeIncreasing')
    of_timm = {}
    for magnitude in (9, 10):
        random.seed(0)
        found = [float(abs(auto_augment.LEVEL_TO_ARG[name](magnitude, {})[0])) for name in names]
        found[3] = abs(found[3] - 1)
        of_timm[f'timm {magnitude}'] = found
    ops = auto_augment.rand_augment_ops(magnitude=9, transforms=auto_augment._RAND_TRANSFORMS)
    found = [of_torchvision[name] for name in of_torchvision]
    found[2] /= 224
    found[5] *= 256  # for pictures in bytes: bound 256 times the factor
    table = {'torchvision 9 of 31 bins': found, **of_timm}
    return {name: [round(value, 4) for value in row] for name, row in table.items()} | {
        'timm applies': ops[0].prob, 'timm operations': len(ops),
        'torchvision operations': len(space)}


def erasing() -> dict:
    """What fills the hole, as (mean, standard deviation) in the tensor that is erased, and the mean
    share of the picture that is covered; settings are the defaults."""
    import keras
    import torch
    from fastai.torch_core import TensorImage
    from fastai.vision.augment import RandomErasing as OfFastai
    from timm.data.random_erasing import RandomErasing as OfTimm
    from torchvision.transforms import v2

    def pictures(count):
        return torch.full((count, 3, 64, 64), 9.0)

    random.seed(0)
    torch.manual_seed(0)
    keras.utils.set_random_seed(0)
    each = v2.RandomErasing(p=1)
    made = {
        'torchvision': torch.stack([each(one) for one in pictures(2000)]),
        'timm const': OfTimm(1, mode='const', device='cpu')(pictures(2000)),
        'timm pixel': OfTimm(1, mode='pixel', device='cpu')(pictures(2000)),
        'fastai': torch.stack([OfFastai(p=1)(TensorImage(one), split_idx=0).as_subclass(
            torch.Tensor) for one in pictures(500)]),
        'keras': torch.as_tensor(np.asarray(keras.layers.RandomErasing()(
            np.full((500, 64, 64, 3), 9.0, np.float32), training=True))),
    }
    return {name: {'mean': round(float(found[found != 9].mean()), 2) + 0.0,
                   'std': round(float(found[found != 9].std()), 2),
                   'covered': round(float((found != 9).float().mean()), 3)}
            for name, found in made.items()}


def ema() -> dict:
    """The decay of the moving average at updates 1, 2, 10, 100, 1,000, 10,000 and 1,000,000."""
    import keras
    import torch
    from timm.utils import ModelEmaV3

    at = (1, 2, 10, 100, 1000, 10_000, 1_000_000)
    model = torch.nn.Linear(1, 1)
    warm = ModelEmaV3(model, decay=0.9998, use_warmup=True)
    plain = ModelEmaV3(model, decay=0.9998)
    reaches = math.ceil((1 - 0.9998) ** (-1 / warm.warmup_power) - 1) + 1
    assert warm.get_decay(reaches) == 0.9998 > warm.get_decay(reaches - 1)
    return {'timm warm-up': [round(warm.get_decay(step), 6) for step in at],
            'timm': [plain.get_decay(step) for step in at],
            'timm warm-up reaches .9998 at update': reaches,
            'keras default': keras.optimizers.SGD(use_ema=True).ema_momentum}


def smoothing() -> dict:
    """Losses of LOGITS with label smoothing, mixing and class weights, in nats."""
    import keras
    import torch
    from fastai.losses import LabelSmoothingCrossEntropy as OfFastai
    from timm.data.mixup import mixup_target
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    weights = torch.tensor(WEIGHTS)
    loss = torch.nn.CrossEntropyLoss
    of_keras = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=SMOOTHING)
    one_hot = np.eye(3, dtype=np.float32)[LABELS]
    mixed = LAM * one_hot + (1 - LAM) * one_hot[::-1]
    found = {
        'torch': loss(label_smoothing=SMOOTHING)(logits, labels),
        'timm': LabelSmoothingCrossEntropy(SMOOTHING)(logits, labels),
        'keras': of_keras(one_hot, np.array(LOGITS, np.float32)),
        'timm mixup': SoftTargetCrossEntropy()(
            logits, mixup_target(labels, 3, LAM, SMOOTHING)),
        'keras mixup': of_keras(mixed, np.array(LOGITS, np.float32)),
        'torch weights': loss(weights, label_smoothing=SMOOTHING)(logits, labels),
        'fastai weights': OfFastai(SMOOTHING, weights)(logits, labels),
        'keras class_weight': of_keras(one_hot, np.array(LOGITS, np.float32),
                                       sample_weight=np.array(WEIGHTS, np.float32)[LABELS]),
    }
    return {name: round(float(value), 6) for name, value in found.items()}


def clipping() -> dict:
    """Steps of plain SGD with rate 0.5 from the weights (3, 4), the gradient (30, 40) unless said
    otherwise, a clipping norm of 1 and a decay of 0.1."""
    import keras
    import torch

    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.tensor([30.0, 40.0])
    torch.nn.utils.clip_grad_norm_([weight], 1.0)
    torch.optim.SGD([weight], lr=0.5, weight_decay=0.1).step()

    def of_keras(gradients, start=(3.0, 4.0), **settings):
        variables = [keras.Variable([value]) for value in start]
        keras.optimizers.SGD(0.5, **settings).apply(
            [keras.ops.convert_to_tensor([value]) for value in gradients], variables)
        return [round(float(np.asarray(one.numpy())[0]), 5) for one in variables]

    penalty = keras.regularizers.L2(0.1)
    value = torch.tensor([3.0, 4.0], requires_grad=True)
    penalty(value).backward()
    return {
        'torch clip, then coupled decay': [round(float(one), 5) for one in weight],
        'keras global_clipnorm and weight_decay': of_keras(
            (30.0, 40.0), weight_decay=0.1, global_clipnorm=1.0),
        'keras clipnorm, two variables': of_keras((30.0, 40.0), (0.0, 0.0), clipnorm=1.0),
        'keras global_clipnorm, two variables': of_keras(
            (30.0, 40.0), (0.0, 0.0), global_clipnorm=1.0),
        'gradient of keras L2(0.1)': [round(float(one), 5) for one in value.grad],
    }


def optimizers() -> dict:
    """Defaults of optimizers that share a name."""
    import keras
    import torch
    from fastai.optimizer import Adam as OfFastai

    weight = torch.nn.Parameter(torch.zeros(1))
    adam, rmsprop = torch.optim.Adam([weight]), torch.optim.RMSprop([weight])
    of_keras, keras_rms = keras.optimizers.Adam(), keras.optimizers.RMSprop()
    fastai = OfFastai([weight], lr=1e-3).hypers[0]
    return {
        'torch Adam': {'eps': adam.defaults['eps'], 'b2': adam.defaults['betas'][1]},
        'keras Adam': {'eps': of_keras.epsilon, 'b2': of_keras.beta_2},
        'fastai Adam': {key: fastai[name] for key, name in (
            ('eps', 'eps'), ('b2', 'sqr_mom'), ('weight_decay', 'wd'))},
        'torch RMSprop': {'alpha': rmsprop.defaults['alpha'], 'eps': rmsprop.defaults['eps']},
        'keras RMSprop': {'alpha': keras_rms.rho, 'eps': keras_rms.epsilon},
        'torch ReduceLROnPlateau': {'threshold': torch.optim.lr_scheduler.ReduceLROnPlateau(
            adam).threshold},
        'keras ReduceLROnPlateau': {
            'threshold': keras.callbacks.ReduceLROnPlateau().min_delta},
    }


def layer_decay() -> dict:
    """The power of the decay for each parameter, as the places in the state_dict where it changes:
    {model: [[parameter, power], ...]}."""
    import timm
    from timm.optim import param_groups_layer_decay

    table = {}
    for name in ('vit_tiny_patch16_224', 'eva02_tiny_patch14_224', 'resnet18', 'densenet121',
                 'efficientnet_b0', 'mobilenetv3_large_100', 'inception_resnet_v2'):
        model = timm.create_model(name, num_classes=3)
        powers = {id(param): round(-math.log2(group['lr_scale']))
                  for group in param_groups_layer_decay(model, layer_decay=0.5)
                  for param in group['params']}
        runs = []
        for key, param in model.named_parameters():
            if not runs or runs[-1][1] != powers[id(param)]:
                runs.append([key, powers[id(param)]])
        table[name] = runs
    return table


def schedules() -> dict:
    """Shares of the peak of a run of 100 epochs (or steps), 5 of them warm-up; and of one cycle."""
    import keras
    import torch
    from fastai.callback.schedule import combined_cos
    from timm.scheduler import CosineLRScheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    of_timm = CosineLRScheduler(optimizer, 100, warmup_t=5, warmup_lr_init=1e-5)
    of_keras = keras.optimizers.schedules.CosineDecay(0.0, 95, warmup_target=1.0, warmup_steps=5)
    at = (0, 1, 4, 5, 6, 50, 99)
    cycle = combined_cos(0.25, 1 / 25, 1.0, 1e-5)
    return {'at': list(at),
            'timm cosine': [round(float(of_timm._get_lr(step)[0]), 6) for step in at],
            'keras cosine': [round(float(of_keras(step)), 6) for step in at],
            'fastai one cycle at 0, 1/8, 1/4, 1/2, 1': [
                round(float(cycle(share)), 6) for share in (0, 1 / 8, 1 / 4, 1 / 2, 1)]}


def drop_path() -> dict:
    """Rates of stochastic depth by block, for the rate 0.1."""
    import timm
    import torchvision

    def rates(model):
        return [round(float(getattr(module, 'drop_prob', None) or getattr(module, 'p', 0)), 6)
                for module in model.modules()
                if type(module).__name__ in ('DropPath', 'StochasticDepth')]

    found = {f'timm {name}': rates(timm.create_model(name, drop_path_rate=0.1))
             for name in ('vit_tiny_patch16_224', 'resnet18', 'efficientnet_b0')}
    found['timm vit_tiny_patch16_224'] = found['timm vit_tiny_patch16_224'][::2]  # two per block
    found['torchvision efficientnet_b0'] = rates(torchvision.models.efficientnet_b0(
        stochastic_depth_prob=0.1))
    return found


def crop() -> dict:
    """Pixels of the resized shorter side for a model's size and crop_pct, by timm; and the size of
    a picture of 301 x 200 (width x height) after resizing its shorter side to 64."""
    from PIL import Image
    from timm.data import create_transform
    from torchvision.transforms import v2

    sizes = {f'{size} at {share}': int(create_transform(size, crop_pct=share).transforms[0].size)
             for size, share in ((224, 0.875), (224, 0.9), (224, 0.95), (240, 0.882), (288, 0.95),
                                 (384, 1.0))}
    wide = Image.fromarray(np.zeros((200, 301, 3), np.uint8))
    return sizes | {'301 x 200 to 64': list(v2.Resize(64)(wide).size)}


def calibration() -> dict:
    """Expected calibration error with 15 bins: four rows of confidence 1, three of them right, and
    four of confidence .95, all right."""
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    confidence = torch.tensor([1.0] * 4 + [0.95] * 4)
    preds = torch.stack([confidence, 1 - confidence], 1)
    labels = torch.tensor([0, 0, 0, 1, 0, 0, 0, 0])
    return {'torchmetrics': round(float(multiclass_calibration_error(
        preds, labels, num_classes=2, n_bins=15)), 5)}


# what is measured: (function, libraries that it needs)
MEASURES = {
    'elastic': (elastic, ('albumentations', 'torchvision')),
    'rotation': (rotation, ('albumentations', 'keras', 'fastai', 'timm', 'torchvision')),
    'rand_augment': (rand_augment, ('timm', 'torchvision')),
    'erasing': (erasing, ('keras', 'fastai', 'timm', 'torchvision')),
    'ema': (ema, ('keras', 'timm')),
    'smoothing': (smoothing, ('keras', 'fastai', 'timm', 'torch')),
    'clipping': (clipping, ('keras', 'torch')),
    'optimizers': (optimizers, ('keras', 'fastai', 'torch')),
    'layer_decay': (layer_decay, ('timm',)),
    'schedules': (schedules, ('keras', 'fastai', 'timm')),
    'drop_path': (drop_path, ('timm', 'torchvision')),
    'crop': (crop, ('timm', 'torchvision')),
    'calibration': (calibration, ('torchmetrics',)),
}


def measure(name: str) -> dict:
    """{'versions': {library: version}, 'values': what the function of that name returns}"""
    function, libraries = MEASURES[name]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        values = function()
    versions = {library: importlib.metadata.version(library).partition('+')[0]
                for library in libraries}
    return {'versions': versions, 'values': values}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--only', default='', help=f'some of {", ".join(MEASURES)}')
    parser.add_argument('--write', type=Path, help='a JSON file')
    options = parser.parse_args(argv)
    names = options.only.split(',') if options.only else list(MEASURES)
    table = {}
    for name in names:
        table[name] = measure(name)
        print(f'{name}  ({", ".join(map(" ".join, table[name]["versions"].items()))})')
        for key, value in table[name]['values'].items():
            text = json.dumps(value)
            print(f'    {key}: {text if len(text) < 400 else text[:400] + " ..."}')
    if options.write:
        lines = ',\n'.join(f' {json.dumps(name)}: {json.dumps(table[name])}' for name in table)
        options.write.write_text(f'{{\n{lines}\n}}\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
