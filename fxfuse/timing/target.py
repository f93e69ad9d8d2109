"""What the fused model has to be fast on: a device, and the token counts that matter there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

from fxfuse.errors import InputError

__all__ = ["AnyTarget", "Target", "parse_tokens"]

_MOST_TOKENS = 1 << 20


@dataclass(frozen=True)
class Target:
    """A device and how it is used.

    tokens: the token counts of one call that matter: 1 for decoding, the prompt's length for prefill.
    device: "cpu" or "cuda". threads: inside an operator; None leaves the choice to the runtime.
    cuda_graphs: time with CUDA graphs, as in mode="reduce-overhead" or ONNX Runtime's enable_cuda_graph.
    """

    tokens: tuple[int, ...] = (1,)
    device: str = "cpu"
    threads: int | None = None
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        """Check every value, so that a mistake is told before any work is done."""
        given: Any = self.tokens
        tokens = (given,) if isinstance(given, int) else given
        if not isinstance(tokens, (list, tuple, range)) or not tokens:
            raise InputError(f"tokens of a target must be token counts such as (1, 8, 32), not {given!r}.")
        for each in tokens:
            if not _is_count(each) or each > _MOST_TOKENS:
                raise InputError(
                    f"tokens of a target must be whole numbers from 1 to {_MOST_TOKENS}, not {each!r}."
                )
        object.__setattr__(self, "tokens", tuple(dict.fromkeys(tokens)))
        if self.device not in ("cpu", "cuda"):
            raise InputError(f"The device of a target is cpu or cuda, not {self.device!r}.")
        if self.threads is not None and not _is_count(self.threads):
            raise InputError(
                f"threads of a target must be a whole number of at least 1 or None, not {self.threads!r}."
            )
        if not isinstance(self.cuda_graphs, bool):
            raise InputError(f"cuda_graphs of a target must be True or False, not {self.cuda_graphs!r}.")
        if self.cuda_graphs and self.device != "cuda":
            raise InputError("cuda_graphs of a target needs the device cuda: leave it out on a CPU.")

    @classmethod
    def of(cls, given: AnyTarget, device: str = "cpu") -> Target | None:
        """A target from what users write: 1, (1, 8, 32), {"tokens": (1, 8), "threads": 4}; None for none.

        `device` is that of a target that names none.

        Raises:
            InputError: It makes no sense.
        """
        if given is None or isinstance(given, Target):
            return given
        if isinstance(given, Mapping):
            known = [each.name for each in fields(cls)]
            unknown = [name for name in given if name not in known]
            if unknown:
                raise InputError(f"A target has no {unknown[0]!r}: it has {', '.join(known)}.")
            return cls(**{"device": device, **given})
        if isinstance(given, (list, tuple, range)):
            return cls(tuple(given), device)
        if isinstance(given, int) and not isinstance(given, bool):
            return cls((given,), device)
        raise InputError(
            f"target must be token counts such as 1 or (1, 8, 32), a mapping or a Target, not {given!r}."
        )

    def alone(self, tokens: int) -> Target:
        """The same with one token count."""
        return replace(self, tokens=(tokens,))


AnyTarget: TypeAlias = "None | int | Sequence[int] | Mapping[str, Any] | Target"


def parse_tokens(text: str) -> tuple[int, ...]:
    """Token counts from "1,8,32".

    Raises:
        ValueError: They are none.
    """
    counts = tuple(int(part) for part in text.split(","))
    return Target(counts).tokens


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
