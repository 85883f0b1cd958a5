"""How near exported models come to the evaluation, how large they are, and how soon they answer.

    python benchmarks/export_table.py [--models=NAME,...] [--formats=stablehlo,timm,onnx]
                                      [--size=PIXELS] [--batch=N]

Models with random weights, one per family by default. The difference is the largest between the
logits of the evaluation here and those of the loaded export, in standard deviations of the former
over all pictures and classes. Loading is the time from the files to the first answer, compilation
included, in this process. A format whose packages are missing is left out. To add one, write how it
is loaded and add its line to FORMATS.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.export
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))

import models
from configs import common
from input_pipeline.pictures import PreprocessSpec
from models.errors import ModelError
from train_lib.commands.export import FORMATS as WRITERS
from train_lib.runtime.errors import ConfigError
from train_lib.serving.trained_models import TrainedModel
from train_lib.training.network import make_model
from train_lib.training.step import make_normalise

MODELS = ('small_cnn', 'cnn_final', 'resnet18', 'densenet121', 'efficientnet_b0', 'mobilenetv2_100',
          'mobilenetv3_large_100', 'inception_resnet_v2', 'resnet_inception',
          'vit_tiny_patch16_224', 'eva02_tiny_patch14_224')
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
Answer = Callable[[np.ndarray], np.ndarray]


def load_stablehlo(folder: Path) -> Answer:
    """By JAX alone."""
    program = jax.export.deserialize(bytearray((folder / 'model.stablehlo').read_bytes()))
    weights = dict(np.load(folder / 'weights.npz', allow_pickle=False))
    return lambda images: np.asarray(program.call(weights, images))


def load_timm(folder: Path) -> Answer:
    """By torch, on a CPU."""
    import timm
    import torch

    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    mean, std = np.float32(MEAN), np.float32(STD)

    def answer(images):
        values = (images.astype(np.float32) / 255 - mean) / std
        with torch.no_grad():
            return model(torch.from_numpy(values.transpose(0, 3, 1, 2).copy())).numpy()

    return answer


def load_onnx(folder: Path) -> Answer:
    """By ONNX Runtime, on a CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / 'model.onnx',
                                           providers=['CPUExecutionProvider'])
    return lambda images: session.run(None, {'images': images})[0]


# format: (how it is loaded, the packages that writing and loading need)
FORMATS: dict[str, tuple[Callable[[Path], Answer], tuple[str, ...]]] = {
    'stablehlo': (load_stablehlo, ('flatbuffers',)),
    'timm': (load_timm, ('torch', 'timm')),
    'onnx': (load_onnx, ('torch', 'timm', 'onnxscript', 'onnxruntime'))}


@dataclasses.dataclass(frozen=True)
class Row:
    """One model in one format.

    Attributes:
        difference: of the logits, in standard deviations.
        megabytes: of all files.
        written, loaded: seconds to write the files, and from them to the first answer.
    """

    difference: float
    megabytes: float
    written: float
    loaded: float


def random_model(name: str, size: int) -> TrainedModel:
    """A model with random weights and statistics of BatchNorm, for ten classes."""
    config = common.get_config()
    config.image.size = size
    config.model = dict(name=name)
    classes = {'class': tuple(f'class {number}' for number in range(10))}
    model = make_model(config, classes, jax.devices()[0])
    draw = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(model, nnx.BatchStat)):
        values = variable.get_value() + 0.1 * np.abs(draw.standard_normal(variable.shape))
        variable.set_value(values.astype(np.float32))
    return TrainedModel(Path('nowhere'), config, classes,
                        PreprocessSpec(size=size, mean=MEAN, std=STD), models.eval_view(model),
                        {'class': np.zeros(10, np.float32)}, 1, '')


def evaluated(trained: TrainedModel, images: np.ndarray) -> np.ndarray:
    """The logits as in the evaluation of a run, float32 [B, C]."""
    graphdef, state = nnx.split(trained.model)
    normalise = make_normalise(MEAN, STD, np.float32)
    return np.asarray(jax.jit(lambda state, images: nnx.merge(graphdef, state)(
        normalise(images)))(state, images))


def measure(trained: TrainedModel, form: str, images: np.ndarray, own: np.ndarray) -> Row:
    """Exports a model into a temporary folder and loads it from there.

    Raises:
        ConfigError, ModelError: the format does not have this model.
    """
    load, _ = FORMATS[form]
    module, _, name = WRITERS[form].partition(':')
    write = getattr(importlib.import_module(module), name)
    with tempfile.TemporaryDirectory() as place:
        folder, began = Path(place), time.perf_counter()
        write(trained, folder)
        written = time.perf_counter()
        found = load(folder)(images)
        loaded = time.perf_counter()
        size = sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())
    return Row(float(np.abs(found - own).max() / own.std()), size / 1e6, written - began,
               loaded - written)


def lines(names: list[str], forms: list[str], size: int, batch: int):
    """The lines of the table, Markdown, as they are measured."""
    yield '| model | format | largest difference | MB | written, s | loaded, s |'
    yield '|---|---|---|---|---|---|'
    for name in names:
        trained = random_model(name, size)
        images = np.random.default_rng(1).integers(0, 256, (batch, size, size, 3), np.uint8)
        own = evaluated(trained, images)
        for form in forms:
            try:
                row = measure(trained, form, images, own)
            except (ConfigError, ModelError) as error:
                yield f'| {name} | {form} | {" ".join(str(error).split())} | – | – | – |'
                continue
            difference = f'{row.difference:.1e}' if row.difference else 'none'
            yield (f'| {name} | {form} | {difference} | {row.megabytes:.1f} | {row.written:.1f} | '
                   f'{row.loaded:.1f} |')


def main(argv: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', default=','.join(MODELS))
    parser.add_argument('--formats', default=','.join(FORMATS))
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--batch', type=int, default=8)
    given = parser.parse_args(argv)
    forms = []
    for form in given.formats.split(','):
        missing = [one for one in FORMATS[form][1] if importlib.util.find_spec(one) is None]
        if missing:
            print(f'{form} is left out: {", ".join(missing)} is not installed.')
        else:
            forms.append(form)
    for line in lines(given.models.split(','), forms, given.size, given.batch):
        print(line, flush=True)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
