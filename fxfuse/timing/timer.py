"""Whether a group pays on the target, and in which form: chains of its shape are timed in every form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fxfuse.naming import span
from fxfuse.passes.forms import Form, legal_forms
from fxfuse.passes.fx.decode import kernels_fit, sums_fit
from fxfuse.passes.records import Block
from fxfuse.passes.view import View
from fxfuse.progress import Step
from fxfuse.report import GroupTiming
from fxfuse.timing.cache import Cache, cache_path
from fxfuse.timing.contest import BASELINE, Pace, Standing
from fxfuse.timing.memory import Memory
from fxfuse.timing.race import Race
from fxfuse.timing.shape import Shape, shape_of
from fxfuse.timing.stages import OnnxStage, Stage, TorchStage
from fxfuse.timing.target import Target
from fxfuse.timing.verdict import Verdict, judge
from fxfuse.timing.wording import milliseconds, token_count
from fxfuse.timing.workers import Failure

__all__ = ["Decision", "Timer"]


@dataclass(frozen=True)
class Decision:
    """What is best for a group: a form, or None where it stays sequential for `reason`.

    A group that could not be timed keeps the default form; `reason` says why then, and `timing` is None.
    """

    form: Form | None
    reason: str = ""
    timing: GroupTiming | None = None


class Timer:
    """Times on one target; leave the `with` block to end its processes.

    Args:
        target: Device and token counts.
        runtime: "onnxruntime", or the name of a backend of torch.compile.
        options: Those of torch.compile, for such a backend.
        weights: How weights will be stored at the end, as in `Shape`; None as they are.
        compiled: Whether the graph is torch.compile's own, for which there are more forms at one token.
        thorough: Time every form at every token count, also one that cannot pay any more.
        stage, cache, pace, progress: Where contestants run, what is known, how long is measured, who is told.
    """

    def __init__(
        self,
        target: Target,
        runtime: str = "onnxruntime",
        *,
        options: Mapping[str, Any] | None = None,
        weights: str | None = None,
        thorough: bool = False,
        compiled: bool = False,
        stage: Stage | None = None,
        cache: Cache | None = None,
        pace: Pace | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.target, self.runtime = target, runtime
        self._options, self._weights, self._thorough = dict(options or {}), weights, thorough
        self._compiled = compiled
        self._stage = stage
        kept = cache if cache is not None else Cache(cache_path())
        self._memory = Memory(kept, target, runtime, self._options)
        self._pace = pace or Pace(pause=0.0 if target.threads == 1 else 0.02)
        self._progress = progress
        self._count = 0
        self._known: dict[Shape, dict[int, Standing]] = {}

    def __enter__(self) -> Timer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes; a later decision starts new ones."""
        if self._stage is not None:
            self._stage.close()
            self._stage = None

    def decide(self, view: View, blocks: Sequence[Block]) -> Decision:
        """Time the blocks one after the other, and as one wide FFN in every form."""
        names = [block.name for block in blocks]
        shape = shape_of(view, blocks)
        if isinstance(shape, str):
            return Decision(Form(), f"{span(names)} was not timed: {shape}")
        forms = self.forms(view, blocks, shape)
        if self._weights is not None and shape.weights == "float":
            shape = replace(shape, weights=self._weights)
        return self.decide_shape(shape, forms, span(names))

    def forms(self, view: View, blocks: Sequence[Block], shape: Shape) -> list[Form]:
        """The forms that are worth timing; quantised weights are stacked in no other than these."""
        if shape.weights != "float":
            return [Form(), Form("packed")] if shape.gated else [Form()]
        opsets = getattr(getattr(view, "model", None), "opset_import", ())
        opset = next((each.version for each in opsets if each.domain in ("", "ai.onnx")), None)
        forms = legal_forms(blocks, self.runtime, opset)
        if self._compiled and self.target.tokens == (1,):
            fits, name = (kernels_fit, "kernel") if self.target.device == "cuda" else (sums_fit, "sums")
            forms += [Form(name)] if fits(view, blocks) else []
        return forms

    def decide_shape(self, shape: Shape, forms: Sequence[Form], name: str) -> Decision:
        """The same for a shape; `name` stands in the reason."""
        try:
            standings = self.standings(shape, forms)
        except Failure as failure:
            return Decision(Form(), f"{name} was not timed: {failure}")
        verdict = judge(standings, [str(form) for form in forms])
        if verdict is None:
            why = next(iter(standings[self.target.tokens[0]].failures.values()), "no form runs")
            return Decision(Form(), f"{name} was not timed: {why}")
        timing = _timing(verdict, standings)
        if verdict.pays:
            return Decision(Form.parse(verdict.name), "", timing)
        return Decision(None, self._reason(name, verdict, standings, len(forms)), timing)

    def standings(self, shape: Shape, forms: Sequence[Form]) -> dict[int, Standing]:
        """What is known or is now measured of a shape, by token count.

        Raises:
            Failure: The sequential chain cannot be timed.
        """
        names = [str(form) for form in forms]
        found = self._known.get(shape) or self._memory.recall(shape)
        if not all(self._is_known(found, name) for name in names):
            self._count += 1
            self._progress(Step("timing groups", self._count, None))
            stage = self._stage = self._stage or self._new_stage()
            found = Race(stage, shape, forms, self.target.tokens, self._pace, self._thorough).run()
            self._memory.remember(shape, found)
        self._known[shape] = found
        return found

    def _is_known(self, standings: Mapping[int, Standing], name: str) -> bool:
        """Whether nothing is left to be timed of a form."""
        found = [standings[tokens] for tokens in self.target.tokens if tokens in standings]
        if any(name in each.failures for each in found):
            return True
        if not self._thorough and any(each.is_hopeless(name, self._pace.behind) for each in found):
            return True
        return len(found) == len(self.target.tokens) and all(name in each.ratios for each in found)

    def _new_stage(self) -> Stage:
        if self.runtime == "onnxruntime":
            return OnnxStage(self.target)
        return TorchStage(self.target, self.runtime, self._options)

    def _reason(self, name: str, verdict: Verdict, standings: Mapping[int, Standing], count: int) -> str:
        tokens = verdict.worst
        standing = standings[tokens]
        fused, plain = (1e3 * standing.seconds(each) for each in (verdict.name, BASELINE))
        of = f"best of {count} forms: {verdict.name}" if count > 1 else f"as {verdict.name}"
        steady = "; one round in four or more was slower" if verdict.is_unsteady else ""
        return (
            f"fusing {name} takes {milliseconds(fused)} at {token_count(tokens)} on "
            f"{self.target.device}, sequential {milliseconds(plain)} ({of}){steady}"
        )


def _timing(verdict: Verdict, standings: Mapping[int, Standing]) -> GroupTiming:
    known = {tokens: standings[tokens] for tokens in verdict.ratios}
    plain = {tokens: 1e3 * standing.seconds() for tokens, standing in known.items()}
    fused = {tokens: 1e3 * standing.seconds(verdict.name) for tokens, standing in known.items()}
    return GroupTiming(verdict.name, plain, fused)
