"""Products with weights in canonical form: linear, mm, addmm, bmm over one matrix, einsum, tensordot."""

from __future__ import annotations

from typing import Any

from fxfuse.passes.fx.calls import Call, name_of
from fxfuse.passes.fx.layout import matrix_of
from fxfuse.passes.view import Op

__all__ = ["addmm", "einsum", "linear", "matmul", "tensordot"]


def linear(call: Call) -> Op:
    """A product with a weight [out, in], and its bias."""
    inputs = (call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias"))
    return Op("linear", inputs, {"transposed": False})


def matmul(call: Call) -> Op | None:
    """A product with a weight [in, out], also where every batch has the same."""
    found = matrix_of(call, call.get(1, "other", call.node.kwargs.get("mat2")))
    if found is None:
        return None
    weight, turned = found
    return Op("linear", (call.get(0, "input"), weight, None), {"transposed": not turned})


def addmm(call: Call) -> Op | None:
    """The same plus a bias, each with its multiplier: beta b + alpha x W."""
    first, second = ("batch1", "batch2") if name_of(call.node) == "baddbmm" else ("mat1", "mat2")
    bias, x = call.get(0, "input"), call.get(1, first)
    found = matrix_of(call, call.get(2, second))
    scales: list[Any] = [call.node.kwargs.get(name, 1) for name in ("alpha", "beta")]
    if found is None or not all(isinstance(each, (int, float)) for each in scales):
        return None
    (weight, turned), (alpha, beta) = found, scales
    if beta != 1:
        bias = None if beta == 0 else Op("mul", (bias, beta))
    attrs = {"transposed": not turned} | ({"alpha": alpha} if alpha != 1 else {})
    return Op("linear", (x, weight, bias), attrs)


def einsum(call: Call) -> Op | None:
    """The last axis of x against either axis of a matrix, as in ...i,oi->...o."""
    equation, operands = call.node.args[0], [*call.node.args[1:]]  # type: tuple[Any, list[Any]]
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    terms = str(equation).replace(" ", "").partition("->")[0].split(",")
    out = str(equation).replace(" ", "").partition("->")[2]
    if len(terms) != 2 or len(operands) != 2:
        return None
    for x, weight in ((0, 1), (1, 0)):
        found = _contraction(terms[x], terms[weight], out)
        if found is not None:
            return Op("linear", (operands[x], operands[weight], None), {"transposed": found})
    return None


def _contraction(x: str, weight: str, out: str) -> bool | None:
    """Whether the weight is [in, out] where `out` is x with its last axis contracted; None if it is not."""
    if not x or len(weight) != 2 or "." in weight or not out or x[:-1] != out[:-1]:
        return None
    if len(set(weight)) < 2 or weight[0] in x[:-1] or weight[1] in x[:-1]:
        return None
    return {x[-1] + out[-1]: True, out[-1] + x[-1]: False}.get(weight)


def tensordot(call: Call) -> Op | None:
    """The last axis of x against one axis of a matrix."""
    x, weight, dims = call.get(0, "a"), call.get(1, "b"), call.get(2, "dims", 2)
    shape = call.shape(weight)
    if shape is None or len(shape) != 2:
        return None
    if dims == 1:
        return Op("linear", (x, weight, None), {"transposed": True})
    if len(call.node.args) > 3:
        dims = call.node.args[2:4]
    if not isinstance(dims, (list, tuple)) or len(dims) != 2:
        return None
    mine, its = (list(each) if isinstance(each, (list, tuple)) else [each] for each in dims)
    if len(mine) != 1 or not call.is_last(x, mine):
        return None
    return Op("linear", (x, weight, None), {"transposed": its[0] % 2 == 0})
