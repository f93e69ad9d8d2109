"""fxfuse.fuse_onnx on files that both exporters of torch write of real families, run in ONNX Runtime.

x3 = x0 + FFN0(norm0(x0)) + FFN1(norm1(x0)) + FFN2(norm2(x0));   x5 = x4 + FFN3(...) + FFN4(...)
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import fxfuse
from fxfuse import Report
from fxfuse.frontends import onnx_file as front
from fxfuse.passes.chains import find_chains
from fxfuse.passes.onnx.upcast import upcast
from fxfuse.passes.onnx.view import OnnxView
from tests.closeness import assert_parallel
from tests.conftest import ONNX_FORMS
from tests.families import FUSED, HIDDEN, INTERMEDIATE, VOCAB, ids

File = Callable[..., Path]
OTHER = (3, 11)


def run(model: Path | bytes, size: tuple[int, int] = (2, 7)) -> torch.Tensor:
    (logits,) = fxfuse.session(model, "cpu").run(["logits"], {"input_ids": ids(*size).numpy()})
    return torch.from_numpy(logits)


def fuse(path: Path, out: Path, **options: Any) -> Report:
    return fxfuse.fuse_onnx(path, out, **{"min_sqnr": None, "provider": "cpu", **options})


def names(report: Report) -> list[str]:
    return [block.name for chain in report.chains for block in chain.blocks]


def reasons(report: Report) -> dict[str, str]:
    return {miss.where: miss.reason for miss in report.misses}


def index_of(name: str) -> int:
    """Give the layer in "model.layers.3.mlp"."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def assert_fused(report: Report, out: Path) -> None:
    assert [chain.length for chain in report.chains] == [3, 2]
    assert [index_of(name) for name in names(report)] == [0, 1, 2, 3, 4]
    assert all(name.endswith(f"layers.{index_of(name)}.mlp") for name in names(report))
    assert [group.blocks for group in report.groups] == [tuple(names(report)[:3]), tuple(names(report)[3:])]
    assert [group.intermediate_size for group in report.groups] == [3 * INTERMEDIATE, 2 * INTERMEDIATE]
    assert all(group.rewrite_error <= 2 * group.rounding_error for group in report.groups)
    assert [miss.where for miss in report.misses] == [report.chains[1].blocks[0].name]
    assert "another branch, such as attention, is added" in report.misses[0].reason
    assert report.output == str(out)
    onnx.checker.check_model(onnx.load(out))


# Every family as every exporter writes it


# The present exporter takes seconds for a graph with dynamic shapes: one family of each kind must do.
DYNAMIC = [
    *((name, "opset20") for name in ("llama", "gemma", "phi3", "gpt_neox")),
    *((name, "opset23") for name in ("llama", "gpt_neox")),
    *((name, "older") for name in FUSED),
]


@pytest.mark.parametrize("name, form", DYNAMIC)
def test_family_with_dynamic_shapes(onnx_file: File, tmp_path: Path, name: str, form: str) -> None:
    out = tmp_path / "out.onnx"
    assert_fused(fuse(onnx_file(name, form, dynamic=True), out), out)
    for size in ((2, 7), OTHER):
        assert_parallel(run(out, size), name, size=size)


@pytest.mark.parametrize("form", [form for form in ONNX_FORMS if form != "older"])  # DYNAMIC has those
@pytest.mark.parametrize("name", FUSED)
def test_family_with_static_shapes(onnx_file: File, tmp_path: Path, name: str, form: str) -> None:
    out = tmp_path / "out.onnx"
    assert_fused(fuse(onnx_file(name, form), out), out)
    assert_parallel(run(out), name)


HALF = [
    *((name, "older") for name in FUSED),
    *((name, "opset20") for name in ("llama", "gemma", "gpt_neox")),
    # The exporter's file of gemma in float16 at opset 23 is one that ONNX Runtime refuses.
    *((name, "opset23") for name in ("qwen3", "gpt_neox")),
]


@pytest.mark.parametrize("name, form", HALF)
def test_family_in_float16(onnx_file: File, tmp_path: Path, name: str, form: str) -> None:
    out = tmp_path / "out.onnx"
    assert_fused(fuse(onnx_file(name, form, dtype=torch.float16), out), out)
    assert_parallel(run(out), name, torch.float16)


@pytest.mark.parametrize("name, form", [("llama", "opset20"), ("gpt_neox", "opset23")])
def test_family_in_bfloat16_is_written_though_it_cannot_run(
    onnx_file: File, tmp_path: Path, name: str, form: str
) -> None:
    out = tmp_path / "out.onnx"
    report = fuse(onnx_file(name, form, dtype=torch.bfloat16), out)
    assert_fused(report, out)
    assert any("bfloat16" in note and "CPU" in note for note in report.notes)
    model = onnx.load(out)
    kinds = {tensor.data_type for tensor in model.graph.initializer if tensor.name.startswith("fxfuse")}
    assert kinds == {TensorProto.BFLOAT16}
    assert_parallel(run(upcast(model).SerializeToString()), name, torch.bfloat16)


# What is written


def test_all_but_the_blocks_stays_byte_for_byte(onnx_file: File, tmp_path: Path) -> None:
    path, out = onnx_file("llama", dynamic=True), tmp_path / "out.onnx"
    before = onnx.load(path)
    helper.set_model_props(before, {"author": "somebody"})
    before.doc_string, before.producer_name, before.graph.doc_string = "about it", "a producer", "the graph"
    for number, node in enumerate(before.graph.node):
        node.doc_string = f"node {number}"
        node.metadata_props.add(key="mine", value=str(number))
    path = tmp_path / "in.onnx"
    onnx.save(before, path)
    fuse(path, out)
    after = onnx.load(out)
    for field in ("ir_version", "producer_name", "doc_string", "domain", "model_version"):
        assert getattr(after, field) == getattr(before, field)
    for field in ("opset_import", "functions"):
        assert list(getattr(after, field)) == list(getattr(before, field))
    assert [each for each in after.metadata_props if each.key != "fxfuse"] == list(before.metadata_props)
    for field in ("name", "doc_string"):
        assert getattr(after.graph, field) == getattr(before.graph, field)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    nodes = {tuple(node.output): node.SerializeToString() for node in before.graph.node}
    old = [node for node in after.graph.node if tuple(node.output) in nodes]
    changed = [node for node in old if nodes[tuple(node.output)] != node.SerializeToString()]
    assert [node.op_type for node in changed] == ["Add", "Add"]
    stored = {tensor.name: tensor.SerializeToString() for tensor in before.graph.initializer}
    kept = [tensor for tensor in after.graph.initializer if tensor.name in stored]
    assert all(stored[tensor.name] == tensor.SerializeToString() for tensor in kept)
    assert not any(".mlp." in tensor.name for tensor in kept)
    assert len(kept) > len(stored) / 3


def test_new_nodes_say_where_they_come_from(onnx_file: File, tmp_path: Path) -> None:
    path, out = onnx_file("llama", dynamic=True), tmp_path / "out.onnx"
    report = fuse(path, out)
    old = {output for node in onnx.load(path).graph.node for output in node.output}
    new = [node for node in onnx.load(out).graph.node if not set(node.output) & old]
    marks = {each.value for node in new for each in node.metadata_props if each.key == "fxfuse.blocks"}
    assert marks == {", ".join(group.blocks) for group in report.groups}
    assert all(node.name.startswith("fxfuse") for node in new)


def test_fused_file_has_nothing_left_to_fuse(onnx_file: File, tmp_path: Path) -> None:
    fuse(onnx_file("llama", dynamic=True), tmp_path / "once.onnx")
    report = fuse(tmp_path / "once.onnx", tmp_path / "twice.onnx")
    assert report.chains == []
    assert report.output is None
    assert not (tmp_path / "twice.onnx").exists()


def test_what_is_left_of_a_fused_file_may_be_fused(onnx_file: File, tmp_path: Path) -> None:
    """Two of three first, then the other chain; the wide FFN and the third stay apart."""
    fuse(onnx_file("llama", dynamic=True), tmp_path / "once.onnx", include=r"layers\.[01]\.")
    report = fuse(tmp_path / "once.onnx", tmp_path / "twice.onnx")
    assert [chain.length for chain in report.chains] == [2]
    assert [group.intermediate_size for group in report.groups] == [2 * INTERMEDIATE]
    assert_parallel(run(tmp_path / "twice.onnx"), "llama", groups=((0, 1), (3, 4)))


def test_same_input_gives_the_same_file(onnx_file: File, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        fuse(onnx_file("llama", dynamic=True), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


# The report


def test_report_as_json(onnx_file: File, tmp_path: Path) -> None:
    path, out = onnx_file("llama", dynamic=True), tmp_path / "out.onnx"
    report = fuse(path, out, exclude=r"layers\.4\.")
    told = json.loads(report.to_json())
    assert told["model"] == str(path)
    assert told["output"] == str(out)
    assert told["inputs"] == "random"
    block = {
        "name": "model.layers.0.mlp", "norm": "RMSNorm", "activation": "silu", "gated": True,
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
    }  # fmt: skip
    assert [chain["length"] for chain in told["chains"]] == [3, 2]
    assert told["chains"][0]["blocks"][0] == block
    (group,) = told["groups"]
    assert group["blocks"] == [f"model.layers.{index}.mlp" for index in range(3)]
    assert group["intermediate_size"] == 3 * INTERMEDIATE
    assert 0 < group["rewrite_error"] < 1e-5
    assert 0 < group["sqnr_db"] < 40
    assert 0.5 < group["cosine"] < 1
    assert {miss["where"] for miss in told["misses"]} == {"model.layers.3.mlp", "model.layers.4.mlp"}
    assert all(set(miss) == {"where", "reason"} for miss in told["misses"])
    end = told["end_to_end"]
    assert end["output"] == "logits"
    assert end["kl"] > 0
    assert 0 <= end["top1_agreement"] <= 1
    assert {"torch", "onnx", "numpy", "fxfuse"} <= set(told["versions"])
    assert told["before"]["ffn_blocks"] == 5
    assert told["after"]["ffn_blocks"] == 3
    assert told["after"]["file_size"] == out.stat().st_size
    assert told["before"]["file_size"] == path.stat().st_size
    assert told["error"] is None


def test_figures_are_those_of_the_models(onnx_file: File, tmp_path: Path) -> None:
    path, out = onnx_file("llama", dynamic=True), tmp_path / "out.onnx"
    report = fuse(path, out, inputs=[{"input_ids": ids().numpy()}, {"input_ids": ids(*OTHER).numpy()}])
    assert report.inputs == "given"
    assert report.end_to_end["tokens"] == 2 * 7 + 3 * 11
    divergence = 0.0
    for size in ((2, 7), OTHER):
        p, q = (run(each, size).double().log_softmax(-1) for each in (path, out))
        divergence += float((p.exp() * (p - q)).sum())
    assert report.end_to_end["kl"] == pytest.approx(divergence / 47, rel=1e-3)


def test_inputs_from_files(onnx_file: File, tmp_path: Path) -> None:
    np.savez(tmp_path / "sample.npz", input_ids=ids(*OTHER).numpy())
    report = fuse(onnx_file("llama", dynamic=True), tmp_path / "out.onnx", inputs=[tmp_path / "sample.npz"])
    assert report.inputs == "given"
    assert report.end_to_end["tokens"] == 33


def test_drawn_inputs_follow_the_seed(onnx_file: File, tmp_path: Path) -> None:
    path = onnx_file("llama", dynamic=True)
    one, same, other = (fuse(path, tmp_path / "out.onnx", dry_run=True, seed=seed) for seed in (1, 1, 2))
    assert one.groups == same.groups
    assert one.groups[0].sqnr_db != other.groups[0].sqnr_db
    assert not (tmp_path / "out.onnx").exists()


# What is left alone, and why


@pytest.mark.parametrize("form", ONNX_FORMS)
def test_sandwich_norms_are_left_alone(onnx_file: File, tmp_path: Path, form: str) -> None:
    """x + norm(FFN(norm(x)))"""
    report = fuse(onnx_file("gemma2", form), tmp_path / "out.onnx")
    assert report.chains == []
    assert report.output is None
    told = [reason for where, reason in reasons(report).items() if "mlp" in where]
    assert len(told) == 5
    assert all("sandwich form" in reason for reason in told)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ONNX_FORMS)
def test_experts_are_left_alone(onnx_file: File, tmp_path: Path, form: str) -> None:
    report = fuse(onnx_file("mixtral", form), tmp_path / "out.onnx")
    assert report.chains == []
    assert len([reason for reason in reasons(report).values() if "router" in reason]) == 5


@pytest.mark.parametrize("form", ONNX_FORMS)
def test_parallel_residual_layers_are_left_alone(onnx_file: File, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out.onnx"
    report = fuse(onnx_file("gpt_neox_parallel", form), out)
    assert [index_of(name) for name in names(report)] == [1, 2]
    told = {index_of(where): reason for where, reason in reasons(report).items()}
    assert told.keys() == {0, 3, 4}
    assert all("attention and FFN stand in parallel" in told[index] for index in (0, 3))
    assert "another branch, such as attention, is added" in told[4]
    assert_parallel(run(out), "gpt_neox_parallel", groups=((1, 2),))


def test_taps_split_the_chain(onnx_file: File, tmp_path: Path) -> None:
    """output_hidden_states makes every stream an output."""
    path = onnx_file("llama", "older", hidden_states=True)
    outputs = [output.name for output in onnx.load(path).graph.output]
    report = fuse(path, tmp_path / "out.onnx")
    assert report.chains == []
    taps = {miss.where: miss.reason for miss in report.misses if "also a graph output" in miss.reason}
    assert {index_of(where) for where in taps} == {1, 2, 4}
    for where, reason in taps.items():
        assert f"the residual stream after model.layers.{index_of(where) - 1}.mlp" in reason
        assert any(name in reason for name in outputs)


def test_runs_of_one_say_that_they_stand_alone(onnx_file: File, tmp_path: Path) -> None:
    report = fuse(onnx_file("llama", "older", removed=()), tmp_path / "out.onnx")
    assert report.chains == []
    assert [index_of(where) for where in reasons(report)] == [0, 1, 2, 3, 4]
    assert all("the block stands alone" in reason for reason in reasons(report).values())


def stream_after(model: onnx.ModelProto, index: int) -> str:
    """Name the residual stream after block `index` of the first chain."""
    found = find_chains(OnnxView(model, onnx.numpy_helper.to_array))
    return str(found.chains[0].blocks[index].out)


def with_if(model: onnx.ModelProto, read: str) -> onnx.ModelProto:
    """Add an output: a tensor of the outer graph or its negative, as the first token chooses."""
    kind, shape = TensorProto.FLOAT, ["b", "s", "d"]
    branches = []
    for op, name in (("Identity", "then"), ("Neg", "else")):
        output = helper.make_tensor_value_info(f"{name}_out", kind, shape)
        branches.append(
            helper.make_graph([helper.make_node(op, [read], [f"{name}_out"])], name, [], [output])
        )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(VOCAB, np.int64), "if_limit"))
    model.graph.node.extend([
        helper.make_node("ReduceMax", ["input_ids"], ["if_most"], keepdims=0),
        helper.make_node("Less", ["if_most", "if_limit"], ["if_small"]),
        helper.make_node(
            "If", ["if_small"], ["chosen"], "choose", then_branch=branches[0], else_branch=branches[1]
        ),
    ])  # fmt: skip
    model.graph.output.append(helper.make_tensor_value_info("chosen", kind, shape))
    return model


def test_if_node_beside_the_chain_stays(onnx_file: File, tmp_path: Path) -> None:
    model = with_if(onnx.load(onnx_file("llama", dynamic=True)), "logits")
    onnx.save(model, tmp_path / "in.onnx")
    report = fuse(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert_fused(report, tmp_path / "out.onnx")
    opened = fxfuse.session(tmp_path / "out.onnx", "cpu")
    logits, chosen = opened.run(None, {"input_ids": ids().numpy()})
    assert_parallel(torch.from_numpy(logits), "llama")
    assert np.array_equal(logits, chosen)


def test_if_node_that_reads_the_stream_splits_the_chain(onnx_file: File, tmp_path: Path) -> None:
    model = onnx.load(onnx_file("llama", dynamic=True))
    onnx.save(with_if(model, stream_after(model, 1)), tmp_path / "in.onnx")
    report = fuse(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert [chain.length for chain in report.chains] == [2, 2]
    told = reasons(report)["model.layers.2.mlp"]
    assert "the residual stream after model.layers.1.mlp is also read by" in told or "alone" in told
    assert any("is also read by" in miss.reason for miss in report.misses)
    assert_parallel(run(tmp_path / "out.onnx"), "llama", groups=((0, 1), (3, 4)))


def test_decoders_inside_an_if_node_are_fused(onnx_file: File, tmp_path: Path) -> None:
    """As optimum merges two decoders: both branches' outputs are called as the If node's own."""
    model = onnx.load(onnx_file("llama", dynamic=True))
    inner, outer = model.graph, onnx.GraphProto(name="outer")
    outer.input.extend(inner.input)
    outer.output.extend(inner.output)
    outer.initializer.extend(inner.initializer)
    outer.initializer.append(onnx.numpy_helper.from_array(np.array(True), "always"))
    then = helper.make_graph(list(inner.node), "then", [], list(inner.output))
    other = helper.make_graph([*inner.node], "else", [], list(inner.output))
    outer.node.append(
        helper.make_node("If", ["always"], ["logits"], "if", then_branch=then, else_branch=other)
    )
    model.graph.CopyFrom(outer)
    onnx.save(model, tmp_path / "in.onnx")
    report = fuse(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert sorted(chain.length for chain in report.chains) == [2, 2, 3, 3]
    assert_parallel(run(tmp_path / "out.onnx"), "llama")


# Budgets


def fused_layers(report: Report) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(index_of(name) for name in group.blocks) for group in report.groups)


def assert_told(report: Report, words: Sequence[str]) -> None:
    """Every block that is in a chain and in no group has a reason that holds `words`."""
    left = set(names(report)) - {name for group in report.groups for name in group.blocks}
    assert left <= set(reasons(report))
    for name in left:
        assert any(word in reasons(report)[name] for word in words), reasons(report)[name]


def test_default_budget_leaves_what_loses_too_much(onnx_file: File, tmp_path: Path) -> None:
    """These random layers keep 9 dB by threes and about 12 dB by twos, where 12 are wanted."""
    out = tmp_path / "out.onnx"
    report = fuse(onnx_file("llama", dynamic=True), out, min_sqnr=12.0, inputs=[{"input_ids": ids().numpy()}])
    assert 0 < report.fused_blocks < 5
    assert all(group.sqnr_db >= 12 for group in report.groups)
    assert_told(report, ["dB, under the budget of 12 dB", "no neighbour"])
    assert any("dB, under the budget of 12 dB" in reason for reason in reasons(report).values())
    assert_parallel(run(out), "llama", groups=fused_layers(report))


def test_min_sqnr_is_12_unless_told(onnx_file: File, tmp_path: Path) -> None:
    path = onnx_file("llama", dynamic=True)
    one = fxfuse.fuse_onnx(path, tmp_path / "out.onnx", provider="cpu", dry_run=True)
    assert one.groups == fuse(path, tmp_path / "out.onnx", min_sqnr=12, dry_run=True).groups


def test_nothing_within_budget_writes_nothing(onnx_file: File, tmp_path: Path) -> None:
    report = fuse(onnx_file("llama", dynamic=True), tmp_path / "out.onnx", min_sqnr=60)
    assert report.groups == []
    assert report.output is None
    assert report.after is None
    assert_told(report, ["under the budget of 60 dB"])
    assert list(tmp_path.iterdir()) == []


def test_max_group(onnx_file: File, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    report = fuse(onnx_file("llama", dynamic=True), out, max_group=2)
    assert all(len(group.blocks) == 2 for group in report.groups)
    assert (3, 4) in fused_layers(report)
    assert_told(report, ["no neighbour"])
    assert_parallel(run(out), "llama", groups=fused_layers(report))


@pytest.mark.parametrize("options, groups, words", [
    ({"exclude": r"layers\.1\."}, ((3, 4),), ["exclude", "no neighbour"]),
    ({"exclude": r"layers\.0\."}, ((1, 2), (3, 4)), ["exclude"]),
    ({"include": r"layers\.[012]\."}, ((0, 1, 2),), ["include"]),
])  # fmt: skip
def test_include_and_exclude(
    onnx_file: File, tmp_path: Path, options: dict[str, str], groups: Any, words: list[str]
) -> None:
    out = tmp_path / "out.onnx"
    report = fuse(onnx_file("llama", dynamic=True), out, **options)
    assert fused_layers(report) == groups
    assert_told(report, words)
    assert_parallel(run(out), "llama", groups=groups)


def test_max_kl_takes_groups_apart_until_the_logits_are_near_enough(onnx_file: File, tmp_path: Path) -> None:
    path, out = onnx_file("llama", dynamic=True), tmp_path / "out.onnx"
    bound = fuse(path, out, dry_run=True).end_to_end["kl"] / 2
    report = fuse(path, out, max_kl=bound)
    assert 0 < report.fused_blocks < 5
    assert report.end_to_end["kl"] <= bound
    assert any(f"nats is over the budget of {bound:g}" in reason for reason in reasons(report).values())
    assert_told(report, ["over the budget", "no neighbour"])
    assert_parallel(run(out), "llama", groups=fused_layers(report))


def test_max_kl_of_nothing_writes_nothing(onnx_file: File, tmp_path: Path) -> None:
    report = fuse(onnx_file("llama", dynamic=True), tmp_path / "out.onnx", max_kl=0.0)
    assert (report.groups, report.end_to_end, report.output) == ([], {}, None)
    assert_told(report, ["over the budget of 0"])
    assert list(tmp_path.iterdir()) == []


# External data


def save_outside(path: Path, target: Path, **options: Any) -> Path:
    options = {"save_as_external_data": True, **options}
    onnx.save_model(onnx.load(path), target, **options)
    return target


def test_external_data_go_to_a_file_of_their_own(onnx_file: File, tmp_path: Path) -> None:
    path = save_outside(onnx_file("llama", dynamic=True), tmp_path / "in.onnx", location="weights.bin")
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    out = tmp_path / "out.onnx"
    report = fuse(path, out)
    assert_fused(report, out)
    assert {each.name for each in tmp_path.iterdir()} == {*before, "out.onnx", "out.onnx.data"}
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())
    tensors = onnx.load(out, load_external_data=False).graph.initializer
    places = {e.value for t in tensors for e in t.external_data if e.key == "location"}
    assert places == {"out.onnx.data"}
    assert report.after.file_size == out.stat().st_size + (tmp_path / "out.onnx.data").stat().st_size
    assert_parallel(run(out), "llama")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("out.onnx", "out.onnx.data"):
        (tmp_path / name).rename(elsewhere / name)
    (tmp_path / "weights.bin").unlink()
    assert_parallel(run(elsewhere / "out.onnx", OTHER), "llama", size=OTHER)


def test_external_data_in_a_file_for_each_tensor(onnx_file: File, tmp_path: Path) -> None:
    path = save_outside(onnx_file("llama", dynamic=True), tmp_path / "in.onnx", all_tensors_to_one_file=False)
    out = tmp_path / "out.onnx"
    assert_fused(fuse(path, out), out)
    assert_parallel(run(out), "llama")


def test_large_model_goes_to_external_data_by_itself(
    onnx_file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "INLINE_LIMIT", 100_000)
    out = tmp_path / "out.onnx"
    fuse(onnx_file("llama", dynamic=True), out)
    assert (tmp_path / "out.onnx.data").stat().st_size > 100_000
    stored = onnx.load(out, load_external_data=False).graph.initializer
    assert all(len(tensor.raw_data) < 1024 for tensor in stored)
    assert_parallel(run(out), "llama")


def test_small_model_stays_one_file(onnx_file: File, tmp_path: Path) -> None:
    fuse(onnx_file("llama", dynamic=True), tmp_path / "out.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["out.onnx"]


def test_default_output_lies_beside_the_model(onnx_file: File, tmp_path: Path) -> None:
    onnx.save(onnx.load(onnx_file("llama", dynamic=True)), tmp_path / "decoder.onnx")
    report = fxfuse.fuse_onnx(tmp_path / "decoder.onnx", min_sqnr=None, provider="cpu")
    assert report.output == str(tmp_path / "decoder.fused.onnx")
    assert_parallel(run(tmp_path / "decoder.fused.onnx"), "llama")


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_names_mean_nothing(onnx_file: File, tmp_path: Path, name: str) -> None:
    """The same file with every tensor and node renamed, and no shapes told, fuses the same."""
    model = onnx.load(onnx_file(name, dynamic=True))
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)} | {""}
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
        del node.metadata_props[:]
    known = {n for node in model.graph.node for n in (*node.input, *node.output)} - fixed
    renamed = {old: f"t{number}" for number, old in enumerate(sorted(known))}
    for node in model.graph.node:
        node.input[:] = [renamed.get(each, each) for each in node.input]
        node.output[:] = [renamed.get(each, each) for each in node.output]
    for tensor in model.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "in.onnx")
    report = fuse(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert [chain.length for chain in report.chains] == [3, 2]
    assert len(set(names(report))) == 5
    assert_parallel(run(tmp_path / "out.onnx"), name)
