"""Classes as leaves of a tree: the name 'Korean/character01' is cut into levels at '/'."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SEPARATOR = '/'


class Level(NamedTuple):
    """One level of a tree of classes.

    Attributes:
        names: of its nodes, such as 'Korean', in the order of their first class.
        nodes: int32 [C], the node above each class.
    """

    names: tuple[str, ...]
    nodes: np.ndarray


def levels_of(names: Sequence[str]) -> list[Level]:
    """The levels from the first folder to the classes themselves; a class with fewer parts than
    others is a node of its own on the levels that it lacks.

    Args:
        names: of the C classes.

    Returns:
        As many levels as the longest name has parts; one where no name has a '/'.
    """
    parts = [name.split(SEPARATOR) for name in names]
    found = []
    for depth in range(1, max(map(len, parts)) + 1):
        places: dict[tuple[str, ...], int] = {}
        nodes = [places.setdefault(tuple(one[:depth]), len(places)) for one in parts]
        found.append(Level(tuple(map(SEPARATOR.join, places)), np.array(nodes, np.int32)))
    return found


def inner_levels(names: Sequence[str]) -> list[Level]:
    """The levels above the classes that say something: more than one node, and fewer than
    classes."""
    return [level for level in levels_of(names) if 1 < len(level.names) < len(names)]
