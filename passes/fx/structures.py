"""Nested inputs and outputs of torch graphs, as pytrees, without some of their leaves.

(logits, [k0, k1, k2], [v0, v1, v2])   without k1, v1:   (logits, [k0, k2], [v0, v2])
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch.utils import _pytree as pytree

__all__ = ["prune"]


def prune(spec: pytree.TreeSpec, gone: Collection[int]) -> pytree.TreeSpec:
    """A structure without some of its leaves, by their places; lists and tuples that this empties go too.

    A cache of transformers, which notes something of each layer, notes it of those that are left.

    Raises:
        ValueError: They stand in a structure that cannot be shortened.
    """
    pruned, _ = _prune(spec, frozenset(gone), 0)
    return pytree.TreeSpec(tuple, None, []) if pruned is None else pruned


def _prune(spec: pytree.TreeSpec, gone: frozenset[int], first: int) -> tuple[pytree.TreeSpec | None, int]:
    """What is left of `spec`, whose leaves count from `first`, and the place of the next leaf."""
    if spec.is_leaf():
        return (None if first in gone else spec), first + 1
    children, places = [], [first]
    for child in spec.children():
        left, place = _prune(child, gone, places[-1])
        children.append(left)
        places.append(place)
    if gone.isdisjoint(range(first, places[-1])):
        return spec, places[-1]
    kept = [child for child in children if child is not None]
    if not kept and spec.type in (list, tuple):
        return None, places[-1]
    context = _by_layer(spec, places, gone)
    if len(kept) < len(children) and spec.type not in (list, tuple):
        context = _by_child(spec.type, context, children)
    return pytree.TreeSpec(spec.type, context, kept), places[-1]


def _by_child(kind: Any, context: Any, children: Sequence[pytree.TreeSpec | None]) -> Any:
    """Keys of a dict, for the children that are left."""
    if not isinstance(context, (list, tuple)) or len(context) != len(children):
        raise ValueError(f"{getattr(kind, '__name__', kind)} has no places that could be left out")
    return type(context)(key for key, child in zip(context, children, strict=True) if child is not None)


def _by_layer(spec: pytree.TreeSpec, places: Sequence[int], gone: frozenset[int]) -> Any:
    """What a cache notes of each layer, for those left: its children are lists that all lost the same."""
    lists = spec.children()
    context = spec.context
    if not isinstance(context, (list, tuple)) or any(child.type is not list for child in lists):
        return context
    left = {
        (child.num_leaves, tuple(index for index in range(child.num_leaves) if start + index not in gone))
        for child, start in zip(lists, places, strict=False)
    }
    if len(left) != 1:
        return context
    ((size, kept),) = left
    return type(context)(
        [each[index] for index in kept] if isinstance(each, list) and _is_by_layer(each, size) else each
        for each in context
    )


def _is_by_layer(noted: Sequence[Any], size: int) -> bool:
    return len(noted) == size and not all(isinstance(each, str) for each in noted)
