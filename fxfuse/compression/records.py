"""What the whole way gave: its stages, and what was measured and decided for the fusion."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from torch.export import ExportedProgram

from fxfuse.analysis.records import Analysis
from fxfuse.page.records import Stage
from fxfuse.planning.records import Plan
from fxfuse.report import Report

__all__ = ["Compressed"]


@dataclass
class Compressed:
    """All stages in order; program is the last torch model, onnx the file it was exported to.

    analysis, plan and report are those of the fusion, None where nothing could be fused.
    """

    stages: list[Stage]
    program: ExportedProgram = field(repr=False)
    onnx: str | None = None
    analysis: Analysis | None = field(default=None, repr=False)
    plan: Plan | None = field(default=None, repr=False)
    report: Report | None = field(default=None, repr=False)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The stages as plain data, ready for JSON."""
        return {
            "kind": "fxfuse stages",
            "format": 1,
            "stages": [asdict(stage) for stage in self.stages],
            "notes": self.notes,
            "seconds": self.seconds,
        }

    def to_json(self) -> str:
        """The stages as a JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def __str__(self) -> str:
        """The stages as a table."""
        from fxfuse.compression.table import render

        return render(self)
