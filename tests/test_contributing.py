"""The worked example of CONTRIBUTING.md does what it says."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import fxfuse
from fxfuse.passes import elementwise
from fxfuse.passes.fx import ops as fx_ops
from fxfuse.passes.onnx import ops as onnx_ops
from fxfuse.passes.spellings import activations

GUIDE = Path(__file__).parent.parent / "CONTRIBUTING.md"
TABLES = (elementwise.FUNCTIONS, fx_ops.HANDLERS, onnx_ops.HANDLERS, activations.ACTIVATIONS)


class Chain(nn.Module):
    """Two ungated FFN blocks with arctangents."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(8, eps=1e-6) for _ in range(2))
        self.ups = nn.ModuleList(nn.Linear(8, 12) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(12, 8) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x = x + down(torch.atan(up(norm(x))))
        return x


@pytest.fixture
def with_example() -> Iterator[None]:
    before = [dict(table) for table in TABLES]
    (example,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, str(GUIDE), "exec"), {})
    yield
    for table, old in zip(TABLES, before, strict=True):
        table.clear()
        table.update(old)


def activations_of(report: fxfuse.Report) -> list[list[str]]:
    return [[block.activation for block in chain.blocks] for chain in report.chains]


def test_without_the_example_the_operator_is_named_as_the_reason() -> None:
    x = torch.randn(2, 3, 8)
    _, report = fxfuse.fuse(torch.export.export(Chain().eval(), (x,)), (x,), min_sqnr=None)
    assert report.chains == []
    assert any("atan" in miss.reason for miss in report.misses)


@pytest.mark.usefixtures("with_example")
def test_the_example_fuses_in_torch() -> None:
    x = torch.randn(2, 3, 8)
    fused, report = fxfuse.fuse(torch.export.export(Chain().eval(), (x,)), (x,), min_sqnr=None)
    assert activations_of(report) == [["atan", "atan"]]
    assert len(report.groups) == 1
    assert fused.module()(x).isfinite().all()


@pytest.mark.usefixtures("with_example")
def test_the_example_fuses_in_onnx(tmp_path: Path) -> None:
    report = fxfuse.export_onnx(Chain().eval(), (torch.randn(2, 3, 8),), tmp_path / "m.onnx", min_sqnr=None)
    assert activations_of(report) == [["atan", "atan"]]
    assert len(report.groups) == 1
