"""quantize_file: what is quantised, what stays, and that everything else is kept byte for byte."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fxfuse
from fxfuse.errors import InputError
from fxfuse.frontends.onnx_file import OnnxFile
from fxfuse.onnxio import load_model
from fxfuse.passes.chains import find_chains
from fxfuse.passes.forms import Form
from fxfuse.passes.onnx.provenance import read_provenance
from fxfuse.quantisation import onnx as module
from fxfuse.quantisation.onnx import quantize_file
from tests.small_onnx import HIDDEN, VOCAB, Small, save

IDS = np.arange(14).reshape(2, 7)


def logits(path: Path) -> np.ndarray[Any, Any]:
    (found,) = fxfuse.session(path, "cpu").run(["logits"], {"input_ids": IDS})
    return np.asarray(found, np.float64)


def error(path: Path, other: Path) -> float:
    one, two = logits(path), logits(other)
    return float(np.linalg.norm(one - two) / np.linalg.norm(one))


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("kind, op, bound", [("int8", "MatMulInteger", 0.05), ("int4", "MatMulNBits", 0.2)])
def test_every_product(tmp_path: Path, external: bool, kind: str, op: str, bound: float) -> None:
    path, out = save(tmp_path / "m.onnx", external=external), tmp_path / "q.onnx"
    written = quantize_file(path, out, kind)
    onnx.checker.check_model(str(out))
    assert len(written.products) == ops(out).count(op) == 10
    assert written.left == ()
    assert "MatMul" not in ops(out)
    assert 0 < error(path, out) < bound
    names = sorted(each.name for each in tmp_path.glob("q.onnx*"))
    assert names == (["q.onnx", "q.onnx.data"] if external else ["q.onnx"])
    if external:  # places in the data file start at multiples of 4096 bytes
        return
    small = sum(each.stat().st_size for each in tmp_path.glob("q.onnx*"))
    assert small < sum(each.stat().st_size for each in tmp_path.glob("m.onnx*"))


def test_products_of_one_stream_share_its_rounding(tmp_path: Path) -> None:
    quantize_file(save(tmp_path / "m.onnx"), tmp_path / "q.onnx", "int8")
    assert (
        ops(tmp_path / "q.onnx").count("DynamicQuantizeLinear") == 7
    )  # norms and inner of 3, and the head's


def test_the_rest_is_kept(tmp_path: Path) -> None:
    small = Small()
    model = small.model()
    model.producer_name, model.doc_string = "someone", "words"
    model.metadata_props.add(key="own", value="1")
    product = next(node for node in model.graph.node if node.op_type == "MatMul")
    product.metadata_props.add(key="from", value="there")
    quantize_file(save(tmp_path / "m.onnx", model), tmp_path / "q.onnx", "int4")
    made = onnx.load(tmp_path / "q.onnx")
    assert (made.producer_name, made.doc_string, made.ir_version) == ("someone", "words", model.ir_version)
    assert [(each.key, each.value) for each in made.metadata_props] == [("own", "1")]
    assert list(made.graph.input) == list(model.graph.input)
    assert list(made.graph.output) == list(model.graph.output)
    others = [node for node in model.graph.node if node.op_type != "MatMul"]
    assert [node for node in made.graph.node if node.op_type != "MatMulNBits"] == others
    replaced = next(node for node in made.graph.node if node.output == product.output)
    assert [(each.key, each.value) for each in replaced.metadata_props] == [("from", "there")]
    stored = {tensor.name: tensor for tensor in made.graph.initializer}
    assert all(stored[each.name] == each for each in model.graph.initializer if each.name in stored)
    assert {"embed", "gain", "eps"} <= set(stored)
    assert "head" not in stored


def test_exclude(tmp_path: Path) -> None:
    written = quantize_file(save(tmp_path / "m.onnx"), tmp_path / "q.onnx", "int4", exclude="^head$|/gate$")
    assert len(written.products) == 6
    assert {miss.where for miss in written.left} == {
        "logits",
        *(f"model.layers.{index}.mlp.gate_proj" for index in range(3)),
    }
    assert all("--quantize-exclude" in miss.reason for miss in written.left)
    assert ops(tmp_path / "q.onnx").count("MatMul") == 4


def test_weight_with_another_reader_stays_too(tmp_path: Path) -> None:
    small = Small()
    small._node("Identity", "head", out="copy")
    small.outputs.append(helper.make_tensor_value_info("copy", TensorProto.FLOAT, [HIDDEN, VOCAB]))
    path = save(tmp_path / "m.onnx", small.model())
    quantize_file(path, tmp_path / "q.onnx", "int4")
    stored = {tensor.name for tensor in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert {"head", "head_Q4"} <= stored
    assert error(path, tmp_path / "q.onnx") < 0.2


def test_a_product_whose_packed_name_is_taken_stays(tmp_path: Path) -> None:
    small = Small(layers=1)
    small.weights.append(numpy_helper.from_array(np.zeros((1, VOCAB), np.float32), "head_Q4"))
    small._node("Add", "logits", "head_Q4", out="more")
    path = save(tmp_path / "m.onnx", small.model())
    (left,) = quantize_file(path, tmp_path / "q.onnx", "int4").left
    assert left.reason == "its packed weight would take a name that the model uses"


def test_what_cannot_be_quantised_says_why(tmp_path: Path) -> None:
    small = Small(layers=1)
    small.weights.append(numpy_helper.from_array(np.zeros((1, VOCAB, 5), np.float32), "deep"))
    small.weights.append(numpy_helper.from_array(np.zeros((VOCAB, 5), np.float32), "flat"))
    small._node("MatMul", "logits", "deep", out="deep_out")
    small.weights.append(numpy_helper.from_array(np.array([-1, VOCAB]), "shape"))
    small._node("Reshape", "logits", "shape", out="rows")
    small._node("Gemm", "rows", "flat", out="gemm_out")
    path = save(tmp_path / "m.onnx", small.model())
    reasons = {miss.where: miss.reason for miss in quantize_file(path, tmp_path / "q.onnx", "int8").left}
    assert "has 3 axes" in reasons["deep_out"]
    assert "is a Gemm" in reasons["gemm_out"]


def test_float16(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", dtype=TensorProto.FLOAT16)
    quantize_file(path, tmp_path / "q.onnx", "int4")
    assert error(path, tmp_path / "q.onnx") < 0.2
    with pytest.raises(InputError, match="its weight is float16, and int8 takes float32"):
        quantize_file(path, tmp_path / "q8.onnx", "int8")
    assert not list(tmp_path.glob("*q8*"))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_bodies(tmp_path: Path, kind: str) -> None:
    """int4 reaches into the bodies of other nodes; int8 does not, as the library does not by default."""
    small = Small(layers=1)
    product = helper.make_node("MatMul", ["logits", "after"], ["in_body"], "in_body")
    body = helper.make_graph(
        [product], "then", [], [helper.make_tensor_value_info("in_body", TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["logits"], ["same"])],
        "else", [], [helper.make_tensor_value_info("same", TensorProto.FLOAT, None)],
    )  # fmt: skip
    small._weight("after", (VOCAB, VOCAB), 0.2)
    small.weights.append(numpy_helper.from_array(np.array(True), "always"))
    small._node("If", "always", out="result", then_branch=body, else_branch=other)
    small.outputs.append(helper.make_tensor_value_info("result", TensorProto.FLOAT, None))
    path = save(tmp_path / "m.onnx", small.model())
    written = quantize_file(path, tmp_path / "q.onnx", kind)
    assert ("in_body" in written.products) == (kind == "int4")
    assert [miss.where for miss in written.left] == ([] if kind == "int4" else ["in_body"])
    assert error(path, tmp_path / "q.onnx") < 0.2


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_record_names_the_packed_weights(tmp_path: Path, kind: str) -> None:
    fused, out = tmp_path / "f.onnx", tmp_path / "q.onnx"
    fxfuse.fuse_onnx(save(tmp_path / "m.onnx"), fused, provider="cpu")
    quantize_file(fused, out, kind)
    (group,), notes = read_provenance(onnx.load(out))
    assert notes == []
    assert len(group.blocks) == 3
    assert all(name.endswith(("_Q4", "_quantized")) for name in group.weights.values())
    report = fxfuse.split_onnx(out, tmp_path / "s.onnx")
    assert report.output is None
    assert [miss.reason for miss in report.misses] == [
        "its weights are quantised: fuse the original model instead"
    ]


@pytest.mark.parametrize("form", ["packed", "two/2", "packed/2, SimplifiedLayerNormalization"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_every_form_of_a_wide_ffn(tmp_path: Path, form: str, kind: str) -> None:
    model, folder = load_model(save(tmp_path / "m.onnx"))
    front = OnnxFile(model, folder, [{"input_ids": IDS}], tmp_path, "f.onnx", "cpu")
    blocks = find_chains(front.view).chains[0].blocks
    fused = front.apply([blocks], None, [Form.parse(form)])
    written = quantize_file(fused.path, tmp_path / "q.onnx", kind)
    assert written.left == ()
    assert len(written.products) == {"packed": 3, "two/2": 7}.get(form, 5)
    assert 0 < error(fused.path, tmp_path / "q.onnx") < 0.2
    (group,), notes = read_provenance(written.model)
    assert notes == []
    assert all(name.endswith(("_Q4", "_quantized")) for name in group.weights.values())
    report = fxfuse.split_onnx(tmp_path / "q.onnx", tmp_path / "s.onnx")
    assert [miss.reason for miss in report.misses] == [
        "its weights are quantised: fuse the original model instead"
    ]


def test_a_record_that_cannot_be_read_stays(tmp_path: Path) -> None:
    model = Small().model()
    model.metadata_props.add(key="fxfuse", value=json.dumps({"groups": 3}))
    quantize_file(save(tmp_path / "m.onnx", model), tmp_path / "q.onnx", "int4")
    assert onnx.load(tmp_path / "q.onnx").metadata_props[0].value == '{"groups": 3}'


def test_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = save(tmp_path / "m.onnx", external=True), tmp_path / "q.onnx"
    monkeypatch.setattr(module, "write_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        quantize_file(path, out, "int4")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    monkeypatch.undo()
    quantize_file(path, out, "int4")
    with pytest.raises(InputError, match="exists already"):
        quantize_file(path, out, "int4")
    with pytest.raises(InputError, match="is the input"):
        quantize_file(path, path, "int4")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "int3"}, "quantize must be one of int8, int4 or None, not 'int3'"),
        ({"kind": "int4", "block_size": 31}, "block_size must be 16, 32"),
        ({"kind": "int4", "accuracy_level": 9}, "accuracy_level must be"),
        ({"kind": "int4", "exclude": "("}, "is not a regular expression"),
        ({"kind": "int4", "exclude": "."}, "no product with a stored float weight"),
    ],
)
def test_mistakes(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantize_file(save(tmp_path / "m.onnx"), tmp_path / "q.onnx", **options)
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]
