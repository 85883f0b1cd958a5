"""The names of classes: which are the same, their order, and what is odd about them.

Two names are the same if they are so in NFC, the Unicode form that composes accents and Hangul.
macOS writes file names in NFD, which looks alike. By the rules of today (`config.data.rules`) every
class is called by its NFC name, and classes whose names are whole numbers are in the order of the
numbers, so that the position of '10' among '0', ..., '10' is 10. A run that was started by rules 1
keeps names as they are written, in the order of their text.
"""

import collections
import dataclasses
import logging
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal

import numpy as np

from input_pipeline.errors import DataError, counted, did_you_mean, listed, perhaps
from input_pipeline.manifest import Manifest, class_counts

RULES = (1, 2)
_WHOLE = re.compile(r'[+-]?\d+(\.0*)?', re.ASCII)
_NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?', re.ASCII)
# What programs write where there is no value, and names of classes that often mean the same.
_MISSING = {'', 'nan', 'none', 'null', 'na', '<na>', 'n/a', '#n/a', 'nat'}
_UNLABELLED = {'-1', '-1.0', 'unknown', 'unlabeled', 'unlabelled', '?'}
_BETWEEN = (' ', ',', ';', '|', '+', '&', '/', '_')  # labels in one cell
_AROUND = ' []()\'"'  # what lists are written with
_SHOWN = 5

_log = logging.getLogger(__name__)


def nfc(name: str) -> str:
    """The name with composed accents: two names that look alike are then equal."""
    return name if name.isascii() else unicodedata.normalize('NFC', name)


def checked_rules(rules: object) -> int:
    """`config.data.rules`, if it is valid.

    Raises:
        DataError: it is not one of RULES.
    """
    if isinstance(rules, bool) or rules not in RULES:
        raise DataError(f'data.rules={rules!r} is unknown: use {RULES[-1]}, or 1 for a run that '
                        f'was started before there were rules.')
    return int(rules)


def in_order(names: Iterable[str], rules: int) -> tuple[str, ...]:
    """The different names, sorted: whole numbers as numbers (by rules 1 as text)."""
    names = sorted(set(names))
    if rules > 1 and names and all(_WHOLE.fullmatch(name) for name in names):
        names.sort(key=Decimal)  # stable: '01' before '1'
    return tuple(names)


def as_read(names: Sequence[str], rules: int, where: str) -> list[str]:
    """The names by today's rules, one for one: in NFC. Logs a warning if that joins two classes.

    Args:
        names: class names of N pictures, as they are written.
        rules: `config.data.rules`; by rules 1 nothing changes.
        where: of the data, for the warning.
    """
    if rules < 2:
        return list(names)
    written: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        written.setdefault(nfc(name), []).append(name)
    for name, forms in written.items():
        if len(forms) > 1:
            _log.warning('%s: the class %r is written in %d ways that look alike (%s; Unicode NFC '
                         'and NFD): they are one class.', where, name, len(forms),
                         ', '.join(map(ascii, forms)))
    return [nfc(name) for name in names]


def place_of(name: object, names: Sequence[str]) -> int | None:
    """The position of a class that a user, a file or another run names; None if there is none."""
    name = str(name)
    if name in names:
        return names.index(name)
    same = [place for place, known in enumerate(names) if nfc(known) == nfc(name)]
    return same[0] if len(same) == 1 else None


def places_of(names: Iterable[str]) -> dict[str, int]:
    """{class: position}, under the name as it is written and under its NFC."""
    names = list(names)
    return ({nfc(name): place for place, name in reversed(list(enumerate(names)))}
            | {name: place for place, name in enumerate(names)})


def given_classes(classes, heads: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`config.data.classes` as {head: class names}; {} if it names none.

    Args:
        classes: one list, of the only head, or {head: list}.
        heads: those of the data.

    Raises:
        DataError: it is one list for several heads, names a head that does not exist, or one
            class twice.
    """
    if isinstance(classes, Mapping):
        given = {head: tuple(map(str, names)) for head, names in classes.items()}
    elif classes and len(heads) > 1:
        raise DataError(f'data.classes is one list, but there are the heads {listed(heads)}: '
                        f'give one list per head, by its name.')
    else:
        given = dict.fromkeys(heads, tuple(map(str, classes))) if classes else {}
    for head, names in given.items():
        if head not in heads:
            raise DataError(f'data.classes names the head {head!r}{perhaps(head, heads)}, '
                            f'which does not exist: use {listed(heads)}.')
        twice = [name for name, count in collections.Counter(map(nfc, names)).items() if count > 1]
        if twice:
            raise DataError(f'data.classes names {twice[0]!r} twice for the head {head!r}: delete '
                            f'one.')
    return given


def obeyed(manifest: Manifest, classes, rules: int) -> Manifest:
    """The manifest with the classes of `config.data.classes`, in their order, and names in NFC.

    Args:
        manifest: of any source.
        classes: as in `given_classes`; without it the classes stay as the source orders them.
        rules: `config.data.rules`; by rules 1 only a table obeys, which has done so already.

    Raises:
        DataError: see `given_classes`; or a picture has a class that is not named.
    """
    if rules < 2:
        return manifest
    given = given_classes(classes, manifest.heads) if any(manifest.classes.values()) else {}
    table, named = manifest.table, {}
    for head, names in manifest.classes.items():
        named[head] = tuple(map(nfc, given.get(head) or names))
        if head not in given or tuple(map(nfc, names)) == named[head]:
            continue
        if head in manifest.label_sets:
            manifest = _moved_sets(manifest, head, named[head])
            continue
        number = {name: place for place, name in enumerate(named[head])}
        moved = np.array([number.get(nfc(name), -2) for name in names] + [-1], np.int32)
        labels = moved[manifest.labels(head)]
        lost = np.flatnonzero(labels == -2)
        if len(lost):
            name = names[manifest.labels(head)[lost[0]]]
            others = len(set(manifest.labels(head)[lost].tolist())) - 1
            more = f' and {others} more' if others else ''
            raise DataError(f'data.classes lacks the class {name!r}{more} of the head {head!r} '
                            f'({len(lost)} of {len(labels)} images, such as '
                            f'{table["id"].iloc[lost[0]]!r}): add it, or leave these images out; '
                            f'{did_you_mean(name, named[head])}')
        table = table.assign(**{f'label/{head}': labels})
    if 'group' in table and not table['group'].map(str.isascii).all():
        table = table.assign(group=table['group'].map(nfc))
    return dataclasses.replace(manifest, table=table, classes=named)


def _moved_sets(manifest: Manifest, head: str, names: tuple[str, ...]) -> Manifest:
    """The manifest with other classes of a multi-label head, none of which may be lost."""
    places = number_labels(map(nfc, manifest.classes[head]), names)
    counts = class_counts(manifest, head)
    lost = [name for name, place, count in zip(manifest.classes[head], places, counts)
            if place is None and count]
    if lost:
        raise DataError(f'data.classes lacks the class {lost[0]!r} of the head {head!r}, which '
                        f'images have: add it, or leave these images out; '
                        f'{did_you_mean(lost[0], names)}')
    sets = manifest.label_sets[head].moved(places, len(names))
    return dataclasses.replace(manifest, label_sets={**manifest.label_sets, head: sets})


def groups_of_cells(values: Sequence[str], where: str, rules: int) -> list[str]:
    """Groups as a table writes them, without spaces around; 'NaN' and 'None' become '', which
    stands for a row without a group.

    Logs a warning that names them. By rules 1 they are names like any other.
    """
    found = [value.strip() for value in values]
    if rules < 2:
        return found
    odd = collections.Counter(value for value in found if value and value.lower() in _MISSING)
    if odd:
        _log.warning('%s: the groups %s count as none, in %s; give a group another name if '
                     'it is really called so.', where, ', '.join(map(repr, sorted(odd))),
                     counted(odd.total(), 'row'))
    return ['' if value in odd else value for value in found]


def check_cells(labels: Iterable[str], head: str, where: str, rules: int) -> None:
    """Looks at the classes that occur in a column of a table.

    Names that often mean 'no label' and cells of several labels are named in warnings.

    Args:
        labels: the cells, without spaces around; '' stands for a missing one.
        head: for messages, as `where`, the file.
        rules: by rules 1, one number in two forms is a warning too.

    Raises:
        DataError: 'nan' among numbers, or one number in two forms, such as 0 and 0.0.
    """
    names = sorted(set(labels) - {''})
    hint = 'leave the field empty for an image without a label, or name the classes in data.classes'
    missing = [name for name in names if name.lower() == 'nan']
    if missing and len(names) > 1 and all(_NUMBER.fullmatch(name) for name in names
                                          if name not in missing):
        raise DataError(f'The file {where!r} has the label {missing[0]!r} among numbers for the '
                        f'head {head!r}: {hint}.')
    if len(names) > 1:
        warn_unlabelled(names, head, where, hint, _UNLABELLED | _MISSING)
    _check_numbers(names, head, where, rules)
    parts = _several_labels(names)
    if parts:
        _log.warning('%s: cells of the head %r hold several labels (%r is %s, and %d of %d classes '
                     'are combinations of others): each combination counts as a class of its '
                     'own; for multi-label training set data.multi_label=%s and '
                     'data.label_separator=%r.', where, head,
                     min(parts), ' and '.join(map(repr, parts[min(parts)])), len(parts),
                     len(names), head, _mark_of(parts))


def _mark_of(parts: Mapping[str, list[str]]) -> str:
    """What stands between the labels of these cells."""
    name = min(parts)
    return next((mark for mark in _BETWEEN if len(name.split(mark)) == len(parts[name])), '|')


def warn_unlabelled(names: Iterable[str], head: str, where: str, hint: str,
                    odd: Collection[str] = _UNLABELLED) -> None:
    """Logs a warning for each class whose name often means 'no label', such as 'unknown'; `odd`
    are such names in lower case."""
    for name in names:
        if name.lower() in odd:
            _log.warning('%s: %r counts as a class of the head %r; %s.', where, name, head, hint)


def _check_numbers(names: Sequence[str], head: str, where: str, rules: int) -> None:
    seen: dict[Decimal, str] = {}
    for name in names:
        if not _NUMBER.fullmatch(name):
            continue
        other = seen.setdefault(Decimal(name), name)
        if other == name:
            continue
        padded = name.isdecimal() and other.isdecimal()  # '007' and '7' may be codes
        if padded or rules < 2:
            _log.warning('%s: %r and %r are the same number, and two classes of the head %r; write '
                         'them the same way if they are one.', where, other, name, head)
        else:
            raise DataError(f'The file {where!r} has the labels {other!r} and {name!r} for the '
                            f'head {head!r}, which are the same number: write it the same way in '
                            f'every row, or name both in data.classes.')


def _several_labels(names: Sequence[str]) -> dict[str, list[str]]:
    """{class: its parts}, of the classes that are combinations; {} if that is not the rule."""
    for mark in _BETWEEN:
        parts = {name: [part.strip(_AROUND) for part in name.split(mark)] for name in names
                 if mark in name}
        # Two words in one name are common, so each must be a class of its own.
        single = {name.strip(_AROUND) for name in names if name not in parts}
        if mark in ',;|':
            count = collections.Counter(part for each in parts.values() for part in set(each))
            single |= {part for part, times in count.items() if times > 1}
        found = {name: each for name, each in parts.items()
                 if len(set(each)) == len(each) > 1 and set(each) <= single}
        if len(found) > 1 and 2 * len(found) > len(parts):
            return found
    return {}


def number_labels(labels: Iterable[str], names: Sequence[str]) -> list[int | None]:
    """The position of each label among the class names, -1 for '', None for an unknown one."""
    number = {'': -1} | places_of(names)
    return [number.get(label, number.get(nfc(label))) for label in labels]
