"""The export format onnx: a model that ONNX Runtime and others run without this project.

The weights go into timm's model under timm's names, and torch exports that. Torch, timm, onnxscript
and onnxruntime are needed to write the file, see requirements-onnx.txt; it needs onnxruntime alone.
"""

import contextlib
import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from models import eval_view
from models.errors import ModelError
from models.pretrained import load_timm
from train_lib.runtime.errors import ConfigError
from train_lib.serving.export_stablehlo import PICTURES, write_facts, write_script
from train_lib.serving.export_timm import timm_config, timm_weights
from train_lib.serving.exported_answers import answers_of
from train_lib.serving.trained_models import TrainedModel
from train_lib.training.network import make_model
from train_lib.training.step import make_normalise

LOADING = """`load.py` shows all of it; it needs onnxruntime, numpy, pillow and
opencv-python-headless:

```python
session = onnxruntime.InferenceSession('model.onnx')
logits, = session.run(None, {'images': pictures})  # uint8 [b, height, width, channels]
```

Any batch size b works. Normalisation is inside."""
LOADING_SETS = '''`answers.json` is in the file too, each of its entries by name:

```python
about = session.get_modelmeta().custom_metadata_map  # {'activation': 'sigmoid', ...}
thresholds = json.loads(about['thresholds'])  # {label: probability}
```'''
NEEDED = ('torch', 'timm', 'onnxscript', 'onnxruntime')
OPSET = 18
BOUND = 1e-4  # in standard deviations of the logits
# The weights of larger models are in a file of their own: protobuf ends at 2 GiB.
_MOST_BYTES = 1_900_000_000


def write(trained: TrainedModel, folder: Path) -> dict[str, str]:
    """Writes the files of one model, and compares its logits in ONNX Runtime with the model's own.

    Returns:
        {file name: one line of what it is}.

    Raises:
        ConfigError: a package is missing, or timm does not have this model. ModelError: the
            logits differ.
    """
    about, weights = timm_config(trained), timm_weights(trained)
    for name in NEEDED:
        _load(name)
    large = sum(value.nbytes for value in weights.values()) > _MOST_BYTES
    path = folder / 'model.onnx'
    _export(_prepared(trained, about, weights), trained, path, large)
    difference = compare(trained, path)
    if not difference <= BOUND:
        raise ModelError(f'The logits of {trained.config.model.name} in ONNX Runtime differ by '
                         f'{difference:.1e} of their deviation: use --format=stablehlo.')
    facts = write_facts(trained, folder)
    write_script(folder, 'load_onnx.py')
    files = {'model.onnx': f'the model, opset {OPSET}: images, uint8 [batch, height, width, '
                           f'channels] -> logits, float32 [batch, classes]; in ONNX Runtime within '
                           f'{difference:.1e} of their deviation'}
    if large:
        files['model.onnx.data'] = 'its weights, which model.onnx reads from the same folder'
    return files | {
        'preparation.json': 'how pictures become images; mean and std are for information, since '
                            'the model normalises',
        **facts,
        'load.py': 'an example: `python load.py PICTURE` prints '
                   + ('its labels' if trained.multi_label else 'the most probable classes'),
        f'{PICTURES}/': 'how the training run read and resized pictures, as modules; for load.py'}


def compare(trained: TrainedModel, path: Path) -> float:
    """The largest difference of the logits in ONNX Runtime to those of the model in float32, over
    two batches of noise, in standard deviations of the latter."""
    spec, runtime = trained.preprocess, _load('onnxruntime')
    session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
    normalise = make_normalise(spec.mean, spec.std, np.float32)
    model, offset = _in_float32(trained)
    images = np.random.default_rng(0).integers(
        0, 256, (4, *spec.frame, spec.channels), np.uint8)
    with jax.default_matmul_precision('highest'):
        ours = np.asarray(jax.jit(lambda x: model(normalise(x)))(images)) + offset
    found = np.concatenate([session.run(None, {'images': part})[0]
                            for part in (images[:1], images[1:])])
    return float(np.abs(found - ours).max() / max(ours.std(), 1e-30))


def _in_float32(trained: TrainedModel) -> tuple[Any, np.ndarray]:
    """The model and its offset; of one that computes in bfloat16 a new one with the weights that
    are exported, whose bias holds the offset already."""
    offset, = trained.offsets.values()
    if all(getattr(module, 'dtype', None) in (None, np.float32)
           for _, module in nnx.iter_modules(trained.model)):
        return trained.model, offset
    config = trained.config.copy_and_resolve_references()
    with config.unlocked():
        config.precision = config.model.dtype = 'float32'
    model = nnx.eval_shape(lambda: make_model(config, trained.classes, jax.devices()[0]))
    load_timm(model, timm_weights(trained), grid=getattr(model, 'grid', None))
    return eval_view(model), np.zeros_like(offset)


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f'--format=onnx needs the package {name}: pip install -r '
                          f'requirements-onnx.txt.') from None


def _prepared(trained: TrainedModel, about: dict, weights: dict[str, np.ndarray]) -> Any:
    """timm's model behind the normalisation: uint8 [b, H, W, C] -> float32 [b, classes]."""
    torch, timm = _load('torch'), _load('timm')
    spec = trained.preprocess
    base: Any = torch.nn.Module  # torch is there only where this format is used

    class Prepared(base):
        def __init__(self):
            super().__init__()
            # timm.create_model would leave out settings that are None (init_values).
            self.model = timm.model_entrypoint(about['architecture'])(
                num_classes=about['num_classes'],
                **dict(in_chans=spec.channels) | about.get('model_args', {}))
            self.model.load_state_dict({key: torch.from_numpy(np.array(value))
                                        for key, value in weights.items()})
            mean, std = (np.array(values, np.float32) for values in (spec.mean, spec.std))
            self.register_buffer('scale', torch.from_numpy(1 / (255 * std)))
            self.register_buffer('offset', torch.from_numpy(-mean / std))

        def forward(self, images):
            images = images.to(torch.float32) * self.scale + self.offset
            return self.model(images.permute(0, 3, 1, 2).contiguous())

    return Prepared().eval()


def _export(model: Any, trained: TrainedModel, path: Path, large: bool) -> None:
    torch, spec = _load('torch'), trained.preprocess
    images = torch.zeros((2, *spec.frame, spec.channels), dtype=torch.uint8)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model, (images,), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=['images'], output_names=['logits'],
            dynamic_shapes=({0: torch.export.Dim('batch')},))
        program.model.metadata_props.update(_metadata(trained))
        program.save(path, external_data=large)


def _metadata(trained: TrainedModel) -> dict[str, str]:
    """What the file says of a multi-label head, as texts: its labels in the order of the logits,
    and how it answers; {} of other heads."""
    facts: dict[str, Any] = {}
    for head, about in answers_of(trained.workdir, trained).items():
        facts = dict(head=head, labels=list(trained.classes[head]), **about)
    return {name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in facts.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of torch and onnxscript, which concern their own code."""
    loggers = [logging.getLogger(name) for name in ('torch', 'onnxscript', 'onnx_ir')]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)
