"""Recovery from a user's side: the torch call, the ONNX call, the export and the command line agree."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.export import ExportedProgram

import fxfuse
from fxfuse.calibration import Calibration
from fxfuse.cli import main
from fxfuse.errors import InputError, VerificationError
from fxfuse.judge import Judge
from fxfuse.passes.onnx.provenance import KEY, read_provenance
from fxfuse.passes.records import Value
from fxfuse.recovery import RecoveryOptions, recover
from fxfuse.recovery.ffn import WideFfn
from tests import families
from tests.closeness import relative_error
from tests.forms import derived
from tests.passes.onnx_graphs import HIDDEN as GRAPH_HIDDEN
from tests.recovery.subjects import calibration, chains, decoder, front, ids
from tests.test_bodies import if_model

FEW = RecoveryOptions(penalties=(1e-3, 1e-2, 1e-1, 1.0, 10.0))
SAMPLE = ids(4, seed=50)
LLAMA = {"min_sqnr": None, "recover": FEW}


@functools.cache
def llama_data() -> Calibration:
    return Calibration.of(families.ids(160, 16, seed=3), batch_size=16)


@functools.cache
def recovered() -> tuple[ExportedProgram, fxfuse.Report]:
    return fxfuse.fuse(decoder(), (SAMPLE,), min_sqnr=None, recover=FEW, calibration=calibration())


def fused_llama(onnx_file: Callable[..., Path], out: Path, **options: Any) -> fxfuse.Report:
    path = onnx_file("llama", dynamic=True)
    sample = {"input_ids": families.ids().numpy()}
    return fxfuse.fuse_onnx(
        path, out, inputs=[sample], provider="cpu", **{**LLAMA, "calibration": llama_data(), **options}
    )


def test_a_module_becomes_a_program_with_corrected_weights() -> None:
    model = decoder()
    naive, plain = fxfuse.fuse(model, (SAMPLE,), min_sqnr=None)
    program, report = recovered()
    assert [group.recovery.kept for group in report.groups] == ["g' + h"] * 2  # type: ignore[union-attr]
    assert report.end_to_end["kl"] < 0.5 * plain.end_to_end["kl"]
    state, before = program.state_dict, naive.state_dict
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in before.items()}
    exact, own, corrected = (made(ids(3, length=9)) for made in (model, naive.module(), program.module()))
    assert relative_error(corrected, exact) < 0.7 * relative_error(own, exact)
    assert all(group.rewrite_error < 2e-6 for group in report.groups)


def test_losses_are_of_what_is_written_on_the_fused_stream() -> None:
    """|x_n - x_0|^2 / |x_n(fused) - x_n|^2 of the second group, on what the first one and attention give."""
    _, report = recovered()
    graph, groups, batch = front(), chains(), {"input_ids": SAMPLE}
    wides = recover(graph, groups, calibration(), FEW).wides
    known: dict[Value, torch.Tensor] = {}
    for group, wide, told in zip(groups, wides, report.groups, strict=True):
        start, end = graph.run(batch, [group[0].x, group[-1].out])
        (x,) = graph.run(batch, [group[0].x], known)
        known = {group[-1].out: WideFfn(graph.view, group[0]).apply(wide, x)}  # type: ignore[arg-type]
        noise = (known[group[-1].out] - end).double().square().sum()
        ratio = float((end - start).double().square().sum() / noise)
        assert told.sqnr_db == pytest.approx(10 * math.log10(ratio), abs=1e-3)


def test_onnx_gives_what_torch_gives(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    report = fused_llama(onnx_file, tmp_path / "f.onnx")
    _, other = fxfuse.fuse(families.build("llama"), (families.ids(),), calibration=llama_data(), **LLAMA)
    for one, two in zip(report.groups, other.groups, strict=True):
        assert one.recovery is not None
        assert two.recovery is not None
        assert one.recovery.kept == two.recovery.kept == "g' + h"
        assert one.recovery.error_after == pytest.approx(two.recovery.error_after, rel=1e-3)
        assert one.recovery.kl_after == pytest.approx(two.recovery.kl_after, rel=1e-2)
        assert one.sqnr_db == pytest.approx(two.sqnr_db, abs=0.05)
    json.loads(report.to_json())
    assert "g' + h" in str(report)
    assert any(note.startswith("recovery was fitted on 2,048 tokens") for note in report.notes)


def test_split_refuses_corrected_weights(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    fused_llama(onnx_file, tmp_path / "f.onnx")
    (entry,) = [each for each in onnx.load(tmp_path / "f.onnx").metadata_props if each.key == KEY]
    whole = json.loads(entry.value)
    assert whole["format"] == 2
    assert [group["recovered"] for group in whole["groups"]] == [True, True]
    assert [group.recovered for group in read_provenance(onnx.load(tmp_path / "f.onnx"))[0]] == [True, True]
    report = fxfuse.split_onnx(tmp_path / "f.onnx")
    assert report.output is None
    reason = (
        "its weights were corrected on calibration data (--recover), so they are not its blocks' own any "
        "more: fuse the original model instead"
    )
    assert [miss.reason for miss in report.misses] == [reason, reason]


def test_groups_that_stay_naive_can_still_be_split(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    one_window = Calibration(llama_data().fit, ({"input_ids": families.ids(1, 16)},))
    report = fused_llama(onnx_file, tmp_path / "f.onnx", calibration=one_window)
    assert [group.recovery.kept for group in report.groups] == ["naive", "naive"]  # type: ignore[union-attr]
    assert "nothing wins on held-out tokens" in str(report) or "does not win at the logits" in str(report)
    assert len(fxfuse.split_onnx(tmp_path / "f.onnx").groups) == 2


def test_export_takes_the_same_words(tmp_path: Path) -> None:
    report = fxfuse.export_onnx(
        decoder("plain"), (SAMPLE,), tmp_path / "m.onnx", provider="cpu", min_sqnr=None, recover=FEW,
        calibration=calibration(), dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    assert [group.recovery.kept for group in report.groups] == ["g' + h"] * 2  # type: ignore[union-attr]
    session = fxfuse.session(tmp_path / "m.onnx", "cpu")
    (logits,) = session.run(None, {"input_ids": SAMPLE.numpy()})
    assert relative_error(torch.from_numpy(logits), decoder("plain")(SAMPLE)) < 0.2


def test_wide_weights_that_are_not_what_was_asked_for_are_a_bug() -> None:
    """The judge holds what is written against the formula of the corrected weights, not of the blocks."""
    graph, group = front(), chains()[0]
    judge = Judge(graph, group)
    wanted = recover(graph, [group], calibration(), FEW).wides[0]
    assert wanted is not None
    loss = judge.loss(group)
    told = type("Group", (), {"blocks": group, "names": tuple(b.name for b in group), "error": loss})()
    right = judge.verify(graph.apply([group], [wanted]), 0, told, wanted)
    assert right.rewrite_error < 2e-6
    with pytest.raises(VerificationError, match="differs from the parallel sum"):
        judge.verify(graph.apply([group]), 0, told, wanted)


def test_the_command_line(onnx_file: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "ids.npy", families.ids(160, 16, seed=3).numpy())
    path, report = onnx_file("llama", dynamic=True), tmp_path / "r.json"
    words = ["fuse", str(path), "-o", str(tmp_path / "f.onnx"), "--provider", "cpu", "--no-budget"]
    code = main([*words, "--recover", "fit", "--data", str(tmp_path / "ids.npy"), "--report", str(report)])
    assert code == 0
    shown = capsys.readouterr().out
    assert "recovery" in shown
    assert "random inputs" not in shown  # measured on held-out windows
    groups = json.loads(report.read_text())["groups"]
    assert [group["recovery"]["kept"] for group in groups] == ["g' + h"] * 2
    assert groups[0]["recovery"]["trials"][0] == {
        "name": "naive", "penalty": None, "error": groups[0]["recovery"]["error_before"], "margin": None,
    }  # fmt: skip


# Sentences


@pytest.mark.parametrize(("given", "sentence"), [
    (["--recover", "fit"], "--recover needs --data beside it: recovery corrects weights on data."),
    (["--data", "x.npy"], "--data needs --recover beside it: recovery corrects weights on data."),
])  # fmt: skip
def test_the_command_line_wants_both(given: list[str], sentence: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["fuse", str(tmp_path / "m.onnx"), *given]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("options", "sentence"), [
    ({"recover": "fit"}, "Recovery fits weights to data: give some, calibration=... (--data in the shell)."),
    ({"calibration": SAMPLE}, "Calibration data are for recovery: give recover='fit' or 'distill' as well."),
    ({"recover": "best", "calibration": SAMPLE},
     "The recovery's method must be 'fit' or 'distill', not 'best'."),
])  # fmt: skip
def test_calls_want_both(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        fxfuse.fuse(decoder(), (SAMPLE,), **options)
    assert str(caught.value) == sentence


def test_tokens_outside_the_vocabulary_are_told_before_anything_runs() -> None:
    with pytest.raises(InputError, match="64"):
        fxfuse.fuse(decoder(), (SAMPLE,), recover="fit", calibration=ids(20) + 60, min_sqnr=None)


def test_torch_compile_names_the_call_that_does_it() -> None:
    compiled = torch.compile(decoder(), backend=fxfuse, options={"recover": "fit"})
    with torch.no_grad(), pytest.raises(Exception, match="torch.compile offers no recovery.*use fxfuse.fuse"):
        compiled(SAMPLE)
    torch._dynamo.reset()


def test_quantised_groups_are_refused(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    derived.int8(onnx_file("llama"), tmp_path / "q.onnx", "llama")
    whole = Calibration.of(families.ids(80, 7, seed=3), batch_size=2)
    with pytest.raises(InputError, match="layers.0-2.mlp are quantised, and recovery"):
        fxfuse.fuse_onnx(
            tmp_path / "q.onnx", tmp_path / "f.onnx", provider="cpu", requantize=True, calibration=whole,
            **LLAMA,
        )  # fmt: skip
    assert not (tmp_path / "f.onnx").exists()


def test_groups_in_bodies_are_left_as_they_are(tmp_path: Path) -> None:
    onnx.save(if_model()[1], tmp_path / "m.onnx")
    batch = {"x": torch.randn(2, 5, GRAPH_HIDDEN), "use_cache": torch.tensor(True)}
    report = fxfuse.fuse_onnx(
        tmp_path / "m.onnx",
        provider="cpu",
        min_sqnr=None,
        recover=FEW,
        calibration=Calibration((batch,), (batch,)),
    )
    assert len(report.groups) == 2
    assert "recovery leaves the groups in bodies of If, Loop and Scan as they were fused" in report.notes
