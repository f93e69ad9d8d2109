"""Chains inside of If, Loop and Scan: each body is fused as a model of its own, and the whole is verified.

If(c): x3 = x0 + sum_i FFN_i(norm_i(x0)) in both branches;   Loop: x <- x + FFN0(norm0(x)) + FFN1(norm1(x))
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import fxfuse
from fxfuse.errors import InputError
from fxfuse.frontends.bodies import Bodies
from fxfuse.frontends.body_inputs import body_inputs, names_of_inputs
from fxfuse.passes.onnx.bodies import bodies_of, hoist
from fxfuse.passes.onnx.provenance import KEY, next_number
from tests import exporters, families
from tests.families import ids
from tests.passes.onnx_graphs import HIDDEN, Graph, example

Array = np.ndarray[Any, Any]
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
STREAM = ["b", "s", HIDDEN]


def info(name: str, kind: int = FLOAT, shape: Any = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def fuse(path: Path, out: Path, **options: Any) -> fxfuse.Report:
    return fxfuse.fuse_onnx(path, out, **{"min_sqnr": None, "provider": "cpu", **options})


def told(report: fxfuse.Report) -> dict[str, str]:
    return {miss.where: miss.reason for miss in report.misses}


def run(path: Path, **inputs: Any) -> Array:
    return np.asarray(fxfuse.session(path, "cpu").run(None, inputs)[0])


def tagged(nodes: list[onnx.NodeProto], tag: str) -> list[onnx.NodeProto]:
    """Copies with outputs of their own, as the two decoders of a merged file have them."""
    new: dict[str, str] = {}
    copies = []
    for node in nodes:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        copied.input[:] = [new.get(name, name) for name in node.input]
        copied.output[:] = [new.setdefault(name, f"{tag}/{name}") for name in node.output]
        copies.append(copied)
    return copies


def branch(g: Graph, nodes: list[onnx.NodeProto], tag: str, last: str) -> onnx.GraphProto:
    return helper.make_graph(tagged(nodes, tag), tag, [], [info(f"{tag}/{last}", FLOAT, STREAM)])


def model_of(
    g: Graph, nodes: list[onnx.NodeProto], last: str, *inputs: onnx.ValueInfoProto
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "whole",
        [info("x", FLOAT, STREAM), *inputs],
        [info(last, FLOAT, STREAM)],
        list(g.weights.values()),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def chain(g: Graph, x: str, count: int = 3) -> str:
    for _ in range(count):
        x = g.block(x)
    return x


def if_model(count: int = 3) -> tuple[Graph, onnx.ModelProto]:
    """Out = If(use_cache): both branches the same chain on Relu(x), with the same weights."""
    g = Graph()
    x = g.node("Relu", "x")
    outside = list(g.nodes)
    last = chain(g, x, count)
    inner = g.nodes[len(outside) :]
    branches = {f"{which}_branch": branch(g, inner, which, last) for which in ("then", "else")}
    node = helper.make_node("If", ["use_cache"], ["out"], "/If_0", **branches)
    return g, model_of(g, [*outside, node], "out", info("use_cache", BOOL, []))


# If


@pytest.mark.parametrize("external", [False, True])
def test_both_branches_of_an_if_share_their_wide_weights(tmp_path: Path, external: bool) -> None:
    g, model = if_model()
    options = {"save_as_external_data": True, "location": "m.data", "size_threshold": 64} if external else {}
    onnx.save(model, tmp_path / "m.onnx", **options)
    report = fuse(tmp_path / "m.onnx", tmp_path / "f.onnx")
    names = ["layers.0", "layers.1", "layers.2"]
    places = ["then_branch of /If_0", "else_branch of /If_0"]
    assert {group.blocks for group in report.groups} == {
        tuple(f"{name} in {place}" for name in names) for place in places
    }
    assert [chain.length for chain in report.chains] == [3, 3]
    assert (report.ffn_blocks, report.ffn_blocks_left) == (6, 2)
    assert report.end_to_end["relative_error"] > 0
    fused = onnx.load(tmp_path / "f.onnx")
    onnx.checker.check_model(fused, full_check=True)
    wide = [each.name for each in fused.graph.initializer if each.name.startswith("fxfuse.")]
    assert len(wide) == 3
    assert not [each.name for each in fused.graph.initializer if each.name.startswith("layers.")]
    (entry,) = [each.value for each in fused.metadata_props if each.key == KEY]
    assert [set(group["weights"].values()) for group in json.loads(entry)["groups"]] == [set(wide)]
    x = example()
    expected = g.parallel(np.maximum(x, 0))
    for flag in (True, False):
        out = run(tmp_path / "f.onnx", x=x, use_cache=np.array(flag))
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    assert {each.name for each in tmp_path.iterdir()} >= {"m.onnx", "f.onnx"}
    assert (tmp_path / "f.onnx.data").exists() == external


def test_a_fused_body_is_left_as_it_is(tmp_path: Path) -> None:
    _, model = if_model()
    onnx.save(model, tmp_path / "m.onnx")
    fuse(tmp_path / "m.onnx", tmp_path / "f.onnx")
    report = fuse(tmp_path / "f.onnx", tmp_path / "g.onnx")
    assert (report.output, report.notes[:0]) == (None, [])
    assert sorted(told(report)) == [
        "layers.0-2 in else_branch of /If_0", "layers.0-2 in then_branch of /If_0",
    ]  # fmt: skip
    assert all(
        "it is a wide FFN that fxfuse made of layers.0-2" in reason for reason in told(report).values()
    )
    assert not [note for note in report.notes if "record" in note]


def test_the_main_graph_and_a_body_are_both_fused(tmp_path: Path) -> None:
    """x -> 2 blocks -> If(3 blocks): weights and names of both groups stand apart"""
    g = Graph()
    first = chain(g, "x", 2)
    outside = list(g.nodes)
    middle = helper.make_node("Relu", [first], ["middle"], "middle")
    last = chain(g, "middle", 3)
    inner = g.nodes[len(outside) :]
    same = helper.make_graph(
        [helper.make_node("Identity", ["middle"], ["same"])], "e", [], [info("same", FLOAT, STREAM)]
    )
    node = helper.make_node(
        "If", ["go"], ["out"], "/If_0", then_branch=branch(g, inner, "then", last), else_branch=same
    )
    onnx.save(model_of(g, [*outside, middle, node], "out", info("go", BOOL, [])), tmp_path / "m.onnx")
    report = fuse(tmp_path / "m.onnx", tmp_path / "f.onnx")
    assert sorted(len(group.blocks) for group in report.groups) == [2, 3]
    fused = onnx.load(tmp_path / "f.onnx")
    onnx.checker.check_model(fused, full_check=True)
    assert next_number(fused.graph) == 2
    x = example()
    middle_value = np.maximum(g.parallel(x, [(0, 1)]), 0)
    expected = g.parallel(middle_value, [(2, 3, 4)])
    np.testing.assert_allclose(
        run(tmp_path / "f.onnx", x=x, go=np.array(True)), expected, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        run(tmp_path / "f.onnx", x=x, go=np.array(False)), middle_value, rtol=1e-5, atol=1e-5
    )
    before = fuse(tmp_path / "m.onnx", tmp_path / "b.onnx", exclude=r"layers\.[01]")
    assert report.end_to_end["relative_error"] != before.end_to_end["relative_error"]


def test_a_body_that_cannot_be_run_is_left_with_a_reason(tmp_path: Path) -> None:
    """The branch that the samples do not take reshapes x to a size that x does not have"""
    g, model = if_model()
    body = next(each.g for each in model.graph.node[1].attribute if each.name == "then_branch")
    stream = body.node[0].input[0]
    shape = numpy_helper.from_array(np.array([5, 7, HIDDEN]), "five_seven")
    model.graph.initializer.append(shape)
    for node in body.node:
        node.input[:] = ["reshaped" if name == stream else name for name in node.input]
    body.node.insert(0, helper.make_node("Reshape", [stream, "five_seven"], ["reshaped"]))
    onnx.save(model, tmp_path / "m.onnx")
    inputs = [{"x": example(), "use_cache": np.array(False)}]
    report = fuse(tmp_path / "m.onnx", tmp_path / "f.onnx", inputs=inputs)
    assert [group.blocks[0] for group in report.groups] == ["layers.0 in else_branch of /If_0"]
    left = {where: reason for where, reason in told(report).items() if "then_branch" in where}
    assert sorted(left) == [f"layers.{index} in then_branch of /If_0" for index in range(3)]
    assert all(
        reason.startswith("left sequential: the body cannot be measured by itself (ONNX Runtime fails")
        for reason in left.values()
    )
    np.testing.assert_allclose(
        run(tmp_path / "f.onnx", **inputs[0]), g.parallel(np.maximum(example(), 0)), rtol=1e-5, atol=1e-5
    )


def test_a_budget_on_the_logits_holds_for_the_whole(tmp_path: Path) -> None:
    from tests.small_onnx import Small

    model = Small(layers=3, scale=0.3).model()
    nodes = tagged(list(model.graph.node), "then")
    body = helper.make_graph(nodes, "b", [], [info("then/logits")])
    other = helper.make_graph(tagged(list(model.graph.node), "else"), "b", [], [info("else/logits")])
    del model.graph.node[:]
    model.graph.node.append(
        helper.make_node("If", ["go"], ["logits"], "/If_0", then_branch=body, else_branch=other)
    )
    model.graph.input.append(info("go", BOOL, []))
    onnx.save(model, tmp_path / "m.onnx")
    loose = fuse(tmp_path / "m.onnx", tmp_path / "f.onnx", max_kl=100.0)
    assert loose.end_to_end["kl"] > 0.01
    tight = fuse(tmp_path / "m.onnx", tmp_path / "g.onnx", max_kl=1e-4)
    assert (tight.output, tight.groups) == (None, [])
    assert all("the logits' KL of" in reason for reason in told(tight).values())
    assert len(told(tight)) == 6
    dry = fuse(tmp_path / "m.onnx", tmp_path / "h.onnx", dry_run=True)
    assert len(dry.groups) == 2
    assert not (tmp_path / "h.onnx").exists()


# Loop, Scan, and bodies inside of bodies


def loop_model(
    inside: Callable[[Graph, str], tuple[list[onnx.NodeProto], str]],
) -> tuple[Graph, onnx.ModelProto]:
    g = Graph()
    nodes, last = inside(g, "state")
    body = helper.make_graph(
        [*nodes, helper.make_node("Identity", ["go"], ["go_on"])], "body",
        [info("step", INT64, []), info("go", BOOL, []), info("state", FLOAT, STREAM)],
        [info("go_on", BOOL, []), info(last, FLOAT, STREAM)],
    )  # fmt: skip
    g.weight(3, "count", dtype=np.int64)
    node = helper.make_node("Loop", ["count", "", "x"], ["out"], "/Loop_0", body=body)
    return g, model_of(g, [node], "out")


def plain_chain(g: Graph, x: str) -> tuple[list[onnx.NodeProto], str]:
    last = chain(g, x, 2)
    return g.nodes, last


def test_the_body_of_a_loop(tmp_path: Path) -> None:
    g, model = loop_model(plain_chain)
    onnx.save(model, tmp_path / "m.onnx")
    report = fuse(tmp_path / "m.onnx", tmp_path / "f.onnx")
    assert [group.blocks for group in report.groups] == [
        ("layers.0 in body of /Loop_0", "layers.1 in body of /Loop_0")
    ]
    x = example()
    expected = x
    for _ in range(3):
        expected = g.parallel(expected)
    np.testing.assert_allclose(run(tmp_path / "f.onnx", x=x), expected, rtol=1e-4, atol=1e-4)


def test_an_if_inside_of_a_loop(tmp_path: Path) -> None:
    """Its chain reads the loop's state and weights of the main graph, two levels up"""

    def inside(g: Graph, x: str) -> tuple[list[onnx.NodeProto], str]:
        last = chain(g, x, 2)
        branches = {f"{w}_branch": branch(g, g.nodes, w, last) for w in ("then", "else")}
        return [helper.make_node("If", ["go"], ["next"], "/If_1", **branches)], "next"

    g, model = loop_model(inside)
    onnx.save(model, tmp_path / "m.onnx")
    report = fuse(tmp_path / "m.onnx", tmp_path / "f.onnx")
    assert {group.blocks[0] for group in report.groups} == {
        f"layers.0 in {which}_branch of /If_1 in body of /Loop_0" for which in ("then", "else")
    }
    fused = onnx.load(tmp_path / "f.onnx")
    onnx.checker.check_model(fused)
    assert len([each for each in fused.graph.initializer if each.name.startswith("fxfuse.")]) == 3
    x = expected = example()
    for _ in range(3):
        expected = g.parallel(expected)
    np.testing.assert_allclose(run(tmp_path / "f.onnx", x=x), expected, rtol=1e-4, atol=1e-4)


def test_the_body_of_a_scan(tmp_path: Path) -> None:
    """y[t] = chain(x[t]) over axis 1 of x"""
    g = Graph()
    last = chain(g, "part", 2)
    body = helper.make_graph(
        g.nodes, "body", [info("part", FLOAT, ["b", HIDDEN])], [info(last, FLOAT, ["b", HIDDEN])]
    )
    node = helper.make_node(
        "Scan",
        ["x"],
        ["out"],
        "/Scan_0",
        body=body,
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_output_axes=[1],
    )
    onnx.save(model_of(g, [node], "out"), tmp_path / "m.onnx")
    report = fuse(tmp_path / "m.onnx", tmp_path / "f.onnx")
    assert [len(group.blocks) for group in report.groups] == [2]
    x = example()
    np.testing.assert_allclose(run(tmp_path / "f.onnx", x=x), g.parallel(x), rtol=1e-5, atol=1e-5)


def test_what_a_body_is_given() -> None:
    graph = helper.make_graph(
        [], "b", [info("i", INT64, [1]), info("c", BOOL, []), info("s")], []
    )  # fmt: skip
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], body=graph)
    given = body_inputs(loop, graph, ["outer"], {"x": np.ones(3), "outer": np.zeros(2)})
    assert {name: value.shape for name, value in given.items()} == {
        "outer": (2,),
        "i": (1,),
        "c": (),
        "s": (3,),
    }
    assert given["c"].item() is True
    scan = helper.make_node(
        "Scan",
        ["s", "x"],
        ["y"],
        body=graph,
        num_scan_inputs=1,
        scan_input_directions=[1],
        scan_input_axes=[1],
    )
    graph = helper.make_graph([], "b", [info("state"), info("part")], [])
    given = body_inputs(scan, graph, [], {"s": np.ones(1), "x": np.arange(6).reshape(2, 3)})
    assert given["part"].tolist() == [2, 5]
    with pytest.raises(InputError, match="the body of BeamSearch is not run by itself"):
        names_of_inputs(helper.make_node("BeamSearch", ["x"], ["y"], domain="com.microsoft"))


def test_blocks_that_stand_alone_in_a_body_are_told_of(tmp_path: Path) -> None:
    _, model = if_model(count=1)
    onnx.save(model, tmp_path / "m.onnx")
    report = fuse(tmp_path / "m.onnx", tmp_path / "f.onnx")
    assert report.output is None
    assert report.ffn_blocks == 2
    assert sorted(told(report)) == ["layers.0 in else_branch of /If_0", "layers.0 in then_branch of /If_0"]
    assert all("stands alone" in reason for reason in told(report).values())


def test_a_model_without_bodies_is_not_touched(tmp_path: Path) -> None:
    g = Graph()
    model = g.model(chain(g, "x"))
    assert list(bodies_of(model.graph)) == []
    assert Bodies("cpu", fxfuse.Budget(), print).reports == {}


def test_constants_of_the_outer_graph_come_along() -> None:
    """W' = Transpose(W) stands outside and is read inside: the body alone must know that it is constant"""
    g, model = if_model()
    outer = helper.make_node("Transpose", ["turned"], ["layers.0.gate.weight"], perm=[1, 0])
    (stored,) = [each for each in model.graph.initializer if each.name == "layers.0.gate.weight"]
    array = numpy_helper.to_array(stored).T.copy()
    model.graph.initializer.remove(stored)
    model.graph.initializer.append(numpy_helper.from_array(array, "turned"))
    model.graph.node.insert(0, outer)
    body = next(iter(bodies_of(model.graph)))
    hoisted = hoist(model, body)
    assert hoisted.captured == (model.graph.node[1].output[0],)
    assert {"turned", "layers.0.gate.weight"} <= hoisted.lent
    assert hoisted.model.graph.node[0] == outer


# Real exporters


class Either(torch.nn.Module):
    """torch.cond over the whole decoder, or over its embedding alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, go: torch.Tensor) -> torch.Tensor:
        return torch.cond(go, self._whole, self._head, (input_ids,))

    def _whole(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids).clone()

    def _head(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.lm_head(self.model.model.embed_tokens(input_ids)).clone()


def test_an_exported_cond(tmp_path: Path) -> None:
    model = Either(families.build("llama"))
    args = (ids(), torch.tensor(True))
    with exporters.silenced(), torch.no_grad():
        torch.onnx.export(
            model, args, tmp_path / "m.onnx", input_names=["input_ids", "go"], output_names=["logits"],
            dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
    report = fuse(tmp_path / "m.onnx", tmp_path / "f.onnx")
    assert sorted(len(group.blocks) for group in report.groups) == [2, 3]
    assert all(
        name.endswith("_branch of " + name.rpartition(" ")[2]) for g in report.groups for name in g.blocks
    )
    from tests.parallel import parallel_model

    expected = parallel_model(model.model, [[0, 1, 2], [3, 4]])(ids()).detach().numpy()
    feed = {"input_ids": ids().numpy(), "go": np.array(True)}
    np.testing.assert_allclose(run(tmp_path / "f.onnx", **feed), expected, rtol=1e-4, atol=2e-5)
    feed["go"] = np.array(False)
    np.testing.assert_array_equal(run(tmp_path / "f.onnx", **feed), run(tmp_path / "m.onnx", **feed))


def test_blocks_in_a_cond_of_a_torch_graph_are_told_of() -> None:
    reason = (
        "it stands in true_graph_0, a body of cond: export the model to ONNX and fuse the file, where such "
        "bodies are fused too"
    )
    model, args = Either(families.build("llama")), (ids(), torch.tensor(True))
    program = exporters.exported(model, args)
    same, report = fxfuse.fuse(program, args, min_sqnr=None)
    assert same is program
    assert [miss.reason for miss in report.misses] == [reason] * 5
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend=fxfuse, options={"inner": "eager", "min_sqnr": None})
        torch.testing.assert_close(compiled(*args), model(*args))
    told_of = [miss for miss in fxfuse.reports()[-1].misses if "a body of cond" in miss.reason]
    assert [miss.where for miss in told_of] == [f"model.model.layers.{index}.mlp" for index in range(5)]
