"""What dynamo noted about the parameters of the graph that it is compiling, and will hold every call against.

A parameter that becomes a view of another stride during the compilation would fail that guard at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._dynamo.symbolic_convert import InstructionTranslator

__all__ = ["can_restride", "restride"]


def can_restride(node: fx.Node, before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether the tensor of a placeholder may become `after`, as far as guards go."""
    noted = _noted(node)
    return noted is None or "stride" in noted or before.stride() == after.stride()


def restride(node: fx.Node, tensor: torch.Tensor) -> None:
    """Expect the strides of `tensor` from now on."""
    noted = _noted(node)
    if noted:
        noted["stride"] = tensor.stride()


def _noted(node: fx.Node) -> dict[str, Any] | None:
    """The noted size and stride, {} where this version of torch keeps them elsewhere; None without guards."""
    try:
        compiling = InstructionTranslator.current_tx()
    except AttributeError:
        return None
    known = getattr(compiling.output, "input_source_to_sizes_strides", {})
    found: dict[str, Any] = known.get(getattr(node, "_dynamo_source", None), {})
    return found
