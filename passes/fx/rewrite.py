r"""Write one wide FFN where a group of blocks stood, in a torch.fx graph.

    x0 ---> first norm, gain folded ---> wide gate, wide up ---> act ---> wide down ---> + ---> xn
     \----------------------------------------------------------------------------------^

1. The first block's unit-gain norm is reused; one operator that also applies the gain is copied without it.
2. The first block's elementwise region is copied, so an activation stays spelled as it was.
3. The group's last add stays the same node, but reads x0; readers of a shape in between read x0's.
4. Nothing is removed here but what nothing reads any more.
5. A form may ask for one product of gate and up, and for slices of the width: they read views of the weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from fxfuse.passes.elementwise import region
from fxfuse.passes.forms import Form
from fxfuse.passes.fx import decode  # noqa: F401 - registers the operators
from fxfuse.passes.fx.calls import ASSERTIONS, SHAPE_READERS, name_of
from fxfuse.passes.fx.unit_norm import cast, is_aten, node_of, unit_norm
from fxfuse.passes.fx.view import FxView
from fxfuse.passes.fx.writes import has_effect
from fxfuse.passes.naming import MARK
from fxfuse.passes.records import Block, Value
from fxfuse.passes.view import Op, Operand, root

__all__ = ["rewrite_group", "wide_branch", "remove_unread"]


def rewrite_group(
    view: FxView,
    blocks: Sequence[Block],
    weights: Mapping[str, fx.Node],
    form: Form = Form(),  # noqa: B008
) -> fx.Node:
    """Replace `blocks` by one wide FFN over `weights` (nodes, by role as `form` stores them); returns xn."""
    first, out = blocks[0], node_of(blocks[-1].out)
    x, graph = node_of(first.x), view.module.graph
    before = out.prev
    with graph.inserting_before(out):
        branch = _as_typed(view, wide_branch(view, blocks, weights, form), first, out)
    for block in blocks[1:]:
        _redirect_shapes(view, block, x)
    for block in blocks:
        _make_plain(node_of(block.out))
    out.args, out.kwargs = (x, branch), {}
    _mark(before.next, out, blocks)
    return out


def wide_branch(
    view: FxView,
    blocks: Sequence[Block],
    weights: Mapping[str, fx.Node],
    form: Form = Form(),  # noqa: B008
) -> fx.Node:
    """The wide FFN on the unit-gain norm of the first block's x, written at the current insertion point."""
    first, width = blocks[0], sum(block.intermediate_size for block in blocks)
    if form.products == "kernel":
        return _kernels(view, first, weights)
    hidden = unit_norm(view, first)
    spans = form.spans(width)
    cut = _Cut(view, first, weights, len(spans) > 1, form.products == "sums")
    total = _slice(cut, hidden, *spans[0], bias=weights.get("down_bias"))
    for start, stop in spans[1:]:
        total = cut.call(torch.add, torch.ops.aten.add.Tensor, total, _slice(cut, hidden, start, stop))
    return total


def _slice(cut: _Cut, hidden: fx.Node, start: int, stop: int, bias: fx.Node | None = None) -> fx.Node:
    """A slice of the width, from the norm to its last product."""
    activation, size = cut.first.ffn.activation, stop - start
    known: dict[Value, fx.Node] = {}
    if "gate_up" in cut.weights:
        both = cut.product(hidden, "gate_up", 2 * start, 2 * stop)
        known[activation.gate] = cut.part(both, -1, 0, size)
        known[activation.up] = cut.part(both, -1, size, 2 * size)
    else:
        known[activation.gate] = cut.product(hidden, "gate", start, stop)
        if activation.up is not None:
            known[activation.up] = cut.product(hidden, "up", start, stop)
    inner = _copy_region(cut.view, node_of(activation.output), known)
    down = cut.weights["down"]
    return cut.linear(inner, cut.part(down, 1, start, stop) if cut.sliced else down, bias)


def _kernels(view: FxView, first: Block, weights: Mapping[str, fx.Node]) -> fx.Node:
    """The two operators of `decode`, and the sum of the parts of the second."""
    call, activation = view.module.graph.call_function, first.ffn.activation.name
    inner = call(
        torch.ops.fxfuse.gate_up.default,
        (node_of(first.x), weights["gate"], weights["up"], first.norm.eps, activation),
    )
    parts = call(torch.ops.fxfuse.down.default, (inner, weights["down"]))
    total = call(torch.ops.aten.sum.dim_IntList, (parts, [0]))
    return cast(view, total, first, first.dtype)


@dataclass(frozen=True)
class _Cut:
    """Writes products of slices, in the operators that the graph is written in."""

    view: FxView
    first: Block
    weights: Mapping[str, fx.Node]
    sliced: bool
    sums: bool = False

    def call(self, plain: Any, aten: Any, *args: Any) -> fx.Node:
        """A call of one of two spellings of an operator."""
        return self.view.module.graph.call_function(aten if is_aten(self.view, self.first) else plain, args)

    def part(self, node: fx.Node, dim: int, start: int, stop: int) -> fx.Node:
        """A view of `node` from `start` to `stop`."""
        if is_aten(self.view, self.first):
            return self.view.module.graph.call_function(torch.ops.aten.slice.Tensor, (node, dim, start, stop))
        return self.view.module.graph.call_function(torch.narrow, (node, dim, start, stop - start))

    def linear(self, x: fx.Node, weight: fx.Node, bias: fx.Node | None) -> fx.Node:
        """A product and its bias."""
        if self.sums:
            aten = torch.ops.aten
            column = self.call(torch.unsqueeze, aten.unsqueeze.default, x, -2)
            terms = self.call(torch.mul, aten.mul.Tensor, column, weight)
            total = self.call(torch.sum, aten.sum.dim_IntList, terms, [-1])
            return total if bias is None else self.call(torch.add, aten.add.Tensor, total, bias)
        return self.call(F.linear, torch.ops.aten.linear.default, x, weight, bias)

    def product(self, x: fx.Node, role: str, start: int, stop: int) -> fx.Node:
        """One of the first products, with the rows of its weight from `start` to `stop`."""
        weight, bias = self.weights[role], self.weights.get(f"{role}_bias")
        if self.sliced:
            weight = self.part(weight, 0, start, stop)
            bias = self.part(bias, 0, start, stop) if bias is not None else None
        return self.linear(x, weight, bias)


def remove_unread(graph: fx.Graph, covered: Collection[object]) -> None:
    """Drop calls that nothing reads, and assertions about values that only they kept alive.

    `covered` are values of blocks that were fused: their inactive dropouts count as impure in torch, yet may
    go. A call that nothing reads because it writes in place stays.
    """
    for node in reversed(graph.nodes):
        if node.op.startswith("call_") and name_of(node) in ASSERTIONS:
            source = node.args[0]
            if isinstance(source, fx.Node) and all(name_of(user) in ASSERTIONS for user in source.users):
                graph.erase_node(node)
        elif not node.users and node.op.startswith("call_") and (node in covered or not has_effect(node)):
            graph.erase_node(node)


def _mark(node: fx.Node, stop: fx.Node, blocks: Sequence[Block]) -> None:
    """Note on each new node where it came from; torch keeps "custom" through copies, exports and files."""
    while node is not stop:
        node.meta["custom"] = {MARK: ", ".join(block.name for block in blocks)}
        node = node.next


def _make_plain(out: fx.Node) -> None:
    """Turn an add of any spelling into one that writes over nothing, since x0 is read again."""
    aten = isinstance(out.target, torch._ops.OpOverload)
    out.op, out.target = "call_function", torch.ops.aten.add.Tensor if aten else torch.add


def _as_typed(view: FxView, branch: fx.Node, first: Block, out: fx.Node) -> fx.Node:
    """`branch` in the type of the sum, where a constant of a wider type had promoted it."""
    wanted = view.dtype(out)
    if wanted is None or wanted in (first.dtype, view.dtype(first.x)):
        return branch
    return cast(view, branch, first, wanted)


def _copy_region(view: FxView, output: fx.Node, known: dict[Value, fx.Node]) -> fx.Node:
    """Copy the elementwise operators above `output`, with new values in the place of the products."""
    inside = region(view, output, lambda value: value in known)
    hidden = {leaf for leaf in inside.leaves if isinstance(leaf, Op)}
    passed = {each for node in inside.interior if (op := view.op(node)) for each in op.via}
    for node in sorted((node_of(each) for each in inside.interior - passed), key=view.index):
        op = view.op(node)
        if op is not None and op.kind == "pass":
            known[node] = known[op.inputs[0]]
        elif op is not None and hidden:
            known[node] = _spell_out(view, op, known)
        else:
            known[node] = view.module.graph.node_copy(node, lambda each: known.get(each, each))
            known[node].meta = {}
    return known[output]


def _spell_out(view: FxView, operand: Operand, known: Mapping[Value, fx.Node]) -> Any:
    """Write an operator that splits a packed product by itself (glu) as what it computes."""
    if not isinstance(operand, Op) or operand in known:
        return known.get(operand, operand)
    inputs = tuple(_spell_out(view, each, known) for each in operand.inputs)
    like = next(each for each in inputs if isinstance(each, fx.Node))
    aten = isinstance(like.target, torch._ops.OpOverload)
    return view.module.graph.call_function(_SPELLED[operand.kind][aten], inputs)


_SPELLED: dict[str, tuple[Any, Any]] = {
    "mul": (torch.mul, torch.ops.aten.mul.Tensor),
    "sigmoid": (torch.sigmoid, torch.ops.aten.sigmoid.default),
}


def _redirect_shapes(view: FxView, block: Block, x: fx.Node) -> None:
    """Let readers of the shape of a stream that is gone read x0's, which is the same."""
    stream = root(view, block.x)
    for value in (*block.interior, block.x, stream):
        if not isinstance(value, fx.Node) or root(view, value) != stream:
            continue
        for user in list(value.users):
            if user.op != "output" and name_of(user) in SHAPE_READERS:
                user.replace_input_with(value, x)
