"""Files that a tool makes of an exporter's file: optimised by ONNX Runtime, or quantised."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization import quantize_dynamic as to_dynamic_int8
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers.optimizer import optimize_model

from tests.exporters import silenced
from tests.families import FAMILIES, HIDDEN, example
from tests.forms.record import NotMade

_MODEL_TYPES = {"t5": "t5", "t5_gated": "t5", "vit": "vit", "siglip": "vit", "bert": "bert"}
"""What onnxruntime.transformers.optimizer is told; decoders are "gpt2" to it."""

_PRODUCTS = ["MatMul", "Gemm"]


def session(source: Path, path: Path, family: str) -> Path:
    """The graph that an ONNX Runtime session saves of itself."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return path


def optimizer(source: Path, path: Path, family: str) -> Path:
    """What onnxruntime.transformers.optimizer makes of a file."""
    heads = FAMILIES[family].config.get("num_attention_heads", 4)
    kind = _MODEL_TYPES.get(family, "gpt2")
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with silenced():
            made = optimize_model(
                str(source), model_type=kind, num_heads=heads, hidden_size=HIDDEN, opt_level=0
            )
            made.save_model_to_file(str(path))
    except Exception as error:  # its fusions fail in many ways
        first = str(error).strip().partition("\n")[0]
        raise NotMade(f"the optimizer stops with {type(error).__name__}: {first}") from error
    finally:
        logging.disable(level)
    return path


def int8(source: Path, path: Path, family: str) -> Path:
    """Weights in int8, activations quantised as they come."""
    with silenced():
        to_dynamic_int8(source, path, weight_type=QuantType.QInt8, op_types_to_quantize=_PRODUCTS)
    return path


def qdq(source: Path, path: Path, family: str) -> Path:
    """QuantizeLinear and DequantizeLinear around each product, with ranges from two samples."""
    with silenced():
        quantize_static(
            source,
            path,
            _Samples(source, family),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_PRODUCTS,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return path


def nbits(source: Path, path: Path, family: str) -> Path:
    """MatMulNBits: weights in 4 bits, in blocks of 32."""
    with silenced():
        maker = MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=True, accuracy_level=4)
        maker.process()
        maker.model.save_model_to_file(str(path))
    return path


class _Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, source: Path, family: str) -> None:
        (name,) = (each.name for each in onnx.load(source).graph.input)
        self._left = [{name: example(family).numpy()}, {name: example(family).numpy()}]

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        return self._left.pop() if self._left else None
