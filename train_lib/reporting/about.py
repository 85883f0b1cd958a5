"""The sections of a report on data, time and settings."""

import json

import pandas as pd

from input_pipeline.manifest import SPLITS, Manifest, class_counts, digest
from train_lib.reporting.inputs import RunInputs, as_dict
from train_lib.reporting.page import Section, number, render
from train_lib.run_dir.dotted_keys import by_dotted_key
from train_lib.run_dir.workdirs import START_FACTS


def data_section(inputs: RunInputs) -> list[Section]:
    """The section Data: the sizes of the splits and their classes."""
    return [Section('data', 'Data', render('run_data.html.jinja',
                                           data=data_facts(inputs.manifest, inputs.result)))]


def time_section(inputs: RunInputs) -> list[Section]:
    """The section Time: where the seconds of the run went."""
    seconds = seconds_by_kind(inputs.result.get('seconds'))
    return [Section('time', 'Time', render('run_time.html.jinja', inputs=inputs, seconds=seconds))]


def settings_section(inputs: RunInputs) -> list[Section]:
    """The section Settings: what was changed, what else decides the numbers, and everything."""
    return [Section('settings', 'Settings', render(
        'run_settings.html.jinja', inputs=inputs, changed=changed_settings(inputs.config),
        made_with=made_with(inputs.config, inputs.result), settings=settings(inputs.config)))]


def settings(config: dict) -> list[tuple[str, list[tuple[str, str]]]]:
    """The config flattened, grouped by its first key; lone values come first."""
    groups = {'': []}
    for key, value in config.items():
        if key in START_FACTS:
            continue
        if isinstance(value, dict) and value:
            groups[key] = [(name, _setting(v)) for name, v in by_dotted_key(value).items()]
        else:
            groups[''].append((key, _setting(value)))
    return [(name, rows) for name, rows in groups.items() if rows]


def changed_settings(config: dict) -> list[tuple[str, str, str]] | None:
    """(key, value, its default) of the settings that differed from configs/common.py when the run
    started; None if it did not write them down."""
    defaults = config.get('defaults')
    if not isinstance(defaults, dict):
        return None
    values = by_dotted_key(config)
    return [(key, _setting(values[key]), '' if default is None else _setting(default))
            for key, default in defaults.items() if key in values]


def made_with(config: dict, result: dict) -> list[tuple[str, str]]:
    """What else decides the numbers: digests of the code and the data, versions, the input."""
    rows = [(name, str(result.get(key) or config.get(key) or '')) for name, key in (
        ('digest of the code', 'code_digest'), ('digest of the data', 'data_digest'))]
    rows += [(str(name), str(value)) for name, value in as_dict(result.get('versions')).items()]
    rows += [(f'input {name}', _setting(value))
             for name, value in as_dict(result.get('input')).items()]
    return [(name, value) for name, value in rows if value]


def _setting(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def data_facts(manifest: Manifest, result: dict) -> dict:
    """The sizes of the splits, of their groups and classes, and the digest of the data."""
    table = manifest.table
    given = table['split'].astype(str) if 'split' in table else pd.Series('all', index=table.index)
    names = [name for name in SPLITS if (given == name).any()]
    names += sorted(set(given) - set(SPLITS))
    splits = []
    for name in names:
        part = manifest.select((given == name).to_numpy())
        # An empty group is a group of its own, so it isn't counted among the named ones.
        groups = part.table['group'].astype(str) if 'group' in table else None
        splits.append(dict(
            name=name, n=len(part),
            groups=None if groups is None else int(groups[groups != ''].nunique()),
            heads=[_class_spread(part, head) for head in manifest.heads]))
    computed = digest(manifest)
    stored = result.get('data_digest')
    return dict(splits=splits, n=len(manifest), heads=[
        (head, len(manifest.classes[head])) for head in manifest.heads],
        has_groups='group' in table, digest=str(stored or computed),
        other_digest=computed if stored and stored != computed else '')


def _class_spread(part: Manifest, head: str) -> dict:
    counts = class_counts(part, head)
    seen = counts[counts > 0]
    return dict(classes=len(seen), unlabelled=int((part.numbers(head) < 0).sum()),
                least=int(seen.min()) if len(seen) else 0,
                most=int(seen.max()) if len(seen) else 0)


def seconds_by_kind(seconds) -> list[dict]:
    """[dict(kind, seconds, share)], longest first; the rest of the total is 'other'."""
    known = {str(kind): number(value) for kind, value in as_dict(seconds).items()}
    known = {kind: value for kind, value in known.items() if value is not None and value >= 0}
    total = known.pop('total', None)
    rest = (total or 0.0) - sum(known.values())
    if total and rest > 0.005 * total:
        known['other'] = known.get('other', 0.0) + rest
    whole = sum(known.values())
    return [dict(kind=kind, seconds=value, share=value / whole if whole else 0.0)
            for kind, value in sorted(known.items(), key=lambda item: -item[1])]
