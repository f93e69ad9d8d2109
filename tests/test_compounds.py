"""Files that an optimiser wrote, end to end: the same chains, the right numbers, Skip nodes left as they are.

optimizer: onnxruntime.transformers' (Skip nodes, BiasGelu). session: ONNX Runtime's own optimised file
(FusedMatMul, QuickGelu, Gemm between Reshapes, constants without names).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions

from fxfuse.onnx_api import fuse_onnx
from fxfuse.report import Report
from tests.closeness import assert_parallel
from tests.exporters import silenced
from tests.families import ids

File = Callable[..., Path]
_LEVELS = onnxruntime.GraphOptimizationLevel
LEVELS = {
    "basic": _LEVELS.ORT_ENABLE_BASIC,
    "extended": _LEVELS.ORT_ENABLE_EXTENDED,
    "all": _LEVELS.ORT_ENABLE_ALL,
}


@pytest.fixture(scope="session")
def optimised(onnx_file: File, tmp_path_factory: pytest.TempPathFactory) -> File:
    """optimised(family, form, how, **built): `how` is a session's level, or "model_type/opt_level"."""
    folder = tmp_path_factory.mktemp("optimised")

    @functools.cache
    def write(family: str, form: str, how: str, **built: Any) -> Path:
        words = [family, form, how.replace("/", "-"), *(f"{k}-{v}" for k, v in built.items())]
        path = folder / f"{'.'.join(words)}.onnx"
        source = onnx_file(family, form, **built)
        (_by_session if how in LEVELS else _by_optimizer)(source, path, how)
        return path

    return write


def _by_session(source: Path, path: Path, level: str) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _by_optimizer(source: Path, path: Path, how: str) -> None:
    kind, level = how.split("/")
    with silenced():
        model = optimizer.optimize_model(
            str(source), model_type=kind, num_heads=4, hidden_size=64, opt_level=int(level),
            optimization_options=FusionOptions(kind), use_gpu=False,
        )  # fmt: skip
        model.save_model_to_file(str(path))


def fuse(path: Path, out: Path) -> Report:
    return fuse_onnx(path, out, provider="cpu", min_sqnr=None)


def run(path: Path) -> torch.Tensor:
    opened = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(opened.run(None, {"input_ids": ids().numpy()})[0])


def check(path: Path, out: Path, family: str, dtype: torch.dtype = torch.float32) -> Report:
    """Chains of three and two, the parallel model's numbers; what lies outside of the groups is untouched."""
    report = fuse(path, out)
    assert [chain.length for chain in report.chains] == [3, 2]
    assert [len(group.blocks) for group in report.groups] == [3, 2]
    assert_parallel(run(out), family, dtype)
    before, after = (
        {tuple(node.output): node for node in onnx.load(each).graph.node} for each in (path, out)
    )
    changed = [node for key, node in after.items() if key in before and node != before[key]]
    # ONNX Runtime cannot give the names of its own shapes twice: see fxfuse.passes.onnx.reserved.
    changed = [node for node in changed if not node.input[1].startswith("gemm_")]
    assert set(types(changed)) <= {"Add", "SkipSimplifiedLayerNormalization", "SkipLayerNormalization"}
    assert len(changed) == 2
    return report


def types(nodes: Any) -> Counter[str]:
    return Counter(node.op_type for node in nodes)


OPTIMIZER = [
    *((name, "older", "gpt2/0") for name in ("llama", "qwen2", "gemma", "phi3", "gpt_neox", "granite")),
    *((name, "opset20", "bert/0") for name in ("llama", "gemma", "gpt_neox")),
    *((name, "older", "gpt2/2") for name in ("llama", "phi3")),
    *((name, "opset20", "gpt2/1") for name in ("gemma", "gpt_neox")),
]


@pytest.mark.parametrize("family, form, how", OPTIMIZER)
def test_transformers_optimizer(optimised: File, tmp_path: Path, family: str, form: str, how: str) -> None:
    path, out = optimised(family, form, how), tmp_path / "out.onnx"
    skip = "SkipLayerNormalization" if family == "gpt_neox" else "SkipSimplifiedLayerNormalization"
    before = types(onnx.load(path).graph.node)[skip]
    assert before == 7
    check(path, out, family)
    after = types(onnx.load(out).graph.node)
    assert after[skip] == before - 3  # each block but a group's last had one, the first blocks' stay
    assert after[skip.removeprefix("Skip")] == 1  # the first layer's, before its attention


SESSION = [
    *((name, "older", "all") for name in ("llama", "gemma", "phi3", "gpt_neox", "granite")),
    *((name, "opset20", level) for name in ("llama", "gpt_neox") for level in LEVELS),
    ("gemma", "opset20", "all"),
    ("qwen2", "opset23", "extended"),
]


@pytest.mark.parametrize("family, form, level", SESSION)
def test_what_a_session_saves(optimised: File, tmp_path: Path, family: str, form: str, level: str) -> None:
    check(optimised(family, form, level), tmp_path / "out.onnx", family)


HALF = [
    ("gpt_neox", "older", "gpt2/0"), ("gpt_neox", "opset20", "all"), ("gpt_neox", "opset20", "basic"),
    ("gemma", "older", "gpt2/0"), ("llama", "older", "all"), ("phi3", "older", "all"),
]  # fmt: skip


@pytest.mark.parametrize("family, form, how", HALF)
def test_float16(optimised: File, tmp_path: Path, family: str, form: str, how: str) -> None:
    """A CPU session puts casts around what it has no kernels for, so FFNs may run in float32 between them"""
    path = optimised(family, form, how, dtype=torch.float16)
    report = fuse(path, tmp_path / "out.onnx")
    assert [len(group.blocks) for group in report.groups] == [3, 2]
    assert_parallel(run(tmp_path / "out.onnx"), family, torch.float16)


@pytest.mark.parametrize("how", ["gpt2/0", "all"])
def test_families_that_are_refused_are_refused(optimised: File, tmp_path: Path, how: str) -> None:
    report = fuse(optimised("gemma2", "older", how), tmp_path / "out.onnx")
    assert report.groups == []
    assert any("sandwich form" in miss.reason for miss in report.misses)
    report = fuse(optimised("gpt_neox_parallel", "older", how), tmp_path / "parallel.onnx")
    assert [chain.length for chain in report.chains] == [2]


@pytest.mark.parametrize(
    ("family", "form", "how", "names"),
    [
        ("llama", "older", "gpt2/0", "model.layers.{}.mlp"),
        ("llama", "older", "all", "model.layers.{}.mlp"),
        ("llama", "opset20", "bert/0", "model.layers.{}.mlp"),
        # Nothing but biases and gains has kept its name.
        ("gpt_neox", "opset20", "all", "gpt_neox.layers.{}.mlp"),
        ("llama", "opset20", "all", "model.layers.{}"),
    ],
)
def test_blocks_are_called_by_their_layers(
    optimised: File, tmp_path: Path, family: str, form: str, how: str, names: str
) -> None:
    report = fuse(optimised(family, form, how), tmp_path / "out.onnx")
    found = [block.name for chain in report.chains for block in chain.blocks]
    assert found == [names.format(index) for index in range(5)]


def test_the_fused_file_may_be_optimised_again(optimised: File, tmp_path: Path) -> None:
    """A session fuses what it can of the wide FFN"""
    fuse(optimised("gpt_neox", "older", "gpt2/0"), tmp_path / "fused.onnx")
    _by_session(tmp_path / "fused.onnx", tmp_path / "again.onnx", "all")
    assert_parallel(run(tmp_path / "again.onnx"), "gpt_neox")


def as_functions(source: Path, path: Path) -> None:
    """Each layer's FFN, with the norm before it, as a local function."""
    model = onnx.load(source)
    nodes = list(model.graph.node)
    place = [_layer(node.name) for node in nodes]
    last = {layer: index for index, layer in enumerate(place) if layer}
    del model.graph.node[:]
    for index, (node, layer) in enumerate(zip(nodes, place, strict=True)):
        if layer is None:
            model.graph.node.append(node)
        elif index == last[layer]:
            inside = [each for each, own in zip(nodes, place, strict=True) if own == layer]
            outside = {i for each, own in zip(nodes, place, strict=True) if own != layer for i in each.input}
            function = _function(layer, inside, outside, model.opset_import)
            model.functions.append(function)
            name, domain = f"/model/{layer}", function.domain
            call = helper.make_node(function.name, function.input, function.output, name, domain=domain)
            model.graph.node.append(call)
    model.opset_import.append(helper.make_opsetid("local", 1))
    onnx.save(model, path)


def _layer(name: str) -> str | None:
    parts = name.split("/")
    return parts[2] if len(parts) > 3 and parts[3] in ("mlp", "post_attention_layernorm") else None


def _function(layer: str, inside: list[onnx.NodeProto], outside: set[str], opsets: Any) -> onnx.FunctionProto:
    made = [name for node in inside for name in node.output]
    read = dict.fromkeys(name for node in inside for name in node.input if name not in made)
    outputs = [name for name in made if name in outside]
    return helper.make_function("local", layer.replace(".", "_"), list(read), outputs, inside, opsets)


def test_layers_that_are_local_functions(onnx_file: File, tmp_path: Path) -> None:
    as_functions(onnx_file("llama", "older"), tmp_path / "in.onnx")
    before = onnx.load(tmp_path / "in.onnx")
    assert [each.name for each in before.functions] == [f"layers_{index}" for index in range(5)]
    report = fuse(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert [block.name for chain in report.chains for block in chain.blocks] == [
        f"model.layers.{index}.mlp" for index in range(5)
    ]
    assert not onnx.load(tmp_path / "out.onnx").functions
    assert_parallel(run(tmp_path / "out.onnx"), "llama")
    fuse_onnx(
        tmp_path / "in.onnx", tmp_path / "part.onnx", provider="cpu", min_sqnr=None, exclude=r"\.[34]\."
    )
    part = onnx.load(tmp_path / "part.onnx")
    assert [each.name for each in part.functions] == ["layers_3", "layers_4"]
    assert_parallel(run(tmp_path / "part.onnx"), "llama", groups=[(0, 1, 2)])
