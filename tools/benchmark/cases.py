"""What is timed: models at numbers of tokens, the contestants that run them, and which two make a ratio."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CASES", "CONTESTANTS", "PAIRS", "QUICK", "Case", "Pair", "Settings", "contestants_on", "dtype_of"]


@dataclass(frozen=True)
class Case:
    """A model by name, at a number of tokens in one sequence; written "demo/32"."""

    model: str
    tokens: int

    def __str__(self) -> str:
        return f"{self.model}/{self.tokens}"


@dataclass(frozen=True)
class Pair:
    """Two contestants that differ in nothing but the fusion."""

    title: str
    unfused: str
    fused: str


@dataclass(frozen=True)
class Settings:
    """How to measure: `seconds` a round at least; `pause` seconds after each, until the threads sleep."""

    device: str = "cpu"
    threads: int = 1
    rounds: int = 5
    seconds: float = 0.25
    pause: float = 0.1


_TOKENS = {"demo": (1, 32, 256), "chain-256": (1, 8, 32, 128), "chain-1024": (1, 8, 32, 128)}

CASES = tuple(Case(model, tokens) for model, lengths in _TOKENS.items() for tokens in lengths)
"""Cases of one model stand together: its contestants are started once."""

QUICK = (Case("chain-256", 1), Case("chain-256", 32))

CONTESTANTS = {
    "eager": "torch eager",
    "inductor": "torch.compile, inductor",
    "fxfuse": "torch.compile, fxfuse",
    "inductor-graphs": "torch.compile, inductor, reduce-overhead",
    "fxfuse-graphs": "torch.compile, fxfuse, reduce-overhead",
    "onnx": "ONNX Runtime, plain export",
    "onnx-fused": "ONNX Runtime, fused file",
}

PAIRS = (
    Pair("torch.compile", "inductor", "fxfuse"),
    Pair("reduce-overhead", "inductor-graphs", "fxfuse-graphs"),
    Pair("ONNX Runtime", "onnx", "onnx-fused"),
)


def contestants_on(device: str) -> list[str]:
    """The names of the contestants; CUDA graphs are for CUDA."""
    return [name for name in CONTESTANTS if device == "cuda" or not name.endswith("-graphs")]


def dtype_of(contestant: str, device: str) -> str:
    """The type that a user of that runtime would choose: ONNX Runtime has few bfloat16 kernels."""
    if device == "cpu":
        return "float32"
    return "float16" if contestant.startswith("onnx") else "bfloat16"
