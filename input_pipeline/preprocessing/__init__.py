"""Steps that change pictures once, when they are packed, before any training.

    steps = make_steps([dict(kind='face', margin=0.4), dict(kind='background', fill='black')])
    picture, record = apply(steps, picture)

The steps are applied in the given order. Each returns a record of what it found, which
`packing.pack` writes into a table beside the pictures. A detector may find its object more often
in one class than in another, and a model then learns the detector instead of the class: look at
`fallback_by_class` before training.

To add a step, write a function (picture, options, before) -> (picture, record), where `before`
has the records of the earlier steps by name, and add its line to `PREPROCESSORS`.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from input_pipeline.errors import DataError, perhaps
from input_pipeline.manifest import Manifest
from input_pipeline.preprocessing import background, denoise, faces

_VERSION = 1  # of what the steps do: packing never continues with pictures of another version


class Preprocessor(NamedTuple):
    """One kind of step.

    Attributes:
        apply: (picture, options, records of the earlier steps) -> (picture, record).
        defaults: of the options.
        ranges: what each option may be: a tuple of words, a pair (least, most), or None for a
            switch or any text.
    """

    apply: Callable[[np.ndarray, dict, Mapping[str, dict]], tuple[np.ndarray, dict]]
    defaults: dict
    ranges: dict


PREPROCESSORS: dict[str, Preprocessor] = {
    'face': Preprocessor(
        faces.crop_to_face,
        dict(detector='haar', margin=0.3, square=True, min_face=0.2, least=0.0, fallback='keep'),
        dict(detector=None, margin=(0, 10), square=None, min_face=(0.02, 1), least=(0, 1000),
             fallback=faces.FALLBACKS)),
    'background': Preprocessor(
        background.replace_background,
        dict(backend='grabcut', fill='white', start='border', border=0.04, core=0.2, size=192,
             iterations=3, least=0.05, detector='haar', model='u2net'),
        dict(backend=background.BACKENDS, fill=background.FILLS, start=background.STARTS,
             border=(0, 0.4), core=(0, 0.9), size=(16, 4096), iterations=(1, 100), least=(0, 1),
             detector=None, model=None)),
    'denoise': Preprocessor(
        denoise.denoise, dict(method='median', size=3),
        dict(method=tuple(denoise.METHODS), size=(3, 99))),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One step with all of its options; `name` is unique among the steps."""

    name: str
    kind: str
    options: Mapping[str, float | int | bool | str]


def make_steps(specs: Sequence[str | Mapping], where: str = 'pack.preprocess') -> tuple[Step, ...]:
    """Checks a list of steps and fills in their defaults.

    Args:
        specs: for each step the kind alone, or a mapping with `kind` and options.
        where: the config key, for errors.

    Raises:
        DataError: an unknown kind or option, or a value outside its range.
    """
    steps, seen = [], {}
    for number, spec in enumerate(specs):
        spec = {'kind': spec} if isinstance(spec, str) else dict(spec)
        kind = spec.pop('kind', None)
        if kind not in PREPROCESSORS:
            raise DataError(f'{where}[{number}]: there is no preprocessor {kind!r}'
                            f'{perhaps(str(kind), PREPROCESSORS)}: use one of '
                            f'{", ".join(PREPROCESSORS)}.')
        _, defaults, ranges = PREPROCESSORS[kind]
        for key, value in spec.items():
            if key not in defaults:
                raise DataError(f'{where}[{number}]: {kind} has no option {key!r}'
                                f'{perhaps(key, defaults)}: use one of '
                                f'{", ".join(defaults)}.')
            spec[key] = _checked(value, defaults[key], ranges[key],
                                 f'{where}[{number}]: {kind} with {key}=')
        seen[kind] = seen.get(kind, 0) + 1
        name = kind if seen[kind] == 1 else f'{kind}_{seen[kind]}'
        steps.append(Step(name, kind, defaults | spec))
    return tuple(steps)


def _checked(value, default, allowed: tuple | None, name: str):
    if isinstance(default, bool) or allowed is None:
        if not isinstance(value, type(default)):
            raise DataError(f'{name}{value!r}: give '
                            f'{"True or False" if isinstance(default, bool) else "a text"}.')
        return value
    if isinstance(default, str):
        if value not in allowed:
            raise DataError(f'{name}{value!r}: use one of {", ".join(allowed)}.')
        return value
    low, high = allowed
    whole = isinstance(default, int)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (
            not low <= value <= high or (whole and value != int(value))):
        raise DataError(f'{name}{value!r}: give a {"whole " * whole}number from {low} to {high}.')
    return int(value) if whole else float(value)


def describe(steps: Sequence[Step]) -> list[dict]:
    """The steps as JSON that differs whenever the pictures could differ.

    This loads the detectors and models, so that missing files are found before the first picture.

    Raises:
        DataError: a detector or package is missing or damaged.
    """
    described = []
    for step in steps:
        about = {'kind': step.kind, 'version': _VERSION, **step.options}
        detects = step.kind == 'face' or about.get('start') == 'face'
        if about.get('backend') == 'rembg':
            detects = False
            background.load_rembg(about['model'])
        if detects:
            faces.load_detector(about['detector'])
            with open(faces.detector_file(about['detector']), 'rb') as file:
                about['detector_sha256'] = hashlib.file_digest(file, 'sha256').hexdigest()
            about['detector'] = os.path.basename(about['detector'])
        described.append(about)
    return described


def apply(steps: Sequence[Step], image: np.ndarray) -> tuple[np.ndarray, dict[str, object]]:
    """Applies all steps to one picture. Thread-safe.

    Args:
        steps: from `make_steps`.
        image: RGB uint8 [H, W, 3]; it is not written to.

    Returns:
        The picture, uint8 [h, w, 3], which is the same object if no step changed it, and its
        record: {'<step>/<what>': value}.
    """
    before: dict[str, dict] = {}
    for step in steps:
        image, before[step.name] = PREPROCESSORS[step.kind].apply(image, step.options, before)
    return image, {f'{name}/{key}': value
                   for name, record in before.items() for key, value in record.items()}


def fallback_by_class(manifest: Manifest, records: pd.DataFrame, head: str) -> pd.DataFrame:
    """The share of the pictures of each class that a step could not process.

    Args:
        manifest: of the packed pictures.
        records: from `array_records.load_records`: one row per picture, with `id`.
        head: the head whose classes count.

    Returns:
        One row per class and one column per step that has a fallback; 0 to 1, NaN for a class
        without pictures.
    """
    columns = [name for name in records if name.endswith('/fallback')]
    failed = records.set_index('id').reindex(manifest.table['id'])[columns] != ''
    if head in manifest.label_sets:  # a picture counts for each of its classes
        of_class = zip(manifest.classes[head], (manifest.truth(head) == 1).T)
        shares = pd.DataFrame({name: failed[rows].mean() for name, rows in of_class}).T
        return shares.rename(columns=lambda name: name.split('/')[0])
    labels, names = manifest.labels(head), manifest.classes[head]
    shares = failed[labels >= 0].groupby(labels[labels >= 0]).mean().reindex(range(len(names)))
    return shares.set_axis(list(names)).rename(columns=lambda name: name.split('/')[0])
