"""A folder of pictures: `PATH/<class>/**/image.*`.

The class of an image is its folder relative to PATH, so `Korean/character01/7.png` has the class
`Korean/character01`. If PATH contains `train`, `val` (`valid`, `validation`) and `test` folders
and no other images, these are the splits, and the class is relative to them. Links are followed,
but out of PATH only if that is allowed. PATH may also be a zip archive, or a folder in one
(`photos.zip/train`), which is read without unpacking it.
"""

import collections
import logging
import os
import posixpath
from collections.abc import Iterator

from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest, make_manifest
from input_pipeline.sources import (
    groups_from_paths,
    is_below,
    missing_path,
    scheme_of,
    zip_archive,
)

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif')
SPLIT_NAMES = {'train': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val',
               'test': 'test'}
_SKIPPED_FOLDERS = ('__MACOSX',)

_log = logging.getLogger(__name__)


def load(path: str, *, group_regex: str = '', extensions=EXTENSIONS, labelled: bool = True,
         allow_outside: bool = False) -> Manifest:
    """The manifest of a folder; `id` is the path relative to it, with forward slashes.

    Args:
        path: the folder or zip archive.
        group_regex: searched in the relative path; its first capture group (else the whole
            match) is the group. '' for no groups.
        extensions: file extensions of images, in upper or lower case.
        labelled: False if folders are not classes: images may lie anywhere and have no labels.
        allow_outside: follow links that lead out of the folder.

    Raises:
        DataError: the folder does not exist or has no images; an image has no class folder, or
            a class folder no image; split folders are mixed with others; `group_regex` does not
            match a path; a link leads out of the folder.
    """
    archive, inside = zip_archive.split_path(path) if path else ('', '')
    root = os.path.join(archive, inside) if archive else _existing_folder(path)
    extensions = tuple(
        ext.lower() if ext.startswith('.') else f'.{ext.lower()}' for ext in extensions)
    folders = (_visible(zip_archive.walk(archive, inside)) if archive else
               dict(_walk(root, extensions, allow_outside)))
    images = {folder: [name for name in files if _extension(name) in extensions]
              for folder, (files, _) in folders.items()}
    if not any(images.values()):
        raise DataError(f'The folder {root!r} holds no images ({" ".join(extensions)}): '
                        f'put them at {root}/<class>/<image>.')
    if labelled:
        _refuse_loose(root, images[''], '')
    _report_others(root, folders, extensions)

    splits = _split_folders(root, folders, images) if labelled else {}
    ids, labels, sides = [], [], []
    for folder, names in images.items():
        top, _, below = folder.partition('/')
        if splits:
            _refuse_loose(root, names if folder == top else [], top)
        _refuse_undecodable(folder, names)
        ids += [posixpath.join(folder, name) for name in names]
        labels += [below if splits else folder] * len(names)
        sides += [splits.get(top, '')] * len(names)
    classes = tuple(sorted(set(labels))) if labelled else ()
    if labelled:
        _refuse_empty(root, folders, images, set(classes), bool(splits))

    order = sorted(range(len(ids)), key=ids.__getitem__)
    ids = [ids[i] for i in order]
    number = {name: index for index, name in enumerate(classes)}
    columns = {
        'id': ids,
        'location': [_location(name, archive, inside) for name in ids],
        'label/class': [number.get(labels[i], -1) for i in order],
    }
    if group_regex:
        columns['group'] = groups_from_paths(ids, group_regex)
    if splits:
        columns['split'] = [sides[i] for i in order]
    return make_manifest(columns, {'class': classes}, root=archive or root)


def _location(name: str, archive: str, inside: str) -> str:
    if archive:
        return f'zip:{posixpath.join(inside, name)}'
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


def _walk(root: str, extensions: tuple[str, ...], allow_outside: bool
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
            if _hidden(entry.name):
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


def _visible(folders):
    """The folders of an archive that `_walk` would have found."""
    return {folder: tuple([name for name in names if not _hidden(name)] for names in content)
            for folder, content in folders.items()
            if not any(_hidden(name) for name in folder.split('/'))}


def _hidden(name: str) -> bool:
    return name.startswith('.') or name in _SKIPPED_FOLDERS


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _split_folders(root: str, folders, images) -> dict[str, str]:
    """{top folder: split} if these folders are splits, else {}."""
    holding = {folder.partition('/')[0] for folder, names in images.items() if names}
    named = {top: SPLIT_NAMES[top] for top in folders[''][1] if top in SPLIT_NAMES}
    others = sorted(holding - set(named))
    if not named or not holding & set(named):
        return {}
    if not others:
        return named
    # A class may be called 'train' or 'test'; then its folder looks like those of other classes.
    nested = sorted({folder.partition('/')[0] for folder, names in images.items()
                     if names and '/' in folder} & set(named))
    if nested:
        raise DataError(
            f'The folder {root!r} contains a split folder {nested[0]!r} and also {others[0]!r}: '
            f'move {others[0]!r} elsewhere if {nested[0]!r} is a split, else rename '
            f'{nested[0]!r}.')
    return {}


def _refuse_loose(root: str, names: list[str], top: str) -> None:
    if names:
        where = os.path.join(root, top)
        raise DataError(
            f'{len(names)} images lie in {where!r} without a class folder '
            f'(the first is {names[0]!r}): move them to {where}/<class>/, or predict them with '
            f'config.predict.labelled=False.')


def _refuse_undecodable(folder: str, names: list[str]) -> None:
    for name in names:
        try:
            posixpath.join(folder, name).encode()
        except UnicodeEncodeError:
            raise DataError(f'The file name {posixpath.join(folder, name)!r} is not UTF-8: '
                            f'rename the file.') from None


def _refuse_empty(root: str, folders, images, classes: set[str], splits: bool) -> None:
    for folder, (_, below) in folders.items():
        if folder and not below and not images[folder]:
            name = folder.partition('/')[2] if splits else folder
            # A class may be empty in one split, but not in all of them.
            if name not in classes:
                raise DataError(f'The class folder {os.path.join(root, folder)!r} holds no '
                                f'image: add images to it or delete it.')


def _report_others(root: str, folders, extensions: tuple[str, ...]) -> None:
    others = collections.Counter(
        _extension(name) or name for files, _ in folders.values() for name in files
        if _extension(name) not in extensions and name != 'Thumbs.db')
    if others:
        kinds = ', '.join(f'{count} {kind}' for kind, count in others.most_common(5))
        _log.warning('%s: %d files whose names are not those of images were left out (%s).',
                     root, others.total(), kinds)
