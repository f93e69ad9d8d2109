"""fuse_onnx, export_onnx and the command line with quantize: the figures, and the budget that they hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import fxfuse
from fxfuse import Report, cli
from fxfuse.errors import InputError
from tests.small_onnx import VOCAB, save

IDS = np.random.default_rng(0).integers(0, VOCAB, (4, 16))


def fuse(path: Path, out: Path, **options: Any) -> Report:
    return fxfuse.fuse_onnx(path, out, inputs=[{"input_ids": IDS}], **{"provider": "cpu", **options})


def logits(path: Path) -> torch.Tensor:
    (found,) = fxfuse.session(path, "cpu").run(["logits"], {"input_ids": IDS})
    return torch.from_numpy(found).double()


def kl(one: torch.Tensor, other: torch.Tensor) -> float:
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_figures_are_those_of_the_file(tmp_path: Path, kind: str, external: bool) -> None:
    path = save(tmp_path / "m.onnx", external=external)
    report = fuse(path, tmp_path / "q.onnx", quantize=kind)
    fuse(path, tmp_path / "f.onnx")
    onnx.checker.check_model(str(tmp_path / "q.onnx"))
    found = report.quantisation
    assert found is not None
    assert (found.kind, found.products, found.left) == (kind, 4, ())
    original, fused, quantised = (logits(tmp_path / f"{name}.onnx") for name in "mfq")
    assert found.against_original["kl"] == pytest.approx(kl(original, quantised), rel=1e-6)
    assert found.against_fused["kl"] == pytest.approx(kl(fused, quantised), rel=1e-6)
    error = (quantised - fused).norm() / fused.norm()
    assert found.against_fused["relative_error"] == pytest.approx(float(error), rel=1e-6)
    assert found.bytes_before == sum(each.stat().st_size for each in tmp_path.glob("f.onnx*"))
    assert found.bytes_after == sum(each.stat().st_size for each in tmp_path.glob("q.onnx*"))
    assert report.after is not None
    assert report.after.file_size == found.bytes_after
    (group,) = found.groups
    assert 1e-3 < group.relative_error < 0.3
    assert group.sqnr_db < report.groups[0].sqnr_db
    assert report.end_to_end["kl"] == pytest.approx(kl(original, fused), rel=1e-6)
    assert not [each for each in tmp_path.iterdir() if "partial" in each.name]
    assert json.loads(report.to_json())["quantisation"]["kind"] == kind
    assert f"as {kind} against the original: KL" in str(report)


def test_group_under_min_sqnr_stays_float(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx")
    bound = fuse(path, tmp_path / "f.onnx").groups[0].sqnr_db - 0.5
    report = fuse(path, tmp_path / "q.onnx", quantize="int4", min_sqnr=bound)
    found = report.quantisation
    assert found is not None
    assert found.products == 1  # the head
    assert [group.kept_float for group in found.groups] == [True]
    assert found.groups[0].sqnr_db < bound
    assert {miss.reason for miss in found.left} == {"its group would be over the budget"}
    assert any("stay float: as int4 the group keeps" in note for note in report.notes)
    ops = [node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node]
    assert (ops.count("MatMul"), ops.count("MatMulNBits")) == (3, 1)


def test_nothing_left_within_budget(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx")
    bound = fuse(path, tmp_path / "f.onnx").groups[0].sqnr_db - 0.5
    report = fuse(path, tmp_path / "q.onnx", quantize="int4", quantize_exclude="^head$", min_sqnr=bound)
    assert (report.output, report.groups) == (None, [])
    assert any("as int4 no group keeps the budget" in miss.reason for miss in report.misses)
    assert not (tmp_path / "q.onnx").exists()


def test_max_kl_holds_for_both_together(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx")
    first = fuse(path, tmp_path / "f.onnx", quantize="int4")
    assert first.quantisation is not None
    bound = (first.end_to_end["kl"] + first.quantisation.against_original["kl"]) / 2
    report = fuse(path, tmp_path / "q.onnx", quantize="int4", max_kl=bound)
    assert (report.output, report.groups, report.after) == (None, [], None)
    assert any("quantised to int4 the logits' KL of" in miss.reason for miss in report.misses)
    assert not list(tmp_path.glob("*q.onnx*"))
    assert fuse(path, tmp_path / "q.onnx", quantize="int8", max_kl=bound).output is not None


def test_nothing_fused_is_nothing_quantised(tmp_path: Path) -> None:
    report = fuse(save(tmp_path / "m.onnx"), tmp_path / "q.onnx", quantize="int4", min_sqnr=100.0)
    assert (report.output, report.quantisation) == (None, None)


def test_dry_run(tmp_path: Path) -> None:
    report = fuse(save(tmp_path / "m.onnx"), tmp_path / "q.onnx", quantize="int4", dry_run=True)
    assert report.quantisation is not None
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(save(tmp_path / "m.onnx")), str(tmp_path / "q.onnx")
    words = ["fuse", path, "-o", out, "--provider", "cpu", "--quantize", "int4"]
    assert cli.main([*words, "--quantize-exclude", "head"]) == 0
    told = capsys.readouterr().out
    assert "3 products as int4" in told
    assert "left float: logits: left out: --quantize-exclude 'head' matches it" in told
    assert cli.main([*words, "--force", "--max-kl", "1e-3"]) == 3
    assert "quantised to int4 the logits' KL" in " ".join(capsys.readouterr().out.split())
    assert cli.main([*words, "--force", "--quantize-exclude", "("]) == 2
    assert "error: --quantize-exclude='(' is not a regular" in capsys.readouterr().err
    assert cli.main(["fuse", path, "--quantize-exclude", "x"]) == 2
    assert "--quantize-exclude names products that stay float: say what" in capsys.readouterr().err


def test_mistakes_before_any_work(tmp_path: Path) -> None:
    for options in ({"quantize": "int5"}, {"quantize_exclude": "x"}, {"quantise": "int4"}):
        with pytest.raises(InputError, match="quantize"):
            fxfuse.fuse_onnx(tmp_path / "missing.onnx", **options)
