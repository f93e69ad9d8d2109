"""What loss a user allows: one spelling for Python keywords, torch.compile options and the command line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fxfuse.errors import InputError

__all__ = ["Budget"]


@dataclass(frozen=True)
class Budget:
    """Bounds on the loss of a fusion.

    min_sqnr: the least signal-to-noise ratio of each group's update, in dB; None for no bound.
    max_kl: the greatest mean KL divergence of the logits from the original's, in nats; None for no bound.
    max_group: the most blocks in one group; None for no bound.
    include, exclude: regular expressions, searched for in block names; None for all, and for none.
    seed: for inputs that are drawn.
    requantize: let quantised weights be quantised again where gains have to be folded into them.
    """

    min_sqnr: float | None = 12.0
    max_kl: float | None = None
    max_group: int | None = None
    include: str | None = None
    exclude: str | None = None
    seed: int = 0
    requantize: bool = False

    def __post_init__(self) -> None:
        """Check every value, so that a mistake is told before any work is done."""
        for name in ("min_sqnr", "max_kl"):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, (int, float)) or value != value
            ):
                raise InputError(f"{name} must be a number or None, not {value!r}.")
        if self.max_kl is not None and self.max_kl < 0:
            raise InputError(f"max_kl must not be negative, but is {self.max_kl:g}.")
        if self.max_group is not None and (not isinstance(self.max_group, int) or self.max_group < 2):
            raise InputError(
                f"max_group must be a whole number of at least 2 or None, not {self.max_group!r}."
            )
        if not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"seed must be a whole number of at least 0, not {self.seed!r}.")
        if not isinstance(self.requantize, bool):
            raise InputError(f"requantize must be True or False, not {self.requantize!r}.")
        for name in ("include", "exclude"):
            _check_pattern(name, getattr(self, name))

    @classmethod
    def of(cls, options: Mapping[str, Any], also: tuple[str, ...] = ()) -> Budget:
        """A budget from keywords; an unknown one is an error that names the nearest known."""
        known = [each.name for each in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, [*known, *also], n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join([*known, *also])}."
                raise InputError(f"unknown option {name!r}: {hint}")
        return cls(**options)

    def allows(self, name: str) -> str | None:
        """Why the block `name` is left out by `include` or `exclude`; None if it is not."""
        if self.include is not None and not re.search(self.include, name):
            return f"left out: --include {self.include!r} does not match it"
        if self.exclude is not None and re.search(self.exclude, name):
            return f"left out: --exclude {self.exclude!r} matches it"
        return None


def _check_pattern(name: str, pattern: Any) -> None:
    if pattern is None:
        return
    if not isinstance(pattern, str):
        raise InputError(f"{name} must be a regular expression as text or None, not {pattern!r}.")
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"{name}={pattern!r} is not a regular expression: {error}.") from None
