"""What recovery is asked for, and what came of it: plain figures by group."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from fxfuse.divergence import Divergence
from fxfuse.errors import InputError
from fxfuse.passes.weights import Wide

__all__ = ["GroupRecovery", "Method", "Recovered", "RecoveryOptions", "Solver", "Trial"]

Method = Literal["fit", "distill"]
Solver = Literal["auto", "direct", "blocks", "gradients"]


@dataclass(frozen=True)
class RecoveryOptions:
    """How the weights of a group are corrected.

    method: "fit" solves for the input maps (g') and the down projection (h); "distill" goes on from there
        with Adam on all weights of the group.
    solver: of h: "direct" by one Gram matrix, "blocks" one FFN at a time, "gradients" by conjugate gradients;
        "auto" takes the first whose Gram matrix fits into `memory`.
    memory: bytes that a Gram matrix may take; it takes 8 times the width squared.
    penalties: the penalties lambda that are tried, as shares of the Gram matrix's mean diagonal.
    sweeps, iterations: of "blocks" and of "gradients", for each penalty.
    steps, batch_tokens, rate: of the distillation; the rate is relative to each weight's root mean square.
    check_every: steps between two looks at the held-out tokens.
    seed: for the order in which the distillation takes the tokens.
    activations: bytes of activations held in memory; what comes on top goes to a temporary file.
    """

    method: Method = "fit"
    solver: Solver = "auto"
    memory: int = 2 << 30
    penalties: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    sweeps: int = 4
    iterations: int = 20
    steps: int = 1500
    batch_tokens: int = 1024
    rate: float = 5e-3
    check_every: int = 100
    seed: int = 0
    activations: int = 2 << 30

    def __post_init__(self) -> None:
        """Check every value, so that a mistake is told before any work is done."""
        for name, choices in (("method", get_args(Method)), ("solver", get_args(Solver))):
            if getattr(self, name) not in choices:
                known = " or ".join(map(repr, choices)) if len(choices) == 2 else ", ".join(choices)
                raise InputError(f"The recovery's {name} must be {known}, not {getattr(self, name)!r}.")
        for name in ("sweeps", "iterations", "steps", "batch_tokens", "check_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"The recovery's {name} must be a whole number above 0, not {value!r}.")
        if not self.penalties or not all(each > 0 for each in self.penalties):
            raise InputError(f"The recovery's penalties must be greater than 0, not {self.penalties!r}.")
        if not self.rate > 0:
            raise InputError(f"The recovery's rate must be greater than 0, not {self.rate!r}.")
        if self.memory < 0 or self.activations < 0:
            raise InputError("The recovery's memory and activations are bytes: give 0 or more.")

    @classmethod
    def of(cls, wish: Any) -> RecoveryOptions | None:
        """Options from what a user gives: "fit", "distill", a dict of fields, options; None for no recovery.

        Raises:
            InputError: It is none of these.
        """
        if wish is None or isinstance(wish, cls):
            return wish
        if isinstance(wish, str):
            return cls(method=wish)  # type: ignore[arg-type]
        if isinstance(wish, dict):
            return cls(**_known(wish))
        raise InputError(f'recover must be "fit", "distill" or RecoveryOptions, not {wish!r}.')


def _known(wish: dict[str, Any]) -> dict[str, Any]:
    names = [each.name for each in fields(RecoveryOptions)]
    for name in wish:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1) or names
            raise InputError(f"unknown recovery option {name!r}: did you mean {near[0]!r}?")
    return {name: tuple(value) if name == "penalties" else value for name, value in wish.items()}


@dataclass(frozen=True)
class Trial:
    """One form of a group's weights, as it would be written.

    name: "naive", "g'", "h", "g' + h" or "distilled"; penalty: the lambda chosen for its last step.
    error: mean over held-out tokens of |x_n(fused) - x_n|^2 / |x_n|^2. margin: the standard error of its
    difference from the naive form's, None for that one.
    """

    name: str
    penalty: float | None
    error: float
    margin: float | None


@dataclass(frozen=True)
class GroupRecovery:
    """What was tried on one group, and what was kept of it.

    kept: the name of the trial that is written, "naive" where none won; reason: why. tokens, held_out_tokens:
    what was fitted on, and what decided. error_before, error_after: of the naive form and of the kept one.
    kl_before, kl_after: of the logits with this group fused in both forms, the groups before it as they are
    kept and everything behind it sequential, in nats on the held-out tokens; None without logits.
    """

    blocks: tuple[str, ...]
    method: str
    kept: str
    reason: str
    tokens: int
    held_out_tokens: int
    width: int
    error_before: float
    error_after: float
    penalty: float | None = None
    kl_before: float | None = None
    kl_after: float | None = None
    solver: str = ""
    trials: tuple[Trial, ...] = ()

    @property
    def won(self) -> bool:
        """Whether the weights that are written are corrected ones."""
        return self.kept != "naive"


@dataclass
class Recovered:
    """The weights to write, in the order of the groups: None where the naive ones are kept.

    The wide weights are float32 and hold only values of the model's own type. kl_before, kl_after: of the
    logits with all groups fused, on the held-out tokens; None where the model has no logits.
    """

    wides: list[Wide | None]
    groups: list[GroupRecovery]
    kl_before: Divergence | None = None
    kl_after: Divergence | None = None
    notes: list[str] = field(default_factory=list)
