"""submission.csv of a multi-label head: a cell of joined labels, or a column per class."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline.atomic_files import write_text
from input_pipeline.class_names import nfc, places_of
from input_pipeline.csv_table import quoting_for
from input_pipeline.errors import counted, did_you_mean, listed
from train_lib.ensembles.answer_columns import PROBABILITY, USUAL
from train_lib.ensembles.sample_file import SampleFile, read_sample
from train_lib.ensembles.set_pool import AlignedSets
from train_lib.ensembles.voters import split_words
from train_lib.runtime.errors import ConfigError

LABELS, YES = 'labels', 'label:'  # all predicted classes in one cell; 1 or 0 of one class
_JOINED = frozenset(('labels', 'tags', 'target', 'label', 'class', 'prediction', 'predicted',
                     'attribute_ids', 'attributes'))
_SHOWN = 6


def known_contents(classes: Sequence[str]) -> list[str]:
    """What a column may hold."""
    return ['id', 'row', 'copy', LABELS, *(f'{PROBABILITY}{name}' for name in classes),
            *(f'{YES}{name}' for name in classes)]


def set_contents(given, classes: Sequence[str], sample: SampleFile | None,
                 is_id: Mapping[str, bool] | None = None) -> dict[str, str]:
    """{column: what it holds}; '' for a column that is copied from the sample.

    A column of a sample that is called like a class holds its probability, or 1 and 0 where all
    cells of such columns are 1 or 0 and some are 1; one called labels, tags or target holds the
    names of all predicted classes.

    Args:
        given: config.columns, names or {column: what it holds}.
        classes: of the head.
        sample: the sample submission, or None.
        is_id: {column: whether its cells are ids of the rows} of the sample.

    Raises:
        ConfigError: what a column holds is unknown, classes without a column, or no column for an
            answer.
    """
    allowed = known_contents(classes)
    if isinstance(given, Mapping):
        told = dict(given)
    else:
        told = {name: name if name in allowed else LABELS if name.lower() in _JOINED
                else USUAL.get(name.lower(), '') for name in split_words(given)}
    for name, what in told.items():
        if what not in allowed:
            raise ConfigError(f'config.columns: it is unknown what {name!r} holds: write '
                              f'{{{name!r}: {LABELS!r}}}, of {listed(allowed[:4])}, '
                              f'{PROBABILITY}CLASS or {YES}CLASS; '
                              f'{did_you_mean(what, allowed)}')
    if sample is None:
        return told
    by_name = {nfc(name).casefold(): name for name in classes}
    found, of_class = {}, {}
    cells_of_classes = {cell.strip() for name, cells in sample.columns.items()
                        if nfc(name).casefold() in by_name for cell in cells}
    decides = cells_of_classes <= {'0', '1'} and '1' in cells_of_classes
    for name in sample.columns:
        own = by_name.get(nfc(name).casefold())
        if isinstance(given, Mapping) and name in told:
            found[name] = told[name]
        elif (is_id or {}).get(name):
            found[name] = 'id' if 'id' not in found.values() else ''
        elif own is not None:
            found[name] = f'{YES if decides else PROBABILITY}{own}'
            of_class[own] = name
        elif name.lower() in _JOINED:
            found[name] = LABELS
        else:
            found[name] = ''
    lacking = [name for name in classes if name not in of_class]
    if of_class and lacking and LABELS not in found.values() and not isinstance(given, Mapping):
        raise ConfigError(f'The sample {sample.path!r} has columns for {len(of_class)} of '
                          f'{len(classes)} classes, and none for {lacking[0]!r}: give one with all '
                          f'of them, or say what each column holds by config.columns.')
    if not any(what not in ('', 'copy', 'id', 'row') for what in found.values()):
        last = [*sample.columns][-1]
        raise ConfigError(f'The sample {sample.path!r} has no column called like a class, and none '
                          f'for the labels: say what one holds, as in '
                          f"--config.columns=\"{{{last!r}: '{LABELS}'}}\".")
    return found


def write_set_submission(path: Path, config: Mapping, aligned: AlignedSets, shares: np.ndarray,
                         predicted: np.ndarray) -> str:
    """submission.csv, in the order of the rows, or with the rows and columns of config.sample.

    Args:
        path: of the file.
        config: of the vote, as a dict; sample, extra, columns and separator are read.
        aligned: of the vote.
        shares: float [N, C], of the answer.
        predicted: bool [N, C], of the answer.

    Returns:
        How many rows and which columns it has, in words.

    Raises:
        ConfigError: see `set_contents`; or a sample with other ids.
    """
    sample = read_sample(config['sample']) if config['sample'] else None
    places = places_of(aligned.ids.tolist())
    order, is_id = np.arange(len(aligned)), {}
    if sample is not None:
        is_id = {name: all(nfc(cell) in places or cell in places for cell in cells)
                 for name, cells in sample.columns.items()}
    columns = set_contents(config['columns'], aligned.classes, sample, is_id)
    if sample is not None:
        key = next((name for name, what in columns.items() if what == 'id'), None)
        if key is None:
            raise ConfigError(f'config.sample = {sample.path!r}: none of its columns holds the ids '
                              f'of the predicted pictures: say which by config.columns, as in '
                              f"dict(ID='id').")
        order = _order(sample, key, places, len(aligned), config['extra'])
    text = config['label_separator'] or '|'
    number = {name: place for place, name in enumerate(aligned.classes)}
    table = {}
    for name, what in columns.items():
        if sample is not None and what in ('', 'copy', 'id'):
            table[name] = sample.columns[name]
        elif what == 'id':
            table[name] = aligned.ids[order]
        elif what == 'row':
            table[name] = np.arange(len(order))
        elif what == LABELS:
            table[name] = [text.join(aligned.classes[k] for k in np.flatnonzero(predicted[row]))
                           for row in order]
        elif what.startswith(YES):
            table[name] = predicted[order, number[what.removeprefix(YES)]].astype(int)
        else:
            table[name] = [f'{value:.9g}'
                           for value in shares[order, number[what.removeprefix(PROBABILITY)]]]
    frame = pd.DataFrame(table)
    if sample is None:
        write_text(path, frame.to_csv(index=False, lineterminator='\n',
                                      quoting=quoting_for(frame)))
    else:
        write_text(path, sample.text_of(frame))
    more = len(columns) - _SHOWN
    return (f'{counted(len(frame), "row")}; columns {", ".join([*columns][:_SHOWN])}'
            + (f' and {more} more' if more > 0 else ''))


def _order(sample: SampleFile, key: str, places: Mapping[str, int], count: int, extra: str
           ) -> np.ndarray:
    cells = sample.columns[key]
    rows = [places.get(cell, places.get(nfc(cell))) for cell in cells]
    unknown = [cell for cell, row in zip(cells, rows) if row is None]
    if unknown:
        raise ConfigError(f'config.sample = {sample.path!r} has {len(unknown)} of {len(cells)} ids '
                          f'that were not predicted ({unknown[0]!r}): predict the same pictures, '
                          f'or correct the sample.')
    if len(set(rows)) < len(rows):
        raise ConfigError(f'config.sample = {sample.path!r} has an id twice in the column {key!r}: '
                          f'correct it.')
    if len(rows) < count and extra != 'ignore':
        raise ConfigError(f'config.sample = {sample.path!r} lacks {count - len(rows)} of {count} '
                          f'ids: predict the same pictures, correct the sample, or leave these out '
                          f'with --config.extra=ignore.')
    return np.array(rows, np.int64)

