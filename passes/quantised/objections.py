"""What stands against one wide FFN where weights are quantised: in a block, and between two neighbours."""

from __future__ import annotations

import torch

from fxfuse.passes.quantised.storage import form_of
from fxfuse.passes.records import FFN, Block, Linear
from fxfuse.passes.view import View
from fxfuse.passes.weights import affine

__all__ = [
    "INTEGER", "difference", "gain_of", "gains_apart", "is_quantised", "objection", "rounding",
    "takes_no_gain",
]  # fmt: skip

INTEGER = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
"""Operators that round what they read to 8 bits, with one scale for the whole tensor."""
_FUSED_BLOCK = 32
"""The block in which ONNX Runtime rounds what a product reads that it made of DequantizeLinear and MatMul."""


def is_quantised(view: View, block: Block) -> bool:
    """Whether any weight of the block is quantised."""
    return any(form_of(view, linear) is not None for linear in _linears(block.ffn).values())


def objection(view: View, ffn: FFN) -> str | None:
    """Why the weights of an FFN cannot be stacked with any others."""
    for role, linear in _linears(ffn).items():
        form = form_of(view, linear)
        if form is not None and form.objection is not None:
            return f"its {role} weight ({form}) {form.objection}"
    return None


def difference(view: View, before: Block, block: Block, *, requantize: bool) -> str | None:
    """Why two neighbours with quantised weights cannot share one wide FFN."""
    if not is_quantised(view, before) and not is_quantised(view, block):
        return None
    for role in _firsts(block):
        one, other = (getattr(each.ffn, role) for each in (before, block))
        forms = [form_of(view, each) for each in (one, other)]
        if forms[0] != forms[1]:
            names = [str(form) if form is not None else "not quantised" for form in forms]
            return f"the {role} weights are stored differently from {before.name}: {names[0]} and {names[1]}"
        kinds = [" ".join(step.kind for step in each.steps) or "none" for each in (one, other)]
        if kinds[0] != kinds[1]:
            return f"the constants after {role} differ in kind from {before.name}: {kinds[0]} and {kinds[1]}"
    apart = gains_apart(view, before, block)
    if apart and not requantize and takes_no_gain(view, block):
        return (
            f"the gains of the norms differ from {before.name} by up to {apart:.2g}, and quantised weights "
            "take no gain: allow quantising again (--requantize, requantize=True), or fuse the float model"
        )
    return None


def rounding(view: View, linear: Linear) -> int | str | None:
    """How a runtime may round what a product reads to 8 bits: a scale for so many inputs, or "tensor"."""
    form = form_of(view, linear)
    if form is None or (form.operator == "MatMulNBits" and form.level < 2):
        return None
    return "tensor" if form.operator in INTEGER else form.block or _FUSED_BLOCK


def _linears(ffn: FFN) -> dict[str, Linear]:
    found = {"gate": ffn.gate, "up": ffn.up, "down": ffn.down}
    return {role: linear for role, linear in found.items() if linear is not None}


def _firsts(block: Block) -> tuple[str, ...]:
    return ("gate", "up") if block.gated else ("gate",)


def takes_no_gain(view: View, block: Block) -> bool:
    """Whether gate or up is quantised, so that no gain goes in without quantising again."""
    return any(form_of(view, getattr(block.ffn, role)) is not None for role in _firsts(block))


def gain_of(view: View, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    """A block's gain and norm bias, each float64 [hidden]."""
    return affine(view, block.norm.gain, block.hidden_size, torch.device("cpu"))


def gains_apart(view: View, one: Block, other: Block) -> float:
    """The greatest difference of two blocks' gains and norm biases; 0 where they are equal."""
    pairs = zip(gain_of(view, one), gain_of(view, other), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)
