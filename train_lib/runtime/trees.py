"""Nested dicts of arrays, by path."""

from collections.abc import Sequence
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
