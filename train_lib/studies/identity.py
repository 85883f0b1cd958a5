"""What makes two arms different: the part of their configs that can change a result."""

import json

from ml_collections import ConfigDict

from input_pipeline.durations import is_duration
from train_lib.run_dir.dotted_keys import by_dotted_key

# Keys that do not change a study's identity: they change no number, or are set for each cell.
NOT_IDENTITY = ('study', 'seed', 'log', 'loader', 'mesh.data', 'mesh.fsdp', 'sharding',
                'image.cache_mb', 'compile_cache', 'distributed', 'plan', 'plan_only',
                'plan_memory_gb', 'predict', 'curate', 'pack', 'lr_find', 'profile', 'checkpoint',
                'init.seen')
_MISSING = '–'


def identity_of(config: ConfigDict) -> dict:
    """{dotted.path: JSON value} of every key that can change a result."""
    # A duration is one value, because its unit may differ.
    flat = by_dotted_key(json.loads(config.to_json()), is_leaf=is_duration)
    return {key: value for key, value in flat.items()
            if not any(key == name or key.startswith(f'{name}.') for name in NOT_IDENTITY)}


def differences(config: ConfigDict, other: ConfigDict) -> dict:
    """{dotted.path: value in `config`} of the keys whose values differ from `other`; '–' for a key
    that only `other` has."""
    first, second = identity_of(config), identity_of(other)
    return {key: first.get(key, _MISSING) for key in dict.fromkeys((*first, *second))
            if first.get(key, _MISSING) != second.get(key, _MISSING)}
