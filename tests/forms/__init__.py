"""Every way a family is written: torch graphs, exporters' files, and what tools make of those.

`FORMS` are the ONNX files by the name of their column in docs/coverage.md; `graphs.GRAPHS` the torch graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.exporters import onnx_dynamo, onnx_torchscript
from tests.families import build, example
from tests.forms import derived
from tests.forms.genai import write_genai
from tests.forms.graphs import GRAPHS
from tests.forms.record import NotMade

__all__ = ["FORMS", "GRAPHS", "Form", "NotMade", "write"]

Tool = Callable[[Path, Path, str], Path]


@dataclass(frozen=True)
class Form:
    """A form of ONNX file: what torch writes, or what `tool` makes of the file of the form `source`.

    `options` go to fxfuse.fuse_onnx.
    """

    title: str
    write: Callable[[str, Path], Path] | None = None
    tool: Tool | None = None
    source: str = ""
    half: bool = False
    quantised: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def _exported(
    exporter: Callable[..., Path], half: bool = False, **options: object
) -> Callable[[str, Path], Path]:
    def make(family: str, path: Path) -> Path:
        dtype = torch.float16 if half else torch.float32
        return exporter(build(family, dtype=dtype), (example(family, dtype=dtype),), path, **options)

    return make


def _genai(precision: str) -> Callable[[str, Path], Path]:
    return lambda family, path: write_genai(family, path, precision)


def _same(source: Path, path: Path, family: str) -> Path:
    return source


_AGAIN = {"requantize": True}

FORMS: dict[str, Form] = {
    "opset20": Form("torch.onnx.export, opset 20", _exported(onnx_dynamo)),
    "opset23": Form("torch.onnx.export, opset 23", _exported(onnx_dynamo, opset=23)),
    "older": Form("torch.onnx.export(dynamo=False)", _exported(onnx_torchscript)),
    "fp16": Form("opset 20 in float16", _exported(onnx_dynamo, half=True), half=True),
    "dynamic": Form("opset 20, dynamic batch and sequence", _exported(onnx_dynamo, dynamic=True)),
    "session": Form("an ONNX Runtime session's optimised file", tool=derived.session, source="opset20"),
    "optimizer": Form("onnxruntime.transformers.optimizer", tool=derived.optimizer, source="older"),
    "genai fp32": Form("onnxruntime-genai's builder, fp32", _genai("fp32")),
    "genai fp16": Form("onnxruntime-genai's builder, fp16", _genai("fp16"), half=True),
    "genai int4": Form("onnxruntime-genai's builder, int4 in blocks of 32", _genai("int4"), quantised=True),
    "int8": Form("quantize_dynamic, int8, of `older`", tool=derived.int8, source="older", quantised=True),
    "QDQ": Form(
        "quantize_static, QDQ around each product", tool=derived.qdq, source="opset20", quantised=True
    ),
    "nbits": Form(
        "MatMulNBitsQuantizer, 4 bits in blocks of 32", tool=derived.nbits, source="opset20", quantised=True
    ),
    **{
        f"{name} rq": Form(
            f"{name}, with requantize=True", tool=_same, source=name, quantised=True, options=_AGAIN
        )
        for name in ("genai int4", "int8", "QDQ", "nbits")
    },
}
"""By the name of the column; a form with a source is made of that form's file."""


def write(family: str, form: str, folder: Path) -> Path:
    """The file FOLDER/FAMILY.FORM.onnx, made if it is not there yet.

    Raises:
        NotMade: the tool does not write this form of this family.
    """
    path = folder / f"{family}.{form.replace(' ', '-')}.onnx"
    if path.exists():
        return path
    how = FORMS[form]
    if how.tool is not None:
        return how.tool(write(family, how.source, folder), path, family)
    assert how.write is not None
    return how.write(family, path)
