"""A written model run once: its outputs, and what its wide FFNs computed on the way there.

Where the stream that reaches a wide FFN is the original's, bit for bit, its branch need not be run again to
be judged on that stream. So it is for the first group of a model, and reading its weights costs the most.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fxfuse.frontends.onnx_runs import Runs
from fxfuse.passes.onnx.extract import ModelIndex
from fxfuse.passes.onnx.view import to_torch

__all__ = ["Once"]


class Once:
    """One run of the model of `index` on every sample; a place names a group's stream and its branch."""

    def __init__(
        self,
        runs: Runs,
        index: ModelIndex,
        folder: Path,
        names: Sequence[str],
        places: Sequence[tuple[str, str]],
    ) -> None:
        computed = index.producer.keys() | index.input.keys()
        self._places = [place if computed.issuperset(place) else None for place in places]
        inside = [name for place in self._places if place is not None for name in place]
        results = runs.pieces(index, folder).run([*names, *inside], runs.samples)
        self.outputs: list[list[Any]] = [each[: len(names)] for each in results]
        self._inside = [dict(zip(inside, each[len(names) :], strict=True)) for each in results]

    def branch(self, group: int, x: torch.Tensor, sample: int) -> torch.Tensor | None:
        """What the group's branch computed; None where the stream that it read was not x."""
        place = self._places[group]
        if place is None:
            return None
        stream, branch = (to_torch(self._inside[sample][name]) for name in place)
        return branch if stream.dtype == x.dtype and torch.equal(stream, x) else None
