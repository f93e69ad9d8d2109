"""Any decoder, however written: its chains are found, and the fused form is the parallel one.

    chains found   = the runs of blocks with nothing between, whatever the spelling of each
    fused(x)       = x + sum_k branch_k(x) over each run, in float64

and a block that is only almost one is in no chain. Decoders are drawn by `tests.properties`; their meaning is
plain formulas.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxfuse.frontends.onnx_graph import read_graph
from fxfuse.passes.chains import find_chains
from tests.passes import graphs, onnx_graphs
from tests.passes.onnx_graphs import Array
from tests.properties.meaning import Branch, fused, meanings, runs
from tests.properties.onnx_decoder import ONNX_NEAR_MISSES, OnnxDecoder, onnx_writings
from tests.properties.torch_decoder import HIDDEN, NEAR_MISSES, Decoder, writings

TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 0.15}
DTYPES = st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16])


@st.composite
def decoders(draw: st.DrawFn, most: int = 5) -> Decoder:
    blocks = draw(meanings(most))
    return Decoder(blocks, [draw(writings) for _ in blocks], draw(DTYPES))


def stream(dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 3, HIDDEN, generator=torch.Generator().manual_seed(3)).to(dtype)


def expected(decoder: Decoder, x: Tensor, alone: int | None = None) -> Tensor:
    """The parallel form in float64; block `alone` runs as it is written."""
    branches: list[Branch] = [
        functools.partial(block.meaning.branch, weights=block.weights()) for block in decoder.blocks
    ]
    if alone is not None:
        odd = copy.deepcopy(decoder.blocks[alone]).double()
        odd.writing = replace(odd.writing, wide=False)
        branches[alone] = lambda y: odd(y) - y
    double = copy.deepcopy(decoder).double()
    return fused([block.meaning for block in decoder.blocks], branches, x.double(), double.between, alone)


def check(decoder: Decoder, tracer: Callable[..., Any], alone: int | None = None) -> None:
    dtype = decoder.mixing.dtype
    x = stream(dtype)
    view = tracer(decoder, x)
    found = find_chains(view)
    parts = runs([block.meaning for block in decoder.blocks], alone)
    assert graphs.lengths(found) == [len(run) for run in parts if len(run) > 1], graphs.reasons(found)
    assert len(found.singles) == sum(len(run) == 1 for run in parts), graphs.reasons(found)
    out = graphs.run(graphs.fuse(view), x).double() if found.chains else decoder(x)[0].double()
    reference = expected(decoder, x, alone)
    assert float((out - reference).abs().max()) <= TOLERANCE[dtype] * float(reference.abs().max())


@settings(max_examples=150)
@given(decoders())
def test_a_traced_decoder(decoder: Decoder) -> None:
    check(decoder, graphs.TRACERS["symbolic"])


@pytest.mark.parametrize("tracer", ["dynamo", "aten", "core", "aot"])
def test_the_same_in_other_graphs(tracer: str) -> None:
    @settings(max_examples=6)
    @given(decoders(most=3))
    def draw(decoder: Decoder) -> None:
        check(decoder, graphs.TRACERS[tracer])

    draw()


@settings(max_examples=120)
@given(decoders(most=3), st.sampled_from(NEAR_MISSES), st.integers(0, 2))
def test_a_near_miss_is_left_alone(decoder: Decoder, near: str, index: int) -> None:
    index %= len(decoder.blocks)
    kinds = [block.meaning for block in decoder.blocks]
    ways = [block.writing for block in decoder.blocks]
    ways[index] = replace(ways[index], near=near)
    if near == "constant per channel":  # which folds where there is but one
        kinds[index] = replace(kinds[index], width=max(2, kinds[index].width))
    check(Decoder(kinds, ways, torch.float32), graphs.TRACERS["symbolic"], alone=index)


# ONNX


@st.composite
def onnx_decoders(draw: st.DrawFn, most: int = 5) -> OnnxDecoder:
    blocks = draw(meanings(most))
    kind = draw(st.sampled_from([np.float32, np.float32, np.float16]))
    ways = [draw(onnx_writings) for _ in blocks]
    if kind is np.float16:  # in which constants would be rounded where they are spelled out, and only there
        ways = [replace(way, spelled=ways[0].spelled, cast=True) for way in ways]
    return OnnxDecoder(blocks, ways, kind)


def run_as_written(model: onnx.ModelProto, x: Array) -> Array:
    """The first output without optimisations: those of ONNX Runtime 1.31 lose the eps of Add(eps, mean)."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    opened = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(opened.run(None, {"x": x})[0])


def check_onnx(decoder: OnnxDecoder, alone: int | None = None) -> None:
    x = onnx_graphs.example(decoder.dtype)
    view = read_graph(decoder.model, Path())
    found = find_chains(view)
    parts = runs(decoder.meanings, alone)
    assert onnx_graphs.lengths(found) == [len(run) for run in parts if len(run) > 1], onnx_graphs.reasons(
        found
    )
    assert len(found.singles) == sum(len(run) == 1 for run in parts), onnx_graphs.reasons(found)
    if alone is not None:  # what a near miss computes has no formula; its neighbours are checked above
        return
    branches: list[Branch] = [
        functools.partial(
            meaning.branch, weights={k: torch.from_numpy(v).double() for k, v in weights.items()}
        )
        for meaning, weights in zip(decoder.meanings, decoder.weights, strict=True)
    ]
    reference = fused(decoder.meanings, branches, torch.from_numpy(x).double(), decoder.between)
    model = onnx_graphs.fuse(decoder.model, view=view) if found.chains else decoder.model
    out = torch.from_numpy(run_as_written(model, x)).double()
    tolerance = 5e-5 if decoder.dtype is np.float32 else 2e-2
    assert float((out - reference).abs().max()) <= tolerance * float(reference.abs().max())


@settings(max_examples=80)
@given(onnx_decoders())
def test_an_onnx_decoder(decoder: OnnxDecoder) -> None:
    check_onnx(decoder)


@settings(max_examples=80)
@given(onnx_decoders(most=3), st.sampled_from(ONNX_NEAR_MISSES), st.integers(0, 2))
def test_a_near_miss_in_onnx_is_left_alone(decoder: OnnxDecoder, near: str, index: int) -> None:
    index %= len(decoder.meanings)
    kinds, ways = list(decoder.meanings), list(decoder.writings)
    ways[index] = replace(ways[index], near=near)
    kinds[index] = replace(kinds[index], width=max(2, kinds[index].width))
    check_onnx(OnnxDecoder(kinds, ways, np.float32), alone=index)
