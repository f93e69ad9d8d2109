"""torch.nn modules that symbolic tracing leaves as calls, in canonical form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from fxfuse.passes.elementwise import SELU
from fxfuse.passes.fx.calls import Call, Shapes
from fxfuse.passes.fx.pieces import glu_over
from fxfuse.passes.records import Value
from fxfuse.passes.view import Op

__all__ = ["canonical_module"]

# The kind, and the attributes of the module that it takes.
_ACTIVATIONS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.SiLU: ("silu",), nn.ReLU: ("relu",), nn.Sigmoid: ("sigmoid",), nn.Tanh: ("tanh",),
    nn.Mish: ("mish",), nn.Hardswish: ("hardswish",), nn.Hardsigmoid: ("hardsigmoid",),
    nn.LogSigmoid: ("logsigmoid",), nn.Tanhshrink: ("tanhshrink",),
    nn.GELU: ("gelu", "approximate"),
    nn.Softplus: ("softplus", "beta", "threshold"),
    nn.ELU: ("elu", "alpha"), nn.LeakyReLU: ("leaky_relu", "negative_slope"),
    nn.Hardtanh: ("hardtanh", "min_val", "max_val"),
    nn.ReLU6: ("hardtanh", "min_val", "max_val"),
    nn.Threshold: ("threshold", "threshold", "value"),
    nn.Hardshrink: ("hardshrink", "lambd"), nn.Softshrink: ("softshrink", "lambd"),
}  # fmt: skip
_DROPOUTS = {nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout}


def canonical_module(node: fx.Node, module: Any, attribute: Callable[[str], Value], shape: Shapes) -> Op:
    """The canonical operator of a `call_module` node; `attribute` makes a value of a parameter's path.

    Types are compared exactly: a subclass may compute something else.
    """
    x: Any = node.args[0] if node.args else None

    def held(name: str) -> Value | None:
        return attribute(f"{node.target}.{name}") if getattr(module, name, None) is not None else None

    kind = type(module)
    if kind in _ACTIVATIONS:
        name, *attributes = _ACTIVATIONS[kind]
        return Op(name, (x,), {each: getattr(module, each) for each in attributes})
    if kind is nn.SELU:
        return Op("elu", (x,), SELU)
    if kind is nn.CELU:
        return Op("elu", (x,), {"alpha": module.alpha, "input_scale": 1 / module.alpha})
    if kind is nn.GLU:
        return glu_over(Call(node, shape), x, module.dim) or Op("GLU", (x,))
    if kind is nn.PReLU:
        return Op("prelu", (x, held("weight")))
    if kind is nn.Identity:
        return Op("pass", (x,))
    if kind in _DROPOUTS:
        return Op("dropout", (x,), {"active": module.training and module.p > 0, "p": module.p})
    if kind is nn.Linear:
        return Op("linear", (x, held("weight"), held("bias")), {"transposed": False})
    if kind is nn.LayerNorm and len(module.normalized_shape) == 1:
        return Op("layer_norm", (x, held("weight"), held("bias")), {"eps": module.eps})
    if kind is nn.RMSNorm and len(module.normalized_shape) == 1:
        eps = module.eps if module.eps is not None else torch.finfo(torch.float32).eps
        return Op("rms_norm", (x, held("weight")), {"eps": eps})
    return Op(kind.__name__, tuple(node.all_input_nodes))
