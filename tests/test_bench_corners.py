"""tools/bench_corners.py: the six files of a tiny chain, their losses and times, and what is written."""

import importlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fxfuse.timing.rounds import Timing
from fxfuse.timing.workers import Failure, time_round
from tools import bench_corners
from tools.benchmark import corner_results, corners
from tools.benchmark.corners import FORMS, KINDS, Corners, Pace
from tools.benchmark.machine import Machine

PACE = Pace(1, 2, 0.001, 0.0, 512)


class InProcess:
    """A `Worker` without a process of its own, which takes seconds to start."""

    def __init__(self, factory: str, *arguments: Any, quiet: bool = False) -> None:
        module, _, name = factory.partition(":")
        self._subject = getattr(importlib.import_module(module), name)(*arguments)

    def ask(self, request: str, *arguments: Any) -> Any:
        if request == "round":
            return time_round(self._subject.call, self._subject.wait, *arguments)
        return getattr(self._subject, request)(*arguments)

    def dismiss(self) -> None:
        pass

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def measured() -> Iterator[Corners]:
    disabled = logging.root.manager.disable
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corners, "Worker", InProcess)
        yield corners.measure("chain-32-64x2", (1, 3), PACE)
    logging.disable(disabled)


@pytest.fixture
def made(measured: Corners) -> Corners:
    """The same with times that are known."""
    timings = {form: Timing.of([[(place + 1) * 1e-3] * 5] * 2) for place, form in enumerate(FORMS)}
    return replace(measured, timings={1: timings})


def test_every_form_is_timed_at_every_length(measured: Corners) -> None:
    assert list(measured.timings) == [1, 3]
    for timings in measured.timings.values():
        assert tuple(timings) == FORMS
        assert {len(timing.round_p50_us) for timing in timings.values()} == {PACE.rounds}


def test_files_and_losses(made: Corners) -> None:
    assert made.groups == [2]
    assert tuple(made.forms) == FORMS
    losses = {form: facts["loss"] for form, facts in made.forms.items()}
    assert losses["unfused-float"] == {"relative_error": 0.0, "relative_error_to_float": 0.0}
    assert losses["fused-float"]["relative_error_to_float"] == 0.0
    for form in ("unfused", "fused"):
        steps = [losses[f"{form}-{kind}"]["relative_error_to_float"] for kind in KINDS]
        assert steps == sorted(steps)
        assert 0 < steps[1] < steps[2] < 0.3
        sizes = [made.forms[f"{form}-{kind}"]["read_bytes"] for kind in KINDS]
        assert sizes == sorted(sizes, reverse=True)


def test_json(made: Corners, tmp_path: Path) -> None:
    figures = corner_results.to_dict([made], PACE, Machine.here("cpu"))
    corner_results.write(figures, tmp_path / "new" / "corners.json")
    read = json.loads((tmp_path / "new" / "corners.json").read_text())
    assert (read["kind"], read["format"], tuple(read["forms"])) == ("corners", 1, FORMS)
    (model,) = read["models"]
    (point,) = model["points"]
    assert point["ratios"]["unfused-int8"]["median"] == pytest.approx(0.5)
    assert point["fusing"]["int8"]["median"] == pytest.approx(2 / 5)
    assert point["timings"]["fused-int4"]["p50_us"] == 6000.0
    assert set(point["gb_per_s"]) == set(FORMS)


def test_table(made: Corners) -> None:
    table = corner_results.draw([made])
    assert table.row_count == 6
    assert [str(cell) for cell in table.columns[1].cells] == [
        f"{kind} {form}" for form in ("unfused", "fused") for kind in ("fp32", "int8", "int4")
    ]
    assert list(table.columns[-1].cells)[1] == "2 (0.50x)"


def test_command_line(
    made: Corners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def measure(model: str, tokens: Sequence[int], *_: object) -> Corners:
        asked.append((model, tokens))
        if model == "demo":
            raise Failure("broken")
        return made

    monkeypatch.setattr(bench_corners, "measure", measure)
    words = ["--quick", "--models", "256|demo", "--tokens", "1,8", "--output", str(tmp_path)]
    assert bench_corners.main(words) == 1
    assert asked == [("chain-256", (1, 8)), ("demo", (1, 8))]
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("corners-")
    assert len(json.loads(path.read_text())["models"]) == 1
    told = capsys.readouterr()
    assert "int4 fused" in told.out
    assert "demo: broken" in told.err
    assert bench_corners.main(["--models", "nothing"]) == 2
