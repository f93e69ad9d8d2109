"""Models that are run piece by piece: where they are cut, and that nothing changes by it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fxfuse.external import size
from fxfuse.frontends import pieces
from fxfuse.frontends.onnx_runner import Runner
from fxfuse.frontends.pieces import Pieces
from fxfuse.inputs import draw_inputs, specs_of
from fxfuse.onnxio import load_model
from fxfuse.passes.onnx.extract import ModelIndex, divide
from tests.small_onnx import Small, save

Arrays = dict[str, np.ndarray[Any, Any]]
FLOAT = TensorProto.FLOAT


def run(model: onnx.ModelProto, folder: Path, wanted: list[str], samples: list[Arrays]) -> list[list[Any]]:
    return Pieces(Runner(model, folder, "cpu", folder), ModelIndex(model), folder).run(wanted, samples)


def whole(model: onnx.ModelProto, folder: Path, wanted: list[str], sample: Arrays) -> list[Any]:
    runner = Runner(model, folder, "cpu", folder)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    own = {each.name for each in model.graph.output}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in wanted if n not in own)
    return runner.run(runner.open(copy), wanted, sample)


def graph_model(nodes: list[onnx.NodeProto], outputs: list[str], weights: Arrays) -> onnx.ModelProto:
    """A model of x [2, 3] whose outputs' types are left to be inferred."""
    graph = helper.make_graph(
        nodes, "pieces",
        [helper.make_tensor_value_info("x", FLOAT, [2, 3])],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


# Where a model is cut


def test_pieces_hold_every_node_once_in_order_and_bounded_weights():
    model = Small(layers=6).model()
    index = ModelIndex(model)
    parts = divide(index, {"input_ids"}, ["logits"], 4000, size)
    assert [place for part in parts for place in part.nodes] == list(range(len(model.graph.node)))
    assert len(parts) > 6
    for part in parts:
        names = {name for place in part.nodes for name in index.nodes[place].input}
        weights = [size(index.initializer[name]) for name in names & index.initializer.keys()]
        assert sum(weights) <= 4000
    assert parts[-1].gives == ("logits",)


def test_what_a_piece_reads_was_given_before_it():
    index = ModelIndex(Small(layers=6).model())
    known = {"input_ids"}
    for part in divide(index, {"input_ids"}, ["logits", "x2"], 4000, size):
        assert set(part.reads) <= known
        known |= set(part.gives)
    assert {"logits", "x2"} <= known


def test_one_node_above_the_bound_stands_alone():
    index = ModelIndex(Small(layers=1).model())
    parts = divide(index, {"input_ids"}, ["logits"], 1, size)
    weighty = [part for part in parts if sum(size(index.initializer[n]) for n in _stored(index, part)) > 1]
    assert all(len(_stored(index, part) - {"axes", "eps"}) <= 1 for part in weighty)


def _stored(index: ModelIndex, part: Any) -> set[str]:
    return {name for place in part.nodes for name in index.nodes[place].input} & index.initializer.keys()


def test_what_is_known_is_not_computed():
    index = ModelIndex(Small(layers=3).model())
    (part,) = divide(index, {"x2"}, ["x3"], None)
    assert len(part.nodes) == 13
    assert part.reads == ("x2",)


# That nothing changes


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("kind", [FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_values_are_those_of_the_whole_model(tmp_path, monkeypatch, external, kind):
    monkeypatch.setattr(pieces, "BOUND", 3000)
    model, folder = load_model(save(tmp_path / "m.onnx", external=external, layers=5, dtype=kind))
    samples = draw_inputs(specs_of(model), 0, 32, samples=2)
    names = ["logits", "x1", "x4"]
    rounding = 2e-3 if kind == TensorProto.FLOAT16 else 1e-5
    for found, sample in zip(run(model, folder, names, samples), samples, strict=True):
        for one, other in zip(found, whole(model, folder, names, sample), strict=True):
            difference = np.linalg.norm(one.astype(np.float64) - other.astype(np.float64))
            assert difference < rounding * np.linalg.norm(other.astype(np.float64))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"][: 1 + external]


@pytest.mark.parametrize("form", ["opset20", "older"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma"])
def test_exported_models_run_piece_by_piece(
    onnx_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, family: str, form: str
) -> None:
    monkeypatch.setattr(pieces, "BOUND", 10_000)
    model, folder = load_model(onnx_file(family, form=form, dynamic=True))
    (sample,) = draw_inputs(specs_of(model), 0, 32)
    name = model.graph.output[0].name
    ((found,),) = run(model, folder, [name], [sample])
    np.testing.assert_allclose(found, whole(model, folder, [name], sample)[0], rtol=1e-4, atol=1e-5)


def test_a_body_reads_values_of_an_earlier_piece(tmp_path, monkeypatch):
    """y = if sum(x) > 0 then a @ w2 else a, with a = x @ w1"""
    monkeypatch.setattr(pieces, "BOUND", 1)
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((3, 3)).astype(np.float32) for i in (1, 2)}
    kept = [helper.make_tensor_value_info("then", FLOAT, None)]
    other = [helper.make_tensor_value_info("else", FLOAT, None)]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["condition"]),
        helper.make_node(
            "If", ["condition"], ["y"],
            then_branch=helper.make_graph([helper.make_node("MatMul", ["a", "w2"], ["then"])], "t", [], kept),
            else_branch=helper.make_graph([helper.make_node("Identity", ["a"], ["else"])], "e", [], other),
        ),
    ]  # fmt: skip
    model = graph_model(nodes, ["y"], weights | {"zero": np.array(0, np.float32)})
    x = np.ones((2, 3), np.float32)
    samples = [{"x": x}, {"x": -x}]
    (taken,), (left,) = run(model, tmp_path, ["y"], samples)
    np.testing.assert_allclose(taken, x @ weights["w1"] @ weights["w2"], rtol=1e-5)
    np.testing.assert_allclose(left, -x @ weights["w1"], rtol=1e-5)


def test_a_list_of_tensors_passes_from_piece_to_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "BOUND", 1)
    w = np.full((3, 3), 2, np.float32)
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["rows"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("ConcatFromSequence", ["rows"], ["back"], axis=0),
        helper.make_node("MatMul", ["z", "v"], ["product"]),
        helper.make_node("Add", ["product", "back"], ["y"]),
    ]
    model = graph_model(nodes, ["y", "rows"], {"w": w, "v": w})
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    ((y, rows),) = run(model, tmp_path, ["y", "rows"], [{"x": x}])
    np.testing.assert_allclose(y, x @ w @ w + x)
    np.testing.assert_allclose(np.concatenate(rows), x)


def test_inputs_and_stored_tensors_may_be_wanted(tmp_path):
    w = np.full((3, 3), 2, np.float32)
    model = graph_model([helper.make_node("MatMul", ["x", "w"], ["y"])], ["y"], {"w": w})
    x = np.ones((2, 3), np.float32)
    ((found_x, found_w, y),) = run(model, tmp_path, ["x", "w", "y"], [{"x": x}])
    np.testing.assert_array_equal(found_x, x)
    np.testing.assert_array_equal(found_w, w)
    np.testing.assert_array_equal(y, x @ w)
    assert run(model, tmp_path, ["y"], []) == []
