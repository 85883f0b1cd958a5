"""The export format stablehlo: a program for CPU, CUDA and TPU, for JAX without this project.

The program takes uint8 pictures as `preparing.prepare` makes them and gives logits: those of the
run's own scores, with its logit adjustment. Probabilities are their softmax, of a multi-label head
their sigmoid.
"""

import inspect
import re
from pathlib import Path
from types import ModuleType

import numpy as np

from input_pipeline import decode, diagnosis, errors, image_headers, resize, sixteen_bits
from input_pipeline.atomic_files import write_json
from train_lib.predictions.run_folders import run_of
from train_lib.run_dir.workdirs import range16_of
from train_lib.runtime.errors import ConfigError
from train_lib.serving import exported_program, preparing
from train_lib.serving.exported_answers import write_answers_of
from train_lib.serving.trained_models import TrainedModel

LOADING = """`load.py` shows all of it; it needs jax, flatbuffers, numpy, pillow and
opencv-python-headless:

```python
program = jax.export.deserialize(bytearray(open('model.stablehlo', 'rb').read()))
# pictures: uint8 [b, height, width, channels]
logits = program.call(dict(numpy.load('weights.npz')), pictures)
```

The program runs on CPU, CUDA and TPU for any batch size b. Normalisation is inside. JAX promises to
read such a file for six months after it was written, and refuses older ones from version 0.11.1 on:
keep the version of JAX that is named below, or export again."""
PICTURES = 'pictures'  # the folder of the modules that read and resize pictures
_MODULES = (decode, diagnosis, errors, image_headers, preparing, resize, sixteen_bits)


def write(trained: TrainedModel, folder: Path) -> dict[str, str]:
    """Writes the files of one model.

    Returns:
        {file name: one line of what it is}.

    Raises:
        ConfigError: flatbuffers is not installed.
    """
    program = exported_program.make_program(trained)
    try:
        content = program.exported.serialize()
    except ImportError:
        raise ConfigError('--format=stablehlo needs the package flatbuffers, by which JAX writes '
                          'the file: pip install flatbuffers.') from None
    (folder / 'model.stablehlo').write_bytes(content)
    np.savez(folder / 'weights.npz', **program.weights)  # type: ignore[arg-type]
    facts = write_facts(trained, folder)
    write_script(folder, 'load_exported.py')
    many = len(trained.classes) > 1
    platforms = ', '.join(exported_program.PLATFORMS)
    return {
        'model.stablehlo': f'the program for {platforms}, of jax.export: (weights, uint8 [b, '
                           f'height, width, channels]) -> float32 '
                           f'{"{head: logits [b, classes]}" if many else "logits [b, classes]"}',
        'weights.npz': 'the first argument of the program, {name: array}',
        'preparation.json': 'how pictures become the second argument; mean and std are for '
                            'information, since the program normalises',
        **facts,
        'load.py': 'an example: `python load.py PICTURE` prints '
                   + ('its labels' if trained.multi_label else 'the most probable classes'),
        f'{PICTURES}/': 'how the training run read and resized pictures, as modules; for load.py'}


def write_facts(trained: TrainedModel, folder: Path) -> dict[str, str]:
    """Writes preparation.json, classes.json and, where a head has several labels per picture,
    answers.json.

    Returns:
        {file name: one line of what it is} of all but preparation.json.
    """
    write_json(folder / 'preparation.json', preparation(trained))
    write_json(folder / 'classes.json', {head: list(names)
                                         for head, names in trained.classes.items()})
    return {'classes.json': '{head: class names in the order of the logits}',
            **write_answers_of(trained, folder)}


def preparation(trained: TrainedModel) -> dict:
    """The content of preparation.json."""
    spec = trained.preprocess
    height, width = spec.frame
    low, high = (range16_of(trained.workdir) or range16_of(run_of(trained.workdir))
                 or sixteen_bits.FULL)
    return dict(height=height, width=width, channels=spec.channels, resize=spec.resize,
                interpolation=spec.interpolation, crop_pct=spec.crop_pct,
                reduced_decode=spec.reduced_decode, range16=[low, high], mean=list(spec.mean),
                std=list(spec.std))


def write_script(folder: Path, name: str) -> None:
    """Writes load.py, a copy of the script of that name in this room, and the folder of modules by
    which it reads and resizes pictures."""
    text = Path(__file__).with_name(name).read_text('utf-8')
    text = text.replace(f'from {preparing.__name__} import', f'from {PICTURES}.preparing import')
    (folder / 'load.py').write_text(text, 'utf-8')
    (folder / PICTURES).mkdir()
    (folder / PICTURES / '__init__.py').write_text(
        '"""How the training run read and resized pictures."""\n', 'utf-8')
    for module in _MODULES:
        own = f'{module.__name__.rpartition(".")[2]}.py'
        (folder / PICTURES / own).write_text(_standalone(module), 'utf-8')


def _standalone(module: ModuleType) -> str:
    """The source of a module whose imports of ours name its neighbours in the folder."""
    text = inspect.getsource(module)
    text = re.sub(r'^from input_pipeline import ', 'from . import ', text, flags=re.M)
    return re.sub(r'^from input_pipeline\.', 'from .', text, flags=re.M)
