r"""The bodies of If, Loop and Scan: each as a model of its own, and back.

    If(cond) { then: ... x, W ...      inputs    its own, and the outer values that it reads (x)
               else: ... }             weights   its own, and the outer ones that it reads (W)
                                       outputs   its own

1. An outer value that depends on stored weights alone comes along with the nodes that compute it.
2. What is put back is the body's own: nodes and outer weights that came along stay outside.
3. New weights of a body become the outer graph's, so that bodies can share them.
4. Names are unique in a body and all that is around it, so none has to change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx

from fxfuse.passes.onnx.copies import copy_fields
from fxfuse.passes.onnx.extract import ModelIndex, subgraph_reads

__all__ = ["Body", "Hoisted", "bodies_of", "drop_unread", "hoist", "put_back"]

_RANDOM = ("Random", "Bernoulli", "Multinomial")


@dataclass(frozen=True)
class Body:
    """A subgraph of the node at `node` of a graph: its attribute, and the words for it in a report."""

    node: int
    attribute: str
    place: str

    def of(self, graph: onnx.GraphProto) -> onnx.GraphProto:
        """The body in `graph`, which holds its node."""
        attributes = graph.node[self.node].attribute
        found: onnx.GraphProto = next(each.g for each in attributes if each.name == self.attribute)
        return found


@dataclass(frozen=True)
class Hoisted:
    """A body as `model`; `captured` are the outer values among its inputs, `lent` all that is not its own."""

    model: onnx.ModelProto
    captured: tuple[str, ...]
    lent: frozenset[str]


def bodies_of(graph: onnx.GraphProto) -> Iterator[Body]:
    """Every subgraph of the nodes of `graph`, those inside of them not."""
    for index, node in enumerate(graph.node):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                name = node.name or next(iter(node.output), node.op_type)
                yield Body(index, attribute.name, f"{attribute.name} of {name}")


def hoist(model: onnx.ModelProto, body: Body) -> Hoisted:
    """`body` of the main graph of `model` as a model, whose external data lie where the outer model's do."""
    index, graph = ModelIndex(model), body.of(model.graph)
    own = _defined(graph)
    nodes, stored, captured = _needed(index, [name for name in _reads(graph) if name not in own])
    outer = model.graph
    known = {value.name: value for value in (*outer.output, *outer.value_info, *outer.input)}
    made = onnx.ModelProto()
    copy_fields(model, made, without=("graph",))
    copy_fields(graph, made.graph, without=("node", "initializer", "input"))
    made.graph.node.extend([*(model.graph.node[each] for each in sorted(nodes)), *graph.node])
    made.graph.initializer.extend([*(index.initializer[name] for name in stored), *graph.initializer])
    made.graph.input.extend(graph.input)
    for name in captured:
        made.graph.input.append(known.get(name) or onnx.helper.make_empty_tensor_value_info(name))
    lent = {*stored, *(output for each in nodes for output in model.graph.node[each].output)}
    return Hoisted(made, tuple(captured), frozenset(lent))


def put_back(
    model: onnx.ModelProto, body: Body, hoisted: Hoisted, rewritten: onnx.ModelProto
) -> list[onnx.TensorProto]:
    """Give `body` of the main graph of `model` the nodes of `rewritten`; changes `model`.

    Returns the new weights, which are to be added to the main graph.
    """
    graph = body.of(model.graph)
    before = {tensor.name for tensor in hoisted.model.graph.initializer}
    made = onnx.GraphProto()
    copy_fields(rewritten.graph, made, without=("node", "initializer", "input"))
    made.node.extend(node for node in rewritten.graph.node if not hoisted.lent.intersection(node.output))
    made.input.extend(graph.input)
    made.initializer.extend(
        tensor
        for tensor in rewritten.graph.initializer
        if tensor.name in before and tensor.name not in hoisted.lent
    )
    graph.CopyFrom(made)
    return [tensor for tensor in rewritten.graph.initializer if tensor.name not in before]


def drop_unread(model: onnx.ModelProto, before: onnx.ModelProto) -> None:
    """Remove from `model` the main graph's weights that nothing reads any more, as it did in `before`."""
    gone = set(_reads(before.graph)) - set(_reads(model.graph))
    stored = {tensor.name for tensor in model.graph.initializer}
    for field in ("initializer", "input"):
        values = getattr(model.graph, field)
        kept = [each for each in values if each.name not in gone & stored]
        del values[:]
        values.extend(kept)


def _reads(graph: onnx.GraphProto) -> Iterable[str]:
    """Every value that is read in a graph or any body inside it, in order and once."""
    names = [name for node in graph.node for name in subgraph_reads(node)]
    return dict.fromkeys([*names, *(output.name for output in graph.output)])


def _defined(graph: onnx.GraphProto) -> set[str]:
    """Every name that a graph and the bodies inside it give to something; and "", which is no name."""
    found = {"", *(each.name for each in (*graph.input, *graph.initializer))}
    for node in graph.node:
        found.update(node.output)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found |= _defined(inner)
    return found


def _needed(index: ModelIndex, names: Iterable[str]) -> tuple[set[int], list[str], list[str]]:
    """What a body takes from outside: nodes that compute constants, stored weights, and other values."""
    nodes: set[int] = set()
    stored: dict[str, None] = {}
    captured: list[str] = []
    for name in names:
        found = _constant(index, name)
        if found is None:
            captured.append(name)
        else:
            nodes |= found[0]
            stored |= dict.fromkeys(found[1])
    return nodes, list(stored), captured


def _constant(index: ModelIndex, name: str) -> tuple[set[int], set[str]] | None:
    """The nodes and weights that `name` is computed from; None where it depends on anything else."""
    nodes: set[int] = set()
    stored: set[str] = set()
    stack = [name]
    while stack:
        each = stack.pop()
        place = index.producer.get(each)
        if not each or each in stored or place in nodes:
            continue
        if each in index.initializer:
            stored.add(each)
        elif place is None or index.nodes[place].op_type.startswith(_RANDOM):
            return None
        else:
            nodes.add(place)
            stack += subgraph_reads(index.nodes[place])
    return nodes, stored
