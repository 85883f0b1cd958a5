"""Sections of the config, checked for their keys.

The defaults stand once, in configs/common.py, which the input pipeline must not import. So the
functions here take a section with all of its keys, as configs/common.py gives it, and know the
names of the keys but no default. A default in two places would sooner or later differ.
"""

from collections.abc import Iterable, Mapping

from input_pipeline.errors import DataError, did_you_mean


def checked_section(section: Mapping, keys: Iterable[str], name: str) -> dict:
    """A copy of a config section that has exactly these keys.

    Args:
        section: e.g. `config.split`.
        keys: the keys that it must have.
        name: the section's own, for errors, e.g. 'split'.

    Raises:
        DataError: a key is unknown or missing.
    """
    keys = tuple(keys)
    for key in section:
        if key not in keys:
            raise DataError(f'{name}.{key} is unknown: {did_you_mean(key, keys)}')
    for key in keys:
        if key not in section:
            raise DataError(f'{name}.{key} is missing: start from the section {name} of '
                            f'configs/common.py, which has every key.')
    return dict(section)
