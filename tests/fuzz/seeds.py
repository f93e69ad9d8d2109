"""The real files that mutants are made from: what exporters, the runtime's optimiser and quantisers write."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from tests import exporters, families
from tests.small_onnx import save

__all__ = ["FAST", "SEEDS", "write_seed"]


def write_seed(name: str, folder: Path) -> Path:
    """Write the seed `name` as FOLDER/NAME/m.onnx, with its data beside it, if it is not there yet."""
    path = folder / name / "m.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        logging.disable(logging.WARNING)  # the quantisers tell each node
        try:
            with exporters.silenced():
                SEEDS[name](path)
        finally:
            logging.disable(logging.NOTSET)
        for each in path.parent.glob("made-*"):
            each.unlink()
    return path


def _small(**parts: Any) -> Callable[[Path], object]:
    return lambda path: save(path, **{"layers": 3, "scale": 0.3, **parts})


def _exported(family: str, older: bool = False, half: bool = False, **options: Any) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        dtype = torch.float16 if half else torch.float32
        model = families.build(family, removed=(1, 2), layers=3, dtype=dtype)
        export = exporters.onnx_torchscript if older else exporters.onnx_dynamo
        return export(model, (families.ids(),), path, **options)

    return write


def _optimised(source: Callable[[Path], Path], level: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(
            source(path.with_name("made-source.onnx")), options, providers=["CPUExecutionProvider"]
        )

    return write


def _dynamic_int8(source: Callable[[Path], Path]) -> Callable[[Path], object]:
    return lambda path: quantize_dynamic(
        source(path.with_name("made-source.onnx")), path, weight_type=QuantType.QInt8
    )


def _four_bits(source: Callable[[Path], Path]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        model = onnx.load(source(path.with_name("made-source.onnx")))
        quantizer = MatMulNBitsQuantizer(model, bits=4, block_size=16)
        quantizer.process()
        onnx.save(quantizer.model.model, path)

    return write


SEEDS: dict[str, Callable[[Path], object]] = {
    "small": _small(),
    "small_external": _small(external=True),
    "small_half": _small(dtype=onnx.TensorProto.FLOAT16),
    "small_bfloat16": _small(dtype=onnx.TensorProto.BFLOAT16, layers=2),
    "llama_older": _exported("llama", older=True, dynamic=True),
    "neox_older": _exported("gpt_neox", older=True),
    "phi3_older": _exported("phi3", older=True),
    "llama": _exported("llama", dynamic=True),
    "llama_23": _exported("llama", opset=23),
    "phi3": _exported("phi3"),
    "neox": _exported("gpt_neox", dynamic=True),
    "gemma_half": _exported("gemma", half=True),
    "granite": _exported("granite", dynamic=True),
    "llama_optimised": _optimised(_exported("llama", older=True, dynamic=True), "ORT_ENABLE_EXTENDED"),
    "neox_optimised": _optimised(_exported("gpt_neox", older=True), "ORT_ENABLE_EXTENDED"),
    "llama_int8": _dynamic_int8(_exported("llama", older=True)),
    "llama_int4": _four_bits(_exported("llama", older=True)),
}
FAST = [name for name in SEEDS if "small" in name or "older" in name]
"""Those that take well below a second to write."""
