"""ONNX activations with attributes, in canonical form."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fxfuse.passes.view import Op

if TYPE_CHECKING:
    from fxfuse.passes.onnx.ops import NodeCall

__all__ = ["HANDLERS"]


def _elu(call: NodeCall, _: int) -> Op:
    return Op("elu", (call.input(0),), {"alpha": call.attribute("alpha", 1.0)})


def _selu(call: NodeCall, _: int) -> Op:
    alpha = call.attribute("alpha", 1.6732632423543772)
    return Op("elu", (call.input(0),), {"alpha": alpha, "scale": call.attribute("gamma", 1.0507009873554805)})


def _celu(call: NodeCall, _: int) -> Op | None:
    alpha = call.attribute("alpha", 1.0)
    return Op("elu", (call.input(0),), {"alpha": alpha, "input_scale": 1 / alpha}) if alpha else None


def _leaky_relu(call: NodeCall, _: int) -> Op:
    return Op("leaky_relu", (call.input(0),), {"negative_slope": call.attribute("alpha", 0.01)})


def _prelu(call: NodeCall, _: int) -> Op:
    """The slope may have one number for each channel of the last axis, as anything that is broadcast."""
    x: Any = call.input(0)
    return Op("where", (Op("greater", (x, 0.0)), x, Op("mul", (x, call.input(1)))))


def _thresholded_relu(call: NodeCall, _: int) -> Op:
    x: Any = call.input(0)
    return Op("where", (Op("greater", (x, call.attribute("alpha", 1.0))), x, 0.0))


def _hard_sigmoid(call: NodeCall, _: int) -> Op:
    line = Op("mul", (call.input(0), call.attribute("alpha", 0.2)))
    line = Op("add", (line, call.attribute("beta", 0.5)))
    return Op("minimum", (Op("maximum", (line, 0.0)), 1.0))


HANDLERS: dict[str, Callable[[NodeCall, int], Op | None]] = {
    "Elu": _elu, "Selu": _selu, "Celu": _celu, "LeakyRelu": _leaky_relu, "PRelu": _prelu,
    "ThresholdedRelu": _thresholded_relu, "HardSigmoid": _hard_sigmoid,
}  # fmt: skip
