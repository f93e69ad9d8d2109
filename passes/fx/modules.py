"""torch.nn modules that symbolic tracing leaves as calls, in canonical form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx, nn

from fxfuse.passes.records import Value
from fxfuse.passes.view import Op

__all__ = ["canonical_module"]

_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.SiLU: "silu", nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.Mish: "mish",
}  # fmt: skip


def canonical_module(node: fx.Node, module: nn.Module, attribute: Callable[[str], Value]) -> Op:
    """The canonical operator of a `call_module` node; `attribute` makes a value of a parameter's path."""
    x = node.args[0] if node.args else None

    def held(name: str) -> Value | None:
        return attribute(f"{node.target}.{name}") if getattr(module, name, None) is not None else None

    kind = type(module)
    if kind in _ACTIVATIONS:
        return Op(_ACTIVATIONS[kind], (x,))  # type: ignore[arg-type]
    if isinstance(module, nn.GELU):
        return Op("gelu", (x,), {"approximate": module.approximate})  # type: ignore[arg-type]
    if isinstance(module, nn.Identity):
        return Op("pass", (x,))  # type: ignore[arg-type]
    if isinstance(module, nn.Dropout):
        return Op("dropout", (x,), {"active": module.training and module.p > 0, "p": module.p})  # type: ignore[arg-type]
    if kind is nn.Linear:
        return Op("linear", (x, held("weight"), held("bias")), {"transposed": False})  # type: ignore[arg-type]
    if kind is nn.LayerNorm and len(module.normalized_shape) == 1:
        return Op("layer_norm", (x, held("weight"), held("bias")), {"eps": module.eps})  # type: ignore[arg-type]
    if kind is nn.RMSNorm and len(module.normalized_shape) == 1:
        eps = module.eps if module.eps is not None else torch.finfo(torch.float32).eps
        return Op("rms_norm", (x, held("weight")), {"eps": eps})  # type: ignore[arg-type]
    return Op(kind.__name__, tuple(node.all_input_nodes))
