"""A working copy of a model in which every operator that hides several is written out.

    x, f ---> Skip(Simplified)LayerNormalization ---> y, s      becomes      Add ---> s ---> norm ---> y

Matching, measuring and rewriting work on this copy; `fxfuse.passes.onnx.contract` puts back what they left
alone. 1. A model that hides nothing is its own working copy. 2. A node that has to stay whole is named with
the reason. 3. Weights are copied at most once, and never where they lie outside of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx

from fxfuse.passes.onnx.compounds import Parts, decompose, hides
from fxfuse.passes.onnx.copies import copy_fields
from fxfuse.passes.onnx.inline import Functions, Key, inline

__all__ = ["Compound", "Expanded", "expand"]

_DEPTH = 32


@dataclass(frozen=True)
class Compound:
    """A node and the nodes that stand for it in the working copy."""

    node: onnx.NodeProto
    parts: tuple[onnx.NodeProto, ...]


@dataclass(frozen=True)
class Expanded:
    """The working copy, and what it takes to go back.

    `compounds`: outer ones before those inside of them; `whole`: first output of a node that had to stay
    whole, and why; `called`: local functions that were called; `opsets`: domains that only the copy names.
    """

    model: onnx.ModelProto
    compounds: tuple[Compound, ...] = ()
    whole: Mapping[str, str] = field(default_factory=dict)
    called: frozenset[Key] = frozenset()
    opsets: frozenset[str] = frozenset()


def expand(model: onnx.ModelProto) -> Expanded:
    """A working copy of `model`, which is not changed; `model` itself where there is nothing to write out."""
    functions = Functions(model)
    if not any(hides(node) or functions.get(node) is not None for node in model.graph.node):
        return Expanded(model)
    expander = _Expander(model, functions)
    for node in model.graph.node:
        expander.append(node, 0)
    if not expander.compounds:
        return Expanded(model, whole=expander.whole)
    called = frozenset(functions.called(model.graph))
    return Expanded(
        _with_nodes(model, expander.nodes, expander.opsets),
        tuple(expander.compounds), expander.whole, called, frozenset(expander.opsets),
    )  # fmt: skip


class _Expander:
    def __init__(self, model: onnx.ModelProto, functions: Functions) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.compounds: list[Compound] = []
        self.whole: dict[str, str] = {}
        self.opsets: dict[str, int] = {}
        self._functions = functions
        self._opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
        self._producer: dict[str, int] = {}
        self._taken = set(_names(model.graph))

    def append(self, node: onnx.NodeProto, depth: int) -> None:
        """Add `node`, or the nodes that stand for it, those of calls and compounds inside of it too."""
        parts = self._parts(node) if depth < _DEPTH else None
        if parts is None:
            self._producer.update(dict.fromkeys(node.output, len(self.nodes)))
            self.nodes.append(node)
            return
        start, place = len(self.nodes), len(self.compounds)
        for each in parts:
            self.append(each, depth + 1)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        self.compounds.insert(place, Compound(copy, tuple(self.nodes[start:])))

    def _parts(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        function = self._functions.get(node)
        if function is not None:
            reason = self._functions.objection(function)
            nodes = inline(node, function, self._fresh) if reason is None else []
            self.opsets |= self._functions.missing(function) if reason is None else {}
        elif hides(node):
            parts = Parts(node, self._fresh, lambda name: self._producer.get(name, -1), self._opset)
            reason, nodes = decompose(parts), parts.nodes
        else:
            return None
        if reason is not None:
            self.whole[next(filter(None, node.output), node.name)] = reason
        return nodes or None

    def _fresh(self, base: str) -> str:
        name, count = base, 1
        while name in self._taken:
            name, count = f"{base}_{count}", count + 1
        self._taken.add(name)
        return name


def _with_nodes(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], opsets: Mapping[str, int]
) -> onnx.ModelProto:
    """A copy of `model` with other nodes in its main graph; its tensors are copied once."""
    copy = onnx.ModelProto()
    copy_fields(model, copy, without=("graph",))
    copy_fields(model.graph, copy.graph, without=("node",))
    copy.graph.node.extend(nodes)
    copy.opset_import.extend(onnx.helper.make_opsetid(name, version) for name, version in opsets.items())
    return copy


def _names(graph: onnx.GraphProto) -> Iterable[str]:
    """Every name in a graph, its subgraphs included."""
    for values in (graph.input, graph.output, graph.initializer, graph.value_info):
        yield from (value.name for value in values)
    yield from (value.values.name for value in graph.sparse_initializer)
    for node in graph.node:
        yield from node.input
        yield from node.output
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _names(attribute.g)
            for inner in attribute.graphs:
                yield from _names(inner)
