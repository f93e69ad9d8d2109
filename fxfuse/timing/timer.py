"""Whether a group pays on the target, and in which form: chains of its shape are timed in every form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fxfuse.naming import span
from fxfuse.passes.forms import Form, legal_forms
from fxfuse.passes.records import Block
from fxfuse.passes.view import View
from fxfuse.progress import Step
from fxfuse.report import GroupTiming
from fxfuse.timing.cache import Cache, cache_path
from fxfuse.timing.contest import BASELINE, Pace, Standing, run_rounds
from fxfuse.timing.machine import device_name
from fxfuse.timing.shape import Shape, shape_of
from fxfuse.timing.stages import OnnxStage, Stage, TorchStage
from fxfuse.timing.target import Target
from fxfuse.timing.verdict import Verdict, judge
from fxfuse.timing.wording import milliseconds, token_count
from fxfuse.timing.workers import ENDED, Failure
from fxfuse.versions import versions

__all__ = ["Decision", "Timer"]

_TIMES_IN_DOUBT = 3
_RUNTIMES = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime"), "torch": ("torch",)}


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
        stage: Stage | None = None,
        cache: Cache | None = None,
        pace: Pace | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.target, self.runtime = target, runtime
        self._options, self._weights, self._thorough = dict(options or {}), weights, thorough
        self._stage = stage
        self._cache = cache if cache is not None else Cache(cache_path())
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
        return legal_forms(blocks, self.runtime, opset)

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
        found = self._known.get(shape) or self._recall(shape)
        if not all(self._is_known(found, name) for name in names):
            self._count += 1
            self._progress(Step("timing groups", self._count, None))
            found = self._measure(shape, forms)
            self._remember(shape, found)
        self._known[shape] = found
        return found

    def _measure(self, shape: Shape, forms: Sequence[Form]) -> dict[int, Standing]:
        stage = self._stage = self._stage or self._new_stage()
        chains = {str(form): form for form in forms}
        standings = {tokens: Standing() for tokens in self.target.tokens}
        seats = min(stage.seats(shape), len(forms) + 1)
        if seats < 2:
            raise Failure("there is not enough memory for a second copy of its weights")
        names = list(chains)
        heats = [names[start : start + seats - 1] for start in range(0, len(names), seats - 1)]
        opened: list[str] = []
        try:
            failures = stage.open({BASELINE: None}, shape)
            if failures:
                raise Failure(failures[BASELINE])
            opened.append(BASELINE)
            for heat in heats:
                opened += self._heat(stage, shape, {name: chains[name] for name in heat}, standings)
                if len(heats) > 1:
                    stage.leave(opened[1:])
                    del opened[1:]
            self._settle(stage, shape, chains, standings, opened)
        finally:
            stage.leave(opened)
        return standings

    def _heat(
        self, stage: Stage, shape: Shape, chains: Mapping[str, Form], standings: Mapping[int, Standing]
    ) -> list[str]:
        """Open and time some forms; returns those that are open."""
        broken = stage.open(chains, shape)
        for standing in standings.values():
            standing.failures.update(broken)
        opened = racing = [name for name in chains if name not in broken]
        for tokens, standing in standings.items():
            racing = self._prepare(stage, shape, tokens, racing, standings)
            run_rounds(self._turns(stage, racing), standing, self._pace, racing)
            racing = [name for name in racing if not self._is_hopeless(standing, name)]
            if not racing:
                break
        return opened

    def _prepare(
        self, stage: Stage, shape: Shape, tokens: int, names: list[str], standings: Mapping[int, Standing]
    ) -> list[str]:
        """Make the baseline and `names` ready; returns those of `names` that are.

        Raises:
            Failure: The baseline is not.
        """
        failures = stage.prepare([BASELINE, *names], shape, tokens)
        if BASELINE in failures:
            raise Failure(failures[BASELINE])
        for standing in standings.values():
            standing.failures.update(failures)
        return [name for name in names if name not in failures]

    def _settle(
        self,
        stage: Stage,
        shape: Shape,
        chains: Mapping[str, Form],
        standings: Mapping[int, Standing],
        opened: list[str],
    ) -> None:
        """Measure the winner again while it was measured too little, or a little noise would unseat it."""
        for _ in range(_TIMES_IN_DOUBT):
            verdict = judge(standings, list(chains))
            if verdict is None or not self._is_open(verdict, standings):
                return
            name = verdict.name
            if name not in opened:
                if stage.open({name: chains[name]}, shape):
                    return
                opened.append(name)
            for tokens, standing in standings.items():
                alive = self._prepare(stage, shape, tokens, [name], standings)
                run_rounds(self._turns(stage, alive), standing, self._pace, alive, self._pace.rounds)

    def _is_hopeless(self, standing: Standing, name: str) -> bool:
        return not self._thorough and standing.is_hopeless(name, self._pace.behind)

    def _is_known(self, standings: Mapping[int, Standing], name: str) -> bool:
        """Whether nothing is left to be timed of a form."""
        found = [standings[tokens] for tokens in self.target.tokens if tokens in standings]
        if any(name in each.failures or self._is_hopeless(each, name) for each in found):
            return True
        return len(found) == len(self.target.tokens) and all(name in each.ratios for each in found)

    def _is_open(self, verdict: Verdict, standings: Mapping[int, Standing]) -> bool:
        if len(verdict.ratios) < len(standings):
            return False
        least = min(len(each.ratios.get(verdict.name, ())) for each in standings.values())
        return least < self._pace.rounds or (verdict.in_doubt and least < _TIMES_IN_DOUBT * self._pace.rounds)

    def _turns(self, stage: Stage, names: Sequence[str]) -> dict[str, Callable[[float], list[float]]]:
        def turn(name: str) -> Callable[[float], list[float]]:
            return lambda seconds: stage.round(name, seconds)

        return {name: turn(name) for name in (BASELINE, *names)}

    def _new_stage(self) -> Stage:
        if self.runtime == "onnxruntime":
            return OnnxStage(self.target)
        return TorchStage(self.target, self.runtime, self._options)

    def _reason(self, name: str, verdict: Verdict, standings: Mapping[int, Standing], count: int) -> str:
        tokens = verdict.worst
        standing = standings[tokens]
        fused, plain = (1e3 * standing.seconds(each) for each in (verdict.name, BASELINE))
        of = f"best of {count} forms: {verdict.name}" if count > 1 else f"as {verdict.name}"
        return (
            f"fusing {name} takes {milliseconds(fused)} at {token_count(tokens)} on "
            f"{self.target.device}, sequential {milliseconds(plain)} ({of})"
        )

    def _key(self, shape: Shape, tokens: int) -> str:
        target, found = self.target, versions()
        packages = _RUNTIMES.get(self.runtime, _RUNTIMES["torch"])
        version = next((f"{each} {found[each]}" for each in packages if each in found), "")
        parts = [
            device_name(target.device),
            f"{target.threads or 'all'} threads" + (", CUDA graphs" if target.cuda_graphs else ""),
            f"{self.runtime} on {version}" if self.runtime != "onnxruntime" else version,
            *(f"{key}={value}" for key, value in sorted(self._options.items())),
            str(shape),
            f"{tokens} tokens",
        ]
        return " | ".join(parts)

    def _recall(self, shape: Shape) -> dict[int, Standing]:
        keys = {tokens: self._key(shape, tokens) for tokens in self.target.tokens}
        read = {tokens: _read(self._cache.get(key)) for tokens, key in keys.items()}
        return {tokens: standing for tokens, standing in read.items() if standing is not None}

    def _remember(self, shape: Shape, standings: Mapping[int, Standing]) -> None:
        failures = [each for standing in standings.values() for each in standing.failures.values()]
        if any(text.startswith(ENDED) for text in failures):
            return  # it may have been the memory, and go well another time
        for tokens, standing in standings.items():
            if not standing.base:
                continue
            figures = {
                "seconds": standing.seconds(),
                "ratios": {name: standing.ratio(name) for name in standing.ratios},
                "failures": standing.failures,
            }
            self._cache.put(self._key(shape, tokens), figures)


def _timing(verdict: Verdict, standings: Mapping[int, Standing]) -> GroupTiming:
    known = {tokens: standings[tokens] for tokens in verdict.ratios}
    plain = {tokens: 1e3 * standing.seconds() for tokens, standing in known.items()}
    fused = {tokens: 1e3 * standing.seconds(verdict.name) for tokens, standing in known.items()}
    return GroupTiming(verdict.name, plain, fused)


def _read(figures: Mapping[str, Any] | None) -> Standing | None:
    """A standing from the cache; None where it holds anything else."""
    try:
        assert figures is not None
        seconds, failures = float(figures["seconds"]), dict(figures["failures"])
        ratios = {str(name): [float(each)] for name, each in figures["ratios"].items()}
    except (AssertionError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return Standing([seconds], ratios, failures) if seconds > 0 else None
