"""Checks of the test material itself: the families, the exporters and the parallel oracle."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tests import exporters
from tests.conftest import ATEN_FORMS, ONNX_FORMS
from tests.families import (
    FAMILIES,
    FUSED,
    HIDDEN,
    REFUSED,
    REMOVED,
    VOCAB,
    build,
    decoder_layers,
    example,
    has_attention,
    ids,
)
from tests.parallel import parallel_model

GROUPS = [(0, 1, 2), (3, 4)]
KNOWN = [*FUSED, "gpt_neox_parallel", *REFUSED]
"""The families that every exporter writes here; test_coverage exports the others."""


def stream_and_updates(name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return the stream after each layer, and what each layer's FFN gave."""
    model, updates = build(name, hidden_states=True), []
    for layer in decoder_layers(model):
        ffn = layer.get_submodule(FAMILIES[name].ffn)
        ffn.register_forward_hook(lambda _module, _args, output: updates.append(output))
    return list(model(example(name))[1:]), updates


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_forward_gives_finite_logits_or_states(name: str, dtype: torch.dtype) -> None:
    output = build(name, dtype=dtype)(example(name, dtype=dtype))
    assert output.shape[0] == 2
    assert output.shape[2] == (VOCAB if FAMILIES[name].decoder else HIDDEN)
    assert output.isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_build_is_deterministic_and_leaves_no_parameter_trivial(name: str) -> None:
    first, second = build(name), build(name)
    for (key, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), key
        assert a.std() > 0.01, key


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "bert"])
def test_ffn_updates_are_smaller_than_the_stream_but_not_negligible(name: str) -> None:
    for stream, update in zip(*stream_and_updates(name), strict=True):
        assert 0.05 < update.norm() / stream.norm() < 0.6


@pytest.mark.parametrize("name", FAMILIES)
def test_removed_attention_is_never_called(name: str) -> None:
    model = build(name)
    for index in REMOVED:
        decoder_layers(model)[index].set_submodule(FAMILIES[name].attention, Uncallable())
    assert torch.equal(model(example(name)), build(name)(example(name)))


class Uncallable(nn.Module):
    pass


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.chains])
def test_groups_of_one_layer_are_the_model(name: str) -> None:
    """x + sum over one ffn = x + ffn"""
    model, parallel = build(name), FAMILIES[name].parallel
    layers = enumerate(decoder_layers(model))
    alone = [(index,) for index, layer in layers if not (parallel and has_attention(layer))]
    singles = parallel_model(model, alone)(example(name))
    torch.testing.assert_close(singles, model(example(name)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", FUSED)
def test_groups_change_the_model_and_hold_in_float64_and_float16(name: str) -> None:
    model = build(name)
    parallel = parallel_model(model, GROUPS)
    exact = parallel_model(model, GROUPS).double()(ids())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(parallel(ids()).double(), exact, rtol=0, atol=1e-5)
    assert (parallel(ids()) - model(ids())).abs().max() > 0.05
    half = parallel_model(build(name, dtype=torch.float16), GROUPS)(ids())
    torch.testing.assert_close(half.double(), exact, rtol=0, atol=3e-2)


def test_a_group_may_be_the_sum_written_out() -> None:
    """x3 = x0 + ffn0(x0) + ffn1(x0) + ffn2(x0) where no layer has attention"""
    model = build("llama", removed=range(5), hidden_states=True)
    x = model.get_input_embeddings()(ids())
    branches = [layer.mlp(layer.post_attention_layernorm(x)) for layer in decoder_layers(model)[:3]]
    stream = parallel_model(model, [(0, 1, 2)]).base_model.layers[0](x)
    torch.testing.assert_close(stream, x + branches[0] + branches[1] + branches[2])


@pytest.mark.parametrize(
    ("name", "group", "reason"),
    [
        ("llama", (2, 3), "still have their attention"),
        ("llama", (0, 2), "not consecutive"),
        ("gpt_neox_parallel", (0, 1), "beside its attention"),
    ],
)
def test_parallel_model_refuses_impossible_groups(name: str, group: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parallel_model(build(name), [group])


def module_paths(graph: GraphModule) -> set[str]:
    return {path for node in graph.graph.nodes for path, _ in node.meta.get("nn_module_stack", {}).values()}


@pytest.mark.parametrize("name", KNOWN)
def test_dynamo_gives_one_graph_that_knows_its_modules(name: str, dynamo_graph: Callable) -> None:
    base = build(name).base_model_prefix
    paths = module_paths(dynamo_graph(name)[0])
    assert {f"L['self'].{base}.layers.{index}.mlp" for index in range(5)} <= paths, sorted(paths)
    assert not any("layers.1." in path and "att" in path.replace("post_att", "") for path in paths)


@pytest.mark.parametrize("form", ATEN_FORMS)
@pytest.mark.parametrize("name", FUSED)
def test_torch_export_knows_its_modules(name: str, form: str, exported_program: Callable) -> None:
    base = build(name).base_model_prefix
    program = exported_program(name, form)
    assert {f"{base}.layers.{index}.mlp" for index in range(5)} <= module_paths(program.graph_module)


def test_compiling_with_dynamic_true_makes_eps_an_input() -> None:
    model = build("llama", layers=1, removed=())
    for compile_dynamic in (False, True):
        graph, _ = exporters.dynamo_graph(model, ids(), dynamic=True, compile_dynamic=compile_dynamic)
        lifted = [node for node in graph.graph.find_nodes(op="placeholder") if "epsilon" in node.name]
        assert bool(lifted) == compile_dynamic


def cpu_session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("form", ONNX_FORMS)
@pytest.mark.parametrize("name", KNOWN)
def test_onnx_runtime_gives_the_models_logits(name: str, form: str, onnx_file: Callable) -> None:
    session = cpu_session(onnx_file(name, form))
    (logits,) = session.run(["logits"], {"input_ids": ids().numpy()})
    np.testing.assert_allclose(logits, build(name)(ids()).numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ONNX_FORMS)
def test_dynamic_onnx_takes_other_shapes(form: str, onnx_file: Callable) -> None:
    session = cpu_session(onnx_file("llama", form, dynamic=True))
    for batch, length in [(1, 1), (3, 11)]:
        (logits,) = session.run(["logits"], {"input_ids": ids(batch, length).numpy()})
        np.testing.assert_allclose(logits, build("llama")(ids(batch, length)).numpy(), rtol=0, atol=1e-4)


def test_taps_are_outputs_of_the_onnx_file(onnx_file: Callable) -> None:
    assert len(onnx.load(onnx_file("llama", hidden_states=True)).graph.output) == 6
