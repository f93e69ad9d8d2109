"""torch.nn modules that symbolic tracing leaves as calls, in canonical form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from fxfuse.passes.records import Value
from fxfuse.passes.view import Op

__all__ = ["canonical_module"]

_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.SiLU: "silu", nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.Mish: "mish",
}  # fmt: skip


def canonical_module(node: fx.Node, module: Any, attribute: Callable[[str], Value]) -> Op:
    """The canonical operator of a `call_module` node; `attribute` makes a value of a parameter's path.

    Types are compared exactly: a subclass may compute something else.
    """
    x: Any = node.args[0] if node.args else None

    def held(name: str) -> Value | None:
        return attribute(f"{node.target}.{name}") if getattr(module, name, None) is not None else None

    kind = type(module)
    if kind in _ACTIVATIONS:
        return Op(_ACTIVATIONS[kind], (x,))
    if kind is nn.GELU:
        return Op("gelu", (x,), {"approximate": module.approximate})
    if kind is nn.Identity:
        return Op("pass", (x,))
    if kind is nn.Dropout:
        return Op("dropout", (x,), {"active": module.training and module.p > 0, "p": module.p})
    if kind is nn.Linear:
        return Op("linear", (x, held("weight"), held("bias")), {"transposed": False})
    if kind is nn.LayerNorm and len(module.normalized_shape) == 1:
        return Op("layer_norm", (x, held("weight"), held("bias")), {"eps": module.eps})
    if kind is nn.RMSNorm and len(module.normalized_shape) == 1:
        eps = module.eps if module.eps is not None else torch.finfo(torch.float32).eps
        return Op("rms_norm", (x, held("weight")), {"eps": eps})
    return Op(kind.__name__, tuple(node.all_input_nodes))
