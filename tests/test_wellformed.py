"""What is no graph is told in one sentence, and what only looks odd is left to ONNX Runtime."""

import random
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import fxfuse
from fxfuse.errors import InputError
from fxfuse.onnxio import load_model
from fxfuse.wellformed import problem_of, sort_nodes
from tests.small_onnx import Small, save

Edit = Callable[[onnx.ModelProto], object]


def added(op: str, inputs: list[str], outputs: list[str], **attributes: object) -> Edit:
    return lambda m: m.graph.node.append(helper.make_node(op, inputs, outputs, "odd", **attributes))


def in_a_body(name: str) -> Edit:
    """An If whose branches read `name`."""

    def edit(model: onnx.ModelProto) -> None:
        out = onnx.ValueInfoProto(name="inner")
        body = helper.make_graph([helper.make_node("Neg", [name], ["inner"], "deep")], "body", [], [out])
        model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
        added("If", ["yes"], ["taken"], then_branch=body, else_branch=body)(model)

    return edit


def calling(*calls: tuple[str, str]) -> Edit:
    """Local functions that call one another, by pairs of names."""

    def edit(model: onnx.ModelProto) -> None:
        for name, other in calls:
            node = helper.make_node(other, ["x"], ["y"], domain="acme")
            opsets = [helper.make_opsetid("acme", 1)]
            model.functions.append(helper.make_function("acme", name, ["x"], ["y"], [node], opsets))

    return edit


BAD: dict[str, tuple[Edit, str]] = {
    "reads nothing": (added("Neg", ["ghost"], ["n"]), "(Neg) reads nothing: 'ghost' is not a graph input"),
    "reads nothing inside": (in_a_body("ghost"), "node deep (Neg) reads nothing: 'ghost'"),
    "an output of nothing": (lambda m: m.graph.output.add(name="ghost"), "nothing computes its output"),
    "computed twice": (added("Neg", ["x1"], ["x2"]), "Duplicate definition of name (x2)"),
    "computed and stored": (added("Neg", ["x1"], ["embed"]), "Duplicate definition of name (embed)"),
    "stored twice": (
        lambda m: m.graph.initializer.append(m.graph.initializer[0]), "Duplicate definition of name (embed)",
    ),
    "reads itself": (added("Add", ["x1", "n"], ["n"]), "not acyclic: node odd (Add) waits for itself"),
    "a body reads its node": (in_a_body("taken"), "not acyclic: node odd (If) waits for itself"),
    "too few inputs": (added("Gather", ["x1"], ["n"]), "node odd (Gather) has 1 inputs where Gather has 2"),
    "an empty input": (added("Add", ["", "x1"], ["n"]), "node odd (Add) leaves out its input A"),
    "too many outputs": (added("Neg", ["x1"], ["n", "o"]), "has 2 outputs where Neg has 1"),
    "too few to choose from": (added("Concat", [], ["n"], axis=0), "Concat has at least 1"),
    "an attribute of text": (
        added("Softmax", ["x1"], ["n"], axis="last"), "has an attribute 'axis' that is no INT",
    ),
    "an attribute is missing": (added("Cast", ["x1"], ["n"]), "node odd (Cast) lacks its attribute 'to'"),
    "an attribute twice": (
        lambda m: m.graph.node[2].attribute.extend([helper.make_attribute("keepdims", 1)] * 2),
        "has an attribute twice",
    ),
    "an output of no type": (
        lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", 99),
        "'logits' has no known type (99)",
    ),
    "a function calls itself": (calling(("F", "F")), "its function F calls itself"),
    "functions in a ring": (calling(("F", "G"), ("G", "F")), "calls itself"),
    "a function with an odd node": (
        lambda m: m.functions.append(
            helper.make_function(
                "acme", "F", ["x"], ["y"], [helper.make_node("Gather", ["x"], ["y"], "in")], m.opset_import
            )
        ),
        "in its function F, node in (Gather) has 1 inputs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_no_graph(tmp_path: Path, name: str) -> None:
    edit, sentence = BAD[name]
    model = Small().model()
    edit(model)
    with pytest.raises(InputError) as error:
        load_model(save(tmp_path / "m.onnx", model))
    assert sentence in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'm.onnx'} is damaged: ")


@pytest.mark.parametrize("word", [b"x1", b"logits", b"keepdims", b"input_ids"])
def test_no_text(tmp_path: Path, word: bytes) -> None:
    data = Small().model().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data.replace(word, b"\xff" * len(word)))
    with pytest.raises(InputError, match=r"is damaged: the text b'.xff"):
        load_model(tmp_path / "m.onnx")


GOOD: dict[str, Edit] = {
    "an operator to come": added("Gizmo", ["x1", "x1", "x1"], ["n"], axis="last"),
    "an operator of another domain": added("Neg", ["x1", "x1"], ["n"], domain="acme"),
    "an input left out": added("Clip", ["x1", "", "one"], ["n"]),
    "a body reads the graph": in_a_body("x1"),
    "functions that call others": calling(("F", "G"), ("G", "H")),
    "a weight with an input": lambda m: m.graph.input.append(
        helper.make_tensor_value_info("embed", TensorProto.FLOAT, None)
    ),
    "an output of no type yet": lambda m: m.graph.output[0].ClearField("type"),
}


@pytest.mark.parametrize("name", GOOD)
def test_graph(name: str) -> None:
    model = Small().model()
    GOOD[name](model)
    assert problem_of(model) is None


def shuffled() -> onnx.ModelProto:
    model = Small(scale=0.3).model()
    in_a_body("x1")(model)
    nodes = list(model.graph.node)
    random.Random(3).shuffle(nodes)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model


def test_nodes_are_put_in_order() -> None:
    model = shuffled()
    assert problem_of(model) is None
    sort_nodes(model.graph)
    there = {value.name for value in (*model.graph.input, *model.graph.initializer)}
    for node in model.graph.node:
        assert there.issuperset(node.input)
        there.update(node.output)
    before = model.SerializeToString()
    sort_nodes(model.graph)
    assert model.SerializeToString() == before


def test_nodes_in_any_order_fuse(tmp_path: Path) -> None:
    save(tmp_path / "m.onnx", shuffled())
    report = fxfuse.fuse_onnx(tmp_path / "m.onnx", min_sqnr=None, provider="cpu")
    assert [chain.length for chain in report.chains] == [2]  # the body reads x1
    assert report.output is not None
