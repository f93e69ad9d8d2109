"""Put back the operators that `fxfuse.passes.onnx.expand` wrote out, as far as a rewrite left them alone.

1. Where all parts are unchanged and nothing else reads a value inside, the original node stands again.
2. An Add with new operands and the norm that reads its sum become one Skip node again; so do an Add and the
   unit-gain norm that a group of blocks reads.
3. Local functions that nothing calls any more go.
"""

from __future__ import annotations

import onnx

from fxfuse.passes.onnx.compounds import SKIPS
from fxfuse.passes.onnx.expand import Compound, Expanded
from fxfuse.passes.onnx.extract import subgraph_reads
from fxfuse.passes.onnx.inline import Functions, domains_of, key_of

__all__ = ["contract"]


def contract(rewritten: onnx.ModelProto, expanded: Expanded) -> onnx.ModelProto:
    """`rewritten` with the original's nodes where they can stand; changed in place.

    It was made from `expanded.model`, by adding and removing nodes and by giving nodes other inputs.
    """
    if not expanded.compounds:
        return rewritten
    nodes = _Nodes(rewritten.graph)
    for compound in expanded.compounds:
        if nodes.restore(compound):
            continue
        if compound.node.op_type in SKIPS:
            nodes.rejoin(compound)
    left = [node for node in nodes.nodes if node is not None]
    del rewritten.graph.node[:]
    rewritten.graph.node.extend(left)
    _drop_functions(rewritten, expanded)
    _drop_opsets(rewritten, expanded)
    return rewritten


class _Nodes:
    """The nodes of a graph, by place; None where a part went back into its node."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes: list[onnx.NodeProto | None] = list(graph.node)
        self.producer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
        self.readers: dict[str, set[int]] = {}
        for index, node in enumerate(graph.node):
            for name in subgraph_reads(node):
                self.readers.setdefault(name, set()).add(index)
        self.outputs = {value.name for value in graph.output}
        self.stored = {tensor.name for tensor in graph.initializer}

    def restore(self, compound: Compound) -> bool:
        """Put the original node in the place of its parts, if they are as they were."""
        places = [self._place(part) for part in compound.parts]
        if any(
            place is None or self.nodes[place] != part
            for place, part in zip(places, compound.parts, strict=True)
        ):
            return False
        own = {place for place in places if place is not None}
        inside = {name for part in compound.parts for name in part.output} - {"", *compound.node.output}
        if any(name in self.outputs or not self.readers.get(name, set()) <= own for name in inside):
            return False
        self._replace(min(own), compound.node, own)
        return True

    def rejoin(self, compound: Compound) -> None:
        """Make one Skip node of the sum and the norm that reads it now, if there are both."""
        *_, sum_part, norm_part = compound.parts
        total = sum_part.output[0]
        place = self.producer.get(total)
        add = self.nodes[place] if place is not None else None
        norm_place = self._norm_of(total, norm_part)
        if place is None or add is None or add.op_type != "Add" or norm_place is None:
            return
        norm = self.nodes[norm_place]
        assert norm is not None
        operands, bias, taken = list(add.input), "", {place, norm_place}
        bias_place = self._place(compound.parts[0]) if len(compound.parts) > 2 else None
        if bias_place is not None and self._only_for(bias_place, compound.parts[0], place):
            biased = compound.parts[0].output[0]
            bias = compound.parts[0].input[1]
            operands[operands.index(biased)] = compound.parts[0].input[0]
            taken.add(bias_place)
        seen = total in self.outputs or self.readers[total] != {norm_place} or total in compound.node.output
        skip = _skip_node(compound.node, operands, list(norm.input[1:]), bias)
        skip.output[:] = [norm.output[0], "", "", total] if seen else [norm.output[0]]
        self._replace(place, skip, taken)

    def _place(self, part: onnx.NodeProto) -> int | None:
        name = next(filter(None, part.output), "")
        place = self.producer.get(name)
        return place if place is not None and self.nodes[place] is not None else None

    def _norm_of(self, total: str, part: onnx.NodeProto) -> int | None:
        """The norm that was in the node, or a new one of its kind whose constants are stored."""
        found = []
        for place in sorted(self.readers.get(total, ())):
            node = self.nodes[place]
            if node is None or node.op_type != part.op_type or node.input[0] != total or len(node.output) > 1:
                continue
            if node == part:
                return place
            if _same_attributes(node, part) and self.stored.issuperset(filter(None, node.input[1:])):
                found.append(place)
        return found[0] if found else None

    def _only_for(self, place: int, part: onnx.NodeProto, reader: int) -> bool:
        """Whether a part is unchanged and only one node reads it."""
        name = part.output[0]
        return self.nodes[place] == part and name not in self.outputs and self.readers.get(name) == {reader}

    def _replace(self, place: int, node: onnx.NodeProto, parts: set[int]) -> None:
        for each in parts:
            taken, self.nodes[each] = self.nodes[each], None
            for name in subgraph_reads(taken) if taken is not None else ():
                self.readers[name].discard(each)
        self.nodes[place] = node
        for name in filter(None, node.output):
            self.producer[name] = place
        for name in subgraph_reads(node):
            self.readers.setdefault(name, set()).add(place)


def _skip_node(
    original: onnx.NodeProto, operands: list[str], constants: list[str], bias: str
) -> onnx.NodeProto:
    """A copy of a Skip node with other inputs and no outputs."""
    copy = onnx.NodeProto()
    copy.CopyFrom(original)
    width = 2 if original.op_type == "SkipLayerNormalization" else 1
    inputs = [*operands, *constants, *[""] * (width - len(constants)), bias]
    while not inputs[-1]:
        inputs.pop()
    del copy.input[:], copy.output[:]
    copy.input.extend(inputs)
    return copy


def _same_attributes(one: onnx.NodeProto, other: onnx.NodeProto) -> bool:
    a, b = (
        {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute} for node in (one, other)
    )
    return a == b


def _drop_functions(model: onnx.ModelProto, expanded: Expanded) -> None:
    unused = expanded.called - Functions(model).called(model.graph) if expanded.called else set()
    kept = [each for each in model.functions if key_of(each) not in unused]
    if unused:
        del model.functions[:]
        model.functions.extend(kept)


def _drop_opsets(model: onnx.ModelProto, expanded: Expanded) -> None:
    unused = expanded.opsets - domains_of(model.graph)
    if unused:
        kept = [each for each in model.opset_import if each.domain not in unused]
        del model.opset_import[:]
        model.opset_import.extend(kept)
