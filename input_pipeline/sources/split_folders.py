"""Which folders of a folder set are splits: `train/<class>/...`, `Testing/<class>/...`.

A folder is a split if its name is one of a split, in upper or lower case, perhaps with a word such
as `_set` or `images` behind it. The splits may lie together in other folders that hold nothing else
(`dataset/train`), and a split in a folder of its own name (`training_set/training_set`). A name
that only looks like one (`train2017`) is refused, because a test set that is taken for classes
would be trained on.
"""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from input_pipeline.errors import DataError, listed

SPLIT_NAMES = {'train': 'train', 'training': 'train', 'val': 'val', 'valid': 'val',
               'validation': 'val', 'test': 'test', 'testing': 'test'}
# By rules 1 (config.data.rules) only these are splits, exactly so and on top.
_NAMES_1 = ('train', 'val', 'valid', 'validation', 'test')
_MORE = r'[\W_]*(sets?|data|dataset|splits?|images?|imgs?|pictures|photos|files)?'
_PATTERNS = {re.compile(name + _MORE, re.IGNORECASE): side for name, side in SPLIT_NAMES.items()}
# Words that make a folder look like a split.
_WORDS = SPLIT_NAMES | {'trainset': 'train', 'valset': 'val', 'testset': 'test', 'dev': 'val',
                        'eval': 'test', 'evaluation': 'test', 'holdout': 'test', 'trains': 'train',
                        'tests': 'test', 'trn': 'train', 'tst': 'test'}
# Parts of a name that do, as Korean does not set words apart.
_KOREAN = {'학습': 'train', '훈련': 'train', '검증': 'val', '평가': 'test', '시험': 'test',
           '테스트': 'test'}

Folders = Mapping[str, tuple[Sequence[str], Sequence[str]]]
Tree = Mapping[str, set[str]]  # {folder: names of the folders in it that hold images}


def side_of(name: str, rules: int = 2) -> str:
    """'train', 'val' or 'test' for the name of a split, else ''."""
    if rules < 2:
        return SPLIT_NAMES[name] if name in _NAMES_1 else ''
    return next((side for pattern, side in _PATTERNS.items() if pattern.fullmatch(name)), '')


def split_folders(root: str, folders: Folders, images: Mapping[str, Sequence[str]],
                  rules: int = 2) -> dict[str, str]:
    """{folder of a split: 'train', 'val' or 'test'}; {} if the folders are classes.

    Args:
        root: for messages.
        folders: {folder relative to the root: (file names, folder names)}.
        images: {folder: names of its images}.
        rules: `config.data.rules`; by rules 1 splits have lower case and lie on top.

    Raises:
        DataError: split folders are mixed with others, only look like some, or lie in the
            class folders.
    """
    holding = _tree(folder for folder, names in images.items() if names)
    base, tops = '', _children(holding, '')
    while not any(side_of(top, rules) for top in tops):
        if rules < 2 or len(tops) != 1 or images.get(base):
            break
        base = posixpath.join(base, *tops)
        tops = _children(holding, base)
    if images.get(base):  # these are the images of a class
        return {}
    named = {top: side for top in folders[base][1] if (side := side_of(top, rules))}
    if not set(named) & tops:
        if rules > 1:
            _refuse_likeness(root, base, holding, tops)
            _refuse_splits_of_classes(root, base, holding, images)
        return {}
    others = sorted(tops - set(named))
    if others:
        _refuse_mixed(root, base, holding, named, others)
        return {}
    found = {posixpath.join(base, top): side for top, side in named.items()}
    return found if rules < 2 else {_innermost(root, folder, side, holding, images): side
                                    for folder, side in found.items()}


def place_in(folder: str, splits: Mapping[str, str]) -> tuple[str, str]:
    """(the split folder that a folder lies in or is, the rest of its path); ('', folder) if it
    lies in none."""
    for top in splits:
        if folder == top or folder.startswith(f'{top}/'):
            return top, folder[len(top) + 1:]
    return '', folder


def _tree(holding: Iterable[str]) -> Tree:
    """The folders that hold images, and all above them."""
    tree: dict[str, set[str]] = {}
    for folder in holding:
        while folder:
            above, _, name = folder.rpartition('/')
            inside = tree.setdefault(above, set())
            if name in inside:
                break
            inside.add(name)
            folder = above
    return tree


def _children(holding: Tree, base: str) -> set[str]:
    """Names of the folders in `base` that hold images, directly or deeper."""
    return holding.get(base, set())


def _innermost(root: str, folder: str, side: str, holding: Tree,
               images: Mapping[str, Sequence[str]]) -> str:
    """The folder whose children are the classes of a split."""
    while not images.get(folder):
        inside = _children(holding, folder)
        again = {name for name in inside if side_of(name)}
        nested = {name for name in again if _children(holding, posixpath.join(folder, name))}
        if len(inside) == 1 and {side_of(name) for name in nested} == {side}:
            folder = posixpath.join(folder, *inside)
        elif nested == inside and inside:
            raise DataError(f'The split folder {os.path.join(root, folder)!r} holds splits again '
                            f'({listed(sorted(inside))}): move them next to it.')
        else:
            break
    return folder


def _refuse_mixed(root: str, base: str, holding: Tree, named: Mapping[str, str],
                  others: Sequence[str]) -> None:
    # A class may be called 'train' or 'test'; then its folder looks like those of other classes.
    nested = sorted(name for name in named if _children(holding, posixpath.join(base, name)))
    if nested:
        likely = next((name for name in others if _likeness(name)), '')
        hint = likely and f'rename {likely!r} to train, val or test if it is a split too, or '
        raise DataError(
            f'The folder {_path(root, base)!r} contains a split folder {nested[0]!r} and '
            f'also {others[0]!r}: {hint}move {others[0]!r} elsewhere if {nested[0]!r} is a split, '
            f'else rename {nested[0]!r}.')


def _path(root: str, base: str) -> str:
    return os.path.join(root, base) if base else root


def _likeness(name: str) -> str:
    """The split that a word in a name means, else ''."""
    name = unicodedata.normalize('NFKC', name)
    words = re.findall('[a-z]+', re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', name).lower())
    korean = (side for part, side in _KOREAN.items() if part in name)
    return next((_WORDS[word] for word in words if word in _WORDS), next(korean, ''))


def _refuse_likeness(root: str, base: str, holding: Tree, tops: set[str]) -> None:
    """Refuses folders such as train2017 and seg_test, but not a class like bullet_train."""
    below = {top: {name.casefold() for name in _children(holding, posixpath.join(base, top))}
             for top in tops}
    like = {top: side for top in sorted(tops) if below[top] and (side := _likeness(top))}
    shared = [top for top in like if any(below[top] & below[other] for other in tops - {top})]
    if shared or len(set(like.values())) > 1:
        one = (shared or list(like))[0]
        raise DataError(
            f'The folder {_path(root, base)!r} contains {one!r}, which looks like a split '
            f'folder with classes in it: rename it to train, val or test if it is one (and move '
            f'elsewhere what belongs to none), else give it a name without such a word.')


def _refuse_splits_of_classes(root: str, base: str, holding: Tree,
                              images: Mapping[str, Sequence[str]]) -> None:
    """Refuses <class>/train/image, <class>/test/image."""
    tops = sorted(_children(holding, base))
    inside = [(top, _children(holding, posixpath.join(base, top))) for top in tops]
    sides = {side_of(name) for _, names in inside for name in names}
    direct = any(images.get(posixpath.join(base, top)) for top in tops)
    if inside and not direct and '' not in sides and len(sides) > 1:
        top, names = inside[0]
        name = min(names)
        raise DataError(
            f'Every class folder of {_path(root, base)!r} contains splits, such as '
            f'{posixpath.join(top, name)!r}: move them on top, as {posixpath.join(name, top)!r}.')
