"""Plans measured on a model: a small decoder, random tokens, chains of 3 and 2 blocks."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

import fxfuse
from fxfuse import cli
from fxfuse.analysis.api import analyze
from fxfuse.analysis.records import Analysis
from fxfuse.errors import InputError
from fxfuse.planning.files import read_plan
from tests import exporters
from tests.families import VOCAB, build, ids
from tests.parallel import parallel_model


@functools.cache
def tokens() -> torch.Tensor:
    return torch.randint(0, VOCAB, (12, 9), generator=torch.Generator().manual_seed(3))


@functools.cache
def analysed() -> Analysis:
    return analyze(build("llama"), tokens(), dependency=False, attention=False)


def held_out() -> torch.Tensor:
    from fxfuse.calibration import Calibration

    (batch,) = Calibration.of(tokens()).held_out
    return batch["input_ids"]


def kl_of(groups: tuple[tuple[int, ...], ...]) -> float:
    """KL of the model that is parallel by hand."""
    given, model = held_out(), build("llama").double()
    p, q = (each(given).log_softmax(-1) for each in (model, parallel_model(model, groups).double()))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_the_measured_kl_is_that_of_the_groups_together() -> None:
    plan = fxfuse.plan(analysed(), depth=3, min_sqnr=None, model=build("llama"), data=tokens(), candidates=1)
    groups = tuple(tuple(int(name.split(".")[2]) for name in group.blocks) for group in plan.groups)
    assert sum(map(len, groups)) == 5 - 3 + len(groups)
    assert plan.kl == pytest.approx(kl_of(groups), rel=1e-3)
    assert plan.kl_error is not None
    assert [point.kl is not None for point in plan.front] == [point.chosen for point in plan.front]


def test_max_kl_holds_as_it_is_measured() -> None:
    plan = fxfuse.plan(
        analysed(), max_kl=0.05, min_sqnr=None, model=build("llama"), data=tokens(), whole_front=True
    )
    kept = [point for point in plan.front if point.kl <= 0.05]
    assert plan.kl == kept[0].kl <= 0.05
    assert kept[0].chosen


def test_the_command_line_measures_an_onnx_file_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exporters.onnx_dynamo(build("llama"), (ids(),), tmp_path / "m.onnx", dynamic=True)
    (tmp_path / "a.json").write_text(analysed().to_json())

    np.save(tmp_path / "ids.npy", tokens().numpy())
    words = [
        "plan",
        tmp_path / "a.json",
        "--depth",
        3,
        "--no-budget",
        "--candidates",
        1,
        "-o",
        tmp_path / "p.json",
    ]
    words += ["--model", tmp_path / "m.onnx", "--data", tmp_path / "ids.npy", "--context", 9]
    assert cli.main(list(map(str, words))) == 0
    out = capsys.readouterr().out
    assert "measured on all groups together" in out
    assert "measured KL" in out
    plan = read_plan(tmp_path / "p.json")
    assert plan.kl is not None
    assert plan.command.startswith("fxfuse plan ")
    fused = cli.main(
        ["fuse", str(tmp_path / "m.onnx"), "--plan", str(tmp_path / "p.json"), "--provider", "cpu"]
    )
    assert fused == 0


def test_another_model_is_told_before_anything_is_measured() -> None:
    with pytest.raises(InputError, match="is for another model: its hidden size is 64, and here it is 32"):
        fxfuse.plan(analysed(), model=build("llama", hidden_size=32), data=tokens())
