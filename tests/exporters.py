"""A decoder as each tool writes it: dynamo, torch.export, and both ONNX exporters."""

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

_LOGGERS = (
    "torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir", "torch.fx", "root", "fusion_base",
    "onnxruntime.quantization.matmul_nbits_quantizer",
)  # fmt: skip


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Hold back what exporters print, log and warn about."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        dumped = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(dumped),
            contextlib.redirect_stderr(dumped),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def dynamo_graph(
    model: nn.Module, *args: Tensor, dynamic: bool = False, compile_dynamic: bool = False
) -> tuple[GraphModule, list[Any]]:
    """Return what a torch.compile backend is given: one whole graph and its example inputs.

    `dynamic` marks batch and sequence. `compile_dynamic` is torch.compile's own argument: True makes each
    float of a module an input too, so that a norm's eps is a placeholder.
    """
    caught: list[tuple[GraphModule, list[Any]]] = []

    def backend(graph: GraphModule, example_inputs: list[Any]) -> Any:
        caught.append((graph, list(example_inputs)))
        return graph.forward

    torch._dynamo.reset()
    args = tuple(arg.clone() for arg in args)
    for arg in args if dynamic else ():
        torch._dynamo.mark_dynamic(arg, [0, 1] if arg.ndim == 2 else [0])
    with silenced(), torch.no_grad():
        compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=compile_dynamic or None)
        compiled(*args)
    (only,) = caught
    return only


def exported(model: nn.Module, args: tuple[Tensor, ...], dynamic: bool = False) -> ExportedProgram:
    """Return torch.export's program in ATen; call its run_decompositions() for core ATen."""
    with silenced(), torch.no_grad():
        return torch.export.export(model, args, dynamic_shapes=_dynamic_shapes(args, dynamic), strict=False)


def onnx_dynamo(
    model: nn.Module, args: tuple[Tensor, ...], path: Path, opset: int | None = None, dynamic: bool = False
) -> Path:
    """Write the ONNX file of torch.onnx's present exporter; `opset` None is the exporter's own choice.

    Gemma in float16 at opset 23 gives a file that ONNX Runtime refuses: RMSNormalization of a float16 stream
    with a float32 gain.
    """
    with silenced(), torch.no_grad():
        torch.onnx.export(
            model,
            args,
            path,
            **_names(model),
            opset_version=opset,
            dynamic_shapes=_dynamic_shapes(args, dynamic),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return path


def onnx_torchscript(
    model: nn.Module, args: tuple[Tensor, ...], path: Path, opset: int | None = None, dynamic: bool = False
) -> Path:
    """Write the ONNX file of the older exporter, which traces with TorchScript."""
    names = _names(model)
    axes = {0: "batch"} if args[0].ndim == 4 else {0: "batch", 1: "sequence"}
    with silenced(), torch.no_grad():
        torch.onnx.export(
            model,
            args,
            str(path),
            **names,
            opset_version=opset,
            dynamic_axes={name: axes for both in names.values() for name in both} if dynamic else None,
            dynamo=False,
        )
    return path


def _names(model: nn.Module) -> dict[str, list[str]]:
    """Name the one input as the model's forward does, and the first output by what it is."""
    (read,) = inspect.signature(model.forward).parameters
    return {"input_names": [read], "output_names": ["logits" if model.family.decoder else "hidden_states"]}


def _dynamic_shapes(args: tuple[Tensor, ...], dynamic: bool) -> Any:
    """Batch and sequence; the size of an image is part of its model."""
    dim = torch.export.Dim
    axes = {0: dim("batch", max=64)} | ({1: dim("sequence", max=64)} if args[0].ndim == 2 else {})
    return (axes,) if dynamic else None
