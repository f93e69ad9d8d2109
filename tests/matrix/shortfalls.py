"""Where nothing is fused of what is there, or a form cannot be made: told by hand, with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

__all__ = ["SHORTFALLS", "Shortfall", "shortfall"]


@dataclass(frozen=True)
class Shortfall:
    """Families by name (all others, with a ! before them) and forms by pattern.

    `made` tells whether the file is there and nothing is fused; else it is not there.
    """

    families: str
    forms: str
    reason: str
    made: bool = True

    def covers(self, family: str, form: str) -> bool:
        """Whether the cell is one of these."""
        listed = family in self.families.lstrip("!").split()
        return listed != self.families.startswith("!") and fnmatch(form, self.forms)


_GENAI = "llama mistral qwen2 qwen3 gemma phi3 granite nemotron olmo phi gemma2"
_REFUSED = "gemma2 mixtral bert"
_CALIBRATED = "quantised by calibrated scales of its own"
_GAINS = "quantised weights take no gain"

SHORTFALLS = [
    Shortfall("gemma2", "genai*", "ONNX Runtime refuses the builder's float16 file", made=False),
    Shortfall(f"!{_GENAI}", "genai*", "builder does not know the architecture", made=False),
    Shortfall(f"!{_REFUSED}", "QDQ*", _CALIBRATED),
    # OLMo's norms have no gain, and the quantiser of MatMulNBits leaves GPT-2's Gemm as they are.
    Shortfall(f"!olmo {_REFUSED}", "int8", _GAINS),
    Shortfall(f"!olmo gpt2 {_REFUSED}", "nbits", _GAINS),
    Shortfall(f"!olmo {_REFUSED}", "genai int4", _GAINS),
    Shortfall("gpt2", "core aten", "run_decompositions() stops: Cannot view", made=False),
    Shortfall("nemotron deepseek_v3 t5 t5_gated", "symbolic", "symbolic_trace stops", made=False),
]


def shortfall(family: str, form: str) -> Shortfall | None:
    """What is known of a cell; None where everything that is there is fused."""
    return next((each for each in SHORTFALLS if each.covers(family, form)), None)
