"""The first step of fusing a file: the chains inside of its If, Loop and Scan nodes, if it has any."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fxfuse.budget import Budget
from fxfuse.frontends.bodies import Bodies, Placed, decline
from fxfuse.frontends.onnx_file import FusedFile, OnnxFile
from fxfuse.inputs import Sample
from fxfuse.judge import compare_outputs
from fxfuse.passes.records import Miss
from fxfuse.pipeline import Progress
from fxfuse.report import ChainReport, GroupReport, Report
from fxfuse.sessions import Provider

__all__ = ["Inside", "fuse_inside"]


@dataclass
class Inside:
    """A model whose bodies were fused, or the original; `reference` holds the outputs of the original then.

    `reports` holds one report for each body that has FFN blocks, by its place.
    """

    model: onnx.ModelProto
    folder: Path
    path: Path | None = None
    reference: list[list[np.ndarray[Any, Any]]] | None = None
    end_to_end: dict[str, Any] = field(default_factory=dict)
    reports: dict[str, Report] = field(default_factory=dict)

    def take(self, workspace: Path) -> FusedFile:
        """Move what was written into `workspace`, as the result."""
        assert self.path is not None
        for name in (f"{self.path.name}.data", self.path.name):
            if (self.folder / name).exists():
                os.replace(self.folder / name, workspace / name)
        return FusedFile(self.model, workspace / self.path.name, [])

    def tell(self, report: Report) -> None:
        """Add what was found in the bodies, under names that say where."""
        report.end_to_end = report.end_to_end or self.end_to_end
        for place, own in self.reports.items():
            name = _namer(place)
            report.ffn_blocks += own.ffn_blocks
            report.chains += [_named_chain(chain, name) for chain in own.chains]
            report.groups += [_named_group(group, name) for group in own.groups]
            report.misses += [Miss(name(miss.where), miss.reason) for miss in own.misses]
            report.notes += [note for note in own.notes if note not in report.notes]


def fuse_inside(
    model: onnx.ModelProto,
    folder: Path,
    samples: Sequence[Sample],
    path: Path,
    provider: Provider,
    budget: Budget,
    progress: Progress,
) -> Inside:
    """Fuse the bodies of `model`; what is written goes to `path`, in a new folder.

    Raises:
        VerificationError: A rewritten body, or the model with it, does not compute what it should.
        InputError: max_kl is given, and the model has no logits.
    """
    bodies = Bodies(provider, budget, progress)
    placed = bodies.fuse(Placed(model, folder, samples), path)
    inside = Inside(model, folder, reports=bodies.reports)
    if placed is None:
        return inside
    progress("verifying the whole model")
    front = OnnxFile(model, folder, samples, path.parent, path.name, provider)
    front.states([])
    hidden_size = next(chain.blocks[0].hidden_size for own in bodies.reports.values() for chain in own.chains)
    total = compare_outputs(front, FusedFile(placed.model, path, []), hidden_size, budget)
    if budget.max_kl is not None and total is not None and (total.kl or 0.0) > budget.max_kl:
        reason = f"the logits' KL of {total.kl:.3g} nats is over the budget of {budget.max_kl:g}"
        for own in bodies.reports.values():
            decline(own, reason)
        return inside
    inside.model, inside.folder, inside.path = placed.model, placed.folder, path
    inside.reference, inside.end_to_end = front.results, asdict(total) if total else {}
    return inside


def _namer(place: str) -> Callable[[str], str]:
    return lambda name: f"{name} in {place}"


def _named_chain(chain: ChainReport, name: Callable[[str], str]) -> ChainReport:
    return replace(chain, blocks=tuple(replace(block, name=name(block.name)) for block in chain.blocks))


def _named_group(group: GroupReport, name: Callable[[str], str]) -> GroupReport:
    return replace(group, blocks=tuple(map(name, group.blocks)))
