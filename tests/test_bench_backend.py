"""The benchmark of the backend's cost: what it counts, and the table that it draws."""

import io

import pytest
import torch
from rich.console import Console

from tools.bench_backend import draw
from tools.benchmark import backend_cost
from tools.benchmark.backend_cost import Shape, calls, compiling, memory

FIRST = {"inductor": {"seconds": 20.0, "fxfuse": 0.0}, "fxfuse": {"seconds": 21.0, "fxfuse": 0.75}}
COPY = {"before": 40e6, "after": 60e6, "added": 20e6, "added_to_process": 21e6}


def answer(_shape: Shape, request: str, *arguments: object) -> dict[str, float]:
    if request == "first_call":
        return FIRST[str(arguments[0])]
    return COPY if request == "memory" else {"check_us": 12.5, "step_us": 2500.0}


def test_figures_and_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_cost, "_in_a_process", answer)
    told: list[str] = []
    results = {
        "compile": compiling(Shape(), 3, told.append),
        "call": calls(Shape(), 2, 1.0, told.append),
        "memory": memory(Shape(), told.append),
    }
    assert len(told) == 3 * 2 + 2 + 3
    assert results["compile"]["ratio"] == pytest.approx(1.05)
    assert results["call"]["share"] == pytest.approx(0.005)
    file = io.StringIO()
    Console(width=120, file=file).print(draw(results))
    text = " ".join(file.getvalue().split())
    assert "fxfuse, then inductor 21.0 s, 0.75 s of it fxfuse's own" in text
    assert "1.050 [1.050, 1.050] at most 1.1" in text
    assert "share of the step 0.50% at most 1%" in text
    assert "memory, one copy 60.0 MB (+20.0 MB of tensors, +21.0 MB in all)" in text


def test_memory_shared_by_tensors_is_counted_once() -> None:
    before = backend_cost._tensors()
    whole = torch.zeros(1000)
    parts = [whole[:10], whole[500:]]
    assert backend_cost._tensors() - before == 4000
    assert len(parts) == 2
