"""What each column of a sample submission asks for, decided from its name and its cells.

A column holds one of CONTENTS, `<head>` (its class), `index:<head>`, `probability:<class>`, or
`probability:<head>` of a head of two classes, such as no and yes.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from input_pipeline.class_names import nfc, places_of
from input_pipeline.errors import did_you_mean, perhaps
from input_pipeline.products import SEPARATOR
from train_lib.runtime.errors import ConfigError

# 'copy' keeps the cells of the sample; 'names' are those of all heads, with spaces between.
CONTENTS = ('id', 'row', 'class', 'index', 'confidence', 'copy', 'names')
PROBABILITY, INDEX = 'probability:', 'index:'
# What a column of these names holds unless config.columns says so.
USUAL = {'id': 'id', 'imageid': 'id', 'image_id': 'id', 'image_path': 'id', 'image': 'id',
         'path': 'id', 'filename': 'id', 'file': 'id', 'name': 'id', 'row': 'row',
         'target': 'class', 'label': 'class', 'class': 'class', 'ans': 'class',
         'prediction': 'class', 'index': 'index', 'confidence': 'confidence'}
_ANSWERS = frozenset(name for name, what in USUAL.items() if what == 'class') | {
    'labels', 'category', 'tags', 'expected', 'answer', 'predicted', 'prediction', 'y', 'index'}
# The names of two classes of which the second one says that something is there.
_YES = (('0', '1'), ('no', 'yes'), ('false', 'true'), ('absent', 'present'),
        ('negative', 'positive'))
_WHOLE = re.compile(r'-?\d+', re.ASCII)
_NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?', re.ASCII)


class Question(NamedTuple):
    """What the models answer.

    Attributes:
        heads: {head: names of its classes}.
        classes: names of the answer: those of the only head, or of the product of all.
    """

    heads: Mapping[str, tuple[str, ...]]
    classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Decided:
    """What columns hold, {name: content}, and why, in a few words each for the log."""

    contents: Mapping[str, str]
    why: tuple[str, ...]


def question_of(heads: Mapping[str, Sequence[str]]) -> Question:
    """The question of models with these heads, {head: names of its classes}."""
    classes = map(SEPARATOR.join, itertools.product(*heads.values()))
    return Question({head: tuple(names) for head, names in heads.items()}, tuple(classes))


def decide_columns(columns: Mapping[str, Sequence[str]], key: str, question: Question,
                   told: Mapping[str, str], where: str) -> Decided:
    """What the columns of a sample hold.

    Args:
        columns: {name: cells}.
        key: the column of the ids.
        question: that of the models.
        told: {column: content} that the user gave.
        where: the file, for errors.

    Raises:
        ConfigError: a class that the models lack, a class without a column, a cell that is
            neither a class nor an index, or no column for an answer.
    """
    for name, what in told.items():
        if name not in columns:
            raise ConfigError(f'config.columns names the column {name!r}, which {where!r} does not '
                              f'have{perhaps(name, columns)}: correct it.')
        _refuse_unknown(name, what, question)
    contents = {name: told.get(name, 'copy') for name in columns} | {key: 'id'}
    free = {name: cells for name, cells in columns.items() if name != key and name not in told}
    why = [f'{name}: {what}, as config.columns says' for name, what in told.items()]
    if all(what in ('id', 'row', 'copy') for what in told.values()):
        found, words = (_per_class(free, question, where) or _per_head(free, question, where)
                        or _single(free, question, where))
        sure = {name: 'confidence' for name in free if name.casefold() == 'confidence'}
        contents |= sure | found
        why += [*words, *(f'{name}: the probability of the answer' for name in sure)]
        free = {name: cells for name, cells in free.items() if name not in found | sure}
        for name, cells in free.items():
            _refuse_empty_answer(name, cells, where)
    return Decided(contents, tuple(why))


def is_yes(head: str, names: Sequence[str]) -> bool:
    """Whether the second of two classes says that what the head is called is there."""
    pair = tuple(nfc(name).casefold() for name in names)
    return len(pair) == 2 and (pair in _YES or pair[1] == nfc(head).casefold())


def known_contents(question: Question, *, copy: bool = True) -> list[str]:
    """What a column may hold; `copy` if there is a sample to copy from."""
    heads, classes = question
    known = [one for one in CONTENTS if one != 'names' and (copy or one != 'copy')]
    if len(heads) > 1:
        known += ['names', *heads, *(f'{INDEX}{head}' for head in heads),
                  *(f'{PROBABILITY}{head}' for head, names in heads.items() if len(names) == 2),
                  *(f'{PROBABILITY}{one}' for one in _only_once(heads))]
    return known + [f'{PROBABILITY}{one}' for one in classes]


def _refuse_unknown(name: str, what: str, question: Question) -> None:
    known = known_contents(question)
    if what not in known:
        raise ConfigError(f'config.columns: {name!r} cannot hold {what!r}; '
                          f'{did_you_mean(what, known)}')


def _only_once(heads: Mapping[str, Sequence[str]]) -> list[str]:
    """Class names that only one head has."""
    names = [nfc(name) for one in heads.values() for name in one]
    return [name for name in names if names.count(name) == 1] if len(names) < 5000 else []


def _first(names: Iterable[str]) -> str:
    """The first five names, in quotes."""
    names = list(names)
    return ', '.join(map(repr, names[:5])) + (', ...' if len(names) > 5 else '')


def _found(of_columns: dict[str, str], words: str) -> tuple[dict[str, str], list[str]]:
    return of_columns, [words]


def _per_class(free: Mapping[str, Sequence[str]], question: Question, where: str
               ) -> tuple[dict[str, str], list[str]] | None:
    """One column of probabilities per class, under its name, its index, or these with the same
    text before them; None if the columns are none."""
    heads, classes = question
    sets = [classes]
    if len(heads) > 1:
        once = _only_once(heads)
        sets += [tuple(once)] if len(once) == sum(map(len, heads.values())) else []
    folded = {nfc(name).casefold(): name for name in free}
    for names in sets:
        by_index = tuple(map(str, range(len(names)))) if names is classes else ()
        for words, written in (('classes', names), ('indices of the classes', by_index)):
            keys = [nfc(name).casefold() for name in written]
            for before in _before(keys, folded):
                if len(keys) > 1 and all(before + one in folded for one in keys):
                    found = {folded[before + one]: PROBABILITY + name
                             for one, name in zip(keys, names)}
                    _refuse_more(free, found, before, where)
                    shown = f', after {before!r}' if before else ''
                    return _found(found, f'probabilities, one column per class ({words}{shown})')
    names = {nfc(name).casefold() for name in classes}
    known = [name for key, name in folded.items() if key in names]
    if len(known) < 2:
        return None
    lacking = [name for name in classes if nfc(name).casefold() not in folded]
    others = [name for key, name in folded.items() if key not in names
              and all(map(_NUMBER.fullmatch, free[name]))]
    if others:
        raise ConfigError(f'The sample {where!r} has columns for classes that the models lack '
                          f'({_first(others)}), and none for {_first(lacking)}: submit with models '
                          f'of the same classes, or say what a column holds by config.columns.')
    raise ConfigError(f'The sample {where!r} has columns for {len(known)} of {len(classes)} '
                      f'classes, and none for {_first(lacking)}: submit with models of the same '
                      f"classes, or say what each holds, as in --config.columns=\""
                      f"{{{known[0]!r}: 'probability:{known[0]}'}}\".")


def _before(keys: Sequence[str], folded: Iterable[str]) -> list[str]:
    """Texts before the first key in columns that end with it; '' first."""
    return sorted({name.removesuffix(keys[0]) for name in folded if name.endswith(keys[0])},
                  key=len) if keys else []


def _refuse_more(free: Mapping[str, Sequence[str]], found: Mapping[str, str], before: str,
                 where: str) -> None:
    """Refuses columns that look like probabilities of other classes."""
    cells = {cell for name in found for cell in free[name]}
    more = [name for name in free if name not in found and (
        name.casefold().startswith(before) if before else set(free[name]) <= cells)]
    if more:
        raise ConfigError(f'The sample {where!r} has columns for classes that the models lack '
                          f'({_first(more)}): submit with models of the same classes, or keep '
                          f'what a column holds by --config.columns="{{{more[0]!r}: \'copy\'}}".')


def _per_head(free: Mapping[str, Sequence[str]], question: Question, where: str
              ) -> tuple[dict[str, str], list[str]] | None:
    """One column per head, under its name; None if there is none for several heads."""
    heads = question.heads
    folded = {nfc(name).casefold(): name for name in free}
    column = {head: folded[nfc(head).casefold()] for head in heads
              if nfc(head).casefold() in folded}
    if len(heads) < 2 or not column:
        return None
    if len(column) < len(heads):
        lacking = [head for head in heads if head not in column]
        raise ConfigError(f'The sample {where!r} has columns for {len(column)} of {len(heads)} '
                          f'heads, and none for {_first(lacking)}: leave these heads out by '
                          f"--config.heads={','.join(column)}.")
    found, why = {}, []
    for head, name in column.items():
        kind, words = _kind_of(name, free[name], head, heads[head], where)
        found[name] = {'class': head, 'index': INDEX + head, 'yes': PROBABILITY + head}[kind]
        why.append(f'{name}: {words}')
    return found, why


def _single(free: Mapping[str, Sequence[str]], question: Question, where: str
            ) -> tuple[dict[str, str], list[str]]:
    """The column of the answer, by its name or as the only one."""
    heads, classes = question
    named = [name for name in free if name.casefold() in _ANSWERS]
    named = [name for name in named if name.casefold() != 'index'] or named
    free = {name: cells for name, cells in free.items() if name.casefold() != 'confidence'}
    likely = named or list(free) if len(free) < 2 or named else [
        name for name, cells in free.items() if set(map(nfc, cells)) <= {*map(nfc, classes), ''}]
    if not free:
        raise ConfigError(f'The sample {where!r} has no column besides the ids: add an empty one '
                          f'for the answer, such as target.')
    if len(likely) != 1:
        what = (f'several columns for the answer ({_first(likely)})' if likely else
                'no column for the answer')
        name = next(iter(likely or free))
        raise ConfigError(f'The sample {where!r} has {what}: say what its columns hold, as in '
                          f"--config.columns=\"{{{name!r}: 'class'}}\".")
    name = likely[0]
    cells = [*dict.fromkeys(map(nfc, free[name]))]
    if len(heads) > 1 and any(' ' in cell for cell in cells) and not set(cells) <= {
            *map(nfc, classes), ''}:
        _check_words(name, cells, heads, where)
        return {name: 'names'}, [f'{name}: names of all heads, with spaces between']
    head = next(iter(heads)) if len(heads) == 1 else ''
    kind, words = _kind_of(name, cells, head, classes, where)
    if kind == 'yes':
        kind = PROBABILITY + (classes[1] if nfc(classes[0]).casefold() != name.casefold()
                              else classes[0])
    return {name: kind}, [f'{name}: {words}']


def _check_words(name: str, cells: Sequence[str], heads: Mapping[str, Sequence[str]], where: str
                 ) -> None:
    """Refuses words that are not the names that `names_of` would write."""
    known = {nfc(one) for one in names_of(heads)}
    spaced = [one for one in known if ' ' in one]
    if spaced:
        raise ConfigError(f'The column {name!r} of {where!r} holds names with spaces between, and '
                          f'the name {spaced[0]!r} has a space: say what it holds by '
                          f'config.columns.')
    unknown = dict.fromkeys(word for cell in cells for word in cell.split() if word not in known)
    if unknown:
        raise ConfigError(f'The column {name!r} of {where!r} has names that the models lack '
                          f'({_first(unknown)}); {did_you_mean(next(iter(unknown)), known)}')


def names_of(heads: Mapping[str, Sequence[str]]) -> list[str]:
    """The words that a column of 'names' may hold: the heads where each says no or yes, else the
    classes of all heads."""
    if all(is_yes(head, names) for head, names in heads.items()):
        return list(heads)
    return [name for names in heads.values() for name in names]


def _kind_of(name: str, cells: Iterable[str], head: str, classes: Sequence[str], where: str
             ) -> tuple[str, str]:
    """('class' | 'index' | 'yes', why), 'yes' being the probability of the second of two classes,
    or of the one that the column is called after."""
    cells = [cell for cell in dict.fromkeys(map(nfc, cells)) if cell]
    places = places_of(classes)
    largest = len(classes) - 1
    whole = [cell for cell in cells if _WHOLE.fullmatch(cell)]
    say = f'--config.columns="{{{name!r}: \'class\'}}", or index'
    if not cells:
        return 'class', 'class names (its cells are empty)'
    if all(cell in places for cell in cells):
        numbers = len(whole) == len(cells) and any(
            places[cell] != int(cell) for cell in cells)
        return 'class', ('class names, which are numbers (not indices from 0)' if numbers else
                         'class names')
    if len(whole) == len(cells):
        return _number_kind(name, cells, classes, where, say)
    if all(map(_NUMBER.fullmatch, cells)):
        if len(classes) == 2 and (is_yes(head, classes) or name.casefold() in
                                  {nfc(one).casefold() for one in classes}):
            return 'yes', 'a probability (its cells are decimals)'
        raise ConfigError(f'The column {name!r} of {where!r} has the cell {cells[0]!r}, which '
                          f'looks like a probability: say of which class, as in '
                          f"--config.columns=\"{{{name!r}: 'probability:{classes[-1]}'}}\".")
    unknown = [cell for cell in cells if cell not in places]
    hint = did_you_mean(unknown[0], classes, otherwise=(
        f'they know {len(classes)}, such as {classes[0]!r}; if these cells only hold a place, say '
        f'so by {say}.'))
    raise ConfigError(f'The column {name!r} of {where!r} has classes that the models lack '
                      f'({_first(unknown)}), while indices go from 0 to {largest}: {hint}')


def _number_kind(name: str, cells: Sequence[str], classes: Sequence[str], where: str, say: str
                 ) -> tuple[str, str]:
    """`_kind_of` for whole numbers of which some are no class names."""
    numbers = {float(one): one for one in classes if _NUMBER.fullmatch(one)}
    outside = [cell for cell in cells if not 0 <= int(cell) < len(classes)]
    if len(numbers) == len(classes) and list(numbers) != list(range(len(classes))):
        # The numbers of the training labels are wanted, not where they stand in their order.
        if len(cells) == 1 and int(cells[0]) not in numbers:
            return 'class', f'class names, which are numbers (all its cells are {cells[0]!r})'
        raise ConfigError(f'The column {name!r} of {where!r} has numbers that are not written as '
                          f'the classes are ({_first(cells)}, and classes such as '
                          f'{classes[0]!r}): correct them, or say what it holds by {say}.')
    if len(cells) == 1:
        return 'index', f'indices of the classes, from 0 (all its cells are {cells[0]!r})'
    if outside:
        raise ConfigError(f'The column {name!r} of {where!r} has numbers that are neither classes '
                          f'nor indices of the models, which go from 0 to {len(classes) - 1} '
                          f'({_first(outside)}): submit with models of the same classes, or say '
                          f'what it holds by {say}.')
    return 'index', 'indices of the classes, from 0'


def _refuse_empty_answer(name: str, cells: Sequence[str], where: str) -> None:
    """Refuses a column that waits for an answer which nobody gives."""
    values = set(cells)
    value = next(iter(values))
    if len(cells) > 1 and len(values) == 1 and (not value or _NUMBER.fullmatch(value)):
        raise ConfigError(f'The sample {where!r} has {value!r} in every row of the column '
                          f'{name!r}, and nothing says what belongs there: say so, as in '
                          f'--config.columns="{{{name!r}: \'copy\'}}".')
