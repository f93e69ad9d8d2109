"""Whether a model that was parsed is a graph at all, before anything walks it.

ONNX Runtime refuses what is refused here, but it is asked only once there is something to fuse; a reader
that met such a graph first would fail without a word a user can use, or never end.

1. Names are text, and types are known. 2. A value is computed once, and from values that are there. 3. No
value waits for itself, and no function calls itself. 4. A node of a standard operator has the inputs, outputs
and attributes that it needs.
"""

from __future__ import annotations

import functools
import heapq
from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx
from onnx import defs

from fxfuse.passes.onnx.extract import subgraph_reads
from fxfuse.texts import bodies, texts, walk

__all__ = ["problem_of", "sort_nodes"]

_Opsets = Mapping[str, int]
_TYPES = frozenset(onnx.TensorProto.DataType.values())


def problem_of(model: onnx.ModelProto) -> str | None:
    """What makes `model` no graph, as a part of a sentence; None where nothing does."""
    opsets = {_domain(each.domain): each.version for each in model.opset_import}
    return _of_texts(model) or _of_functions(model) or _of_graph(model.graph, opsets, frozenset())


def _of_texts(model: onnx.ModelProto) -> str | None:
    odd = next((each for each in texts(model) if isinstance(each, bytes)), None)
    return None if odd is None else f"the text {odd[:40]!r} is not UTF-8"


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put producers before readers, as the format wants; ONNX Runtime takes any order."""
    order = _order(graph)
    if order != list(range(len(graph.node))):
        nodes = [onnx.NodeProto.FromString(graph.node[place].SerializeToString()) for place in order]
        del graph.node[:]
        graph.node.extend(nodes)
    for node in graph.node:
        for body in bodies(node):
            sort_nodes(body)


def _of_graph(graph: onnx.GraphProto, opsets: _Opsets, outside: frozenset[str]) -> str | None:
    """The first problem in a graph or in its subgraphs; `outside` may be read too."""
    given = [tensor.name for tensor in graph.initializer]
    given += [tensor.values.name for tensor in graph.sparse_initializer]
    stored, fed = set(given), {value.name for value in graph.input}
    made = [*given, *(output for node in graph.node for output in node.output if output)]
    made += [value.name for value in graph.input if value.name not in stored]
    name, count = (Counter(made).most_common(1) or [("", 0)])[0]
    if count > 1:
        return f"Duplicate definition of name ({name})"
    known = outside | fed | set(made)
    return (
        _of_types(graph)
        or _of_reads(graph, known)
        or _of_order(graph, outside | fed | stored)
        or next(filter(None, (_of_node(node, opsets) for node in graph.node)), None)
        or next(
            filter(None, (_of_graph(each, opsets, known) for node in graph.node for each in bodies(node))),
            None,
        )
    )


def _of_types(graph: onnx.GraphProto) -> str | None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type.elem_type
        if kind not in _TYPES:
            return f"{value.name!r} has no known type ({kind})"
    return None


def _of_reads(graph: onnx.GraphProto, known: frozenset[str]) -> str | None:
    for node in graph.node:
        for name in node.input:
            if name and name not in known:
                return f"{_called(node)} reads nothing: {name!r} is not a graph input, nor stored or computed"
    lost = next((value.name for value in graph.output if value.name not in known), None)
    return None if lost is None else f"nothing computes its output {lost!r}"


def _of_order(graph: onnx.GraphProto, ready: frozenset[str]) -> str | None:
    """A value that waits for itself. Nodes may stand in any order."""
    order = _order(graph, ready)
    if len(order) == len(graph.node):
        return None
    stuck = graph.node[min(set(range(len(graph.node))) - set(order))]
    return f"its graph is not acyclic: {_called(stuck)} waits for itself"


def _order(graph: onnx.GraphProto, ready: frozenset[str] = frozenset()) -> list[int]:
    """The places of the nodes, producers before readers; without those in cycles."""
    if _is_sorted(graph, ready):
        return list(range(len(graph.node)))
    makers = {output: place for place, node in enumerate(graph.node) for output in node.output}
    left: list[int] = []
    readers: dict[int, list[int]] = {}
    for place, node in enumerate(graph.node):
        needed = {makers[name] for name in subgraph_reads(node) if name in makers and name not in ready}
        left.append(len(needed))
        for each in needed:
            readers.setdefault(each, []).append(place)
    free, order = [place for place, count in enumerate(left) if not count], []
    while free:
        place = heapq.heappop(free)
        order.append(place)
        for reader in readers.get(place, ()):
            left[reader] -= 1
            if not left[reader]:
                heapq.heappush(free, reader)
    return order


def _is_sorted(graph: onnx.GraphProto, ready: frozenset[str]) -> bool:
    later = {output for node in graph.node for output in node.output if output} - ready
    for node in graph.node:
        if not later.isdisjoint(subgraph_reads(node)):
            return False
        later.difference_update(node.output)
    return True


def _of_node(node: onnx.NodeProto, opsets: _Opsets) -> str | None:
    schema = _schema(node.op_type, _domain(node.domain), opsets.get(_domain(node.domain), 0))
    if schema is None:
        return None
    for what, names, least, most in (
        ("inputs", node.input, schema.min_input, schema.max_input),
        ("outputs", node.output, schema.min_output, schema.max_output),
    ):
        if not least <= len(names) <= most:
            return f"{_called(node)} has {len(names)} {what} where {node.op_type} has {_range(least, most)}"
    for name, given in zip(schema.inputs, node.input, strict=False):  # the last may stand for many
        if not given and name.option != defs.OpSchema.FormalParameterOption.Optional:
            return f"{_called(node)} leaves out its input {name.name}"
    return _of_attributes(node, schema.attributes)


def _of_attributes(node: onnx.NodeProto, known: Mapping[str, Any]) -> str | None:
    given = {each.name: each for each in node.attribute}
    if len(given) < len(node.attribute):
        return f"{_called(node)} has an attribute twice"
    for name, attribute in given.items():
        wanted = known[name].type.value if name in known else attribute.type
        if attribute.type != wanted and not attribute.ref_attr_name:
            kind = onnx.AttributeProto.AttributeType.Name(wanted)
            return f"{_called(node)} has an attribute {name!r} that is no {kind}"
    missing = next((name for name, each in known.items() if each.required and name not in given), None)
    return None if missing is None else f"{_called(node)} lacks its attribute {missing!r}"


def _of_functions(model: onnx.ModelProto) -> str | None:
    """A function that calls itself, directly or through others."""
    known = {(_domain(each.domain), each.name): each for each in model.functions}
    calls = {key: {_key(node) for node in walk(each.node)} & known.keys() for key, each in known.items()}
    while calls:
        free = [key for key, called in calls.items() if not called & calls.keys()]
        if not free:
            return f"its function {next(iter(calls))[1]} calls itself"
        for key in free:
            del calls[key]
    for key, each in known.items():
        opsets = {_domain(opset.domain): opset.version for opset in each.opset_import}
        problem = next(filter(None, (_of_node(node, opsets) for node in walk(each.node))), None)
        if problem is not None:
            return f"in its function {key[1]}, {problem}"
    return None


@functools.lru_cache(maxsize=4096)
def _schema(op: str, domain: str, version: int) -> Any:
    try:
        return defs.get_schema(op, version, domain)
    except (defs.SchemaError, TypeError):
        return None


def _key(node: onnx.NodeProto) -> tuple[str, str]:
    return _domain(node.domain), node.op_type


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _called(node: onnx.NodeProto) -> str:
    return f"node {node.name or next(iter(node.output), '')} ({node.op_type})"


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"at least {least}" if most > 1 << 20 else f"{least} to {most}"
