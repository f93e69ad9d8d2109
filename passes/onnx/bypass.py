r"""Take attentions out of an ONNX model, with all that only served them.

    x ---> norm ---> attention ---> + ---> out        becomes        x, read wherever out was read
     \------------------------------^

1. Whatever read out reads x, in bodies of other nodes too; where the model returns out, an Identity gives it.
2. Past keys and values that only these attentions read leave the inputs, present ones the outputs; what is
   left keeps its names, or gets new numbers. Token ids, masks and positions stay inputs.
3. Nodes, weights and shapes that nothing reads any more go. The bytes of the others are not touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import onnx

from fxfuse.passes.attention import Attention
from fxfuse.passes.onnx.copies import copy_fields
from fxfuse.passes.onnx.extract import subgraph_reads
from fxfuse.passes.onnx.reserved import reread

__all__ = ["bypass", "renumber"]

_CACHE_RANK = 3
_CACHE = re.compile(r"(?P<before>.*?(?:past|present|cache)\D*)(?P<number>\d+)(?P<after>.*)", re.IGNORECASE)


def bypass(model: onnx.ModelProto, attentions: Sequence[Attention]) -> onnx.ModelProto:
    """A copy of `model` without `attentions`, which were found in it; it shares nothing."""
    made = onnx.ModelProto()
    copy_fields(model, made, without=("graph",))
    copy_fields(model.graph, made.graph, without=("initializer", "input", "output", "value_info"))
    gone = {str(value) for each in attentions for value in each.cache}
    made.graph.output.extend(each for each in model.graph.output if each.name not in gone)
    returned = {each.name for each in made.graph.output}
    left: dict[str, str] = {}
    for attention in attentions:
        x, out = left.get(str(attention.x), str(attention.x)), str(attention.out)
        left = {key: x if value == out else value for key, value in left.items()} | {out: x}
    reread(made.graph, left)
    for out, x in left.items():
        if out in returned:
            _give(made.graph, out, x)
    _drop_dead(made.graph, set(_reads(model.graph)))
    _keep_read(model.graph, made.graph)
    return made


def renumber(model: onnx.ModelProto) -> dict[str, str]:
    """Give past and present keys and values numbers without gaps; changes `model`. New names by old ones."""
    public = [*model.graph.input, *model.graph.output]
    found = {each.name: match for each in public if (match := _CACHE.fullmatch(each.name)) is not None}
    numbers = sorted({int(match["number"]) for match in found.values()})
    place = {number: index for index, number in enumerate(numbers)}
    new = {
        name: f"{match['before']}{place[int(match['number'])]}{match['after']}"
        for name, match in found.items()
        if place[int(match["number"])] != int(match["number"])
    }
    _rename(model.graph, new)
    return new


def _give(graph: onnx.GraphProto, out: str, x: str) -> None:
    """Let an Identity compute `out`, which the model returns, in the place of the add."""
    place = next(index for index, node in enumerate(graph.node) if out in node.output)
    add = graph.node[place]
    for index, name in enumerate(add.output):
        if name == out:
            add.output[index] = ""
    graph.node.insert(place + 1, onnx.helper.make_node("Identity", [x], [out], f"{out}/Identity"))


def _drop_dead(graph: onnx.GraphProto, read_before: set[str]) -> None:
    """Remove nodes that nothing reads, though something did before."""
    needed = {each.name for each in graph.output}
    kept = []
    for node in reversed(graph.node):
        names = set(filter(None, node.output))
        if names & needed or (names and not names & read_before):
            kept.append(node)
            needed.update(subgraph_reads(node))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    del graph.node[:]
    graph.node.extend(copies)


def _keep_read(before: onnx.GraphProto, graph: onnx.GraphProto) -> None:
    """Add the weights, inputs and shapes that are still read, or were never read, to `graph`."""
    gone = set(_reads(before)) - set(_reads(graph))
    made = {name for node in graph.node for name in node.output}
    once = {name for node in before.node for name in node.output} - made
    stored = {each.name for each in before.initializer}
    graph.initializer.extend(each for each in before.initializer if each.name not in gone)
    graph.input.extend(
        each for each in before.input if each.name not in gone or not (each.name in stored or _is_cache(each))
    )
    graph.value_info.extend(each for each in before.value_info if each.name not in gone | once)
    sparse = [each for each in graph.sparse_initializer if each.values.name not in gone]
    del graph.sparse_initializer[:]
    graph.sparse_initializer.extend(sparse)


def _is_cache(value: onnx.ValueInfoProto) -> bool:
    shape = value.type.tensor_type.shape
    return len(shape.dim) >= _CACHE_RANK or _CACHE.fullmatch(value.name) is not None


def _reads(graph: onnx.GraphProto) -> Iterable[str]:
    """Every value that nodes read, or the graph returns."""
    names = [name for node in graph.node for name in subgraph_reads(node)]
    return dict.fromkeys([*names, *(output.name for output in graph.output)])


def _rename(graph: onnx.GraphProto, new: Mapping[str, str]) -> None:
    """Give values other names, all at once: new names may be old ones of others."""
    if not new:
        return
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = new.get(value.name, value.name)
    for node in graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = new.get(name, name)
    reread(graph, dict(new))
