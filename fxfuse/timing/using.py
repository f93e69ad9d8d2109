"""Timing as the front ends use it: made from a user's target, with its processes gone at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxfuse.report import Report, WholeTiming
from fxfuse.runtime import cuda_problem
from fxfuse.timing.choosing import Timing
from fxfuse.timing.target import AnyTarget, Target
from fxfuse.timing.timer import Timer
from fxfuse.timing.torch_whole import TorchWhole
from fxfuse.timing.verdict import LEAST
from fxfuse.timing.wording import milliseconds, token_count

if TYPE_CHECKING:
    import onnx

    from fxfuse.frontends.torch_graph import TorchGraph
    from fxfuse.timing.whole import OnnxWhole

__all__ = ["OnnxTiming", "onnx_timing", "target_on", "torch_timing"]

Progress = Callable[[str], None]

STORED = {"int8": "int8 wide", "int4": "nbits 4/32/4"}
"""Weights as `fxfuse.quantisation` stores them, in the words of `Shape`."""


def target_on(given: AnyTarget, provider: str) -> Target | None:
    """A target whose device is the provider's, unless it names one itself.

    Raises:
        InputError: It makes no sense.
    """
    if given is None or isinstance(given, Target):
        return given
    named = isinstance(given, Mapping) and "device" in given
    if named or provider == "cpu":
        return Target.of(given)
    Target.of(given)  # a mistake is told before CUDA is tried
    return Target.of(given, "cuda" if provider == "cuda" or cuda_problem() is None else "cpu")


class OnnxTiming:
    """For one file: what the pipeline asks, and the last word on what was written."""

    def __init__(self, timer: Timer, whole: OnnxWhole, quantized: bool) -> None:
        self._whole, self._quantized = whole, quantized
        self.pipeline = Timing(timer, None if quantized else whole)

    def finish(self, written: Any, report: Report) -> None:
        """Time what was written where that is not what the pipeline saw, and tell what has to be told."""
        if self._quantized:
            found = self._whole(written)
            if isinstance(found, str):
                report.notes.append(f"the whole model was not timed: {found}")
            else:
                report.latency = found
                report.notes += [_slower(each) for each in found if each.ratio < LEAST]
        report.notes += self._whole.notes


@contextlib.contextmanager
def onnx_timing(
    target: Target | None,
    model: onnx.ModelProto,
    path: Path,
    size: int,
    *,
    seed: int,
    vocab_size: int | None,
    quantize: str | None,
    progress: Progress,
) -> Iterator[OnnxTiming | None]:
    """Timing for the file `path` of `size` bytes; None without a target."""
    if target is None:
        yield None
        return
    from fxfuse.timing.whole import OnnxWhole  # which waits for onnx, as torch.compile need not

    whole = OnnxWhole(model, path, target, seed, vocab_size, progress, size)
    stored = STORED.get(quantize or "")
    with Timer(target, "onnxruntime", weights=stored, progress=progress) as timer:
        yield OnnxTiming(timer, whole, quantize is not None)


@contextlib.contextmanager
def torch_timing(
    target: AnyTarget,
    example_inputs: Sequence[Any],
    report: Report,
    inner: Any = "inductor",
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress = lambda _: None,
    front: TorchGraph | None = None,
) -> Iterator[Timing | None]:
    """Timing for a torch graph, as `inner` compiles it; None without a target.

    With its front end the whole graph is timed too, which compiles it twice.

    Raises:
        InputError: The target makes no sense.
    """
    found = Target.of(target, _device(example_inputs))
    if found is None:
        yield None
        return
    if not isinstance(inner, str):
        report.notes.append("nothing was timed: the inner backend is no name that another process could use")
        yield None
        return
    written = _inner_options(found, inner, mode, options)
    whole = TorchWhole(front, found, inner, written, progress) if front is not None else None
    with Timer(found, inner, options=written, progress=progress, compiled=front is None) as timer:
        yield Timing(timer, whole)
    if whole is not None:
        report.notes += [f"all was timed as torch.compile with {inner} runs it", *whole.notes]
        return
    report.notes.append(
        f"groups were timed as chains of their sizes in torch.compile with {inner}; the whole model was not "
        "timed"
    )


def _slower(timing: WholeTiming) -> str:
    return (
        f"the whole model is slower than the original at {token_count(timing.tokens)}: "
        f"{milliseconds(timing.fused_ms)} against {milliseconds(timing.original_ms)}"
    )


def _device(example_inputs: Sequence[Any]) -> str:
    tensors = [each for each in example_inputs if isinstance(each, torch.Tensor)]
    return "cuda" if any(each.device.type == "cuda" for each in tensors) else "cpu"


def _inner_options(
    target: Target, inner: str, mode: str | None, options: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What torch.compile is told: it takes a mode or options, so the mode is written out."""
    found: dict[str, Any] = {}
    if inner == "inductor":
        found |= torch._inductor.list_mode_options(mode) if mode else {}
        found |= {"triton.cudagraphs": True} if target.cuda_graphs else {}
    return found | dict(options or {})
