"""The measurements behind docs/quality.md, one function a question; each returns plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

from fxfuse.analysis.api import measure
from fxfuse.analysis.changes import Change
from fxfuse.analysis.measure import Measurements
from fxfuse.analysis.prediction import predict
from fxfuse.analysis.ranking import spearman
from fxfuse.analysis.records import Analysis
from fxfuse.calibration import Calibration
from fxfuse.divergence import Divergence
from fxfuse.frontends.protocol import Runnable
from fxfuse.passes.records import Block
from fxfuse.planning.choose import plan
from fxfuse.planning.matching import match_plan
from fxfuse.planning.records import Plan, PlannedGroup
from fxfuse.recovery.records import RecoveryOptions
from fxfuse.recovery.recover import recover
from tools.quality.judge import Judge, calibration
from tools.quality.ratios import Figure, recovered, remaining

__all__ = ["SWEEP", "Study"]

SWEEP = (500, 2_500, 10_000, 40_000)
Groups = Sequence[Sequence[Block]]


@dataclass
class Study:
    """One model, judged; `tell` is called with a short text at every step."""

    front: Runnable
    judge: Judge
    data: Calibration
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        self.blocks = self.judge.blocks
        self.taken = Measurements(self.front, self.data)
        self.fitted: dict[int, Divergence] = {}  # recovered by g' + h, by the number of FFNs left

    @cached_property
    def naive(self) -> Divergence:
        """All blocks as one group, nothing corrected."""
        return self.judge.naive([self.blocks])

    @cached_property
    def analysis(self) -> Analysis:
        """Every segment measured on calibration data."""
        self.tell("analysing on calibration data")
        return measure(self.front, self.data, segments="all", dependency=True, attention=False)

    def whole_run(self) -> list[dict[str, Any]]:
        """The whole run as one group: naive, corrected, distilled."""
        rows = [_row("nothing else", self.naive, self.naive)]
        for method, label in (("fit", "g' + h"), ("distill", "g' + h, then local distillation")):
            self.tell(f"the whole run as one group: {label}")
            found = self._recovered([self.blocks], method)
            self.fitted.setdefault(1, found)
            rows.append(_row(label, found, self.naive))
        return rows

    def planned(self, depth: int) -> list[dict[str, Any]]:
        """The planner's groups at one depth, naive and recovered."""
        groups = self.chosen(depth)
        lengths = self._lengths(groups)
        self.tell(f"{depth} groups: {lengths}")
        self.fitted[depth] = self._recovered(groups, "fit")
        return [
            _row(f"{lengths}, nothing else", self.judge.naive(groups), self.naive),
            _row(f"{lengths}, g' + h", self.fitted[depth], self.naive),
        ]

    def ranking(self) -> dict[str, Any]:
        """How the figures that cost one pass rank all segments, against the KL measured at the logits."""
        segments = self.analysis.segments
        kls = [each.kl for each in segments]
        whole = len(self.blocks)
        some = [each if each.length in (2, whole) else replace(each, kl=None) for each in segments]
        figures = {
            "predicted KL, from that of the pairs and of the whole run": [
                each.predicted_kl for each in predict(some)
            ],
            "predicted KL, fitted on all": [each.predicted_kl for each in segments],
            "drift": [each.drift for each in segments],
            "sum of M": [each.dependency for each in segments],
            "local error (-SQNR)": [-each.sqnr_db for each in segments],
        }
        return {
            "segments": len(segments),
            "spearman": {name: spearman(values, kls) for name, values in figures.items()},  # type: ignore[arg-type]
        }

    def brute_force(self) -> list[dict[str, Any]]:
        """For every depth, the planner's answer beside the best of all segmentations, both measured."""
        self.tell(f"all {2 ** (len(self.blocks) - 1)} segmentations")
        best: dict[int, tuple[float, tuple[int, ...]]] = {}
        for lengths in _segmentations(len(self.blocks)):
            kl = self.taken.groups_kl(_cut(self.blocks, lengths)).kl
            best[len(lengths)] = min(best.get(len(lengths), (kl, lengths)), (kl, lengths))
        rows = []
        for depth, (kl, lengths) in sorted(best.items()):
            if depth == len(self.blocks):
                continue
            groups = self.chosen(depth)
            own = tuple(self._all_lengths(groups))
            rows.append(
                {
                    "depth": depth,
                    "planner": own,
                    "planner_kl": self.taken.groups_kl(groups).kl,
                    "best": lengths,
                    "best_kl": kl,
                    "equal": own == lengths,
                }
            )
        return rows

    def removing(self) -> list[dict[str, Any]]:
        """Fusing against leaving out as many FFNs, at equal depth; of all ways to leave them out the best."""
        rows = []
        for depth in range(1, len(self.blocks)):
            groups = self.chosen(depth)
            self.tell(f"leaving out {len(self.blocks) - depth} FFNs, every choice")
            left_out = min(
                combinations(self.blocks, len(self.blocks) - depth),
                key=lambda gone: self.taken.changes_kl([Change(b.x, b.out) for b in gone], tokens=8192).kl,
            )
            fused, without = self.judge.naive(groups), self.judge.removed(left_out)
            corrected = self.fitted.get(depth)
            rows.append(
                {
                    "depth": depth,
                    "groups": self._lengths(groups),
                    "left_out": [block.name for block in left_out],
                    "fused": _figures(fused),
                    "recovered": _figures(corrected) if corrected else None,
                    "removed": _figures(without),
                    "ratio": asdict(remaining(fused, without)),
                    "ratio_recovered": asdict(remaining(corrected, without)) if corrected else None,
                }
            )
        return rows

    def sweep(self) -> list[dict[str, Any]]:
        """Recovery of the whole run by the number of calibration tokens."""
        whole = calibration(max(SWEEP) + max(SWEEP) // 100, seed=1)
        rows = []
        for count in SWEEP:
            self.tell(f"{count:,} calibration tokens")
            data = whole.limit(count)
            found = recover(self.front, [self.blocks], data, RecoveryOptions())
            row = _row(found.groups[0].kept, self.judge.corrected([self.blocks], found.wides), self.naive)
            rows.append({"tokens": data.tokens, **row})
        return rows

    def chosen(self, depth: int) -> list[tuple[Block, ...]]:
        """The planner's groups at this depth, measured on calibration data."""
        found = plan(self.analysis, depth=depth, min_sqnr=None, measure=self._measure)
        return match_plan(found, self.taken.found)

    def _measure(self, groups: Sequence[tuple[str, ...]]) -> Divergence:
        own = Plan(self.analysis.id, tuple(map(PlannedGroup, groups)))
        return self.taken.groups_kl(match_plan(own, self.taken.found))

    def _recovered(self, groups: Groups, method: str) -> Divergence:
        found = recover(self.front, groups, self.data, RecoveryOptions(method=method))  # type: ignore[arg-type]
        return self.judge.corrected(groups, found.wides)

    def _all_lengths(self, groups: Groups) -> list[int]:
        starts = {group[0].name: len(group) for group in groups}
        lengths, place = [], 0
        while place < len(self.blocks):
            lengths.append(starts.get(self.blocks[place].name, 1))
            place += lengths[-1]
        return lengths

    def _lengths(self, groups: Groups) -> str:
        return " + ".join(map(str, self._all_lengths(groups)))


def _figures(found: Divergence) -> dict[str, float]:
    return {"kl": found.kl, "error": found.standard_error, "top1": found.top1_agreement}


def _row(label: str, found: Divergence, naive: Divergence) -> dict[str, Any]:
    share: Figure = recovered(found, naive)
    return {"form": label, **_figures(found), "recovered": asdict(share)}


def _segmentations(count: int) -> list[tuple[int, ...]]:
    if count == 0:
        return [()]
    return [(first, *rest) for first in range(1, count + 1) for rest in _segmentations(count - first)]


def _cut(blocks: Sequence[Block], lengths: Sequence[int]) -> list[Sequence[Block]]:
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    cuts = [blocks[start : start + size] for start, size in zip(starts, lengths, strict=True)]
    return [group for group in cuts if len(group) > 1]
