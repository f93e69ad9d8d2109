"""Cut a part out of an ONNX model: the nodes between some values and some others, as a model of its own.

A part may be divided further, into pieces that each read a bounded amount of weights and follow one another:
what a piece gives is read by a later one, or wanted at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

__all__ = ["ModelIndex", "Piece", "divide", "extract", "piece_model", "subgraph_reads"]


class ModelIndex:
    """Who computes what in the main graph of a model, by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.producer = {
            output: index for index, node in enumerate(self.nodes) for output in node.output if output
        }
        self.initializer = {tensor.name: tensor for tensor in model.graph.initializer}
        self.sparse = {tensor.values.name: tensor for tensor in model.graph.sparse_initializer}
        self.input = {value.name: value for value in model.graph.input}


@dataclass(frozen=True)
class Piece:
    """Nodes by place, in order; values that they take from before, and those that are read after them."""

    nodes: tuple[int, ...]
    reads: tuple[str, ...]
    gives: tuple[str, ...]


def extract(index: ModelIndex, cuts: Mapping[str, int], outputs: Sequence[str]) -> onnx.ModelProto:
    """The part of the model that computes `outputs` from `cuts` (name -> element type) and its inputs."""
    (piece,) = divide(index, cuts, outputs, None) or [Piece((), (), ())]
    kinds = {name: onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in cuts.items()}
    given = [name for name in outputs if name in cuts]
    return piece_model(index, Piece(piece.nodes, (*piece.reads, *given), tuple(outputs)), kinds)


def divide(
    index: ModelIndex,
    known: Collection[str],
    wanted: Sequence[str],
    bound: int | None,
    weigh: Callable[[onnx.TensorProto], int] = lambda _: 0,
) -> list[Piece]:
    """The nodes that compute `wanted` from `known` values and the graph's inputs, cut into pieces in order.

    The stored tensors that a piece reads weigh at most `bound` together, unless one node alone reads more.
    """
    places = _needed(index, known, wanted)
    reads = {place: list(dict.fromkeys(subgraph_reads(index.nodes[place]))) for place in places}
    runs: list[list[int]] = []
    held: set[str] = set()
    weight = 0
    for place in places:
        new = [name for name in reads[place] if name in index.initializer and name not in known]
        more = sum(weigh(index.initializer[name]) for name in new if name not in held)
        if not runs or (bound is not None and more and weight + more > bound):
            runs.append([])
            held, weight = set(), 0
            more = sum(weigh(index.initializer[name]) for name in new)
        runs[-1].append(place)
        held.update(new)
        weight += more
    return _linked(index, runs, reads, known, wanted)


def piece_model(index: ModelIndex, piece: Piece, kinds: Mapping[str, onnx.ValueInfoProto]) -> onnx.ModelProto:
    """A piece as a model; `kinds` types the values that it reads, the graph's own inputs apart."""
    graph = onnx.GraphProto(name=index.model.graph.name)
    nodes = [index.nodes[place] for place in piece.nodes]
    taken = set(piece.reads)
    stored = dict.fromkeys(each for node in nodes for each in subgraph_reads(node) if each not in taken)
    stored |= dict.fromkeys(name for name in piece.gives if name not in taken)
    graph.node.extend(nodes)
    graph.initializer.extend(index.initializer[name] for name in stored if name in index.initializer)
    graph.sparse_initializer.extend(index.sparse[name] for name in stored if name in index.sparse)
    graph.input.extend(kinds[name] if name in kinds else index.input[name] for name in piece.reads)
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in piece.gives)
    model = onnx.ModelProto(ir_version=index.model.ir_version, graph=graph)
    model.opset_import.extend(index.model.opset_import)
    model.functions.extend(index.model.functions)
    return model


def subgraph_reads(node: onnx.NodeProto) -> Iterable[str]:
    """Every value that a node reads, those that its subgraphs take from outside included.

    A subgraph's own values are none of these, also where they are called as a value outside is: merged
    decoders give the outputs of both branches the names of the If node's own.
    """
    found = list(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            own = {value.name for value in (*graph.input, *graph.initializer)}
            own.update(name for inner in graph.node for name in inner.output)
            names = [name for inner in graph.node for name in subgraph_reads(inner)]
            names += [output.name for output in graph.output]
            found += [name for name in names if name not in own]
    return found


def _needed(index: ModelIndex, known: Collection[str], wanted: Sequence[str]) -> list[int]:
    """The places of the nodes above `wanted`, up to `known` values, in order."""
    found: set[int] = set()
    stack, seen = list(wanted), set[str]()
    while stack:
        name = stack.pop()
        if name in seen or name in known or name in index.initializer:
            continue
        seen.add(name)
        place = index.producer.get(name)
        if place is not None and place not in found:
            found.add(place)
            stack += subgraph_reads(index.nodes[place])
    return sorted(found)


def _linked(
    index: ModelIndex,
    runs: Sequence[Sequence[int]],
    reads: Mapping[int, Sequence[str]],
    known: Collection[str],
    wanted: Sequence[str],
) -> list[Piece]:
    """Runs of nodes as pieces: what each takes from before it, and what is read after it."""
    made = {
        name: number for number, run in enumerate(runs) for place in run for name in index.nodes[place].output
    }
    taken: list[dict[str, None]] = [{} for _ in runs]
    later = dict.fromkeys(name for name in wanted if name not in known)
    for number, run in enumerate(runs):
        for name in (name for place in run for name in reads[place] if name):
            if name in known:
                taken[number][name] = None
            elif name not in index.initializer and name in made:
                if made[name] < number:
                    taken[number][name] = None
                    later[name] = None
            elif name not in index.initializer and name in index.input:
                taken[number][name] = None
    gives: list[list[str]] = [[] for _ in runs]
    for name in later:
        if name in made:
            gives[made[name]].append(name)
    return [Piece(tuple(run), tuple(taken[number]), tuple(gives[number])) for number, run in enumerate(runs)]
