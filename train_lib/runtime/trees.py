"""Nested dicts of arrays, by path."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax


def path_name(path: Sequence) -> str:
    """The path of a leaf as one name, such as 'blocks/0/attn/qkv/kernel'.

    Args:
        path: as jax.tree_util gives it, or keys and indices, as nnx gives it.
    """
    return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def by_path(tree: Any) -> dict[str, Any]:
    """{'blocks/0/attn/qkv/kernel': leaf} of every leaf of a tree, in its order."""
    return {path_name(path): leaf
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def select(tree: Mapping, keep: Callable[[str], bool], prefix: str = '') -> dict[str, Any]:
    """The leaves of nested dicts for whose path `keep` is true, as nested dicts without empty
    ones."""
    found = {}
    for key, value in tree.items():
        path = f'{prefix}{key}'
        if isinstance(value, Mapping):
            value = select(value, keep, f'{path}/')
            if not value:
                continue
        elif not keep(path):
            continue
        found[key] = value
    return found


def joined(tree: Mapping, other: Mapping) -> dict[str, Any]:
    """Two nested dicts without a common leaf as one."""
    both = dict(tree)
    for key, value in other.items():
        both[key] = joined(both[key], value) if key in both else value
    return both


def part_like(tree: Mapping, like: Mapping) -> dict[str, Any]:
    """The leaves of a nested dict that another one has as well."""
    return {key: part_like(tree[key], value) if isinstance(value, Mapping) else tree[key]
            for key, value in like.items()}
