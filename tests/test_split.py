"""Undoing a fusion: original -> fused -> split is the original again, and can be grouped in another way.

sequential  x_i = x_(i-1) + FFN_i(norm(x_(i-1)));   parallel  x_n = x0 + sum_i FFN_i(norm(x0))
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
from fxfuse.errors import InputError, VerificationError
from fxfuse.external import cut, pieces
from fxfuse.frontends import split_check
from fxfuse.passes.onnx.provenance import KEY, WideGroup, read_provenance, record
from fxfuse.passes.onnx.unfuse import objection
from fxfuse.splitting import SplitReport, default_split_output, split_onnx
from tests.families import FUSED, ids
from tests.passes.onnx_graphs import Graph, example, find, lengths, run
from tests.small_onnx import Small, save

File = Callable[..., Path]
MLPS = [f"model.layers.{index}.mlp" for index in range(5)]


def logits(path: Path | str) -> np.ndarray[Any, Any]:
    return np.asarray(fxfuse.session(path, "cpu").run(["logits"], {"input_ids": ids().numpy() % 32})[0])


def fuse(path: Path | str, out: Path, **options: Any) -> fxfuse.Report:
    return fxfuse.fuse_onnx(path, out, **{"min_sqnr": None, "provider": "cpu", **options})


def names_of(path: Path | str) -> list[list[str]]:
    found = find(onnx.load(path))
    return [[block.name for block in chain.blocks] for chain in found.chains]


# Round trips


@pytest.mark.parametrize(
    ("family", "form"),
    [*((each, "opset20") for each in FUSED), ("llama", "opset23"), ("gpt_neox", "older"), ("phi3", "older")],
)
def test_the_sequential_form_is_the_original(onnx_file: File, tmp_path: Path, family: str, form: str) -> None:
    original = onnx_file(family, form)
    report = fuse(original, tmp_path / "f.onnx")
    split = split_onnx(tmp_path / "f.onnx", tmp_path / "s.onnx")
    assert split.output == str(tmp_path / "s.onnx")
    assert split.groups == [group.blocks for group in report.groups]
    assert (split.misses, split.notes) == ([], [])
    assert split.error < 1e-6
    np.testing.assert_allclose(logits(split.output), logits(original), rtol=1e-4, atol=2e-5)
    blocks = [list(group.blocks) for group in report.groups]
    assert names_of(split.output) == blocks
    assert not [entry for entry in onnx.load(split.output).metadata_props if entry.key == KEY]


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "phi3"])
def test_other_groups_can_be_made_of_the_blocks(onnx_file: File, tmp_path: Path, family: str) -> None:
    """Fusing the split file in groups of two gives what fusing the original so gives"""
    original = onnx_file(family)
    fuse(original, tmp_path / "f.onnx")
    split_onnx(tmp_path / "f.onnx", tmp_path / "s.onnx")
    again = fuse(tmp_path / "s.onnx", tmp_path / "g.onnx", max_group=2)
    direct = fuse(original, tmp_path / "h.onnx", max_group=2)
    assert [group.blocks for group in again.groups] == [group.blocks for group in direct.groups]
    np.testing.assert_allclose(logits(tmp_path / "g.onnx"), logits(tmp_path / "h.onnx"), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "granite"])
def test_the_parallel_form_is_the_fused_file(onnx_file: File, tmp_path: Path, family: str) -> None:
    fuse(onnx_file(family), tmp_path / "f.onnx")
    split = split_onnx(tmp_path / "f.onnx", tmp_path / "p.onnx", parallel=True)
    assert split.parallel
    assert split.error < 2e-6
    np.testing.assert_allclose(logits(tmp_path / "p.onnx"), logits(tmp_path / "f.onnx"), rtol=1e-4, atol=2e-5)
    norms = [node for node in onnx.load(tmp_path / "p.onnx").graph.node if node.op_type == "Reciprocal"]
    assert len(norms) == len(
        [n for n in onnx.load(tmp_path / "f.onnx").graph.node if n.op_type == "Reciprocal"]
    )


def test_each_block_is_what_it_was(tmp_path: Path) -> None:
    """Unequal widths, biases in some blocks alone, multipliers: each block against its formula in float64"""
    g = Graph()
    x = "x"
    for width in (12, 7, 20):
        biases = {"gate": g.draw(width), "down": g.draw(8)} if width != 7 else {}
        x = g.block(x, g.new_block(width, biases=biases))
    onnx.save(g.model(x), tmp_path / "m.onnx")
    fuse(tmp_path / "m.onnx", tmp_path / "f.onnx")
    split_onnx(tmp_path / "f.onnx", tmp_path / "s.onnx")
    split = onnx.load(tmp_path / "s.onnx")
    x = example()
    np.testing.assert_allclose(run(split, x)[0], g.parallel(x, [[0], [1], [2]]), rtol=1e-4, atol=1e-5)
    assert [block.intermediate_size for block in find(split).chains[0].blocks] == [12, 7, 20]


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_narrow_types(tmp_path: Path, dtype: int) -> None:
    path = save(tmp_path / "m.onnx", dtype=dtype, scale=0.2)
    fuse(path, tmp_path / "f.onnx")
    split = split_onnx(tmp_path / "f.onnx", tmp_path / "s.onnx")
    assert [len(group) for group in split.groups] == [3]
    stored = {each.name: each for each in onnx.load(tmp_path / "s.onnx").graph.initializer}
    original = {each.name: each for each in onnx.load(path).graph.initializer}
    for name in MLPS[:3]:
        one, other = (
            numpy_helper.to_array(where[f"{name}.down_proj.weight"]) for where in (stored, original)
        )
        assert one.tobytes() == other.tobytes()


def test_skip_nodes_stand_again_where_they_can(tmp_path: Path) -> None:
    """What is not split is byte for byte what it was"""
    path = save(tmp_path / "m.onnx")
    fuse(path, tmp_path / "f.onnx")
    split_onnx(tmp_path / "f.onnx", tmp_path / "s.onnx")
    fused, split = onnx.load(tmp_path / "f.onnx"), onnx.load(tmp_path / "s.onnx")
    kept = {node.name: node for node in fused.graph.node if not node.name.startswith("fxfuse")}
    same = [node for node in split.graph.node if kept.get(node.name) == node]
    assert len(same) >= len(kept) - 1  # the group's last Add reads other values
    assert split.graph.input == fused.graph.input
    assert split.graph.output == fused.graph.output


# External data


def test_external_data_are_cut_in_pieces(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", external=True, scale=0.2)
    fuse(path, tmp_path / "f.onnx")
    split = split_onnx(tmp_path / "f.onnx", tmp_path / "s.onnx")
    assert (tmp_path / "s.onnx.data").exists()
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "f.onnx", "f.onnx.data", "m.onnx", "m.onnx.data", "s.onnx", "s.onnx.data",
    ]  # fmt: skip
    assert not (tmp_path / "s.onnx").read_bytes().count(b"fxfuse.run")
    np.testing.assert_allclose(logits(str(split.output)), logits(path), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_cut_reads_the_bytes_of_a_slice(tmp_path: Path, axis: int) -> None:
    array = np.random.default_rng(0).standard_normal((5, 6, 7)).astype(np.float16)
    (tmp_path / "d").write_bytes(b"\0" * 13 + array.tobytes())
    tensor = onnx.TensorProto(name="t", data_type=TensorProto.FLOAT16, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "d"), ("offset", "13"), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    part = cut(tensor, "part", axis, 1, 4)
    expected = array.take(range(1, 4), axis)
    assert tuple(part.dims) == expected.shape
    assert b"".join(pieces(part, tmp_path)) == expected.tobytes()


# Where nothing is written


def test_a_file_that_was_not_fused_has_nothing_to_split(tmp_path: Path) -> None:
    report = split_onnx(save(tmp_path / "m.onnx"))
    assert (report.output, report.groups, report.misses) == (None, [], [])
    assert "no wide FFN to split" in str(report)
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def test_without_the_record_there_is_nothing_to_go_by(tmp_path: Path) -> None:
    fuse(save(tmp_path / "m.onnx"), tmp_path / "f.onnx")
    model = onnx.load(tmp_path / "f.onnx")
    record(model, [], "1.0")
    onnx.save(model, tmp_path / "f.onnx")
    report = split_onnx(tmp_path / "f.onnx")
    assert report.output is None
    assert [(miss.where, miss.reason) for miss in report.misses] == [
        ("model.layers.0-2.mlp", "the file does not record its blocks")
    ]


def test_the_rest_is_split_where_one_record_does_not_fit(onnx_file: File, tmp_path: Path) -> None:
    fuse(onnx_file("llama"), tmp_path / "f.onnx")
    model = onnx.load(tmp_path / "f.onnx")
    one, other = read_provenance(model)[0]
    swapped = {**other.weights, "gate": other.weights["up"], "up": other.weights["gate"]}
    record(model, [one, WideGroup(other.blocks, other.rows, swapped)], "1.0")
    onnx.save(model, tmp_path / "f.onnx")
    report = split_onnx(tmp_path / "f.onnx", tmp_path / "s.onnx")
    assert report.groups == [one.blocks]
    assert len(read_provenance(onnx.load(tmp_path / "s.onnx"))[0]) == 1
    reasons = [miss.reason for miss in report.misses]
    assert "the file does not record its blocks" in reasons
    assert "no FFN reads its weights as the record says: fuse the original model instead" in reasons


def test_objections(tmp_path: Path) -> None:
    g = Graph()
    onnx.save(g.model(g.block(g.block("x"))), tmp_path / "m.onnx")
    fuse(tmp_path / "m.onnx", tmp_path / "f.onnx")
    model = onnx.load(tmp_path / "f.onnx")
    ((group,), _), (block,) = read_provenance(model), find(model).singles
    assert objection(block, group) is None
    assert objection(block, WideGroup(group.blocks, ((0, 12), (12, 20)), group.weights)) == (
        "it is 24 wide where the record has rows up to 20"
    )
    weights = {role: name for role, name in group.weights.items() if role != "up"}
    assert objection(block, WideGroup(group.blocks, group.rows, weights)) == (
        "its up weight is fxfuse.0/up where the record names none: split the file as fxfuse wrote it, with "
        "float weights"
    )


def test_quantised_wide_weights_are_left(tmp_path: Path) -> None:
    fuse(save(tmp_path / "m.onnx"), tmp_path / "f.onnx")
    model = onnx.load(tmp_path / "f.onnx")
    (group,), _ = read_provenance(model)
    packed = numpy_helper.from_array(np.zeros((72, 16), np.int8), "packed")
    model.graph.initializer.append(packed)
    record(model, [WideGroup(group.blocks, group.rows, {"gate": "packed"})], "1.0")
    onnx.save(model, tmp_path / "f.onnx")
    report = split_onnx(tmp_path / "f.onnx")
    assert report.output is None
    assert "its weights are quantised: fuse the original model instead" in [m.reason for m in report.misses]


def test_of_a_quantised_file_what_stayed_float_is_split(tmp_path: Path) -> None:
    """The other groups stay as they are, and the report says so."""
    fuse(
        save(tmp_path / "m.onnx", layers=4),
        tmp_path / "q.onnx",
        max_group=2,
        quantize="int4",
        quantize_exclude=r"fxfuse\.0",
    )
    report = split_onnx(tmp_path / "q.onnx", tmp_path / "s.onnx")
    assert report.groups == [("model.layers.0.mlp", "model.layers.1.mlp")]
    assert report.summary().startswith("split 1 wide FFN, not all of them, into 2 blocks in sequence; ")
    assert {miss.where for miss in report.misses} == {"model.layers.2-3.mlp"}
    assert "model.layers.2-3.mlp: " in str(report)


def test_a_wrong_row_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse(save(tmp_path / "m.onnx", scale=0.2), tmp_path / "f.onnx")
    monkeypatch.setattr("fxfuse.split_source._cut", lambda tensor, part, folder: _damaged(tensor, part))
    with pytest.raises(VerificationError, match=r"The blocks model\.layers\.0-2\.mlp differ from their wide"):
        split_onnx(tmp_path / "f.onnx")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["f.onnx", "m.onnx"]


def _damaged(tensor: onnx.TensorProto, part: Any) -> onnx.TensorProto:
    """Slices of down that begin one row too late."""
    late = "down" in part.source
    array = np.roll(numpy_helper.to_array(tensor), -1 if late else 0, part.axis)
    return numpy_helper.from_array(array.take(range(part.start, part.stop), part.axis), part.name)


def test_blocks_that_are_not_found_again_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse(save(tmp_path / "m.onnx"), tmp_path / "f.onnx")
    found = split_check.find_chains
    monkeypatch.setattr(split_check, "find_chains", lambda view: type(found(view))((), (), ()))
    with pytest.raises(VerificationError, match=r"model\.layers\.0-2\.mlp are not found again as a chain"):
        split_onnx(tmp_path / "f.onnx")
    assert not (tmp_path / "f.split.onnx").exists()


def test_the_place_of_the_output(tmp_path: Path) -> None:
    assert default_split_output("a/m.fused.onnx") == Path("a/m.split.onnx")
    assert default_split_output("a/m.onnx") == Path("a/m.split.onnx")
    fuse(save(tmp_path / "m.onnx"), tmp_path / "m.fused.onnx")
    assert split_onnx(tmp_path / "m.fused.onnx").output == str(tmp_path / "m.split.onnx")
    before = (tmp_path / "m.fused.onnx").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        split_onnx(tmp_path / "m.fused.onnx")
    with pytest.raises(InputError, match="is the input"):
        split_onnx(tmp_path / "m.fused.onnx", tmp_path / "m.fused.onnx")
    assert (tmp_path / "m.fused.onnx").read_bytes() == before
    split_onnx(tmp_path / "m.fused.onnx", tmp_path / "m.fused.onnx", force=True)
    assert lengths(find(onnx.load(tmp_path / "m.fused.onnx"))) == [3]


def test_the_report(tmp_path: Path) -> None:
    fuse(save(tmp_path / "m.onnx"), tmp_path / "f.onnx")
    steps: list[str] = []
    report = split_onnx(tmp_path / "f.onnx", progress=steps.append)
    assert steps == ["reading the model", "writing the blocks", "verifying"]
    assert report.summary().startswith("split 1 wide FFN into 3 blocks in sequence")
    assert str(report).splitlines()[1:] == ["  model.layers.0-2.mlp", f"written to {report.output}"]
    plain = json.loads(report.to_json())
    assert plain["groups"] == [MLPS[:3]]
    assert SplitReport(**{**plain, "groups": [tuple(MLPS[:3])]}) == report


def test_split_weights_go_to_torch_unchanged(onnx_file: File, tmp_path: Path) -> None:
    """down_proj is cut and nothing else is done to it"""
    from tests import families

    fuse(onnx_file("llama"), tmp_path / "f.onnx")
    split_onnx(tmp_path / "f.onnx", tmp_path / "s.onnx")
    stored = {each.name: each for each in onnx.load(tmp_path / "s.onnx").graph.initializer}
    layers = families.decoder_layers(families.build("llama"))
    for index, layer in enumerate(layers):
        weight = numpy_helper.to_array(stored[f"{MLPS[index]}.down_proj.weight"]).T
        torch.testing.assert_close(
            torch.from_numpy(weight.copy()), layer.mlp.down_proj.weight, rtol=0, atol=0
        )


def test_blocks_whose_weights_lie_in_an_input_too(tmp_path: Path) -> None:
    """Old models list their weights as inputs; the wide ones leave that list with the wide FFN"""
    model = Small().model()
    fuse(save(tmp_path / "m.onnx", model), tmp_path / "f.onnx")
    fused = onnx.load(tmp_path / "f.onnx")
    fused.graph.input.extend(
        helper.make_tensor_value_info(each.name, each.data_type, each.dims)
        for each in fused.graph.initializer
    )
    onnx.save(fused, tmp_path / "f.onnx")
    split_onnx(tmp_path / "f.onnx", tmp_path / "s.onnx")
    np.testing.assert_allclose(logits(tmp_path / "s.onnx"), logits(tmp_path / "m.onnx"), rtol=1e-4, atol=2e-5)
