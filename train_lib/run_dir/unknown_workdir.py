"""A workdir that does not exist, or holds no run: the runs nearby that were likely meant."""

import os
from pathlib import Path

from input_pipeline.errors import did_you_mean, listed, nearest

_LISTED = 5


def neighbours(workdir: str | Path, otherwise: str = 'give the workdir of a run.') -> str:
    """The end of an error's sentence: the runs that were likely meant.

    Args:
        workdir: as the user gave it; it holds no run.
        otherwise: the end where there is no run nearby.

    Returns:
        "did you mean 'runs/mine'?", "in runs there are a, b.", or `otherwise`.
    """
    path = Path(os.path.normpath(workdir))
    inside = _runs(path)
    if inside:  # the folder of the runs was given
        return f'did you mean {str(path / inside[0])!r}?' if len(inside) == 1 else _there(path,
                                                                                          inside)
    parent, rest = path.parent, [path.name]
    while not parent.is_dir() and parent != parent.parent:
        parent, rest = parent.parent, [parent.name, *rest]
    known = _runs(parent) if len(rest) == 1 else _folders(parent)
    for name in nearest(rest[0], known, n=3):
        whole = parent.joinpath(name, *rest[1:])
        if whole.is_dir():
            return f'did you mean {str(whole)!r}?'
    if len(rest) > 1:
        return did_you_mean(rest[0], known, show=lambda name: repr(str(parent / name)),
                            otherwise=otherwise)
    return _there(parent, known) if known else otherwise


def _there(parent: Path, names: list[str]) -> str:
    more = ', ...' if len(names) > _LISTED else '.'
    where = 'here' if parent == Path() else f'in {parent}'
    return f'{where} there {"is" if len(names) == 1 else "are"} {listed(names[:_LISTED])}{more}'


def _folders(parent: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(parent) if entry.is_dir())
    except OSError:
        return []


def _runs(parent: Path) -> list[str]:
    return [name for name in _folders(parent) if (parent / name / 'config.json').exists()]
