"""Mutations of the whole: inputs, outputs, shapes that are told, opsets, functions, subgraphs, metadata."""

from __future__ import annotations

import sys
from random import Random

import onnx
from onnx import TensorProto, ValueInfoProto, helper

from tests.fuzz.parts import everything, fresh, nodes_with, readers

__all__ = ["MODEL_MUTATIONS"]

DIMS = (0, -1, 1, 2, 5, 64, 1 << 20, 1 << 40, (1 << 63) - 1)
NAMES = (
    "",
    "batch",
    "sequence",
    "b*s",
    "past + seq",
    "9**9**9",
    "(" * 300,
    "a\nb",
    "1is 2",
    "-n",
    "n//0",
    "é",
    "lambda: 0",
)


def tap(model: onnx.ModelProto, rng: Random) -> None:
    """A value inside is a graph output too, typed or not."""
    name = rng.choice(everything(model))
    kind = rng.choice((TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64))
    known = helper.make_tensor_value_info(name, kind, None)
    model.graph.output.append(known if rng.random() < 0.6 else ValueInfoProto(name=name))


def outputs(model: onnx.ModelProto, rng: Random) -> None:
    """Outputs are gone, doubled, in another order, or of another type."""
    which = rng.randrange(4)
    if which == 0:
        del model.graph.output[rng.randrange(len(model.graph.output))]
    elif which == 1:
        model.graph.output.append(rng.choice(model.graph.output))
    elif which == 2:
        rng.choice(model.graph.output).name = rng.choice(everything(model))
    else:
        rng.choice(model.graph.output).type.tensor_type.elem_type = rng.choice((0, 1, 7, 8, 10, 16, 99))


def inputs(model: onnx.ModelProto, rng: Random) -> None:
    """Inputs are of another type or shape, one more, one less, no tensors."""
    which = rng.randrange(6)
    made = helper.make_tensor_value_info
    if which == 0 and model.graph.input:
        _resize(rng.choice(model.graph.input), rng)
    elif which == 1 and model.graph.input:
        rng.choice(model.graph.input).type.tensor_type.elem_type = rng.choice((0, 1, 6, 7, 8, 10, 14, 22, 99))
    elif which == 2:
        shape = rng.choice(([], [2, 3], ["batch", 64], [0], None))
        kind = rng.choice((1, 7, 9, 8, 10))
        model.graph.input.append(made(rng.choice((fresh(model), "past", "attention_mask")), kind, shape))
    elif which == 3 and model.graph.input:
        del model.graph.input[rng.randrange(len(model.graph.input))]
    elif which == 4 and model.graph.input:
        rng.choice(model.graph.input).name = rng.choice((*everything(model), ""))
    else:
        model.graph.input.append(helper.make_tensor_sequence_value_info(fresh(model), 1, None))


def told(model: onnx.ModelProto, rng: Random) -> None:
    """What the file says of a value's shape or type is missing or wrong."""
    info = model.graph.value_info
    which = rng.randrange(4)
    if which == 0 or not info:
        del info[:]
        if which == 3:
            shape = rng.choice(([], [16], [1, 64, 16], [2, 7, 64], ["batch", "sequence", 5]))
            info.append(helper.make_tensor_value_info(rng.choice(everything(model)), 1, shape))
    elif which == 1:
        _resize(rng.choice(info), rng)
    elif which == 2:
        rng.choice(info).type.tensor_type.elem_type = rng.choice((0, 1, 7, 8, 10, 11, 16, 99))
    else:
        one, other = rng.choice(info), rng.choice(info)
        one.name, other.name = other.name, one.name


def _resize(value: ValueInfoProto, rng: Random) -> None:
    dims = value.type.tensor_type.shape.dim
    if not dims or rng.random() < 0.15:
        dims.add(dim_value=rng.choice(DIMS))
    elif rng.random() < 0.15:
        del dims[rng.randrange(len(dims))]
    elif rng.random() < 0.15:
        value.type.tensor_type.ClearField("shape")
    elif rng.random() < 0.5:
        rng.choice(dims).dim_value = rng.choice(DIMS)
    else:
        rng.choice(dims).dim_param = rng.choice(NAMES)


def versions(model: onnx.ModelProto, rng: Random) -> None:
    """Another opset or IR version; opsets doubled, missing, of unknown domains."""
    which = rng.randrange(5)
    if which == 0:
        model.ir_version = rng.choice((0, 1, 3, 4, 7, 8, 10, 13, 99))
    elif which == 1 and model.opset_import:
        rng.choice(model.opset_import).version = rng.choice(
            (-1, 0, 1, 6, 7, 9, 11, 12, 13, 17, 18, 20, 23, 24, 99)
        )
    elif which == 2 and model.opset_import:
        del model.opset_import[rng.randrange(len(model.opset_import))]
    else:
        domain = rng.choice(("", "ai.onnx", "com.microsoft", "acme", "pkg.onnxscript"))
        model.opset_import.append(helper.make_opsetid(domain, rng.choice((1, 9, 20))))


def metadata(model: onnx.ModelProto, rng: Random) -> None:
    """Notes on the model or a node: fxfuse's own keys, module paths, nonsense, the same key twice."""
    key = rng.choice(("namespace", "fxfuse", "fxfuse.blocks", "pkg.torch.onnx.class_hierarchy", ""))
    text = rng.choice(
        ("", "{", "{}", "[]", "null", '{"groups": [{}]}', '{"groups": 3}', "/", ": ", "a: b/c: d", "é" * 500)
    )
    target = model if rng.random() < 0.4 else rng.choice(model.graph.node)
    for _ in range(rng.choice((1, 1, 2))):
        target.metadata_props.add(key=key, value=text)


def in_a_branch(model: onnx.ModelProto, rng: Random) -> None:
    """Some neighbouring nodes move into the body of an If (of Ifs, at times many)."""
    start = rng.randrange(len(model.graph.node))
    stop = min(len(model.graph.node), start + rng.choice((1, 1, 3, 13, 40)))
    moved = [
        onnx.NodeProto.FromString(each.SerializeToString()) for each in list(model.graph.node)[start:stop]
    ]
    made = {name for node in moved for name in node.output if name}
    rest = [*list(model.graph.node)[:start], *list(model.graph.node)[stop:]]
    wanted = {each.name for each in model.graph.output} | {name for node in rest for name in node.input}
    names = sorted(made & wanted)
    switch = _switch(model)
    del model.graph.node[start:stop]
    for depth in range(rng.choice((1, 1, 1, 2, 30))):
        body = helper.make_graph(moved, f"body{depth}", [], [ValueInfoProto(name=name) for name in names])
        moved = [
            helper.make_node(
                "If", [switch], names, then_branch=body, else_branch=body if depth < 3 else _noop(names)
            )
        ]
    model.graph.node.insert(start, moved[0])


def _noop(names: list[str]) -> onnx.GraphProto:
    nodes = [helper.make_node("Constant", [], [name], value_float=0.0) for name in names]
    return helper.make_graph(nodes, "noop", [], [ValueInfoProto(name=name) for name in names])


def read_by_a_branch(model: onnx.ModelProto, rng: Random) -> None:
    """An If reads a value of the main graph, deep inside, and its result is a graph output."""
    value = rng.choice(everything(model))
    out = fresh(model)
    node = helper.make_node(rng.choice(("Identity", "Neg")), [value], [f"{out}_in"])
    direct = rng.random() < 0.3
    body = helper.make_graph(
        [] if direct else [node], "body", [], [ValueInfoProto(name=value if direct else f"{out}_in")]
    )
    model.graph.node.append(
        helper.make_node("If", [_switch(model)], [out], then_branch=body, else_branch=body)
    )
    model.graph.output.append(
        ValueInfoProto(name=out) if rng.random() < 0.5 else helper.make_tensor_value_info(out, 1, None)
    )


def _switch(model: onnx.ModelProto) -> str:
    name = fresh(model)
    model.graph.initializer.append(helper.make_tensor(name, TensorProto.BOOL, [], [True]))
    return name


def as_function(model: onnx.ModelProto, rng: Random) -> None:
    """A node calls a local function: its own operator, or another one under its name."""
    node = nodes_with(model, rng, lambda each: 0 < len(each.input) < 4 and len(each.output) == 1)
    inputs = [f"i{index}" for index in range(len(node.input))]
    inner = onnx.NodeProto.FromString(node.SerializeToString())
    inner.input[:], inner.output[:] = inputs, ["o"]
    if rng.random() < 0.6:
        inner = helper.make_node(rng.choice(("Mul", "Neg", "Identity", "Sub")), inputs[:2], ["o"])
    node.domain = rng.choice(("acme", "com.microsoft", "local"))
    if rng.random() < 0.3:
        node.op_type = rng.choice(("silu", "add", "linear", "mean", "layer_norm", "pass"))
    opsets = [each for each in model.opset_import if each.domain in ("", "com.microsoft")]
    model.functions.append(helper.make_function(node.domain, node.op_type, inputs, ["o"], [inner], opsets))
    if node.domain not in {each.domain for each in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(node.domain, 1))
    if rng.random() < 0.8:
        del node.attribute[:]


def odd_functions(model: onnx.ModelProto, rng: Random) -> None:
    """A function that calls itself, that nothing calls, or that is not whole."""
    call = helper.make_node("F", ["x"], ["y"], domain="acme")
    function = helper.make_function("acme", "F", ["x"], ["y"], [call], [helper.make_opsetid("acme", 1)])
    if rng.random() < 0.3:
        function.ClearField("name")
    model.functions.append(function)
    if rng.random() < 0.7:
        node = rng.choice(model.graph.node)
        for reader, index in readers(model, node.output[0])[:1]:
            name = fresh(model)
            reader.input[index] = name
            model.graph.node.insert(0, helper.make_node("F", [node.output[0]], [name], domain="acme"))
    if rng.random() < 0.8:
        model.opset_import.append(helper.make_opsetid("acme", 1))


def nested(model: onnx.ModelProto, rng: Random) -> None:
    """A long line of operators, or of constants, deeper than a recursion may go."""
    op, length = rng.choice(("Neg", "Identity", "Relu", "Transpose", "Add")), rng.choice((80, 300, 1500))
    length = min(length, sys.getrecursionlimit() * 4)
    stored = [each.name for each in model.graph.initializer if len(each.dims) == 2] or [""]
    value = rng.choice((rng.choice(stored), rng.choice(everything(model))))
    takers = readers(model, value)
    name, nodes = fresh(model), []
    for index in range(length):
        inputs = [value, value] if op == "Add" else [value]
        nodes.append(helper.make_node(op, inputs, [f"{name}_{index}"]))
        value = nodes[-1].output[0]
    for reader, index in takers[:1]:
        reader.input[index] = value
    at = next((i for i, each in enumerate(model.graph.node) if takers and each is takers[0][0]), 0)
    rest = [onnx.NodeProto.FromString(each.SerializeToString()) for each in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([*rest[:at], *nodes, *rest[at:]])


def blank(model: onnx.ModelProto, rng: Random) -> None:
    """A whole field of the model or of its graph is empty."""
    target = model if rng.random() < 0.3 else model.graph
    target.ClearField(rng.choice([field.name for field, _ in target.ListFields()] or ["name"]))


MODEL_MUTATIONS = [
    tap, tap, outputs, inputs, told, told, versions, metadata, in_a_branch, in_a_branch, read_by_a_branch,
    read_by_a_branch, as_function, as_function, odd_functions, nested, blank,
]  # fmt: skip
