"""Names that ONNX Runtime's optimiser wants for itself are given up in a rewritten file."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import fxfuse
from fxfuse.passes.onnx.reserved import free_reserved
from tests import exporters, families


def reading(name: str, *, public: bool = False) -> onnx.ModelProto:
    """y = Reshape(x, name), in the main graph and in a branch."""
    inner = helper.make_graph(
        [helper.make_node("Reshape", ["x", name], ["z"])], "b", [], [onnx.ValueInfoProto(name="z")]
    )
    nodes = [
        helper.make_node("Reshape", ["x", name], ["y"]),
        helper.make_node("If", ["yes"], ["w"], then_branch=inner, else_branch=inner),
    ]
    made = helper.make_tensor_value_info
    stored = [
        numpy_helper.from_array(np.array([4]), name),
        helper.make_tensor("yes", TensorProto.BOOL, [], [1]),
    ]
    outputs = [made("y", 1, [4]), made("w", 1, [4]), *([made(name, 7, [1])] if public else [])]
    graph = helper.make_graph(nodes, "g", [made("x", 1, [2, 2])], outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("name", ["gemm_input_shape", "gemm_output_shape", "gemm_input_shape_token_48"])
def test_a_reserved_name_is_changed_wherever_it_is_read(name: str) -> None:
    model = reading(name)
    free_reserved(model)
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.initializer[0].name == f"{name}_1"
    assert name.encode() + b'"' not in str(model).encode()


@pytest.mark.parametrize("model", [reading("shape"), reading("gemm_input_shape", public=True)])
def test_other_names_and_outputs_stay(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    free_reserved(model)
    assert model.SerializeToString() == before


def test_a_file_that_a_session_optimised_fuses(tmp_path: Path) -> None:
    model = families.build("gpt_neox", removed=(1, 2), layers=3, dtype=torch.float32)
    source = exporters.onnx_torchscript(model, (families.ids(),), tmp_path / "source.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    assert fxfuse.fuse_onnx(tmp_path / "m.onnx", min_sqnr=None, provider="cpu").output is not None
