"""A trained model for timm: model.safetensors and config.json, as on the Hugging Face hub.

`timm.create_model('local-dir:FOLDER', pretrained=True)` loads them. Neither torch nor timm is
needed to write them.
"""

from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.atomic_files import atomic_path, write_json
from input_pipeline.sixteen_bits import FULL
from models.errors import ModelError
from models.heads import Classifier
from models.pretrained import to_timm
from models.timm_settings import timm_arguments
from train_lib.predictions.run_folders import run_of
from train_lib.run_dir.workdirs import range16_of
from train_lib.runtime.errors import ConfigError
from train_lib.serving.exported_answers import answers_of, write_answers_of
from train_lib.serving.trained_models import TrainedModel
from train_lib.training.network import model_settings_of
from train_lib.training.preprocess_spec import input_record

LOADING = """With torch and timm installed:

```python
model = timm.create_model('local-dir:FOLDER', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(PIL.Image.open('picture.jpg').convert('RGB'))[None])
classes = model.pretrained_cfg['label_names']  # in the order of the logits
```

The run turns pictures by their EXIF orientation, lays transparent ones over white and scales
values of 16 bits; timm does not, so do it before `transform`.

`safetensors.torch.load_file` reads the weights alone."""
LOADING_SETS = '''timm has no word for labels that apply together: `config.json` says it under
`answers`, and by the `problem_type` of transformers, beside what timm reads.

```python
answers, = json.load(open('FOLDER/config.json'))['answers'].values()
labels = [name for name, p in zip(classes, logits[0].sigmoid().tolist())
          if p >= answers['thresholds'][name]]
```'''""
WEIGHTS, CONFIG = 'model.safetensors', 'config.json'
_CROP_MODES = {'squash': 'squash', 'crop': 'center', 'pad': 'border'}
# Pillow's 'box' is within 1.1 grey levels of 'area' where a picture shrinks to a half or less, and
# up to 6 where it grows, which 'area' does by cubic interpolation.
_INTERPOLATIONS = {'area': 'box', 'bilinear': 'bilinear', 'bicubic': 'bicubic'}


def write(trained: TrainedModel, folder: Path) -> dict[str, str]:
    """Writes the weights under timm's names, and how timm builds the model and prepares pictures.

    The offsets of post-hoc logit adjustment are added to the bias of the classifier, and adapters
    (LoRA) are merged into the kernels; the logits stay the same but for rounding.

    Returns:
        {file name: one line of what it is}

    Raises:
        ConfigError: timm does not have this model.
    """
    from safetensors.numpy import save_file

    about = timm_config(trained)
    with atomic_path(folder / WEIGHTS) as path:
        save_file(timm_weights(trained), path, metadata={'format': 'pt'})
    write_json(folder / CONFIG, about)
    return {WEIGHTS: _about_weights(trained), CONFIG: _about_config(about),
            **write_answers_of(trained, folder)}


def timm_weights(trained: TrainedModel) -> dict[str, np.ndarray]:
    """The state_dict of timm's model: float32, and int64 for the counters of BatchNorm."""
    assert isinstance(trained.model, Classifier)
    weights = to_timm(trained.model)
    head, = trained.classes
    bias = f'{trained.model.timm_head}.bias'
    weights[bias] = weights[bias] + trained.offsets[head].astype(np.float32)
    counters = {key.replace('running_mean', 'num_batches_tracked'): np.array(trained.step)
                for key in weights if key.endswith('.running_mean')}
    return weights | counters


def timm_config(trained: TrainedModel) -> dict[str, Any]:
    """What config.json holds: the model, its classes, and the preparation of pictures.

    Raises:
        ConfigError: timm does not have this model.
    """
    model, config, spec = trained.model, trained.config, trained.preprocess
    name, arguments = _of_timm(trained)
    assert isinstance(model, Classifier)
    (_, classes), = trained.classes.items()
    fixed = 'img_size' in model_settings_of(config)
    if fixed:
        arguments['img_size'] = list(spec.frame)
    about = dict(
        architecture=name, num_classes=len(classes),
        num_features=getattr(model, 'map_features', model.num_features),  # for information
        label_names=list(classes))
    if arguments:
        about['model_args'] = arguments
    about['pretrained_cfg'] = dict(
        custom_load=False, input_size=[spec.channels, *spec.frame], fixed_input_size=fixed,
        interpolation=_INTERPOLATIONS[spec.interpolation], crop_pct=spec.crop_pct,
        crop_mode=_CROP_MODES[spec.resize], mean=list(spec.mean), std=list(spec.std),
        num_classes=len(classes), pool_size=None, first_conv=model.timm_stem,
        classifier=model.timm_head)
    # timm ignores what follows.
    if trained.multi_label:
        about['problem_type'] = 'multi_label_classification'
        about['answers'] = answers_of(trained.workdir, trained)
    about['preparation'] = dict(size=list(spec.frame)) | input_record(spec) | dict(
        differs_in_timm=differences(trained))
    return about


def differences(trained: TrainedModel) -> list[str]:
    """In what timm prepares pictures otherwise than the run did, one clause each."""
    spec, found = trained.preprocess, []
    if spec.interpolation == 'area':
        found.append("timm has no 'area': its 'box' is within about 1 grey level of it where "
                     "pictures shrink to a half or less; use 'bicubic' for pictures that grow")
    if spec.resize == 'pad':
        found.append("timm fills the borders with the mean colour of the data, this run with that "
                     "of each picture's border")
    if spec.channels == 1:
        found.append("open pictures with Pillow's convert('L')")
    if spec.channels == 4:
        found.append("open pictures with Pillow's convert('RGBA'); this run resizes colours and "
                     "transparency apart, Pillow weighs one by the other")
    limits = range16_of(trained.workdir) or range16_of(run_of(trained.workdir))
    if limits and limits != FULL:
        found.append(f'this run reads 16-bit pictures from {limits[0]} (black) to {limits[1]} '
                     f'(white), which timm does not')
    if trained.config.data.source == 'packed':
        found.append('what `main.py pack` did to the pictures before (size, faces, backgrounds) is '
                     'not in this file')
    return found


def _of_timm(trained: TrainedModel) -> tuple[str, dict[str, Any]]:
    config = trained.config
    if len(trained.classes) > 1:
        raise ConfigError(f'The run has {len(trained.classes)} heads '
                          f'({", ".join(trained.classes)}), and a model of timm has one: use '
                          f'--format=stablehlo.')
    try:
        return timm_arguments(config.model.name, model_settings_of(config))
    except ModelError as error:
        raise ConfigError(f'{str(error).rstrip(".")}: use --format=stablehlo.') from None


def _about_weights(trained: TrainedModel) -> str:
    parts = ["the weights, under timm's names"]
    if trained.config.finetune.lora.rank:
        parts.append('adapters merged')
    config = trained.config
    parts += [name for name, used in {
        'moving average': config.ema.decay, 'mean of the last part of the run':
        config.swa.start is not None, 'slow weights': config.lookahead.every,
        'mean of all steps': config.schedule_free.beta}.items() if used]
    if any(np.any(offset) for offset in trained.offsets.values()):
        parts.append('the logit adjustment is in the bias of the classifier')
    if trained.config.precision != 'float32':
        parts.append(f'float32, where the run computed in {trained.config.precision}, which rounds '
                     f'its logits')
    return ', '.join(parts)


def _about_config(about: dict[str, Any]) -> str:
    return '; '.join(["how timm builds the model and prepares pictures; load both by "
                      "timm.create_model('local-dir:FOLDER', pretrained=True)",
                      *about['preparation']['differs_in_timm']])
