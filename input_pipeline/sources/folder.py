"""A folder of pictures: `PATH/<class>/**/image.*`.

The class of an image is its folder relative to PATH, so `Korean/character01/7.png` has the class
`Korean/character01`, or the first parts of it, by `class_depth`. If PATH contains split folders and
no other images (see `split_folders`), the class is relative to them. Links are followed, but out of
PATH only if that is allowed. PATH may also be a zip archive, or a folder in one
(`photos.zip/train`), which is read without unpacking it.
"""

import collections
import logging
import os
import posixpath
from collections.abc import Iterator, Mapping

from input_pipeline import class_names
from input_pipeline.errors import DataError, counted
from input_pipeline.manifest import Manifest, make_manifest
from input_pipeline.sources import (
    groups_from_paths,
    is_below,
    missing_path,
    scheme_of,
    zip_archive,
    zip_names,
)
from input_pipeline.sources.split_folders import place_in, split_folders

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.jfif', '.jpe', '.jif')
_EXTENSIONS_1 = EXTENSIONS[:6]  # by rules 1 (config.data.rules)
# What systems and network storage put beside pictures: previews, wastebaskets, snapshots.
_SKIPPED_FOLDERS = frozenset((
    '__macosx', '@eadir', '#recycle', '@recycle', '#snapshot', '@recently-snapshot', '@tmp',
    '$recycle.bin', 'recycler', 'system volume information', 'lost+found', 'temporary items',
    'network trash folder'))
_SKIPPED_FILES = ('thumbs.db', 'ehthumbs.db', 'desktop.ini', 'icon\r')
_FEW = 10  # images of a class, for the warning that classes may be too deep

_log = logging.getLogger(__name__)


def load(path: str, *, group_regex: str = '', extensions=(), labelled: bool = True,
         allow_outside: bool = False, class_depth: int | None = None, zip_encoding: str = '',
         rules: int = 2) -> Manifest:
    """The manifest of a folder; `id` is the path relative to it, with forward slashes.

    Args:
        path: the folder or zip archive.
        group_regex: searched in the relative path; its first capture group (else the whole
            match) is the group. '' for no groups.
        extensions: file extensions of images, in upper or lower case; () for `EXTENSIONS`.
        labelled: False if folders are not classes: images may lie anywhere and have no labels.
        allow_outside: follow links that lead out of the folder.
        class_depth: the class is the first so many parts of the folder (-1: the last part);
            None for the whole folder.
        zip_encoding: of the names in an archive, see `zip_names.decoded`.
        rules: `config.data.rules`.

    Raises:
        DataError: the folder does not exist or has no images; an image has no class folder, or
            a class folder no image; split folders are mixed with others; `group_regex` does not
            match a path; a link leads out of the folder; `class_depth` is not valid.
    """
    _check_depth(class_depth)
    archive, inside = zip_archive.split_path(path) if path else ('', '')
    root = (os.path.normpath(os.path.join(archive, inside)) if archive else
            _existing_folder(path))
    extensions = tuple(
        ext.lower() if ext.startswith('.') else f'.{ext.lower()}'
        for ext in extensions or (EXTENSIONS if rules > 1 else _EXTENSIONS_1))
    zip_encoding = zip_encoding if rules > 1 else zip_names.OLDEST
    folders = (_visible(zip_archive.walk(archive, inside, zip_encoding), rules) if archive else
               dict(_walk(root, extensions, allow_outside, rules)))
    images = {folder: [name for name in files if _extension(name) in extensions]
              for folder, (files, _) in folders.items()}
    if not any(images.values()):
        where = f'at {root}/<class>/<image>' if labelled else 'there'
        raise DataError(f'The folder {root!r} holds no images ({" ".join(extensions)}): '
                        f'put them {where}.')
    if labelled:
        _refuse_loose(root, images[''], '')
    _report_others(root, folders, extensions)

    splits = split_folders(root, folders, images, rules) if labelled else {}
    ids, labels, sides = [], [], []
    for folder, names in images.items():
        top, below = place_in(folder, splits)
        if splits:
            _refuse_loose(root, names if not below else [], folder)
        _refuse_undecodable(folder, names)
        ids += [posixpath.join(folder, name) for name in names]
        labels += [_class_of(below, class_depth)] * len(names)
        sides += [splits.get(top, '')] * len(names)
    labels = class_names.as_read(labels, rules, root) if labelled else labels
    classes = class_names.in_order(labels, rules) if labelled else ()
    if labelled:
        places = {folder: place_in(folder, splits) for folder in folders}
        _refuse_empty(root, folders, images, {
            folder: class_names.nfc(_class_of(below, class_depth))
            for folder, (top, below) in places.items() if top or not splits})
        _warn_of_classes(root, labels, sides, class_depth)
        class_names.warn_unlabelled(classes, 'class', root, 'move its folder elsewhere if its '
                                    'images have no label')

    order = sorted(range(len(ids)), key=ids.__getitem__)
    ids = [ids[i] for i in order]
    number = {name: index for index, name in enumerate(classes)}
    columns = {
        'id': ids,
        'location': (zip_archive.locations(archive, [posixpath.join(inside, name) for name in ids],
                                           zip_encoding) if archive else
                     [_location(name) for name in ids]),
        'label/class': [number.get(labels[i], -1) for i in order],
    }
    if group_regex:
        columns['group'] = groups_from_paths(ids, group_regex)
    if splits:
        columns['split'] = [sides[i] for i in order]
    return make_manifest(columns, {'class': classes}, root=archive or root)


def _check_depth(depth) -> None:
    if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or not depth):
        raise DataError(f'data.class_depth={depth!r} is not a valid number of folders: use 1 (the '
                        f'first folder is the class), 2, ..., -1 (the last folder) or None (all '
                        f'of them).')


def _class_of(folder: str, depth: int | None) -> str:
    if depth is None:
        return folder
    parts = folder.split('/')
    return '/'.join(parts[:depth] if depth > 0 else parts[depth:])


def _warn_of_classes(root: str, labels: list[str], sides: list[str], depth: int | None) -> None:
    """Warns of class names that suggest that the wrong folders are taken for classes."""
    counts = collections.Counter(labels)
    if len(counts) == 1:
        _log.warning('%s: there is only one class, %r; is data.folder one folder too deep, or too '
                     'high?', root, labels[0])
    parents = {name.partition('/')[0] for name in counts}
    few = sum(count < _FEW for count in counts.values())
    if depth is None and 2 * len(parents) <= len(counts) < 2 * few:
        shown = ', '.join(map(repr, sorted(counts)[:3]))
        _log.warning('%s: %d of %d classes have fewer than %d images, and they lie in only %d '
                     'folders (%s, ...); if the first folder is the class, set '
                     'config.data.class_depth=1.', root, few, len(counts), _FEW, len(parents),
                     shown)
    in_split: dict[str, set[str]] = {}
    for name, side in set(zip(labels, sides)):
        in_split.setdefault(side, set()).add(name)
    known = in_split.get('train', set())
    for side, names in sorted(in_split.items()):
        if known and known.isdisjoint(names):
            _log.warning('%s: no class of the split %s (%r is one) occurs in train (%r is one).',
                         root, side, min(names), min(known))


def _location(name: str) -> str:
    # A class folder may have the name of a scheme ('digits:'): './' makes it a path.
    return f'./{name}' if scheme_of(name) else name


def _existing_folder(path: str) -> str:
    if not path:
        raise DataError('data.folder is empty: give the folder of the images, '
                        'data.folder=PATH with images at PATH/<class>/<image>.')
    root = os.path.abspath(os.path.expanduser(path))
    if os.path.isfile(root):
        hint = ('read it with data.source=csv' if root.lower().endswith(('.csv', '.tsv'))
                else 'unpack it first' if root.lower().endswith(('.tar', '.gz', '.tgz', '.7z'))
                else 'give its folder')
        raise DataError(f'data.folder={path!r} is a file, not a folder: {hint}.')
    if not os.path.isdir(root):
        raise DataError(f'The folder {path!r} {missing_path(root)}: correct data.folder.')
    return root


def _walk(root: str, extensions: tuple[str, ...], allow_outside: bool, rules: int
          ) -> Iterator[tuple[str, tuple[list[str], list[str]]]]:
    """Yields (folder relative to the root, (file names, folder names)) for every folder."""
    pending, home = [('', ())], os.path.realpath(root)
    while pending:
        folder, above = pending.pop()
        full = os.path.join(root, folder)
        try:
            status = os.stat(full)
            with os.scandir(full) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f'The folder {full!r} cannot be read ({error.strerror}): '
                            f'change its permissions or remove it.') from None
        # Only a link to a folder above makes a loop; two links to one folder are fine.
        above = (*above, (status.st_dev, status.st_ino))
        files, below = [], []
        for entry in entries:
            if _hidden(entry.name, rules):
                continue
            is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
            if (entry.is_symlink() and (is_folder or _extension(entry.name) in extensions)
                    and not allow_outside):
                _refuse_outside(home, entry.path)
            if is_folder:
                target = os.stat(entry.path)
                if (target.st_dev, target.st_ino) not in above:
                    below.append(entry.name)
            else:
                files.append(entry.name)  # broken links and pipes: the readability check names them
        yield folder, (files, below)
        pending += [(posixpath.join(folder, name), above) for name in reversed(below)]


def _refuse_outside(home: str, link: str) -> None:
    target = os.path.realpath(link)
    if not is_below(home, target):
        raise DataError(f'The link {link!r} leads to {target!r}, out of the folder: put the images '
                        f'into it, or allow this with data.allow_outside=True.')


def _visible(folders, rules: int):
    """The folders of an archive that `_walk` would have found."""
    return {folder: tuple([name for name in names if not _hidden(name, rules)]
                          for names in content)
            for folder, content in folders.items()
            if not any(_hidden(name, rules) for name in folder.split('/'))}


def _hidden(name: str, rules: int) -> bool:
    return name.startswith('.') or (name.lower() in _SKIPPED_FOLDERS if rules > 1 else
                                    name == '__MACOSX')


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _refuse_loose(root: str, names: list[str], top: str) -> None:
    if names:
        where = os.path.normpath(os.path.join(root, top))
        raise DataError(
            f'{counted(len(names), "image lies", "images lie")} in {where!r} without a class '
            f'folder (the first is {names[0]!r}): move them to {where}/<class>/, or predict them '
            f'with config.predict.labelled=False.')


def _refuse_undecodable(folder: str, names: list[str]) -> None:
    for name in names:
        try:
            posixpath.join(folder, name).encode()
        except UnicodeEncodeError:
            raise DataError(f'The file name {posixpath.join(folder, name)!r} is not UTF-8: '
                            f'rename the file.') from None


def _refuse_empty(root: str, folders, images, classes: Mapping[str, str]) -> None:
    """Refuses an empty folder whose class, {folder: name}, has no image in another one either."""
    known = {name for folder, name in classes.items() if images[folder]}
    for folder, name in classes.items():
        if folder and not folders[folder][1] and not images[folder] and name not in known:
            raise DataError(f'The class folder {os.path.join(root, folder)!r} holds no '
                            f'image: add images to it or delete it.')


def _report_others(root: str, folders, extensions: tuple[str, ...]) -> None:
    others = collections.Counter(
        _extension(name) or name for files, _ in folders.values() for name in files
        if _extension(name) not in extensions and name.lower() not in _SKIPPED_FILES)
    if others:
        kinds = ', '.join(f'{count} {kind}' for kind, count in others.most_common(5))
        _log.warning('%s: %s left out, not named as images are (%s).', root,
                     counted(others.total(), 'file was', 'files were'), kinds)
