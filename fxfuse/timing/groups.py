"""Times of all groups that a plan could choose from, as `fxfuse.plan(latency=)` takes them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fxfuse.analysis.records import Analysis
from fxfuse.errors import InputError
from fxfuse.naming import span
from fxfuse.passes.chains import find_chains
from fxfuse.passes.forms import Form, legal_forms
from fxfuse.passes.records import Block
from fxfuse.passes.view import View
from fxfuse.progress import Progress, silent, track
from fxfuse.report import GroupTiming
from fxfuse.timing.shape import Shape, shape_of
from fxfuse.timing.target import AnyTarget
from fxfuse.timing.timer import Timer
from fxfuse.timing.using import target_on

__all__ = ["time_groups"]

_BYTES = {12.0: ("float32", True), 8.0: ("float32", False), 6.0: ("float16", True), 4.0: ("float16", False)}
"""Bytes of a block's weights for each channel and feature: what an analysis shows of type and gate."""


def time_groups(
    source: Any,
    target: AnyTarget,
    *,
    runtime: str | None = None,
    max_group: int | None = None,
    progress: Progress = silent,
    timer: Timer | None = None,
) -> dict[str, float]:
    """Time every group of consecutive blocks on the target, each in its fastest form.

    Args:
        source: An analysis or its file, an ONNX file, a .pt2 file or an ExportedProgram. An analysis tells
            sizes alone: its blocks are taken for RMSNorm and SwiGLU.
        target: Token counts such as 1 or (1, 8, 32), or a `Target`.
        runtime: "onnxruntime", or a backend of torch.compile; by default ONNX Runtime for ONNX files and
            "inductor" for all else.
        max_group: The most blocks in one group.
        progress: Called with a short text at every step.
        timer: Times instead of one that is made for `target` and `runtime`.

    Returns:
        Milliseconds by name, for every group and every block as it is, as `plan(latency=)` and its JSON files
        have them. With several token counts each weighs the same, relative to the sequential chain; the
        figures are in milliseconds at the first.

    Raises:
        InputError: The source is none of these, the target makes no sense, or a chain cannot be timed.
    """
    found = target_on(target, "auto")
    if found is None:
        raise InputError("time_groups needs a target: give token counts such as (1, 8, 32).")
    chains, own_runtime = _read(source)
    if timer is not None:
        return _times(chains, timer, max_group, progress)
    with Timer(found, runtime or own_runtime, thorough=True) as made:
        return _times(chains, made, max_group, progress)


@dataclass(frozen=True)
class _Chain:
    """Names, the shape of the whole, and the forms of a part of so many blocks."""

    names: tuple[str, ...]
    shape: Shape
    blocks: tuple[Block, ...]
    opset: int | None = None

    def part(self, first: int, last: int) -> tuple[str, Shape]:
        """Name and shape of the blocks from `first` to `last`."""
        own = slice(first, last + 1)
        return span(self.names[own]), replace(self.shape, widths=self.shape.widths[own])

    def forms(self, first: int, last: int, runtime: str) -> list[Form]:
        """What a group of them may be written as."""
        packed = [Form("packed")] if self.shape.gated else []
        if self.shape.weights != "float":
            return [Form(), *packed]
        if self.blocks:
            return legal_forms(self.blocks[first : last + 1], runtime, self.opset)
        counts = dict.fromkeys((1, 2, last + 1 - first))
        return [*(Form(slices=count) for count in counts), *packed]


def _times(
    chains: Sequence[_Chain], timer: Timer, max_group: int | None, progress: Progress
) -> dict[str, float]:
    segments = [(chain, *places) for chain in chains for places in _segments(len(chain.names), max_group)]
    timings: dict[tuple[Shape, tuple[Form, ...]], GroupTiming] = {}
    wholes = {
        chain.names: _whole(chain, timer, timings) for chain in track(chains, "timing whole chains", progress)
    }
    times: dict[str, float] = {}
    for chain, first, last in track(segments, "timing groups", progress):
        name, shape = chain.part(first, last)
        whole, share = wholes[chain.names], sum(shape.widths) / chain.shape.width
        ratios = dict.fromkeys(whole, 1.0)
        if last > first:
            timing = _timing(timer, shape, chain.forms(first, last, timer.runtime), name, timings)
            ratios = {each: timing.sequential_ms[each] / timing.fused_ms[each] for each in whole}
        relative = sum(share / ratio for ratio in ratios.values()) / len(ratios)
        times[name] = relative * next(iter(whole.values()))
    return times


def _whole(chain: _Chain, timer: Timer, timings: dict[Any, GroupTiming]) -> dict[int, float]:
    """What the chain takes as it is, by token count."""
    last = len(chain.names) - 1
    name, shape = chain.part(0, last)
    return _timing(timer, shape, chain.forms(0, last, timer.runtime), name, timings).sequential_ms


def _timing(
    timer: Timer, shape: Shape, forms: Sequence[Form], name: str, timings: dict[Any, GroupTiming]
) -> GroupTiming:
    key = shape, tuple(forms)
    if key not in timings:
        decision = timer.decide_shape(shape, forms, name)
        if decision.timing is None:
            raise InputError(f"{decision.reason.rstrip('.')}: give times of your own as latency.")
        timings[key] = decision.timing
    return timings[key]


def _segments(count: int, max_group: int | None) -> Iterator[tuple[int, int]]:
    """First and last of every run of blocks, the single ones too."""
    for first in range(count):
        for last in range(first, min(count, first + (max_group or count))):
            yield first, last


def _read(source: Any) -> tuple[list[_Chain], str]:
    """The chains of a source, and the runtime that it is for."""
    if isinstance(source, Analysis):
        return _of_analysis(source)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.suffix == ".onnx":
            from fxfuse.frontends.onnx_graph import read_graph
            from fxfuse.onnxio import load_model

            model, folder = load_model(path)
            versions = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
            opset = versions[0] if versions else None
            return _of_view(read_graph(model, folder), opset), "onnxruntime"
        if path.suffix != ".pt2":
            from fxfuse.analysis.reading import read_analysis

            return _of_analysis(read_analysis(path))
        from fxfuse.frontends.programs import load_program

        source = load_program(os.fspath(path))
    from torch.export import ExportedProgram

    if isinstance(source, ExportedProgram):
        from fxfuse.frontends.exported import ExportedGraph

        given = source.example_inputs
        return _of_view(ExportedGraph(source, given[0] if given else ()).view, None), "inductor"
    raise InputError(
        f"time_groups takes an analysis, an ONNX file, a .pt2 file or an ExportedProgram, not "
        f"{type(source).__name__}."
    )


def _of_view(view: View, opset: int | None) -> list[_Chain]:
    chains = []
    for chain in find_chains(view, requantize=True).chains:
        names = tuple(block.name for block in chain.blocks)
        shape = shape_of(view, chain.blocks)
        if isinstance(shape, str):
            raise InputError(f"{span(names)} cannot be timed: {shape}; give times of your own as latency.")
        chains.append(_Chain(names, shape, chain.blocks, opset))
    return chains


def _of_analysis(analysis: Analysis) -> tuple[list[_Chain], str]:
    hidden = analysis.id.hidden_size
    chains = []
    for facts in analysis.chains:
        size = facts.weight_bytes[0] / (hidden * facts.intermediate_sizes[0])
        dtype, gated = _BYTES[min(_BYTES, key=lambda known: abs(known - size))]
        shape = Shape(hidden, facts.intermediate_sizes, dtype=dtype, gated=gated)
        chains.append(_Chain(facts.blocks, shape, ()))
    return chains, "onnxruntime" if analysis.model.endswith(".onnx") else "inductor"
