"""What fuzzing found, reduced to the graph that shows it; each says what must be made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fxfuse
from fxfuse.errors import InputError, VerificationError
from fxfuse.onnxio import load_model
from tests.passes.onnx_graphs import HIDDEN, Block, Graph, find, lengths, reasons, view_of
from tests.small_onnx import Small, save


def normed(op: str, gain: str | None = None, bias: str | None = None) -> Graph:
    """Two blocks with a norm operator, whose gain or bias may be a value of the graph."""

    def norm(g: Graph, x: str, block: Block) -> str:
        constants = [gain or g.weight(block.gain), *([bias] if bias else [])]
        return g.node(op, x, *constants, axis=-1, epsilon=1e-6)

    graph = Graph(opset=23)
    graph.block(graph.block("x", norm=norm), norm=norm)
    return graph


def model_of(graph: Graph, *inputs: str) -> onnx.ModelProto:
    model = graph.model(graph.nodes[-1].output[0])
    for name in inputs:
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [HIDDEN]))
    return model


@pytest.mark.parametrize("op", ["RMSNormalization", "LayerNormalization"])
def test_a_gain_that_is_an_input(op: str) -> None:
    """norm(x) * g with g given at each call: nothing to fold"""
    assert lengths(find(model_of(normed(op)))) == [2]
    found = find(model_of(normed(op, gain="g"), "g"))
    assert not found.chains
    assert "its gain or bias g is not one stored number for each channel" in reasons(found)


@pytest.mark.parametrize("where", ["gain", "scale"])
def test_a_constant_of_another_size(where: str) -> None:
    """norm(x) * g[2 hidden], or so after the FFN: no such product exists"""

    def norm(g: Graph, x: str, block: Block) -> str:
        return g.node("RMSNormalization", x, g.weight(np.ones(2 * HIDDEN if where == "gain" else HIDDEN)))

    def ffn(g: Graph, h: str, block: Block) -> str:
        return g.node("Mul", g.ffn(h, block), g.weight(np.ones(2 * HIDDEN if where == "scale" else HIDDEN)))

    graph = Graph(opset=23)
    found = find(
        graph.model(graph.block(graph.block("x", norm=norm, ffn=ffn), norm=norm, ffn=ffn), shaped=False)
    )
    assert not found.chains
    assert "the shapes of its weights are not known or do not fit together" in reasons(found)


def test_a_bias_that_is_stored_sparse() -> None:
    model = model_of(normed("LayerNormalization", bias="b"))
    values = numpy_helper.from_array(np.ones(1, np.float32), "b")
    indices = numpy_helper.from_array(np.array([3]), "b_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [HIDDEN]))
    found = find(model)
    assert not found.chains
    assert "its gain or bias b is not one stored number for each channel" in reasons(found)


def test_a_dropout_mask_is_not_what_was_dropped() -> None:
    """x + Cast(mask of f)"""

    def add(x: str, f: str) -> str:
        _, mask = graph.node("Dropout", f, outputs=2)
        return graph.node("Add", x, graph.node("Cast", mask, to=TensorProto.FLOAT))

    graph = Graph()
    x = graph.block(graph.block("x", add=add), add=add)
    found = find(graph.model(x))
    assert (found.chains, found.singles) == ((), ())


def test_axes_that_are_no_list() -> None:
    """ONNX Runtime takes ReduceMean(x^2, -1) inside a norm that it fuses, and refuses it elsewhere."""

    def norm(g: Graph, x: str, block: Block) -> str:
        mean = g.node("ReduceMean", g.node("Mul", x, x), g.weight(-1, dtype=np.int64), keepdims=1)
        root = g.node("Sqrt", g.node("Add", mean, g.weight(block.eps)))
        return g.node("Mul", g.node("Div", x, root), g.weight(block.gain))

    graph = Graph()
    assert not find(graph.model(graph.block(graph.block("x", norm=norm), norm=norm))).chains


@pytest.mark.parametrize("domain", ["acme", "ai.onnx.ml"])
def test_an_operator_of_another_domain_is_another(domain: str) -> None:
    graph = Graph()
    value = graph.node("Mul", "x", "x", domain=domain)
    model = graph.model(value, shaped=False)
    model.opset_import.append(helper.make_opsetid(domain, 1))
    assert view_of(model).op(value).kind == "Mul"


@pytest.mark.parametrize("name", ["add", "linear", "mean", "part", "cast"])
def test_an_operator_that_is_called_as_a_kind_is_none(name: str) -> None:
    graph = Graph()
    value = graph.node(name, "x", domain="com.microsoft")
    assert view_of(graph.model(value, shaped=False)).op(value).kind == f"another {name}"


def test_constants_that_do_not_fit_together() -> None:
    """x * (w[16] * v[3]): ONNX Runtime refuses it, and nothing here may compute it."""
    graph = Graph()
    product = graph.node("Mul", graph.weight(np.ones(16)), graph.weight(np.ones(3)))
    view = view_of(graph.model(graph.block(graph.node("Mul", "x", product))))
    assert not view.is_constant(product)


@pytest.mark.parametrize("op", ["Neg", "Identity", "Cast"])
def test_a_constant_in_thousands_of_steps(op: str) -> None:
    """gain = -(-(... g)): too deep to compute, so the norm is not one that is known."""

    def norm(g: Graph, x: str, block: Block) -> str:
        gain = g.weight(block.gain)
        for _ in range(3000):
            gain = g.node(op, gain, **({"to": 1} if op == "Cast" else {}))
        unit = g.node("RMSNormalization", x, g.weight(np.ones(HIDDEN)), epsilon=1e-6)
        return g.node("Mul", unit, gain)

    graph = Graph(opset=23)
    found = find(graph.model(graph.block(graph.block("x", norm=norm))))
    assert not found.chains


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dims": [-1, -512]}, "has a negative size ([-1, -512])"),
        ({"dims": [1 << 40, 1 << 40]}, "holds 2048 bytes of"),
        ({"raw_data": None}, "holds 0 numbers of 512"),
        ({"raw_data": None, "float_data": [1.0]}, "holds 1 numbers of 512"),
        (
            {"raw_data": None, "float_data": [1.0] * 512, "data_type": TensorProto.INT64},
            "holds 0 numbers of 512",
        ),
    ],
)
def test_tensors_that_are_not_whole(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    model = Small().model()
    for name, value in change.items():
        tensor = model.graph.initializer[0]
        tensor.ClearField(name)
        if isinstance(value, list):
            getattr(tensor, name).extend(value)
        elif value is not None:
            setattr(tensor, name, value)
    with pytest.raises(InputError) as error:
        load_model(save(tmp_path / "m.onnx", model))
    assert f"m.onnx is damaged: tensor embed {sentence}" in str(error.value)


@pytest.mark.parametrize("reshaped", ["h", "gate", "f"])
def test_rows_that_are_broadcast_over_rows(tmp_path: Path, reshaped: str) -> None:
    """x [1, s, H] + f as [s, 1, H]: which reshapes keep the rows apart shows only in numbers."""

    def ffn(g: Graph, h: str, block: Block) -> str:
        def turn(name: str, value: str, width: int) -> str:
            return g.node("Reshape", value, g.ints(-1, 1, width)) if name == reshaped else value

        gate = turn("gate", g.silu(g.product(turn("h", h, HIDDEN), block, "gate")), 12)
        inner = g.node("Mul", gate, g.product(h, block, "up"))
        return turn("f", g.product(inner, block, "down"), HIDDEN)

    graph = Graph()
    x = graph.block(graph.block("x"), ffn=ffn)
    assert lengths(find(graph.model(x, shaped=False))) == [2]
    save(tmp_path / "m.onnx", graph.model(x, shaped=False))
    with pytest.raises(VerificationError, match=r"not understood: it makes \[64, 64, 8\] of \[1, 64, 8\]"):
        fxfuse.fuse_onnx(tmp_path / "m.onnx", min_sqnr=None, provider="cpu")


def test_numbers_in_the_typed_field(tmp_path: Path) -> None:
    model = Small().model()
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values.reshape(-1).tolist())
    assert (
        fxfuse.fuse_onnx(save(tmp_path / "m.onnx", model), min_sqnr=None, provider="cpu").output is not None
    )


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """onnx-graphsurgeon tells on stdout what it thinks of functions, types and opsets."""
    model = Small(dtype=TensorProto.BFLOAT16).model()
    body = [helper.make_node("Neg", ["a"], ["b"], domain="acme")]
    model.functions.append(
        helper.make_function("acme", "F", ["a"], ["b"], body, [helper.make_opsetid("acme", 1)])
    )
    report = fxfuse.fuse_onnx(save(tmp_path / "m.onnx", model), min_sqnr=None, provider="cpu")
    assert report.output is not None
    assert capfd.readouterr() == ("", "")


def test_a_model_that_runs_only_once_it_is_written_out(tmp_path: Path) -> None:
    """SkipLayerNormalization(vector, x, gain, f) is refused by ONNX Runtime, though its parts would run."""
    model = Small(scale=0.3).model()
    stored = numpy_helper.from_array(np.ones(16, np.float32), "vector")
    model.graph.initializer.append(stored)
    names = ["vector", "x3", "gain", "vector"]
    model.graph.node.insert(
        len(model.graph.node) - 1,
        helper.make_node("SkipLayerNormalization", names, ["last"], "skip", domain="com.microsoft"),
    )
    model.graph.node[-1].input[0] = "last"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(InputError, match=r"fails on the measuring inputs: .*SkipLayerNormalization"):
        fxfuse.fuse_onnx(save(tmp_path / "m.onnx", model), min_sqnr=None, provider="cpu")


@pytest.mark.parametrize("name", ["x" * 999, "a\0b", "", "..", "m"])
def test_data_files_of_any_name(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "m.onnx", external=True)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = name if entry.key == "location" else entry.value
    onnx.save(model, path)
    with pytest.raises(InputError, match=r"(?s)m\.onnx .*[.]$"):
        load_model(path)
