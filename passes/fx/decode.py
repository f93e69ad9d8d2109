"""A decode step of a wide FFN as two operators: norm, gate, up and activation in one; then down.

    inner = act(gate @ n(x)) * (up @ n(x))        parts = down @ inner, in as many parts as it was cut into

At one token an FFN is bound by reading its weights, and every launch and every tail of a product counts. On a
CUDA device the operators are Triton kernels (see `gemv`) for one token in 16 bits; everywhere else, and for
more tokens, they are what they stand for, written in torch. The sum of the parts is left to the compiler,
which joins it with the residual add.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from fxfuse.passes.records import Block
from fxfuse.passes.view import View

__all__ = ["ACTIVATIONS", "down", "gate_up", "has_triton", "kernels_fit", "sums_fit"]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
_TYPES = ("float16", "bfloat16")


def has_triton() -> bool:
    """Whether kernels can be compiled here."""
    return importlib.util.find_spec("triton") is not None


def kernels_fit(view: View, blocks: Sequence[Block]) -> bool:
    """Whether a group can be written so: 16 bits, RMSNorm, a gated FFN with a known activation, no biases."""
    first = blocks[0]
    steps = [step for block in blocks for step in block.norm.gain]
    linears = [each for b in blocks for each in (b.ffn.gate, b.ffn.up, b.ffn.down) if each is not None]
    steps += [step for linear in linears for step in linear.steps]
    return (
        has_triton()
        and first.dtype in _TYPES
        and view.dtype(first.x) == first.dtype
        and first.norm.kind == "rms"
        and first.norm.scale == 1.0
        and first.gated
        and first.ffn.activation.name in ACTIVATIONS
        and not any(step.kind == "add" for step in steps)
    )


def sums_fit(view: View, blocks: Sequence[Block]) -> bool:
    """Whether products may be written as sums: 32 bits, and a graph for one token."""
    shape = view.shape(blocks[0].x)
    return blocks[0].dtype == "float32" and shape is not None and all(size == 1 for size in shape[:-1])


@torch.library.custom_op("fxfuse::gate_up", mutates_args=())
def gate_up(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, eps: float, activation: str
) -> torch.Tensor:
    """The inner values [..., width] of an FFN on the unit RMSNorm of x [..., hidden]."""
    if _kernels_run(x, gate, up):
        from fxfuse.passes.fx.gemv import gate_up_token

        found: torch.Tensor = gate_up_token(x, gate, up, eps, activation)
        return found
    hidden = F.rms_norm(x.float(), (x.shape[-1],), None, eps).to(x.dtype)
    return ACTIVATIONS[activation](F.linear(hidden, gate)) * F.linear(hidden, up)


@gate_up.register_fake
def _(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, eps: float, activation: str) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], gate.shape[0]))


@torch.library.custom_op("fxfuse::down", mutates_args=())
def down(inner: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The last product in float32, [parts, ..., hidden]: its parts are still to be added."""
    parts = _parts(weight)
    if _kernels_run(inner, weight):
        from fxfuse.passes.fx.gemv import down_token

        found: torch.Tensor = down_token(inner, weight, parts)
        return found
    total = F.linear(inner, weight).float()
    return torch.cat([total.unsqueeze(0), total.new_zeros(parts - 1, *total.shape)])


@down.register_fake
def _(inner: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return inner.new_empty((_parts(weight), *inner.shape[:-1], weight.shape[0]), dtype=torch.float32)


def _parts(weight: torch.Tensor) -> int:
    """In how many parts the last product is cut: few rows alone would not fill a GPU."""
    return 4 if weight.shape[0] <= 2048 else 1


def _kernels_run(x: torch.Tensor, *weights: torch.Tensor) -> bool:
    """Whether this call is one that the kernels are for: they take memory to be laid out row by row."""
    one = x.is_cuda and x.numel() == x.shape[-1] and str(x.dtype).removeprefix("torch.") in _TYPES
    return one and all(each.is_contiguous() for each in (x, *weights))
