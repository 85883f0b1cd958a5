"""The meshes and batch sizes that a plan compares, as config.plan.meshes names them."""

import dataclasses
import re

from ml_collections import ConfigDict

from input_pipeline.errors import did_you_mean
from train_lib.runtime.errors import ConfigError

AUTO = 'auto'
_KEYS = ('data', 'fsdp', 'batch')


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh and a batch size.

    Attributes:
        data, fsdp: devices per axis; -1: the others.
        batch: pictures per step, over all devices.
    """

    data: int
    fsdp: int
    batch: int


def read_meshes(config: ConfigDict, devices: int, slices: int = 1) -> list[Candidate]:
    """The candidates of config.plan.meshes; that of config.mesh and config.batch_size if it is ''.

        auto                                      every split of the devices
        data=4,fsdp=4; data=2,fsdp=8,batch=512    these
        auto; auto,batch=512                      every split with two batch sizes

    Args:
        config: of the run.
        devices: that 'auto' splits.
        slices: of TPUs, between which 'auto' splits batches only.

    Raises:
        ConfigError: a word, key or number that is not valid.
    """
    text = config.plan.meshes
    found = []
    for part in filter(None, re.sub(r'\s', '', text).split(';')):
        automatic = False
        values = dict(batch=config.batch_size)
        given: set[str] = set()
        for word in part.split(','):
            key, _, value = word.partition('=')
            if word == AUTO:
                automatic = True
                continue
            if key not in _KEYS:
                raise _wrong(text, f'{word!r}: {did_you_mean(key, (*_KEYS, AUTO), show=str)}')
            if not re.fullmatch(r'-1|[1-9]\d{0,7}', value) or (key == 'batch' and value == '-1'):
                raise _wrong(text, f'{word!r} is not a number: write e.g. {key}=4.')
            if key in given:
                raise _wrong(text, f'{part!r} names {key} twice: keep one of them.')
            given.add(key)
            values[key] = int(value)
        if automatic and len(values) > 1:
            raise _wrong(text, f'{part!r}: auto chooses data and fsdp, so leave them out.')
        if automatic:
            found += [Candidate(devices // fsdp, fsdp, values['batch'])
                      for fsdp in range(1, devices // slices + 1)
                      if not devices // slices % fsdp]
        else:
            found.append(Candidate(values.get('data', -1 if values.get('fsdp') != -1 else 1),
                                   values.get('fsdp', 1), values['batch']))
    if not found:
        return [Candidate(config.mesh.data, config.mesh.fsdp, config.batch_size)]
    return list(dict.fromkeys(found))


def _wrong(text: str, what: str) -> ConfigError:
    return ConfigError(f'config.plan.meshes = {text!r}: {what}')
