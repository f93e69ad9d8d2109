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
import onnx
import onnx_graphsurgeon as gs

from fxfuse.passes.elementwise import region
from fxfuse.passes.forms import Form
from fxfuse.passes.onnx.view import OnnxView
from fxfuse.passes.records import Block, Value
from fxfuse.passes.view import root, strip

__all__ = [
    "Writer",
    "cast_to",
    "copy_region",
    "insert",
    "numpy_dtype",
    "put_branch",
    "rewrite_group",
    "split",
    "unit_norm",
]


class Writer:
    """Adds nodes and constants to a graph under one prefix, in the order they are asked for."""

    def __init__(self, graph: gs.Graph, prefix: str) -> None:
        self.graph = graph
        self.prefix = prefix
        self.nodes: list[gs.Node] = []
        self.before: gs.Node | None = None
        self.branch = ""
        self.constants: list[gs.Constant] = []
        self.weights: dict[str, str] = {}
        self._taken = set(graph.tensors())

    def constant(self, name: str, array: np.ndarray) -> gs.Constant:
        """A stored tensor named under the prefix."""
        tensor = gs.Constant(self.free(f"{self.prefix}/{name}"), array)
        self.constants.append(tensor)
        return tensor

    def node(
        self, op: str, inputs: Sequence[gs.Tensor], name: str, like: gs.Tensor | None = None, **attrs: object
    ) -> gs.Variable:
        """A node with one output, named under the prefix; `like` lends the output its type."""
        own = self.free(f"{self.prefix}/{name}")
        output = gs.Variable(own, dtype=like.dtype if like is not None else None)
        domain = attrs.pop("domain", None)
        self.nodes.append(gs.Node(op, output.name, attrs, list(inputs), [output], domain=domain))
        return output

    def free(self, name: str) -> str:
        """`name`, numbered where a tensor has it already; taken from now on."""
        candidate, count = name, 1
        while candidate in self._taken:
            candidate, count = f"{name}_{count}", count + 1
        self._taken.add(candidate)
        return candidate


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


def split(
    view: OnnxView, writer: Writer, tensor: gs.Tensor, sizes: Sequence[int], names: Sequence[str]
) -> list[gs.Variable]:
    """Parts of a tensor's last axis."""
    opset = next((each.version for each in view.model.opset_import if each.domain in ("", "ai.onnx")), 20)
    outputs = [gs.Variable(writer.free(f"{writer.prefix}/{name}_part"), dtype=tensor.dtype) for name in names]
    inputs, attrs = [tensor], {"axis": -1}
    if opset >= 13:
        inputs.append(writer.constant("sizes", np.asarray(sizes, np.int64)))
    else:
        attrs["split"] = list(sizes)  # type: ignore[assignment]
    writer.nodes.append(gs.Node("Split", writer.free(f"{writer.prefix}/split"), attrs, inputs, outputs))
    return outputs


def unit_norm(view: OnnxView, writer: Writer, first: Block, operator: str = "own") -> gs.Tensor:
    """The first block's norm without its gain, in the type of its weights; an RMSNorm as `operator`."""
    norm = first.norm
    if norm.kind == "rms" and operator != "own":
        return _operator_norm(view, writer, first, operator)
    if norm.unit is not None:
        return cast_to(view, writer, str(norm.unit), first.dtype, "norm_cast")
    node = view.tensors[str(norm.operator)].inputs[0]
    kind = view.dtype(node.inputs[1].name) or first.dtype
    ones = writer.constant("unit_gain", np.ones(first.hidden_size, numpy_dtype(kind)))
    like = view.tensors[str(norm.operator)]
    tensor = writer.node(node.op, [node.inputs[0], ones], "norm", like, domain=node.domain, **node.attrs)
    known = view.dtype(norm.operator)
    return tensor if known in (None, first.dtype) else _cast(writer, tensor, "norm_cast", first.dtype)


def _operator_norm(view: OnnxView, writer: Writer, first: Block, operator: str) -> gs.Tensor:
    """One operator of ONNX's own domain, which computes in float32 whatever it reads."""
    norm = first.norm
    stream = strip(view, norm.source)
    source = stream if view.dtype(stream) == first.dtype else norm.source
    kind = view.dtype(source) or first.dtype
    gain = writer.constant("unit_gain", np.full(first.hidden_size, norm.scale, numpy_dtype(kind)))
    x = view.tensors[str(source)]
    tensor = writer.node(operator, [x, gain], "norm", x, axis=-1, epsilon=float(norm.eps))
    return tensor if kind == first.dtype else _cast(writer, tensor, "norm_cast", first.dtype)


def _as_typed(view: OnnxView, writer: Writer, branch: gs.Tensor, last: Block) -> gs.Tensor:
    """The branch in the stream's type, which an FFN of another type is cast to before its Add."""
    known = view.dtype(last.branch)
    return branch if known in (None, last.dtype) else _cast(writer, branch, "branch_cast", str(known))


def cast_to(view: OnnxView, writer: Writer, value: str, dtype: str, name: str) -> gs.Tensor:
    """A value of the graph in `dtype`."""
    tensor = view.tensors[value]
    return tensor if view.dtype(value) in (None, dtype) else _cast(writer, tensor, name, dtype)


def _cast(writer: Writer, tensor: gs.Tensor, name: str, dtype: str) -> gs.Tensor:
    kind = {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())
    return writer.node("Cast", [tensor], name, to=int(getattr(onnx.TensorProto, kind)))


def numpy_dtype(name: str) -> np.dtype:
    """The array type of an element type that is spelled as in torch."""
    if name == "bfloat16":
        return onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    return np.dtype(name)


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
