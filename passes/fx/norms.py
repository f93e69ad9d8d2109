"""Norms and their means in canonical form."""

from __future__ import annotations

import torch
from torch import fx

from fxfuse.passes.fx.calls import Call, dtype_of
from fxfuse.passes.view import Op

__all__ = ["layer_norm", "mean", "rms_norm", "var"]


def mean(call: Call) -> Op | None:
    """A mean over the last axis, which is kept."""
    x = call.get(0, "input")
    kept = call.get(2, "keepdim", False)
    return Op("mean", (x,)) if kept and call.is_last(x, call.get(1, "dim")) else None


def var(call: Call) -> Op | None:
    """The biased variance over the last axis, as mean((x - mean(x))^2)."""
    x, kwargs = call.get(0, "input"), call.node.kwargs
    biased = kwargs.get("correction") == 0 or kwargs.get("unbiased", call.get(2, "", True)) is False
    if not (biased and kwargs.get("keepdim", call.get(3, "", False)) and call.is_last(x, call.get(1, "dim"))):
        return None
    return Op("mean", (Op("square", (Op("sub", (x, Op("mean", (x,)))),)),))


def rms_norm(call: Call) -> Op | None:
    """RMSNorm over the last axis; an eps left out is that of the type."""
    x, shape, gain = call.get(0, "input"), call.get(1, "normalized_shape"), call.get(2, "weight")
    eps = call.get(3, "eps")
    if len(shape) != 1:
        return None
    if eps is None:
        known = dtype_of(x) if isinstance(x, fx.Node) else None
        # Torch takes the resolution of the type it computes in, which is at least float32.
        eps = torch.finfo(torch.promote_types(known or torch.float32, torch.float32)).eps
    return Op("rms_norm", (x, gain), {"eps": eps})


def layer_norm(call: Call) -> Op | None:
    """LayerNorm over the last axis."""
    x, shape = call.get(0, "input"), call.get(1, "normalized_shape")
    inputs = (x, call.get(2, "weight"), call.get(3, "bias"))
    return Op("layer_norm", inputs, {"eps": call.get(4, "eps", 1e-5)}) if len(shape) == 1 else None
