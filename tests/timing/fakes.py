"""Contestants that take the time they are told to, without a process and without a clock."""

from collections.abc import Callable, Mapping, Sequence

from fxfuse.passes.forms import Form
from fxfuse.timing.contest import BASELINE, Pace
from fxfuse.timing.shape import Shape
from fxfuse.timing.workers import Failure

PACE = Pace(seconds=0.0, pause=0.0)

Speed = Callable[[Shape, str, int], float]
"""The seconds of a call of the chain `name` (a form, or the baseline) at a token count."""


class FakeStage:
    """A stage with figures; notes what it was asked for. A speed of 0 is a failure."""

    def __init__(self, speed: Speed, seats: int = 64) -> None:
        self._speed, self._seats = speed, seats
        self.opened: list[str] = []
        self.turns: list[tuple[str, int]] = []
        self.open_now: set[str] = set()
        self.most_open = 0
        self.closed = False
        self._at: dict[str, tuple[Shape, int]] = {}

    def seats(self, shape: Shape) -> int:
        return self._seats

    def open(self, chains: Mapping[str, Form | None], shape: Shape) -> dict[str, str]:
        self.opened += chains
        failures = {name: "no kernel" for name in chains if not self._speed(shape, name, 1)}
        self.open_now |= chains.keys() - failures.keys()
        self.most_open = max(self.most_open, len(self.open_now))
        return failures

    def prepare(self, names: Sequence[str], shape: Shape, tokens: int) -> dict[str, str]:
        assert self.open_now.issuperset(names)
        self._at |= dict.fromkeys(names, (shape, tokens))
        return {}

    def round(self, name: str, seconds: float) -> list[float]:
        shape, tokens = self._at[name]
        self.turns.append((name, tokens))
        taken = self._speed(shape, name, tokens)
        if taken < 0:
            raise Failure("its process ended with exit code -9")
        return [taken]

    def leave(self, names: Sequence[str]) -> None:
        self.open_now -= set(names)

    def close(self) -> None:
        self.closed = True


def speeds(*, base: float = 1.0, **forms: float) -> Speed:
    """The same at every token count: `two=0.5` is twice as fast; a slash is written as an underscore."""
    known = {name.replace("_", "/"): seconds for name, seconds in forms.items()}
    return lambda shape, name, tokens: base if name == BASELINE else known.get(name, base)
