"""What is timed is what is written: the same operators, in every form and for every kind of weights."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fxfuse.frontends.onnx_file import OnnxFile
from fxfuse.onnxio import load_model
from fxfuse.passes.chains import find_chains
from fxfuse.passes.forms import Form, legal_forms
from fxfuse.timing.chains import write_chain
from fxfuse.timing.onnx_runs import OnnxRuns
from fxfuse.timing.shape import Shape, shape_of
from fxfuse.timing.weights import WeightFile

KINDS: dict[str, dict[str, Any]] = {
    "rms": {},
    "layer": {
        "norm": "layer",
        "operator": "LayerNormalization",
        "gated": False,
        "activation": "gelu",
        "bias": True,
    },
    "packed": {"packed": True, "activation": "gelu_tanh"},
    "operator": {"operator": "RMSNormalization", "activation": "relu_squared"},
    "nbits": {"weights": "nbits 4/32/4"},
    "int8": {"weights": "int8"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_timed_chain_has_the_operators_that_the_writer_writes(tmp_path: Path, kind: str):
    shape, weights = Shape(32, (64,) * 4, **KINDS[kind]), WeightFile(tmp_path, "float32")
    write_chain(shape, None, weights, tmp_path / "chain.onnx")
    (tmp_path / "out").mkdir()
    x = np.random.default_rng(0).standard_normal((1, 3, 32), np.float32)
    model, folder = load_model(tmp_path / "chain.onnx")
    front = OnnxFile(model, folder, [{"x": x}], tmp_path / "out", "out.onnx", "cpu")
    (chain,) = find_chains(front.view, requantize=True).chains
    assert shape_of(front.view, chain.blocks) == shape
    forms = (
        legal_forms(chain.blocks, "onnxruntime", 20) if shape.weights == "float" else [Form(), Form("packed")]
    )
    runs = OnnxRuns("cpu", 1, False)
    for form in forms:
        fused = front.apply([chain.blocks], None, [form])
        write_chain(shape, form, weights, tmp_path / "fused.onnx")
        assert operators(tmp_path / "fused.onnx") == operators(fused.path), form
        runs.open(str(tmp_path / "fused.onnx"))
        runs.prepare({"x": x})
        assert np.isfinite(runs.call()[0]).all()


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_shapes_of_one_speed_are_one_text():
    assert str(Shape(32, (64, 64, 128))) == "32: 2x64+128 gated silu, rms, float32 float"
    assert str(Shape(32, (64,), packed=True)) != str(Shape(32, (64,)))
    assert Shape(32, (64,)).nbytes == 4 * 3 * 32 * 64
    assert Shape(32, (64,), weights="nbits 4/32/4").nbytes < Shape(32, (64,), weights="int8").nbytes
