"""A fused graph, given to fxfuse again: wide FFNs stay as they are, with the reason; other chains may fuse.

x3 = x0 + FFN0(norm0(x0)) + FFN1(norm1(x0)) + FFN2(norm2(x0))  is fused;  x3 = x2 + FFN2(norm2(x2)) may be
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.export import ExportedProgram

import fxfuse
from fxfuse.passes.chains import find_chains
from fxfuse.passes.forms import Form
from fxfuse.passes.naming import MARK
from fxfuse.passes.onnx.provenance import KEY, WideGroup, read_provenance, record
from tests import exporters, families
from tests.families import ids
from tests.passes.onnx_graphs import Graph, example, run, view_of

File = Callable[..., Path]
MADE = (
    "it is a wide FFN that fxfuse made of {}: fuse the original model, or run fxfuse split first "
    "(ONNX files whose weights are float and were not corrected)"
)
LOST = MADE.format("blocks that are not named any more")
AFTER = "before it stands {}, a wide FFN that fxfuse made"


def told(report: fxfuse.Report) -> dict[str, str]:
    return {miss.where: miss.reason for miss in report.misses}


def fuse(path: Path, out: Path, **options: Any) -> fxfuse.Report:
    return fxfuse.fuse_onnx(path, out, **{"min_sqnr": None, "provider": "cpu", **options})


def recorded(path: Path) -> list[dict[str, Any]]:
    (entry,) = [each for each in onnx.load(path).metadata_props if each.key == KEY]
    whole = json.loads(entry.value)
    assert whole["format"] == 1
    assert whole["fxfuse"] == fxfuse.__version__
    return whole["groups"]


def strip_metadata(path: Path, *, model: bool = True, nodes: bool = True) -> Path:
    """What tools that drop metadata leave."""
    stripped = onnx.load(path)
    if model:
        del stripped.metadata_props[:]
    for node in stripped.graph.node if nodes else ():
        del node.metadata_props[:]
    onnx.save(stripped, path)
    return path


# The record


def test_the_record_gives_the_rows_of_every_block(onnx_file: File, tmp_path: Path) -> None:
    """gate[start:stop] * 1 = gate_i diag(g_i), down[:, start:stop] = down_i, from the file's own names"""
    model = families.build("llama")
    fuse(onnx_file("llama"), tmp_path / "f.onnx")
    groups = recorded(tmp_path / "f.onnx")
    assert [[b["name"] for b in group["blocks"]] for group in groups] == [
        [f"model.layers.{i}.mlp" for i in part] for part in ((0, 1, 2), (3, 4))
    ]
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "f.onnx").graph.initializer}
    layers = families.decoder_layers(model)
    for group in groups:
        for block in group["blocks"]:
            layer = layers[int(block["name"].split(".")[2])]
            rows = slice(*block["rows"])
            gain = layer.post_attention_layernorm.weight.numpy()
            gate, down = layer.mlp.gate_proj.weight.numpy() * gain, layer.mlp.down_proj.weight.numpy()
            np.testing.assert_allclose(stored[group["weights"]["gate"]].T[rows], gate, rtol=1e-6)
            np.testing.assert_array_equal(stored[group["weights"]["down"]].T[:, rows], down)


def test_a_record_survives_saving_and_loading_and_other_metadata_stays(
    onnx_file: File, tmp_path: Path
) -> None:
    fuse(onnx_file("gpt_neox"), tmp_path / "f.onnx")
    model = onnx.load(tmp_path / "f.onnx")
    model.metadata_props.add(key="author", value="someone")
    groups, notes = read_provenance(model)
    record(model, groups, "2.0")
    onnx.save(model, tmp_path / "g.onnx")
    again, more = read_provenance(onnx.load(tmp_path / "g.onnx"))
    assert [(g.blocks, g.rows, g.weights) for g in again] == [(g.blocks, g.rows, g.weights) for g in groups]
    assert all((a == b).all() for one, other in zip(again, groups, strict=True)
               for a, b in zip(one.down_biases, other.down_biases, strict=True))  # fmt: skip
    assert notes == more == []
    assert [entry.key for entry in model.metadata_props] == ["author", KEY]
    record(model, [], "2.0")
    assert [entry.key for entry in model.metadata_props] == ["author"]


HALVES = Form(slices=2)
GROUP = WideGroup(("a.0", "a.1"), ((0, 12), (12, 24)), {"gate": "g", "down": "d"})


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (
            WideGroup(GROUP.blocks, GROUP.rows, {"gate": "gone", "down": "d"}),
            "the model has no weight gone",
        ),
        (
            WideGroup(GROUP.blocks, ((0, 12), (13, 24)), GROUP.weights),
            "its rows [(0, 12), (13, 24)] are not one after the other",
        ),
        (
            WideGroup(GROUP.blocks, ((0, 12), (12, 20)), GROUP.weights),
            "g has no axis of 20, the rows of its blocks",
        ),
        (
            WideGroup(GROUP.blocks, GROUP.rows, {"gate_0": "g", "down_0": "d", "down_1": "d"}, form=HALVES),
            "g has no axis of 12, the rows of its slice",
        ),
        (
            WideGroup(GROUP.blocks, GROUP.rows, {"down_0": "d"}, form=HALVES),
            "it names no weight down_1",
        ),
    ],
)
def test_a_record_that_does_not_fit_is_ignored_with_a_note(group: WideGroup, reason: str) -> None:
    g = Graph()
    g.weight(np.zeros((8, 24)), "g")
    g.weight(np.zeros((24, 8)), "d")
    model = g.model(g.block(g.block("x")))
    record(model, [group, GROUP], "1.0")
    groups, notes = read_provenance(model)
    assert [each.rows for each in groups] == [GROUP.rows]
    assert notes == [f"the record of the wide FFN of a.0-1 is ignored: {reason}"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "groups": [{"blocks": 3}]}']
)
def test_a_record_that_cannot_be_read_is_ignored_with_a_note(text: str) -> None:
    g = Graph()
    model = g.model(g.block(g.block("x")))
    model.metadata_props.add(key=KEY, value=text)
    groups, (note,) = read_provenance(model)
    assert groups == []
    assert note.startswith("the model's record of an earlier fusion cannot be read (")


def test_notes_on_a_record_are_in_the_report(onnx_file: File, tmp_path: Path) -> None:
    model = onnx.load(onnx_file("llama"))
    record(model, [WideGroup(("a.0", "a.1"), ((0, 1), (1, 2)), {"gate": "gone"})], "1.0")
    onnx.save(model, tmp_path / "m.onnx")
    report = fuse(tmp_path / "m.onnx", tmp_path / "f.onnx")
    assert report.notes[0] == "the record of the wide FFN of a.0-1 is ignored: the model has no weight gone"
    assert len(recorded(tmp_path / "f.onnx")) == 2


# ONNX files


@pytest.mark.parametrize("form", ["opset20", "opset23", "older"])
def test_a_fused_file_is_left_as_it_is(onnx_file: File, tmp_path: Path, form: str) -> None:
    fuse(onnx_file("llama", form), tmp_path / "f.onnx")
    report = fuse(tmp_path / "f.onnx", tmp_path / "g.onnx")
    assert report.output is None
    assert not (tmp_path / "g.onnx").exists()
    assert report.ffn_blocks == 2
    assert told(report) == {
        name: MADE.format(name) for name in ("model.layers.0-2.mlp", "model.layers.3-4.mlp")
    }


@pytest.mark.parametrize("kept", [{"model": False}, {"nodes": False}, {}])
def test_marks_that_are_left_are_enough(onnx_file: File, tmp_path: Path, kept: dict[str, bool]) -> None:
    """Of the record, the marks of the nodes and the names of the weights, each does alone"""
    fuse(onnx_file("llama"), tmp_path / "f.onnx")
    report = fuse(strip_metadata(tmp_path / "f.onnx", **kept), tmp_path / "g.onnx")
    assert report.output is None
    names = ["model.layers.0-2.mlp", "model.layers.3-4.mlp"]
    reasons = [MADE.format(name) for name in names] if kept else [LOST, LOST]
    assert [miss.reason for miss in report.misses] == reasons


def test_chains_that_are_left_fuse_and_the_record_grows(onnx_file: File, tmp_path: Path) -> None:
    once = fuse(onnx_file("gpt_neox"), tmp_path / "f.onnx", include=r"layers\.[34]")
    first = recorded(tmp_path / "f.onnx")
    report = fuse(tmp_path / "f.onnx", tmp_path / "g.onnx")
    assert [group.blocks for group in report.groups] == [tuple(f"gpt_neox.layers.{i}.mlp" for i in range(3))]
    assert told(report) == {"gpt_neox.layers.3-4.mlp": MADE.format("gpt_neox.layers.3-4.mlp")}
    both = recorded(tmp_path / "g.onnx")
    assert both[:1] == first
    assert [b["name"] for b in both[1]["blocks"]] == [f"gpt_neox.layers.{i}.mlp" for i in range(3)]
    assert not set(both[0]["weights"].values()) & set(both[1]["weights"].values())
    whole = fuse(onnx_file("gpt_neox"), tmp_path / "h.onnx")
    assert len(once.groups) == 1
    assert len(whole.groups) == 2
    feed = {"input_ids": ids().numpy()}
    one, other = (fxfuse.session(tmp_path / f"{n}.onnx", "cpu").run(None, feed)[0] for n in "gh")
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_wide_ffn_does_not_join_its_neighbours(tmp_path: Path) -> None:
    """[0 1] 2 3 4: the wide FFN breaks the chain, what follows it is one of its own"""
    g = Graph()
    x = "x"
    for _ in range(5):
        x = g.block(x)
    onnx.save(g.model(x), tmp_path / "m.onnx")
    fuse(tmp_path / "m.onnx", tmp_path / "f.onnx", include=r"layers\.[01]$")
    view = view_of(onnx.load(tmp_path / "f.onnx"))
    found = find_chains(view)
    assert [[block.name for block in chain.blocks] for chain in found.chains] == [
        ["layers.2", "layers.3", "layers.4"]
    ]
    assert [block.made_of for block in found.singles] == [("layers.0", "layers.1")]
    assert {miss.where: miss.reason for miss in found.misses} == {
        "layers.0-1": MADE.format("layers.0-1"),
        "layers.2": AFTER.format("layers.0-1"),
    }
    report = fuse(tmp_path / "f.onnx", tmp_path / "h.onnx")
    assert [group.blocks for group in report.groups] == [("layers.2", "layers.3", "layers.4")]
    fused = onnx.load(tmp_path / "h.onnx")
    x = example()
    np.testing.assert_allclose(run(fused, x)[0], g.parallel(x, [(0, 1), (2, 3, 4)]), rtol=1e-4, atol=1e-5)


# torch graphs


def program(**built: Any) -> ExportedProgram:
    return exporters.exported(families.build("llama", **built), (ids(),))


def test_a_fused_program_is_left_as_it_is(tmp_path: Path) -> None:
    fused, _ = fxfuse.fuse(program(), (ids(),), min_sqnr=None)
    again, report = fxfuse.fuse(fused, (ids(),), min_sqnr=None)
    assert again is fused
    names = ["model.layers.0-2.mlp", "model.layers.3-4.mlp"]
    assert told(report) == {name: MADE.format(name) for name in names}
    with exporters.silenced():
        torch.export.save(fused, tmp_path / "f.pt2")
        loaded = torch.export.load(tmp_path / "f.pt2")
        others = [loaded, fused.run_decompositions()]
    for other in others:
        assert told(fxfuse.fuse(other, (ids(),), min_sqnr=None)[1]).keys() == set(names)


def test_a_fused_graph_module_is_left_as_it_is_and_what_is_left_fuses() -> None:
    module = program().module()
    once, _ = fxfuse.fuse(module, (ids(),), min_sqnr=None, include=r"layers\.[34]")
    twice, report = fxfuse.fuse(once, (ids(),), min_sqnr=None)
    assert told(report) == {"model.layers.3-4.mlp": MADE.format("model.layers.3-4.mlp")}
    whole, _ = fxfuse.fuse(module, (ids(),), min_sqnr=None)
    torch.testing.assert_close(twice(ids()), whole(ids()))
    again, report = fxfuse.fuse(twice, (ids(),), min_sqnr=None)
    assert again is twice
    assert len(told(report)) == 2
    _, report = fxfuse.fuse(copy.deepcopy(twice), (ids(),), min_sqnr=None)
    assert (len(told(report)), report.groups) == (2, [])


def test_compiling_and_exporting_a_fused_graph_module_fuses_nothing(tmp_path: Path) -> None:
    """They trace the graph anew: at the least, the names of the wide weights are left"""
    fused, _ = fxfuse.fuse(program().module(), (ids(),), min_sqnr=None)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(fused, backend=fxfuse, options={"inner": "eager", "min_sqnr": None})
        torch.testing.assert_close(compiled(ids()), fused(ids()))
    report = fxfuse.reports()[-1]
    assert not report.groups
    assert [miss.reason.startswith(MADE.partition("{")[0]) for miss in report.misses] == [True, True]
    path = tmp_path / "f.onnx"
    with exporters.silenced():
        torch.onnx.export(fused, (ids(),), path, input_names=["input_ids"], dynamo=True, external_data=False)
    report = fuse(path, tmp_path / "g.onnx")
    assert not report.groups
    assert [miss.reason for miss in report.misses] == [LOST, LOST]


def test_every_new_node_of_a_torch_graph_is_marked() -> None:
    module = program().module()
    fused, _ = fxfuse.fuse(module, (ids(),), min_sqnr=None)
    marks = [node.meta["custom"][MARK] for node in fused.graph.nodes if MARK in node.meta.get("custom", {})]
    assert set(marks) == {
        ", ".join(f"model.layers.{i}.mlp" for i in part) for part in ((0, 1, 2), (3, 4))
    }  # fmt: skip
