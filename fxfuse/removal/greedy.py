"""The rule by which attentions are chosen: rounds, in each of which one goes.

In every round each attention that is left is left out on top of those that went, and the KL of the logits to
the whole model's is measured. Of those within budget goes the one with the least KL; but where one that makes
a run of removed attentions longer has at most `patience` times that KL, the cheapest such one goes first,
since a run of k removed attentions makes a chain of k + 1 FFN blocks. It ends when none is within budget.

How an attention is left out and measured is its caller's: `Measured`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from fxfuse.errors import InputError
from fxfuse.removal.records import Candidate, Step

__all__ = ["PATIENCE", "Measured", "allowed_of", "check_bounds", "rounds"]

PATIENCE = 1.5


class Measured(Protocol):
    """A model of which attentions are left out, for a try or for good."""

    def measure(self, left: Sequence[str], count: int) -> list[Candidate]:
        """The KL without each of `left` and all that went, in round `count`."""

    def remove(self, name: str) -> None:
        """Leave an attention out for good."""


def check_bounds(number: int | None, max_kl: float | None, patience: float) -> None:
    """Whether the bounds of a choice make sense.

    Raises:
        InputError: None is given, or one makes no sense.
    """
    if number is None and max_kl is None:
        raise InputError("Say how much may go: number=, max_kl=, or both.")
    if number is not None and number < 1:
        raise InputError(f"The number of attentions to remove must be 1 or more, not {number}.")
    if max_kl is not None and not max_kl > 0:
        raise InputError(f"max_kl must be above 0 nats, not {max_kl:g}.")
    if not patience >= 1:
        raise InputError(f"patience must be 1 or more, not {patience:g}.")


def allowed_of(names: Sequence[str], meant: Sequence[str], *, first: bool) -> list[str]:
    """Those of the attentions `meant` that may go: without `first`, not the first of all `names`.

    Raises:
        InputError: None may.
    """
    allowed = [each for each in meant if first or each != names[0]]
    if not allowed:
        raise InputError("The model has no attention that may go: allow the first one, or another model.")
    return allowed


def rounds(
    model: Measured,
    names: Sequence[str],
    allowed: Sequence[str],
    number: int | None,
    max_kl: float | None,
    patience: float,
) -> tuple[list[Step], str]:
    """Rounds until a bound is met, and why they stopped; `names` are all attentions in their order."""
    steps: list[Step] = []
    while number is None or len(steps) < number:
        gone = {step.name for step in steps}
        left = [each for each in allowed if each not in gone]
        if not left:
            return steps, "all attentions that may go are gone"
        tried = model.measure(left, len(steps) + 1)
        within = [each for each in tried if max_kl is None or each.kl <= max_kl]
        if not within:
            least = min(tried, key=_cost)
            return steps, f"the next one, {least.name}, would bring the KL to {least.kl:.3g} nats"
        taken = _taken(within, names, gone, patience)
        extends = _extends(taken.name, names, gone)
        steps.append(Step(taken.name, taken.kl, taken.standard_error, extends, tuple(tried)))
        model.remove(taken.name)
    return steps, f"{number} are gone, as many as were asked for"


_cost: Callable[[Candidate], float] = lambda each: each.kl  # noqa: E731


def _taken(
    within: Sequence[Candidate], names: Sequence[str], gone: Collection[str], patience: float
) -> Candidate:
    """The candidate of a round: the cheapest, or the cheapest that makes a run longer."""
    least = min(within, key=_cost)
    longer = [each for each in within if _extends(each.name, names, gone)]
    best = min(longer, key=_cost, default=None)
    return best if best is not None and best.kl <= patience * least.kl else least


def _extends(name: str, names: Sequence[str], gone: Collection[str]) -> bool:
    place = names.index(name)
    return any(each in gone for each in (*names[max(place - 1, 0) : place], *names[place + 1 : place + 2]))
