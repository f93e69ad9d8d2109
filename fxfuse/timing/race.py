"""One race: the forms of a chain against the sequential one, at every token count that matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fxfuse.passes.forms import Form
from fxfuse.timing.contest import BASELINE, Pace, Standing, run_rounds
from fxfuse.timing.shape import Shape
from fxfuse.timing.stages import Stage
from fxfuse.timing.verdict import Verdict, judge
from fxfuse.timing.workers import Failure

__all__ = ["Race"]

_SEATINGS = 2
_TIMES_IN_DOUBT = 3
"""How often the winner is measured again where a little noise would unseat it."""


class Race:
    """Runs the forms of one shape on a stage; `thorough` times also those that cannot pay any more."""

    def __init__(
        self,
        stage: Stage,
        shape: Shape,
        forms: Sequence[Form],
        tokens: Sequence[int],
        pace: Pace,
        thorough: bool,
    ) -> None:
        self._stage, self._shape, self._pace, self._thorough = stage, shape, pace, thorough
        self._chains = {str(form): form for form in forms}
        self._standings = {each: Standing() for each in tokens}
        self._opened: list[str] = []
        self._seated: set[str] = set()

    def run(self) -> dict[int, Standing]:
        """What was measured, by token count.

        Raises:
            Failure: The sequential chain cannot be timed.
        """
        names = list(self._chains)
        seats = min(self._stage.seats(self._shape), len(names) + 1)
        if seats < 2:
            raise Failure("there is not enough memory for a second copy of its weights")
        heats = [names[start : start + seats - 1] for start in range(0, len(names), seats - 1)]
        try:
            failures = self._open([BASELINE])
            if failures:
                raise Failure(failures[BASELINE])
            for heat in heats:
                self._heat(heat)
                if len(heats) > 1:
                    self._leave(heat)
            self._settle()
            self._seat_again()
        finally:
            self._leave(list(self._opened))
        return self._standings

    def _heat(self, names: Sequence[str]) -> None:
        """Open and time some forms."""
        broken = self._open(names)
        for standing in self._standings.values():
            standing.failures.update(broken)
        racing = [name for name in names if name not in broken]
        for tokens, standing in self._standings.items():
            racing = self._prepare(tokens, racing)
            run_rounds(self._turns(racing), standing, self._pace, racing)
            if not self._thorough:
                racing = [name for name in racing if not standing.is_hopeless(name, self._pace.behind)]
            if not racing:
                break

    def _open(self, names: Sequence[str]) -> dict[str, str]:
        failures = self._stage.open({name: self._chains.get(name) for name in names}, self._shape)
        self._opened += [name for name in names if name not in failures]
        return failures

    def _leave(self, names: Sequence[str]) -> None:
        gone = [name for name in names if name in self._opened]
        self._stage.leave(gone)
        self._opened = [name for name in self._opened if name not in gone]

    def _prepare(self, tokens: int, names: Sequence[str]) -> list[str]:
        """Make the baseline and `names` ready; returns those of `names` that are.

        Raises:
            Failure: The baseline is not.
        """
        failures = self._stage.prepare([BASELINE, *names], self._shape, tokens)
        if BASELINE in failures:
            raise Failure(failures[BASELINE])
        for standing in self._standings.values():
            standing.failures.update(failures)
        return [name for name in names if name not in failures]

    def _settle(self) -> None:
        """Measure the winner again while it was measured too little, or a little noise would unseat it."""
        for _ in range(_TIMES_IN_DOUBT):
            verdict = judge(self._standings, list(self._chains))
            if verdict is None or not self._is_open(verdict):
                return
            name = verdict.name
            if name not in self._opened and self._open([name]):
                return
            for tokens, standing in self._standings.items():
                alive = self._prepare(tokens, [name])
                run_rounds(self._turns(alive), standing, self._pace, alive, self._pace.rounds)

    def _seat_again(self) -> None:
        """Measure the winner in new memory too, opened before the baseline; the worse of both is believed.

        What memory a process happens to get makes more of a difference than rounds show, and the first to
        open gets the best.
        """
        for _ in range(_SEATINGS):
            verdict = judge(self._standings, list(self._chains))
            if verdict is None or not verdict.pays or verdict.name in self._seated:
                return
            name = verdict.name
            self._seated.add(name)
            self._leave(list(self._opened))
            if self._open([name]) or self._open([BASELINE]):
                return
            for tokens, standing in self._standings.items():
                again, alive = Standing(), self._prepare(tokens, [name])
                run_rounds(self._turns(alive), again, self._pace, alive, self._pace.rounds)
                if alive and again.ratio(name) < standing.ratio(name):
                    standing.ratios[name] = again.ratios[name]

    def _is_open(self, verdict: Verdict) -> bool:
        if len(verdict.ratios) < len(self._standings):
            return False
        least = min(len(each.ratios.get(verdict.name, ())) for each in self._standings.values())
        return least < self._pace.rounds or (verdict.in_doubt and least < _TIMES_IN_DOUBT * self._pace.rounds)

    def _turns(self, names: Sequence[str]) -> Mapping[str, Callable[[float], list[float]]]:
        def turn(name: str) -> Callable[[float], list[float]]:
            return lambda seconds: self._stage.round(name, seconds)

        return {name: turn(name) for name in (BASELINE, *names)}
