"""What is told in one sentence, with nothing written."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxfuse.errors import FxfuseError, InputError, VerificationError
from fxfuse.genai import api, checking, records, writer
from fxfuse.genai.api import export_genai
from fxfuse.genai.records import Form, GenaiReport
from fxfuse.numerics import relative_error
from fxfuse.sessions import session
from tests.genai.models import decoder

pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai-cuda has no wheel for this Python")


def refused(model: Any, out: Path, match: str, kind: type[Exception] = InputError, **options: Any) -> None:
    before = set(out.parent.iterdir()) if out.parent.is_dir() else set()
    with pytest.raises(kind, match=match):
        export_genai(model, out, **{"provider": "cpu", **options})
    assert (set(out.parent.iterdir()) if out.parent.is_dir() else set()) == before


def test_options(tmp_path: Path) -> None:
    out, model = tmp_path / "out", nn.Linear(2, 2)
    refused(model, out, "no provider 'tpu': choose auto, cuda or cpu", provider="tpu")
    refused(model, out, "no precision 'fp8': choose from fp32, fp16", precision="fp8")
    for half in ("bf16", "fp16"):
        refused(model, out, f"not generate in {half} on CPU: choose from fp32, int8, int4", precision=half)
    refused(
        model, out, "not generate in fp32 on CUDA: choose from fp16, bf16", precision="fp32", provider="cuda"
    )
    refused(model.eval(), out, "Linear is no decoder of transformers")
    refused(decoder().train(), out, "call model.eval")
    refused(decoder(), out, "no folder .*: give the folder of a tokenizer", tokenizer=tmp_path / "none")


def test_models(tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(decoder(without=range(5), widths={}), out, "No layer of the model has attention")
    unknown = decoder()
    unknown.config.model_type = "olmo2"
    refused(unknown, out, "Decoders of olmo2 cannot be exported .* known are gemma, granite")
    packed = decoder()
    packed.model.layers[3].mlp.down_proj = nn.Identity()
    packed.model.layers[3].mlp.down_proj.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), False)
    refused(packed, out, r"layers\.3\.mlp\.down_proj \(Identity\) holds no plain float weight")
    refused(decoder().to("meta"), out, "embed_tokens is on the meta device")
    refused(decoder(head_dim=8), out, "heads are of size 8, .* asks for a multiple of 16")
    endless = decoder(eos_token_id=None)
    refused(endless, out, "says which token ends a text")


def test_places(tmp_path: Path) -> None:
    model = decoder()
    refused(model, tmp_path / "none" / "out", "does not exist: create it")
    (tmp_path / "file").write_text("x")
    refused(model, tmp_path / "file", "is no folder")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("x")
    refused(model, taken, "is not empty: choose another output or force it")
    refused(model, taken, "holds no genai_config.json, so it is not replaced", force=True)
    assert (taken / "mine.txt").read_text() == "x"


def test_an_export_is_replaced_when_forced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is as good as none
    export_genai(decoder(), out, provider="cpu")
    (out / "old.txt").write_text("x")
    report = export_genai(decoder(without=(1,)), out, provider="cpu", force=True)
    assert report.caches == 4
    assert not (out / "old.txt").exists()
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_what_does_not_compute_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight of the wrong layer, a folder that does not load, a disk that is full."""
    wrong = api.read_decoder

    def swapped(model: Any) -> Any:
        found = wrong(model)
        return dataclasses.replace(found, layers=found.layers[::-1])

    monkeypatch.setattr(api, "read_decoder", swapped)
    refused(decoder(), tmp_path / "out", r"differ from the torch model's by .* try fp32", VerificationError)
    monkeypatch.setattr(api, "read_decoder", wrong)
    with pytest.raises(VerificationError, match="cannot run what was written"):
        checking.logits_of_folder(tmp_path, torch.zeros(1, 4, dtype=torch.int64))
    monkeypatch.setitem(api._BYTES, "fp32", 1e18)
    refused(decoder(), tmp_path / "out", "No space left", FxfuseError)


def test_what_is_no_number(tmp_path: Path) -> None:
    damaged = decoder()
    damaged.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    own = r"The torch model's own logits hold NaN, .* copy or make the checkpoint anew\.$"
    refused(damaged, tmp_path / "out", own, VerificationError)
    fine, wrong = torch.ones(2, 3), torch.ones(2, 3)
    for value, name in ((torch.nan, "NaN"), (torch.inf, "infinity")):
        wrong[0, 0] = value
        with pytest.raises(
            VerificationError, match=f"written model hold {name} where .*: try another precision"
        ):
            checking.check(wrong, fine, "fp32")


def test_without_the_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_NEEDED", ("make_cache_names", "of_next_year"))
    refused(decoder(), tmp_path / "out", "is too old for this: install 0.18 or newer", FxfuseError)
    monkeypatch.setitem(sys.modules, "onnxruntime_genai.models.builder", None)
    refused(decoder(), tmp_path / "out", "cannot be imported .* install it with pip", FxfuseError)


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for problem, runs in ((None, True), ("no GPU", False)):
        monkeypatch.setattr(records, "cuda_problem", lambda problem=problem: problem)
        assert Form.of(None, "cuda", bf16=True) == Form("bf16", "cuda", runs)
        assert Form.of("int4", "cuda", bf16=False) == Form("int4", "cuda", runs)
        chosen = Form("fp16", "cuda", True) if runs else Form("fp32", "cpu", True)
        assert Form.of(None, "auto", bf16=False) == chosen


@pytest.mark.parametrize("family", ["gemma", "llama", "phi3"])
def test_for_a_provider_that_does_not_work_here(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written for CUDA in float16, not run by GenAI, and said so; ONNX Runtime's CPU knows the operators."""
    monkeypatch.setattr(records, "cuda_problem", lambda: "no GPU")
    model, out = decoder(family), tmp_path / "out"
    report = export_genai(model, out, provider="cuda")
    assert (report.precision, report.provider, report.relative_error) == ("fp16", "cuda", None)
    assert "CUDA does not work here, so the folder was not run" in report.notes
    assert "fp16 for cuda, 5 layers, 3 caches, FFNs of 96 (4), 256 (1); not run here" in str(report)
    opened = session(out / "model.onnx", "cpu")
    empty = {each.name: each.shape[1] for each in opened.get_inputs() if each.name.startswith("past")}
    past = {name: np.zeros((1, heads, 0, 16), np.float16) for name, heads in empty.items()}
    ids = np.array([[3, 5, 7, 9, 11, 13]])
    (logits,) = opened.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids), **past})
    expected = logits_of(model, torch.from_numpy(ids))
    assert relative_error(torch.from_numpy(logits), expected) < 5e-3


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(ids, use_cache=False).logits
    return found


def test_the_report() -> None:
    report = GenaiReport("out", "fp32", "cpu", 2, 1, (8, 8), ("model.onnx",), 1.23e-7, ["a note"])
    assert (
        str(report)
        == "out: fp32 for cpu, 2 layers, 1 caches, FFNs of 8 (2); logits differ by 1.2e-07\na note"
    )
