r"""Write the blocks that a wide FFN was made of in its place: each a copy of it over its own rows.

    sequential   x0 ---> norm ---> FFN0 ---> + ---> x1 ---> norm ---> FFN1 ---> + ---> x2
                  \--------------------------^       \--------------------------^
    parallel     x0 ---> norm ---> FFN0 + FFN1 ---> + ---> x2
                  \---------------------------------^

1. Whatever depends on a wide weight is copied for every block, so an FFN stays spelled as it was.
2. Sequential blocks but the first get a norm of their own: what depends on the stream is copied too. The
   gains stay folded into gate and up, so every norm has unit gain.
3. Of the down biases the graph holds the sum alone: each block gets its own from the record.
4. The group's last Add keeps its name and its output.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fxfuse.passes.onnx.provenance import WideGroup
from fxfuse.passes.onnx.view import OnnxView
from fxfuse.passes.onnx.writer import Writer, numpy_dtype
from fxfuse.passes.records import Block, Value
from fxfuse.passes.view import root, strip

__all__ = ["RECOVERED", "Slice", "objection", "unfuse"]

RECOVERED = (
    "its weights were corrected on calibration data (--recover), so they are not its blocks' own any more"
)
_ROLES = ("gate", "up", "down")


@dataclass(frozen=True)
class Slice:
    """A stored tensor to be: `source` from `start` to `stop` along `axis`."""

    name: str
    source: str
    axis: int
    start: int
    stop: int


def objection(block: Block, group: WideGroup) -> str | None:
    """Why the wide FFN `block` is not the one that `group` records, or not to be split; None if it is."""
    if group.recovered:
        return f"{RECOVERED}: fuse the original model instead"
    for role in _ROLES:
        linear = getattr(block.ffn, role)
        stored, read = group.weights.get(role), linear.weight if linear is not None else None
        if stored != read:
            return (
                f"its {role} weight is {read or 'none'} where the record names {stored or 'none'}: split the "
                "file as fxfuse wrote it, with float weights"
            )
    if group.rows[-1][1] != block.intermediate_size:
        return f"it is {block.intermediate_size} wide where the record has rows up to {group.rows[-1][1]}"
    return None


def unfuse(view: OnnxView, block: Block, group: WideGroup, *, parallel: bool) -> tuple[Writer, list[Slice]]:
    """Replace the wide FFN `block` by the blocks of `group`; gives the new nodes and the tensors they need.

    `insert` puts the nodes into the graph; the tensors are to be added under their names.
    """
    writer, slices = Writer(view.graph, ""), []
    add = view.tensors[str(block.out)].inputs[0]
    stream, total = view.tensors[str(block.x)], None
    for index, name in enumerate(group.blocks):
        writer.prefix = f"/{name.strip('/')}"
        copier = _Copier(view, writer, block, group)
        slices += copier.take_rows(index, name)
        copier.read_stream(stream)
        branch = copier.copy(view.tensors[str(block.branch)])
        if parallel:
            total = branch if total is None else writer.node("Add", [total, branch], "Add", branch)
        elif index + 1 < len(group.blocks):
            stream = writer.node(add.op, _operands(add, block, stream, branch), "Add", stream)
    for place, tensor in enumerate(_operands(add, block, stream, total or branch)):
        add.inputs[place] = tensor
    writer.before = add
    return writer, slices


def _operands(add: gs.Node, block: Block, stream: gs.Tensor, branch: gs.Tensor) -> list[gs.Tensor]:
    return [branch if each.name == block.branch else stream for each in add.inputs]


class _Copier:
    """Copies of what a wide FFN computes, with other weights and on another stream."""

    def __init__(self, view: OnnxView, writer: Writer, block: Block, group: WideGroup) -> None:
        self._view, self._writer, self._block, self._group = view, writer, block, group
        self._roles = {name: role for role, name in group.weights.items()}
        passed: set[Value] = set()
        strip(view, block.norm.source, passed)
        self._inside = block.interior | passed | {block.branch}
        self._known: dict[Value, gs.Tensor] = {}

    def take_rows(self, index: int, name: str) -> list[Slice]:
        """Read the weights of one block; gives those that are part of a wide one."""
        slices = []
        for role, source in self._group.weights.items():
            linear, kind = role.removesuffix("_bias"), "bias" if role.endswith("_bias") else "weight"
            if role == "down_bias":
                bias = self._group.down_biases[index].astype(numpy_dtype(str(self._view.dtype(source))))
                self._known[source] = self._writer.constant("down_proj.bias", bias)
                continue
            own = self._writer.free(f"{name}.{linear}_proj.{kind}")
            slices.append(Slice(own, source, self._axis(role), *self._group.rows[index]))
            self._known[source] = gs.Variable(own, dtype=self._view.tensors[source].dtype)
        return slices

    def read_stream(self, stream: gs.Tensor) -> None:
        """Read `stream` where the wide FFN reads its own."""
        view, x = self._view, self._block.x
        for name in (x, root(view, x), strip(view, x)):
            own = view.tensors[name]
            self._known[name] = own if stream.name == x else stream

    def copy(self, tensor: gs.Tensor) -> gs.Tensor:
        """`tensor`, or a copy of it where it depends on what was replaced."""
        if tensor.name in self._known:
            return self._known[tensor.name]
        if tensor.name not in self._inside or not tensor.inputs:
            return tensor
        node = tensor.inputs[0]
        inputs = [self.copy(each) for each in node.inputs]
        same = all(one is other for one, other in zip(inputs, node.inputs, strict=True))
        made = tensor if same else self._again(node, tensor, inputs)
        self._known[tensor.name] = made
        return made

    def _again(self, node: gs.Node, tensor: gs.Tensor, inputs: list[gs.Tensor]) -> gs.Tensor:
        role = next((self._roles[each.name] for each in node.inputs if each.name in self._roles), "")
        name = f"{role.removesuffix('_bias')}_proj/{node.op}" if role else node.op
        return self._writer.node(node.op, inputs, name, tensor, domain=node.domain, **node.attrs)

    def _axis(self, role: str) -> int:
        if role.endswith("_bias"):
            return 0
        transposed = getattr(self._block.ffn, role).transposed
        return int(transposed) if role != "down" else int(not transposed)
