r"""Take attentions out of a torch.fx graph, with all that only served them.

    x ---> norm ---> attention ---> + ---> out        becomes        x, read wherever out was read
     \------------------------------^

1. Whatever read out reads x; of attentions in a row each reads the stream that is left.
2. Keys and values that the graph returned are returned no more.
3. What nothing reads any more goes: calls, and inputs that only these attentions read. Token ids, masks and
   positions stay, since whoever runs the graph gives them anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from fxfuse.passes.attention import Attention
from fxfuse.passes.fx.rewrite import remove_unread
from fxfuse.passes.fx.view import FxView
from fxfuse.passes.fx.writes import Writes, has_effect

__all__ = ["Dropped", "bypass", "unread_inputs"]

_CACHE_RANK = 3


@dataclass(frozen=True)
class Dropped:
    """Places of outputs that went, among all values that the graph returns in order."""

    outputs: tuple[int, ...]


def bypass(view: FxView, attentions: Sequence[Attention]) -> Dropped:
    """Take `attentions` out of `view.module.graph`, which is changed; its inputs stay for `unread_inputs`."""
    graph = view.module.graph
    left: dict[object, Any] = {}  # what is read instead of a stream that is gone
    for attention in attentions:
        x, out = left.get(attention.x, attention.x), attention.out
        assert isinstance(x, fx.Node)
        assert isinstance(out, fx.Node)
        out.replace_all_uses_with(x)
        left = {key: x if value is out else value for key, value in left.items()} | {out: x}
    gone = {value for attention in attentions for value in attention.cache}
    dropped = _drop_outputs(graph, gone)
    covered = {value for each in attentions for value in (*each.interior, each.out)}
    remove_unread(graph, covered)
    while _remove_unread_writes(view):
        remove_unread(graph, covered)
    for node in graph.find_nodes(op="get_attr"):
        if not node.users:
            graph.erase_node(node)
    return dropped


def unread_inputs(before: fx.Graph, after: fx.Graph) -> list[fx.Node]:
    """Placeholders of `after` that nothing reads though something did in `before`: weights, and caches.

    What holds whole numbers stays, and so does what has less than three axes and is no weight.
    """
    read = {node.name for node in before.find_nodes(op="placeholder") if node.users}
    return [
        node
        for node in after.find_nodes(op="placeholder")
        if node.name in read and not node.users and _may_go(node)
    ]


def _remove_unread_writes(view: FxView) -> bool:
    """Remove what fills memory of the graph's own that nothing reads any more; whether there was any.

    A kernel for keys that are put together in place leaves writes behind: k = empty(); k[..., :8].copy_(r).
    """
    removed = False
    for root, writers in Writes(view.module).by_storage().items():
        around = _users(root)
        fills = {*writers, *around}
        if root.op != "call_function" or any(node.op == "output" for node in around):
            continue
        if all(node in writers or not has_effect(node) for node in around):
            for node in reversed([node for node in view.module.graph.nodes if node in fills]):
                view.module.graph.erase_node(node)
            removed = True
    return removed


def _users(node: fx.Node) -> set[fx.Node]:
    """All that is computed from a value."""
    found, stack = set[fx.Node](), list(node.users)
    while stack:
        user = stack.pop()
        if user not in found:
            found.add(user)
            stack += user.users
    return found


def _may_go(node: fx.Node) -> bool:
    meta = node.meta.get("val", node.meta.get("example_value"))
    if meta is None or not hasattr(meta, "shape"):
        return False
    is_weight = "tensor_dict" in node.meta or node.name.startswith(("p_", "b_", "c_"))
    return bool(meta.is_floating_point()) and (is_weight or len(meta.shape) >= _CACHE_RANK)


def _drop_outputs(graph: fx.Graph, gone: Collection[object]) -> Dropped:
    output = next(iter(reversed(graph.nodes)))
    flat, _ = pytree.tree_flatten(output.args[0], is_leaf=lambda each: isinstance(each, fx.Node))
    places = tuple(place for place, each in enumerate(flat) if each in gone)
    if places:
        output.args = (_without(output.args[0], gone),)
    return Dropped(places)


def _without(value: Any, gone: Collection[object]) -> Any:
    """A nested result without some values; lists and tuples that they empty go too."""
    if isinstance(value, (list, tuple)):
        left = [_without(each, gone) for each in value if not (isinstance(each, fx.Node) and each in gone)]
        left = [new for new in left if not (isinstance(new, (list, tuple)) and not new)] if value else left
        return type(value)(left) if type(value) in (list, tuple) else tuple(left)
    if isinstance(value, dict):
        return {key: _without(each, gone) for key, each in value.items() if each not in gone}
    return value
