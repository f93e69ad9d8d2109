"""Write a wide FFN of another form as gate, up and down again, so that what reads those can read it.

The wide weights that the form stores in parts are declared without data: `Plain.parts` says which stored
tensors hold which of their rows, seen as [out, in] (columns of down). Biases are put together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fxfuse.passes.forms import Form
from fxfuse.passes.onnx.copies import copy_fields
from fxfuse.passes.onnx.extract import subgraph_reads
from fxfuse.passes.onnx.provenance import WideGroup

__all__ = ["Part", "Plain", "plain"]

Read = Callable[[onnx.TensorProto], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` of a wide weight: those from `offset` on of the stored tensor `source`."""

    source: str
    start: int
    stop: int
    offset: int = 0


@dataclass
class Plain:
    """A model whose wide FFNs are all in the default form, with what is recorded of them.

    `parts` has the declared weights by name; `odd` are the groups whose nodes are not as they were written.
    """

    model: onnx.ModelProto
    groups: list[WideGroup] = field(default_factory=list)
    parts: dict[str, list[Part]] = field(default_factory=dict)
    odd: list[WideGroup] = field(default_factory=list)


def plain(model: onnx.ModelProto, groups: Sequence[WideGroup], read: Read) -> Plain:
    """A copy of `model` with the wide FFNs of `groups` in the default form; `model` itself where all are."""
    if all(group.form == Form() for group in groups):
        return Plain(model, list(groups))
    made = Plain(onnx.ModelProto())
    copy_fields(model, made.model, without=("graph",))
    copy_fields(model.graph, made.model.graph, without=("node",))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    for group in groups:
        if group.form == Form():
            made.groups.append(group)
            continue
        written = _Written(nodes, group)
        if written.is_whole():
            rewriter = _Rewriter(made.model.graph, nodes, written, read)
            made.groups.append(rewriter.rewrite(made.parts))
        else:
            made.odd.append(group)
    made.model.graph.node.extend(nodes)
    return made


class _Written:
    """The nodes of one group, found by the weights that they read."""

    def __init__(self, nodes: Sequence[onnx.NodeProto], group: WideGroup) -> None:
        self.group, self.width = group, group.rows[-1][1]
        self.suffixes = group.form.suffixes(self.width)
        self.first = self.suffixes[0]
        self.packed = f"gate_up{self.first}" in group.weights
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            for name in subgraph_reads(node):
                self._readers.setdefault(name, []).append(node)

    def product(self, role: str) -> onnx.NodeProto | None:
        """The product with a weight."""
        return self._only(self.group.weights.get(role), "MatMul")

    def bias(self, role: str) -> onnx.NodeProto | None:
        """The sum with the bias of a product."""
        return self._only(self.group.weights.get(f"{role}_bias"), "Add")

    def split(self) -> onnx.NodeProto | None:
        """The split of the first packed product."""
        role = f"gate_up{self.first}"
        last = self.bias(role) or self.product(role)
        return self._only(last.output[0], "Split") if last is not None else None

    def total(self) -> onnx.NodeProto | None:
        """The sum of the slices."""
        down = self.product(f"down{self.first}")
        return self._only(down.output[0], "Sum") if down is not None else None

    def is_whole(self) -> bool:
        """Whether all is there that is rewritten."""
        found: list[onnx.NodeProto | None] = []
        for role in self.group.weights:
            base = role.removesuffix("_bias")
            found.append(self.product(role) if base == role else self.bias(base))
        found += [self.split()] if self.packed else []
        found += [self.total()] if len(self.suffixes) > 1 else []
        return None not in found

    def _only(self, name: str | None, op: str) -> onnx.NodeProto | None:
        """The one node that reads a value, if it is that operator."""
        readers = self._readers.get(name or "", [])
        return readers[0] if len(readers) == 1 and readers[0].op_type == op else None


class _Rewriter:
    """Rewrites one group: the first slice becomes the whole, the others go."""

    def __init__(
        self, graph: onnx.GraphProto, nodes: list[onnx.NodeProto], written: _Written, read: Read
    ) -> None:
        self.graph, self.nodes, self.written, self.read = graph, nodes, written, read
        self.own = written.group.weights
        self.prefix = next(iter(self.own.values())).rpartition("/")[0] + "/"
        self.weights: dict[str, str] = {}

    def rewrite(self, parts: dict[str, list[Part]]) -> WideGroup:
        """Change graph and nodes; the declared weights go into `parts`."""
        written, first = self.written, self.written.first
        self._declare(parts)
        down, total = written.product(f"down{first}"), written.total()
        assert down is not None
        down.input[1] = self.weights["down"]
        if total is not None:
            down.output[0] = total.output[0]
            self.nodes.remove(total)
        for role in ("gate", "up"):
            product, bias = written.product(role + first), written.bias(role + first)
            if product is not None:
                product.input[1] = self.weights[role]
            if bias is not None:
                old = self.own[f"{role}{first}_bias"]
                bias.input[list(bias.input).index(old)] = self.weights[f"{role}_bias"]
        if written.packed:
            self._unpack(f"gate_up{first}")
        self._drop()
        return replace(written.group, weights=self.weights, form=Form())

    def _declare(self, parts: dict[str, list[Part]]) -> None:
        """The default form's weights: without data where they lie in parts, else as they are."""
        spans = self.written.group.form.spans(self.written.width)
        for role in ("gate", "up", "down", "gate_bias", "up_bias"):
            kind, _, bias = role.partition("_")
            found = []
            for suffix, (start, stop) in zip(self.written.suffixes, spans, strict=True):
                tail = suffix + ("_bias" if bias else "")
                packed = self.own.get(f"gate_up{tail}") if kind != "down" else None
                source = packed or self.own.get(kind + tail)
                if source is not None:
                    second = packed is not None and kind == "up"
                    found.append(Part(source, start, stop, stop - start if second else 0))
            if found:
                self.weights[role] = self._store(role, found, parts)
        if "down_bias" in self.own:
            self.weights["down_bias"] = self.own["down_bias"]

    def _store(self, role: str, found: list[Part], parts: dict[str, list[Part]]) -> str:
        if self.own.get(role) == found[0].source:
            return found[0].source
        stored = {tensor.name: tensor for tensor in self.graph.initializer}
        like, name = stored[found[0].source], self.prefix + role
        if role.endswith("bias"):
            arrays = [self.read(stored[each.source]) for each in found]
            pieces = [a[p.offset : p.offset + p.stop - p.start] for a, p in zip(arrays, found, strict=True)]
            self.graph.initializer.append(numpy_helper.from_array(np.concatenate(pieces), name))
            return name
        shape = list(like.dims)
        shape[0 if role == "down" else 1] = self.written.width
        declared = onnx.TensorProto(name=name, data_type=like.data_type, dims=shape)
        declared.data_location = onnx.TensorProto.EXTERNAL
        self.graph.initializer.append(declared)
        parts[name] = found
        return name

    def _unpack(self, role: str) -> None:
        """Two products in the place of one and its split."""
        product, bias, split = self.written.product(role), self.written.bias(role), self.written.split()
        assert product is not None
        assert split is not None
        made = []
        for half, output in zip(("gate", "up"), split.output, strict=True):
            biased = f"{half}_bias" in self.weights
            inner = f"{output}_product" if biased else output
            made.append(helper.make_node("MatMul", [product.input[0], self.weights[half]], [inner], inner))
            if biased:
                inputs = [inner, self.weights[f"{half}_bias"]]
                made.append(helper.make_node("Add", inputs, [output], output))
        for node in made:
            node.metadata_props.extend(product.metadata_props)
        place = self.nodes.index(split)
        self.nodes[place : place + 1] = made
        self.nodes.remove(product)
        if bias is not None:
            self.nodes.remove(bias)

    def _drop(self) -> None:
        """Remove the nodes and the tensors of the group that nothing reads any more."""
        outputs = {value.name for value in self.graph.output}
        readers: dict[str, int] = {}
        for node in self.nodes:
            for name in subgraph_reads(node):
                readers[name] = readers.get(name, 0) + 1
        kept = []
        for node in reversed(self.nodes):
            read = any(readers.get(name) or name in outputs for name in node.output)
            if read or not node.output[0].startswith(self.prefix):
                kept.append(node)
                continue
            for name in node.input:
                readers[name] -= 1
        self.nodes[:] = kept[::-1]
        tensors = [each for each in self.graph.initializer if each.name.startswith(self.prefix)]
        for tensor in tensors:
            if not readers.get(tensor.name):
                self.graph.initializer.remove(tensor)
