"""The one way through the house: view -> find -> measure -> plan -> apply -> verify -> report.

Every front end brings a graph and a runtime to run it on; what is judged, and how, is the same for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from fxfuse.budget import Budget
from fxfuse.errors import FxfuseError
from fxfuse.frontends.protocol import FrontEnd, Fused
from fxfuse.judge import Judge
from fxfuse.passes.chains import find_chains
from fxfuse.passes.forms import Form
from fxfuse.planning.greedy import choose_groups, split_group, split_worst
from fxfuse.planning.matching import match_plan
from fxfuse.planning.records import Plan
from fxfuse.planning.using import plan_notes, planned_groups
from fxfuse.recovery.using import Recovery
from fxfuse.report import GroupReport, Report
from fxfuse.timing.choosing import Timing
from fxfuse.versions import versions

__all__ = ["Progress", "fuse"]

Progress = Callable[[str], None]


def fuse(
    front: FrontEnd[Fused],
    budget: Budget,
    report: Report,
    progress: Progress = lambda _: None,
    plan: Plan | None = None,
    part: bool = False,
    recovery: Recovery | None = None,
    timing: Timing | None = None,
    form: Form | None = None,
) -> Fused | None:
    """Fuse what is legal and within `budget`; fills `report`; None when nothing was fused.

    With a plan its groups are fused, whatever each loses: only max_kl still holds. `part`: the graph may be
    a part of the plan's model. With `recovery` the weights of the groups are corrected on its data. With
    `timing` only groups that pay on its target are fused, each in the form that is fastest there; without,
    all are written in `form`.

    Raises:
        VerificationError: The rewritten graph does not compute what it should. Nothing may be written then.
        InputError: The original model gives NaN or infinity on the measuring inputs, or no logits for max_kl;
            the plan is not for this model.
    """
    started = time.perf_counter()
    report.versions = versions()
    try:
        return _fuse(front, budget, report, progress, plan, part, recovery, timing, form)
    except FxfuseError as error:
        report.error = str(error)
        report.groups = []
        raise
    finally:
        report.seconds = round(time.perf_counter() - started, 3)


def _fuse(
    front: FrontEnd[Fused],
    budget: Budget,
    report: Report,
    progress: Progress,
    plan: Plan | None,
    part: bool,
    recovery: Recovery | None,
    timing: Timing | None,
    form: Form | None,
) -> Fused | None:
    progress("finding chains")
    found = find_chains(front.view, requantize=budget.requantize)
    report.add_found(found)
    planned = match_plan(plan, found, part=part) if plan is not None else None
    if not found.chains:
        return None
    progress("running the model on the measuring inputs")
    judge = Judge(front, [block for chain in found.chains for block in chain.blocks])
    progress("measuring groups")
    asked = budget
    if planned is None:
        groups, misses = choose_groups(found.chains, budget, judge.loss)
    else:
        groups, misses = planned_groups(planned, found.chains, judge.loss)
        budget = replace(budget, min_sqnr=None)  # what the plan asks for is not cut
    report.misses += misses
    while groups:
        forms = [form or Form()] * len(groups)
        if timing is not None:
            forms = timing.settle(front.view, groups, budget, judge.loss, report)
        if not groups:
            break
        blocks = [group.blocks for group in groups]
        recovered = recovery(front, blocks, progress) if recovery is not None else None
        progress("writing the wide FFNs")
        fused = front.apply(blocks, recovered.wides if recovered is not None else None, forms)
        progress("verifying")
        report.groups = judge.verify_all(fused, groups, recovered)
        poor = _over_budget(report.groups, budget)
        if poor is not None:
            kept = f"keeps {report.groups[poor].sqnr_db:.1f} dB, under the budget of {budget.min_sqnr:g} dB"
            reason = f"quantised again its group {kept}"
            report.misses += split_group(groups, poor, budget, judge.loss, reason)
            continue
        total = judge.compare(fused, budget)
        report.end_to_end = asdict(total) if total else {}
        if budget.max_kl is None or total is None or (total.kl or 0.0) <= budget.max_kl:
            if timing is not None:
                report.groups = timing.told(report.groups, fused)
                if timing.drop(fused, groups, report):
                    continue
            report.notes += plan_notes(plan, report.groups, asked) if plan is not None else []
            report.notes += recovered.notes if recovered is not None else []
            return fused
        reason = f"the logits' KL of {total.kl:.3g} nats is over the budget of {budget.max_kl:g}"
        report.misses += split_worst(groups, budget, judge.loss, reason)
    report.groups, report.end_to_end, report.latency = [], {}, []
    return None


def _over_budget(groups: Sequence[GroupReport], budget: Budget) -> int | None:
    """The worst group, where quantising it again lost more than is allowed."""
    place = min(range(len(groups)), key=lambda index: groups[index].sqnr_db)
    lost = budget.min_sqnr is not None and groups[place].sqnr_db < budget.min_sqnr
    return place if lost and groups[place].requantisation_error is not None else None
