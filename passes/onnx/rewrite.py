r"""Write one wide FFN where a group of blocks stood, in an ONNX graph.

    x0 ---> first norm, gain folded ---> wide gate, wide up ---> act ---> wide down ---> Add ---> xn
     \-----------------------------------------------------------------------------------^

1. The first block's unit-gain norm is reused; one operator that also applies the gain is copied with ones.
2. The first block's elementwise region is copied, so an activation stays spelled as it was.
3. The group's last Add keeps its name and its output and reads x0 and the wide branch.
4. Readers of a shape in between read x0's.
5. A form may ask for one product of gate and up, for slices of the width, and for the norm as one operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from fxfuse.passes.elementwise import region
from fxfuse.passes.forms import Form
from fxfuse.passes.onnx.unit_norm import unit_norm
from fxfuse.passes.onnx.view import OnnxView
from fxfuse.passes.onnx.writer import Writer, cast, split
from fxfuse.passes.records import Block, Value
from fxfuse.passes.view import root, strip

__all__ = ["copy_region", "insert", "put_branch", "rewrite_group"]


def rewrite_group(
    view: OnnxView,
    blocks: Sequence[Block],
    weights: Mapping[str, np.ndarray],
    prefix: str,
    form: Form = Form(),  # noqa: B008
) -> Writer:
    """Replace `blocks` by one wide FFN over `weights` (arrays, by role as `form` stores them, [out, in]).

    New nodes stand in `Writer.nodes`, in order; `insert` puts them into the graph.
    """
    writer = Writer(view.graph, prefix)
    tensors = {
        name: writer.constant(name, array.T if array.ndim == 2 else array) for name, array in weights.items()
    }
    writer.weights = {name: tensor.name for name, tensor in tensors.items()}
    put_branch(view, writer, blocks, _wide_branch(view, writer, blocks, tensors, form))
    return writer


def put_branch(view: OnnxView, writer: Writer, blocks: Sequence[Block], branch: gs.Tensor) -> None:
    """Let the last add of `blocks` read the stream before the first and the wide `branch`."""
    first, last = blocks[0], blocks[-1]
    branch = _as_typed(view, writer, branch, last)
    add = view.tensors[str(last.out)].inputs[0]
    for index, value in enumerate(add.inputs):
        add.inputs[index] = branch if value.name == last.branch else view.tensors[str(first.x)]
    for block in blocks[1:]:
        _redirect_shapes(view, block, first.x)
    writer.before, writer.branch = add, branch.name


def insert(graph: gs.Graph, writers: Sequence[Writer]) -> None:
    """Put the new nodes of every group before its last add, in one pass over the graph."""
    places = {id(writer.before): writer.nodes for writer in writers}
    ordered = [each for node in graph.nodes for each in (*places.get(id(node), ()), node)]
    graph.nodes = ordered


def _wide_branch(
    view: OnnxView,
    writer: Writer,
    blocks: Sequence[Block],
    weights: Mapping[str, gs.Constant],
    form: Form,
) -> gs.Tensor:
    first = blocks[0]
    hidden = unit_norm(view, writer, first, form.norm)
    names = form.suffixes(sum(block.intermediate_size for block in blocks))
    parts = [_slice(view, writer, first, hidden, weights, name) for name in names]
    total = parts[0] if len(parts) == 1 else writer.node("Sum", parts, "down_sum", parts[0])
    return _biased(writer, total, weights, "down")


def _slice(
    view: OnnxView,
    writer: Writer,
    first: Block,
    hidden: gs.Tensor,
    weights: Mapping[str, gs.Constant],
    suffix: str,
) -> gs.Tensor:
    """A slice of the width, from the norm to its last product."""
    activation = first.ffn.activation
    packed = weights.get(f"gate_up{suffix}")
    if packed is not None:
        both = _linear(writer, hidden, weights, f"gate_up{suffix}")
        half = packed.values.shape[1] // 2
        gate, up = split(view, writer, both, [half, half], ["gate", "up"])
        known: dict[Value, gs.Tensor] = {activation.gate: gate, activation.up: up}
    else:
        known = {activation.gate: _linear(writer, hidden, weights, f"gate{suffix}")}
        if activation.up is not None:
            known[activation.up] = _linear(writer, hidden, weights, f"up{suffix}")
    inner = copy_region(view, writer, activation.output, known)
    return _product(writer, inner, weights, f"down{suffix}")


def _as_typed(view: OnnxView, writer: Writer, branch: gs.Tensor, last: Block) -> gs.Tensor:
    """The branch in the stream's type, which an FFN of another type is cast to before its Add."""
    known = view.dtype(last.branch)
    return branch if known in (None, last.dtype) else cast(writer, branch, "branch_cast", str(known))


def _linear(writer: Writer, x: gs.Tensor, weights: Mapping[str, gs.Constant], role: str) -> gs.Tensor:
    return _biased(writer, _product(writer, x, weights, role), weights, role)


def _product(writer: Writer, x: gs.Tensor, weights: Mapping[str, gs.Constant], role: str) -> gs.Tensor:
    return writer.node("MatMul", [x, weights[role]], f"{role}_proj", x)


def _biased(writer: Writer, x: gs.Tensor, weights: Mapping[str, gs.Constant], role: str) -> gs.Tensor:
    bias = weights.get(f"{role}_bias")
    return x if bias is None else writer.node("Add", [x, bias], f"{role}_proj_bias", x)


def copy_region(view: OnnxView, writer: Writer, output: Value, known: dict[Value, gs.Tensor]) -> gs.Tensor:
    """Copy the elementwise operators above `output`, with new values in the place of the products."""
    inside = region(view, output, lambda value: value in known)
    producers = {id(node): node for node in (view.tensors[str(each)].inputs[0] for each in inside.interior)}
    for node in sorted(producers.values(), key=view.position):
        op = view.op(node.outputs[0].name)
        if op is not None and op.kind == "pass":
            known[node.outputs[0].name] = known[op.inputs[0]]
            continue
        inputs = [known.get(each.name, each) for each in node.inputs]
        old = node.outputs[0]
        known[old.name] = writer.node(node.op, inputs, node.op.lower(), old, domain=node.domain, **node.attrs)
    return known[output]


def _redirect_shapes(view: OnnxView, block: Block, x: Value) -> None:
    """Let readers of the shape of a stream that is gone read x0's, which is the same."""
    stream = strip(view, root(view, block.x))
    for value in (*block.interior, block.x):
        tensor = view.tensors.get(str(value))
        if tensor is None or strip(view, root(view, value)) != stream:
            continue
        for node in list(tensor.outputs):
            if node.op in ("Shape", "Size"):
                node.inputs[0] = view.tensors[str(x)]
