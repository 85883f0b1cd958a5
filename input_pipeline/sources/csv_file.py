"""A table with one line per image, as CSV or Parquet.

`csv_table` and `table_file` say how it may be written. All values are text: a class may be called
`NA`, `None` or `007`. A saved manifest is recognised by its columns.
"""

import dataclasses
import logging
import os
import posixpath
from collections.abc import Mapping, Sequence

from input_pipeline.class_names import (
    as_read,
    check_cells,
    given_classes,
    groups_of_cells,
    in_order,
    number_labels,
)
from input_pipeline.errors import DataError, perhaps
from input_pipeline.manifest import CONTENT, Manifest, make_manifest
from input_pipeline.manifest_files import is_manifest
from input_pipeline.manifest_files import load as load_manifest
from input_pipeline.sources import (
    groups_from_paths,
    is_below,
    listed,
    missing_path,
    scheme_of,
    zip_archive,
    zip_names,
)
from input_pipeline.sources.label_cells import (
    SetSpec,
    checked,
    join_rows,
    number_sets,
    one_hot_columns,
    read_lists,
    read_one_hot,
)
from input_pipeline.sources.split_folders import SPLIT_NAMES
from input_pipeline.table_file import Table, is_parquet, read_header, read_table

_log = logging.getLogger(__name__)
# The names of a column that are looked for where config.data.columns gives none.
COMMON_NAMES = {
    'image': ('image', 'image_path', 'path', 'file', 'filename', 'img_path'),
    'labels': ('label', 'class', 'target', 'category'),
    'id': ('id',),
    'group': ('group',),
    'weight': ('weight',),
    'split': ('split',),
}


@dataclasses.dataclass(frozen=True)
class Images:
    """Where the images of a table are.

    Attributes:
        path: the folder, the zip archive or a folder in one, to which image paths are relative;
            '' for the table's own folder.
        allow_outside: accept images outside of it.
        zip_encoding: of the names in the archive, see `zip_names.decoded`.
    """

    path: str = ''
    allow_outside: bool = False
    zip_encoding: str = ''


def load(path: str, *, images: Images | None = None, columns: Mapping[str, str] | None = None,
         classes: Sequence[str] | Mapping[str, Sequence[str]] = (),
         group_regex: str = '', labelled: bool = True, rules: int = 2,
         several: SetSpec | None = None) -> Manifest:
    """The manifest of a table, in the order of its lines.

    Args:
        path: the CSV or Parquet file, or a saved manifest (`manifest_files.save`).
        images: where they are; None for the table's own folder.
        columns: names of the columns `image`, `labels` (several separated by commas: one
            head each, named like its column), `id`, `group`, `weight`, `split`; '' or
            absent to look for a common name. A single label column is the head `class`.
            'tags=sea+ship' or 'tags=tag_*' among the labels is a multi-label head whose columns
            hold 1 where their class applies.
            Without an id column the path, as written, is the id.
        classes: class names in their order, of the only head or by head; () for the sorted
            values of the column. With class names, a CSV without labels may be read.
        group_regex: takes the group from the path; see `folder.load`.
        labelled: False if no column contains labels; then columns of groups, weights and splits
            that `columns` names may be missing.
        rules: how names are read, see `class_names`.
        several: the heads whose cells list several labels, or whose pictures have several rows.

    An empty label means unlabelled, -1.

    Raises:
        DataError: names the file and, where there is one, the line and the value.
    """
    file = _existing(path, 'data.csv', os.path.isfile)
    images, several = images or Images(), several or SetSpec()
    encoding = images.zip_encoding if rules > 1 else zip_names.OLDEST
    archive, inside = _archive(images.path, encoding)
    root = (os.path.join(archive, inside) if archive else
            _existing(images.path, 'data.images', os.path.isdir) if images.path else
            os.path.dirname(file))
    named = any((columns or {}).values())
    if is_parquet(file):
        header, saved = read_header(file)
        saved = saved or (is_manifest(header) and not named)
    else:
        table = read_table(file)
        saved = is_manifest(table.header) and not named
    if saved:
        if inside:
            raise DataError(f'The file {file!r} is a saved manifest, whose names begin at the top '
                            f'of an archive: set data.images={archive!r}.')
        return _saved(file, archive or root if images.path else '', columns,
                      classes if rules < 2 else (),
                      images.allow_outside, dict(group_regex=group_regex,
                                                 multi_label=several.heads))
    table = read_table(file) if is_parquet(file) else table
    header, lines = table.header, table.places
    if not lines:
        raise DataError(f'The file {path!r} has no lines below its header: add one line per '
                        f'image.')
    wanted = {role: (columns or {}).get(role) or '' for role in COMMON_NAMES}
    unknown = sorted(set(columns or {}) - set(COMMON_NAMES))
    if unknown:
        raise DataError(f'data.columns.{unknown[0]} is unknown{perhaps(unknown[0], wanted)}: '
                        f'use {", ".join(COMMON_NAMES)}.')
    if not labelled:  # new pictures seldom have every column of those that were trained on
        wanted |= {role: _if_there(file, header, role, wanted[role])
                   for role in ('group', 'weight', 'split')}
    optional = {'id', 'group', 'weight', 'split'} | ({'labels'} if classes else set())
    one_hot = one_hot_columns(wanted['labels'], header, file) if labelled else {}
    if one_hot:  # what is left are names of columns with labels
        wanted['labels'] = ','.join(part for part in wanted['labels'].split(',')
                                    if '=' not in part) or ','
    places = {role: _find(file, header, role, name, role in optional)
              for role, name in wanted.items() if labelled or role != 'labels'}

    written = table.values(places['image'][0])
    locate = _Locator(root, images.allow_outside, links=not archive)
    found: dict[str, object] = {
        'id': table.values(places['id'][0]) if places['id'] else written,
        'location': [locate(name, file, line) for name, line in zip(written, lines)],
    }
    if rules > 1:
        found[CONTENT] = ''
    if archive:
        found['location'] = zip_archive.locations(
            archive, [posixpath.join(inside, name.removeprefix('./'))
                      for name in found['location']], encoding)
    if not several.heads and not one_hot:  # else rows of one picture are joined
        _refuse_doubled(file, found['id'], lines)
    of_labels = places.get('labels', ())
    alone = len(of_labels) + len(one_hot) == 1
    titles = {'class' if alone and header[place] not in several.heads else header[place]: place
              for place in of_labels}
    if labelled:
        checked(several, (*titles, *one_hot), file)
    sets = {head: read_one_hot(table, of_head, head) for head, of_head in one_hot.items()}
    sets |= {head: read_lists(table, titles[head], head, several.separator)
             for head in several.heads if head in titles and head not in one_hot}
    heads = {head: table.values(place) for head, place in titles.items() if head not in sets}
    if not heads and not sets:
        heads = {'class': [''] * len(lines)}
    if group_regex:
        if wanted['group']:
            raise DataError('data.group_regex and data.columns.group both name the groups: '
                            'set only one of them.')
        found['group'] = groups_from_paths(written, group_regex)
    elif places['group']:
        found['group'] = groups_of_cells(table.values(places['group'][0]), file, rules)
    if places['weight']:
        found['weight'] = [_weight(value, file, line)
                           for value, line in zip(table.values(places['weight'][0]), lines)]
    if places['split']:
        found['split'] = [split_name(value, file, line)
                          for value, line in zip(table.values(places['split'][0]), lines)]
    if sets:
        found |= {f'label/{head}': labels for head, labels in heads.items()}
        found, sets, places = join_rows(found, sets, file, lines)
        heads = {head: found[f'label/{head}'] for head in heads}
        table = dataclasses.replace(table, places=places)
    order = [*(titles or heads), *one_hot]
    names, label_sets = {}, {}
    given = given_classes(classes, order) if labelled else {}
    for head in order:
        if head in sets:
            names[head], found[f'label/{head}'], label_sets[head] = number_sets(
                sets[head], given.get(head, ()), head, table, several, rules)
        else:
            names[head] = _class_names(file, head, heads[head], given, rules) if labelled else ()
            found[f'label/{head}'] = _numbers(heads[head], names[head], table, head)
    return make_manifest(found, names, root=archive or root, label_sets=label_sets)


def _archive(images: str, encoding: str) -> tuple[str, str]:
    """(archive, folder in it) of the images, ('', '') if they are in a folder."""
    archive, inside = zip_archive.split_path(images) if images else ('', '')
    if archive:  # the folder is checked, and the encoding of the names is said
        zip_archive.walk(archive, inside, encoding, key='data.images')
    return archive, inside


def _saved(file: str, images: str, columns, classes, allow_outside: bool,
           others: Mapping[str, object]) -> Manifest:
    """A saved manifest, with the settings that keep its meaning; others are refused."""
    for key, value in (('columns', any((columns or {}).values())), ('classes', classes),
                       *others.items()):
        if value:
            raise DataError(f'data.{key} is set, but {file!r} is a saved manifest, which has its '
                            f'own {key}: unset it.')
    manifest = load_manifest(file)
    if images:
        manifest = dataclasses.replace(manifest, root=images)
    locate = _Locator(manifest.root, allow_outside)
    for row, name in enumerate(manifest.table['location']):
        if not scheme_of(name):
            locate(name, file, f'row {row + 1}')
    return manifest


def column(path: str, header: Sequence[str], name: str, key: str = '') -> int:
    """The position of the column `name`.

    Args:
        path: of the file, for errors.
        header: the names of the columns.
        name: of the column.
        key: the config key that names it, for errors.

    Raises:
        DataError: there is no such column; the message lists the columns.
    """
    if name not in header:
        what = f' ({key})' if key else ''
        raise DataError(f'The file {path!r} has no column {name!r}{what}'
                        f'{perhaps(name, header)}: it has {listed(header)}.')
    return header.index(name)


def split_name(value: str, file: str, line: str) -> str:
    """'train', 'val' or 'test' for any name of a split; `line` is where it stands, 'line 3'.

    Raises:
        DataError: the name is unknown; the message has the file and line.
    """
    try:
        return SPLIT_NAMES[value.strip().lower()]
    except KeyError:
        raise DataError(f'{file!r}, {line}: the split {value!r} is unknown: '
                        f'use train, val or test.') from None


def more_columns(path: str, names: Sequence[str], ids: Sequence[str],
                 columns: Mapping[str, str] | None = None) -> dict[str, list[str]]:
    """Columns that `load` does not read, as text in the order of the ids.

    Args:
        path: the CSV file.
        names: names of the columns.
        ids: ids as `load` gives them.
        columns: as in `load`.

    Returns:
        {name: values}; '' for an id that has no line.

    Raises:
        DataError: the file cannot be read or lacks the column.
    """
    file = _existing(path, 'data.csv', os.path.isfile)
    table = read_table(file)
    header, given = table.header, columns or {}
    place = (_find(file, header, 'id', given.get('id') or '', True)
             or _find(file, header, 'image', given.get('image') or '', False))[0]
    row_of = {name: row for row, name in enumerate(table.values(place))}
    values = {name: table.values(column(file, header, name)) for name in names}
    return {name: [of_name[row_of[one]] if one in row_of else '' for one in ids]
            for name, of_name in values.items()}


def _existing(path: str, key: str, is_there) -> str:
    if not path:
        raise DataError(f'{key} is empty: give the path of the CSV file.')
    full = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(full):
        raise DataError(f'The path {path!r} ({key}) {missing_path(full)}: correct it.')
    if not is_there(full):
        kind = 'file' if is_there is os.path.isfile else 'folder'
        raise DataError(f'The path {path!r} ({key}) is not a {kind}: give the path of a {kind}.')
    return full


def _if_there(file: str, header: Sequence[str], role: str, name: str) -> str:
    """The name of a column; '' if the file lacks it, which is logged."""
    if not name or name in header:
        return name
    _log.info('columns  %s has no column %s (data.columns.%s)', os.path.basename(file), name, role)
    return ''


def _find(file: str, header: list[str], role: str, name: str, optional: bool) -> list[int]:
    """Positions of the columns of a role; [] for an optional column that is absent."""
    key = f'data.columns.{role}'
    if name:
        parts = [part.strip() for part in name.split(',')] if role == 'labels' else [name]
        return [column(file, header, part, key) for part in parts if part]
    lower = [title.lower() for title in header]
    for common in COMMON_NAMES[role]:
        if common in lower:
            return [lower.index(common)]
    if optional:
        return []
    raise DataError(f'The file {file!r} has no column called {" or ".join(COMMON_NAMES[role])}: '
                    f'set {key} to one of {listed(header)}.')


class _Locator:
    """Turns image paths, as written, into locations: relative to the root, or absolute outside."""

    def __init__(self, root: str, allow_outside: bool, *, links: bool = True):
        self._root = os.path.abspath(root)
        self._allow = allow_outside
        self._home = os.path.realpath(root) if links and not allow_outside else ''
        self._leaving: dict[str, bool] = {}  # whether a folder leads out of the root, by links

    def __call__(self, name: str, file: str, line: str) -> str:
        if not name.strip() or '\0' in name:
            raise DataError(f'{file!r}, {line}: the image path {name!r} is empty or not a '
                            f'path: fill it in or delete the line.')
        full = os.path.normpath(os.path.join(self._root, name))
        is_inside = is_below(self._root, full)
        if not self._allow and (not is_inside or self._leads_out(full)):
            raise DataError(
                f'{file!r}, {line}: the image {name!r} lies outside of the images folder '
                f'{self._root!r}: set data.images to a folder that contains all images, or set '
                f'data.allow_outside=True.')
        if not is_inside:
            return full
        inside = full[len(self._root):].lstrip(os.sep).replace(os.sep, posixpath.sep)
        return f'./{inside}' if scheme_of(inside) else inside

    def _leads_out(self, path: str) -> bool:
        if not self._home:
            return False
        folder = os.path.dirname(path)
        if folder not in self._leaving:
            self._leaving[folder] = not is_below(self._home, os.path.realpath(folder))
        return self._leaving[folder] or (
            os.path.islink(path) and not is_below(self._home, os.path.realpath(path)))


def _refuse_doubled(file: str, ids: list[str], lines: list[str]) -> None:
    seen: dict[str, str] = {}
    for name, line in zip(ids, lines):
        if name in seen:
            raise DataError(f'The file {file!r} has the id {name!r} in {seen[name]} and in '
                            f'{line}: give every line its own id, or delete one.')
        seen[name] = line


def _class_names(file: str, head: str, labels: list[str], given: Mapping[str, tuple[str, ...]],
                 rules: int) -> tuple[str, ...]:
    found = {label.strip() for label in set(labels)} - {''}
    if not given.get(head):
        check_cells(found, head, file, rules)
    names = given.get(head) or in_order(as_read(sorted(found), rules, file), rules)
    if not names:
        raise DataError(f'The file {file!r} has no label at all for the head {head!r}: '
                        f'fill the column in, or name the classes in data.classes.')
    return names


def _numbers(labels: list[str], names: tuple[str, ...], table: Table, head: str) -> list[int]:
    numbers = number_labels((label.strip() for label in labels), names)
    for number, label, line in zip(numbers, labels, table.places):
        if number is None:
            raise DataError(f'{table.path!r}, {line}: the label {label!r} is not a class of the '
                            f'head {head!r}{perhaps(label, names)}: correct it or add it to '
                            f'data.classes.')
    return [-1 if number is None else number for number in numbers]


def _weight(value: str, file: str, line: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float('inf'):
        raise DataError(f'{file!r}, {line}: the weight {value!r} is not a number of 0 or '
                        f'more: correct it.')
    return weight
