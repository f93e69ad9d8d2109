"""Calls of a model's local functions, written out.

    y = f(x, w; a)      becomes f's nodes, with x, w, y and a in the place of its formal names

Names inside are put under the call's name. A function for another opset is written out where every operator
in it means the same in the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx
from onnx import defs

__all__ = ["Functions", "Key", "domains_of", "inline", "key_of", "walk"]

Key = tuple[str, str, str]


def key_of(node: onnx.NodeProto | onnx.FunctionProto) -> Key:
    """What a call and a function are matched by."""
    name = node.op_type if isinstance(node, onnx.NodeProto) else node.name
    return ("" if node.domain == "ai.onnx" else node.domain, name, node.overload)


def domains_of(graph: onnx.GraphProto) -> set[str]:
    """The domains of all operators of a graph, its subgraphs included."""
    return {node.domain for node in walk(graph.node)}


class Functions:
    """The local functions of a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._all = {key_of(each): each for each in model.functions}
        self._opsets = _versions(model.opset_import)

    def get(self, node: onnx.NodeProto) -> onnx.FunctionProto | None:
        """The function that `node` calls; None where it is an operator."""
        return self._all.get(key_of(node)) if self._all else None

    def called(self, graph: onnx.GraphProto) -> set[Key]:
        """Every function that a graph calls, directly or through others."""
        found: set[Key] = set()
        stack = list(walk(graph.node)) if self._all else []
        while stack:
            key = key_of(stack.pop())
            if key in self._all and key not in found:
                found.add(key)
                stack += walk(self._all[key].node)
        return found

    def objection(self, function: onnx.FunctionProto) -> str | None:
        """Why the nodes of `function` would mean something else in the model itself."""
        for domain, version in _versions(function.opset_import).items():
            own = self._opsets.get(domain, version)
            used = {node.op_type for node in walk(function.node) if _domain(node.domain) == domain}
            for op in sorted(used) if own != version else ():
                if _since(op, version, domain) != _since(op, own, domain):
                    return (
                        f"the function {function.name} is not looked into, since its {op} is of opset "
                        f"{version} and the model's of opset {own}"
                    )
        return None

    def missing(self, function: onnx.FunctionProto) -> dict[str, int]:
        """Domains, with versions, that a function uses and the model does not name."""
        return {k: v for k, v in _versions(function.opset_import).items() if k not in self._opsets}


def inline(
    node: onnx.NodeProto, function: onnx.FunctionProto, fresh: Callable[[str], str]
) -> list[onnx.NodeProto]:
    """The nodes that stand for a call of `function`."""
    prefix = node.name or next(filter(None, node.output), function.name)
    names = dict(_paired(function.input, node.input))
    outputs = _paired(function.output, node.output)
    body = [_copy(each) for each in function.node]
    for formal, name in outputs:
        if formal in names and name:  # an input handed through
            names[f"{formal}.passed"] = name
            body.append(onnx.helper.make_node("Identity", [formal], [f"{formal}.passed"]))
        elif name:
            names[formal] = name

    def rename(name: str) -> str:
        if name and name not in names:
            names[name] = fresh(f"{prefix}/{name}")
        return names[name] if name else ""

    attributes = {each.name: each for each in (*function.attribute_proto, *node.attribute)}
    for each in body:
        _adapt(each, rename, attributes)
        # A name that is a path from the model down says more than the call's.
        each.name = each.name if each.name.startswith("/") else f"{prefix}/{each.name or each.op_type}"
    return body


def _adapt(
    node: onnx.NodeProto, rename: Callable[[str], str], attributes: Mapping[str, onnx.AttributeProto]
) -> None:
    """Put the caller's names and attributes into one node of a body, its subgraphs included."""
    for names in (node.input, node.output):
        renamed = [rename(name) for name in names]
        del names[:]
        names.extend(renamed)
    for index in reversed(range(len(node.attribute))):
        attribute = node.attribute[index]
        if attribute.ref_attr_name:
            value, name = attributes.get(attribute.ref_attr_name), attribute.name
            if value is None:
                del node.attribute[index]
                continue
            attribute.CopyFrom(value)
            attribute.name = name
        for graph in (attribute.g, *attribute.graphs) if _holds_graph(attribute) else ():
            _adapt_graph(graph, rename, attributes)


def _adapt_graph(
    graph: onnx.GraphProto, rename: Callable[[str], str], attributes: Mapping[str, onnx.AttributeProto]
) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = rename(value.name)
    for node in graph.node:
        _adapt(node, rename, attributes)


def walk(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    """Every node, those of subgraphs included."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs) if _holds_graph(attribute) else ():
                yield from walk(graph.node)


def _holds_graph(attribute: onnx.AttributeProto) -> bool:
    return attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def _paired(formal: Sequence[str], given: Sequence[str]) -> list[tuple[str, str]]:
    """Formal names beside the caller's, "" for what it leaves out."""
    return [(name, given[index] if index < len(given) else "") for index, name in enumerate(formal)]


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _versions(opsets: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {_domain(each.domain): each.version for each in opsets}


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _since(op: str, version: int, domain: str) -> int | None:
    """The opset that last changed an operator; None for one that onnx does not know."""
    try:
        return int(defs.get_schema(op, version, domain).since_version)
    except defs.SchemaError:
        return None
