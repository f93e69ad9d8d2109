"""torch.compile(model, backend=fxfuse): fuse the dynamo graph, then hand it to an inner backend.

Dynamo lifts parameters to placeholders. The wide weights become placeholders too, appended at the end, so
that the inner backend treats them as it treats parameters, and one wrapper adds them to every call.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from fxfuse.budget import Budget
from fxfuse.compiled import Compiled, CompiledGraph
from fxfuse.errors import FxfuseError, InputError
from fxfuse.frontends.dynamo_graph import DynamoGraph
from fxfuse.frontends.torch_size import size_of
from fxfuse.inner import inner_backend
from fxfuse.passes.forms import Form
from fxfuse.passes.fx.inside import misses_inside
from fxfuse.pipeline import fuse
from fxfuse.planning.using import plan_for
from fxfuse.report import Report
from fxfuse.timing.target import Target
from fxfuse.timing.using import torch_timing

__all__ = ["backend", "reports"]

log = logging.getLogger("fxfuse")

_OWN_OPTIONS = ("inner", "inner_options", "plan", "one_copy", "target", "form")
_reports: list[Report] = []


def reports() -> list[Report]:
    """The reports of the compilations in this process, newest last."""
    return list(_reports)


def backend(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """The torch.compile backend.

    Args:
        module: The graph that dynamo captured.
        example_inputs: The real inputs of this call, on which the loss is measured.
        mode: Passed on to the inner backend, as in torch.compile.
        options: The fields of `Budget`; `inner`, the backend that compiles the rewritten graph ("inductor",
            "eager", any other name or a callable); `inner_options`, a dict that is passed on to it; `plan`, a
            plan or its file, whose groups are fused instead of those that the budget would choose;
            `one_copy`, True to make the parameters of fused blocks views of the wide weights. Gains are then
            folded in and the norms' own become neutral: the model stays the same function, eager and in its
            state dict, which keeps its keys and holds the folded values; `target`, token counts such as
            (1, 8, 32) or a `Target`: groups are timed at those as `inner` compiles them, the first time with
            a compilation of every form, and those that do not pay stay sequential; `form`, the form that
            groups are written in where nothing is timed: "two", "packed", "two/4", "kernel" (see
            `fxfuse.passes.forms`).

    Raises:
        ValueError: An option is unknown or its value makes no sense, or the plan cannot be read.
    """
    given = dict(options or {})
    inner = given.pop("inner", "inductor")
    inner_options = given.pop("inner_options", None)
    plan = given.pop("plan", None)
    one_copy = given.pop("one_copy", False)
    if not isinstance(one_copy, bool):
        raise InputError(f"one_copy must be True or False, not {one_copy!r}.")
    if "recover" in given:
        raise InputError(
            "torch.compile offers no recovery, since its wide weights follow the model's parameters: use "
            "fxfuse.fuse(model, example_inputs, recover=..., calibration=...), which returns a program."
        )
    if "quantize" in given:
        raise InputError(
            "torch.compile does not quantise, since its wide weights follow the model's parameters: use "
            "fxfuse.fuse(model, example_inputs, quantize=...), which returns a program."
        )
    target = given.pop("target", None)
    form = _form(given.pop("form", None), target)
    Target.of(target)  # a mistake is told before any work is done
    budget = Budget.of(given, also=_OWN_OPTIONS)
    planned = plan_for(plan, budget)
    compile_inner = inner_backend(inner, mode, inner_options)
    report = Report(model=f"graph {len(_reports)} of this process")
    _reports.append(report)
    front = DynamoGraph(module, example_inputs)
    fused = None
    reason = front.objection()
    if reason is None:
        try:
            with torch_timing(target, example_inputs, report, inner, mode, inner_options) as timing:
                fused = fuse(front, budget, report, plan=planned, part=True, timing=timing, form=form)
            report.misses += misses_inside(front.view)
        except FxfuseError as error:
            reason = str(error)
    if fused is None:
        _tell(report, reason)
        return compile_inner(module, example_inputs)
    report.before = size_of(module, front.weights, report.ffn_blocks)
    report.after = size_of(fused.module, front.weights_of(fused), report.ffn_blocks_left)
    if form is not None:
        pairs = zip(report.groups, fused.forms, strict=True)
        report.groups = [replace(group, form=str(own)) for group, own in pairs]
    _tell(report, None)
    return CompiledGraph(front, fused, compile_inner, list(example_inputs), report, one_copy)


def _form(text: Any, target: Any) -> Form | None:
    if text is None:
        return None
    if target is not None:
        raise InputError("form and target both choose how a group is written: give one of the two.")
    if isinstance(text, Form):
        return text
    if not isinstance(text, str):
        raise InputError(f"form must be a text such as 'packed' or 'two/4', not {text!r}.")
    try:
        return Form.parse(text)
    except ValueError as error:
        raise InputError(str(error)) from None


def _tell(report: Report, reason: str | None) -> None:
    if reason is not None:
        report.error = reason
        log.warning("fxfuse: not fused: %s", reason.rstrip("."))
    else:
        log.info("%s", report.summary())
