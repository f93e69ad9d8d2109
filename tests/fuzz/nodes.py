"""Mutations of nodes: which there are, what they read, what they are told by attributes."""

from __future__ import annotations

from random import Random

import onnx
from onnx import helper

from tests.fuzz.attributes import attribute
from tests.fuzz.parts import constant, everything, fresh, nodes_with, readers

__all__ = ["NODE_MUTATIONS"]

SIBLINGS = [
    ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod", "Greater", "BitShift"),
    ("MatMul", "Gemm", "Add"),
    ("Sigmoid", "Tanh", "Relu", "Erf", "Neg", "Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Identity",
     "Softplus", "Mish", "Gelu", "Softmax", "Shape", "Cos", "HardSwish", "Transpose", "Flatten", "Swish",
     "CumSum"),
    ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceProd"),
    ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
    ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    ("Squeeze", "Unsqueeze", "Reshape", "Expand", "Tile"),
    ("Slice", "Split", "Concat", "Gather"),
]  # fmt: skip
UNARY = ["Neg", "Abs", "Relu", "Identity", "Sigmoid", "Tanh", "Exp", "Softmax", "Sqrt", "Erf", "Dropout"]


def drop(model: onnx.ModelProto, rng: Random) -> None:
    """A node is missing."""
    del model.graph.node[rng.randrange(len(model.graph.node))]


def double(model: onnx.ModelProto, rng: Random) -> None:
    """A node stands twice, under its own outputs' names or under others, which one reader takes."""
    node = onnx.NodeProto()
    node.CopyFrom(rng.choice(model.graph.node))
    if rng.random() < 0.7:
        old = list(node.output)
        node.output[:] = [fresh(model) for _ in old]
        node.name = fresh(model) if rng.random() < 0.8 else node.name
        for reader, index in readers(model, old[0])[:1]:
            reader.input[index] = node.output[0]
    model.graph.node.insert(rng.randrange(len(model.graph.node) + 1), node)


def reorder(model: onnx.ModelProto, rng: Random) -> None:
    """The nodes stand in another order."""
    order = list(range(len(model.graph.node)))
    if rng.random() < 0.3:
        rng.shuffle(order)
    else:
        one, other = rng.sample(order, 2)
        order[one], order[other] = other, one
    copies = [onnx.NodeProto.FromString(model.graph.node[index].SerializeToString()) for index in order]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def rename(model: onnx.ModelProto, rng: Random) -> None:
    """A node's name, domain or operator is another."""
    node = rng.choice(model.graph.node)
    which = rng.randrange(4)
    if which == 0:
        node.name = rng.choice(
            ("", rng.choice(model.graph.node).name, "a/b", "x" * 3000, "/", "//", "\0", "é")
        )
    elif which == 1:
        node.domain = rng.choice(("", "ai.onnx", "com.microsoft", "ai.onnx.ml", "acme", "fxfuse"))
    elif which == 2:
        node.op_type = rng.choice(
            (
                "",
                "add",
                "linear",
                "mean",
                "pass",
                "rms_norm",
                "cast",
                "part",
                "If",
                "Loop",
                "Scan",
                "Constant",
            )
        )
    else:
        node.op_type = rng.choice(model.graph.node).op_type


def sibling(model: onnx.ModelProto, rng: Random) -> None:
    """A node computes something that is written alike."""
    table = rng.choice(SIBLINGS)
    node = nodes_with(model, rng, lambda each: each.op_type in table)
    node.op_type = rng.choice(table)
    if rng.random() < 0.5:
        del node.attribute[:]


def swap(model: onnx.ModelProto, rng: Random) -> None:
    """Two operands of a node are exchanged."""
    node = nodes_with(model, rng, lambda each: len(each.input) > 1)
    one, other = rng.sample(range(len(node.input)), 2)
    node.input[one], node.input[other] = node.input[other], node.input[one]


def rewire(model: onnx.ModelProto, rng: Random) -> None:
    """A node reads another value: any, an earlier one, its own, none."""
    index = rng.randrange(len(model.graph.node))
    node = model.graph.node[index]
    if not node.input:
        return
    earlier = [each for other in list(model.graph.node)[:index] for each in other.output]
    kind = rng.random()
    if kind < 0.6 and earlier:
        value = rng.choice(earlier[-40:])
    else:
        value = rng.choice(
            (rng.choice(everything(model)), node.output[0] if node.output else "", "", "ghost")
        )
    node.input[rng.randrange(len(node.input))] = value


def operands(model: onnx.ModelProto, rng: Random) -> None:
    """A node has one input or output more or less."""
    node = rng.choice(model.graph.node)
    names = node.input if rng.random() < 0.7 else node.output
    if names and rng.random() < 0.5:
        del names[rng.randrange(len(names))]
    else:
        names.append(rng.choice((rng.choice(everything(model)), fresh(model), "")))


def second_output(model: onnx.ModelProto, rng: Random) -> None:
    """A node's second result is read in place of its first."""
    kinds = ("Dropout", "LayerNormalization", "SimplifiedLayerNormalization", "Split", "Add", "MatMul")
    node = nodes_with(model, rng, lambda each: each.op_type in kinds)
    while len(node.output) < rng.randrange(2, 4):
        node.output.append(fresh(model))
    for reader, index in readers(model, node.output[0])[: rng.randrange(1, 3)]:
        reader.input[index] = node.output[-1]


def insert_unary(model: onnx.ModelProto, rng: Random) -> None:
    """One operator more on the way between two nodes."""
    kind = rng.randrange(5)
    if kind == 0:
        to = rng.choice((1, 10, 11, 16, 7, 9))
        _insert(model, rng, helper.make_node("Cast", [], [], to=to))
    elif kind == 1:
        width = rng.choice((16, 24, 64, 112, 7, 1, -1))
        shape = rng.choice(
            ([-1, width], [1, -1, width], [-1, 1, width], [0, 0, -1], [0, 0, 2, -1], [width, -1], [-1])
        )
        _insert(model, rng, helper.make_node("Reshape", [], []), constant(model, shape))
    elif kind == 2:
        _insert(
            model, rng, helper.make_node("Transpose", [], [], perm=rng.choice(([1, 0], [1, 0, 2], [0, 2, 1])))
        )
    elif kind == 3:
        axis = constant(model, [rng.choice((0, 1, -1))])
        _insert(
            model,
            rng,
            helper.make_node(rng.choice(("Unsqueeze", "Squeeze", "ReduceMean", "ReduceSum")), [], []),
            axis,
        )
    else:
        _insert(model, rng, helper.make_node(rng.choice(UNARY), [], []))


def insert_binary(model: onnx.ModelProto, rng: Random) -> None:
    """One operator more that applies a constant or another value."""
    op = rng.choice(("Add", "Mul", "Div", "Sub", "Pow", "Max", "MatMul"))
    width = rng.choice((16, 24, 64, 112, 224, 48))
    shape = rng.choice(
        (
            [],
            [1],
            [width],
            [1, width],
            [1, 1, width],
            [1, 1, 1, width],
            [width, 1],
            [7, width],
            [width, width],
        )
    )
    count = 1
    for size in shape:
        count *= size
    values = [0.5 + rng.random() for _ in range(count)]
    other = constant(model, values, shape) if rng.random() < 0.75 else rng.choice(everything(model))
    _insert(model, rng, helper.make_node(op, [], []), other)


def _insert(model: onnx.ModelProto, rng: Random, node: onnx.NodeProto, *others: str) -> None:
    index = rng.randrange(len(model.graph.node))
    target = model.graph.node[index]
    if not target.input:
        return
    place = rng.randrange(len(target.input))
    inputs = [target.input[place], *others]
    if len(others) == 1 and node.op_type in ("Add", "Mul", "Sub", "Div") and rng.random() < 0.5:
        inputs.reverse()
    node.input.extend(inputs)
    node.output.append(fresh(model))
    node.name = fresh(model)
    target.input[place] = node.output[0]
    model.graph.node.insert(index, node)


NODE_MUTATIONS = [
    drop, double, reorder, rename, sibling, sibling, swap, swap, rewire, rewire, rewire, operands,
    second_output, attribute, attribute, insert_unary, insert_unary, insert_binary, insert_binary,
    insert_binary,
]  # fmt: skip
