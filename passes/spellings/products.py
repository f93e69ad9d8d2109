"""Products with weights as an FFN uses them: what is multiplied, and the constants applied on the way.

(x W' + b) * v  ...        one product
part of such a product     a half of a packed one
"""

from __future__ import annotations

from fxfuse.passes.records import Linear, Step, Value
from fxfuse.passes.spellings.affine import is_per_channel, peel_while
from fxfuse.passes.view import Op, Operand, View, op_of, strip

__all__ = [
    "FirstProduct",
    "is_first",
    "is_multiplier",
    "is_scalar",
    "pass_reshapes",
    "read_first",
    "read_linear",
]


class FirstProduct:
    """One of the products that read the norm."""

    def __init__(self, view: View, leaf: Value) -> None:
        self.leaf = leaf
        self.trail: set[Value] = set()
        self.rates: list[float] = []
        found = read_first(view, leaf, self.trail, self.rates)
        assert found is not None
        self.linear, self.product, source = found
        self.source: Value = _before_rounding(view, source, self.trail)


def read_first(
    view: View, leaf: Value, trail: set[Value] | None = None, rates: list[float] | None = None
) -> tuple[Linear, Value, Operand] | None:
    """A product, or a part of a packed one, with its vector constants."""
    trail = set() if trail is None else trail
    rates = [] if rates is None else rates
    passed: set[Value] = set()
    inner, own = peel_while(view, leaf, lambda step: _is_vector(view, step.operand, leaf), passed)
    inner = strip(view, inner, passed) if own else inner
    part = op_of(view, inner)
    if part is None or part.kind != "part":
        return read_linear(view, leaf, trail, rates, vectors_only=True)
    whole = strip(view, part.inputs[0], passed)
    found = (
        read_linear(view, whole, passed, rates) if not isinstance(whole, (Op, int, float)) and whole else None
    )
    if found is None:
        return None
    linear, product, source = found
    trail |= passed | {each for each in (leaf, inner, *part.via) if not isinstance(each, Op)}
    rows = (part.attrs["start"], part.attrs["stop"])
    return Linear(linear.weight, linear.transposed, (*linear.steps, *own), rows), product, source


def read_linear(
    view: View, output: Value, trail: set[Value], rates: list[float], *, vectors_only: bool = False
) -> tuple[Linear, Value, Operand] | None:
    """The product above `output`, with the constants applied to it on the way; what it reads comes last."""

    def accept(step: Step) -> bool:
        return not vectors_only or _is_vector(view, step.operand, output)

    passed: set[Value] = set()
    operand: Operand = output
    steps: list[Step] = []
    while True:
        operand, peeled = peel_while(view, operand, accept, passed)
        steps[:0] = peeled
        inner = (
            strip(view, operand, passed)
            if not vectors_only or peeled
            else pass_reshapes(view, operand, passed)
        )
        op = op_of(view, inner)
        if op is None or isinstance(inner, Op):
            return None
        if op.kind not in ("dropout", "rounded"):
            break
        rates += [op.attrs["p"]] if op.attrs.get("active") else []
        passed.add(inner)
        operand = op.inputs[0]
    if op.kind != "linear":
        return None
    source, weight, bias = op.inputs
    if weight is None or isinstance(weight, (Op, int, float)) or not view.is_constant(weight):
        return None
    if bias is not None and not is_per_channel(view, bias):
        return None
    own = [Step("mul", op.attrs["alpha"])] if op.attrs.get("alpha", 1.0) != 1.0 else []
    own += [Step("add", bias)] if bias is not None else []
    trail |= passed | {inner, *op.via}
    return Linear(weight, op.attrs["transposed"], (*own, *steps)), inner, source


def is_first(view: View, value: Value | Op) -> bool:
    """Whether `value` is one of the first products; inside another operator only a part of one counts."""
    if isinstance(value, Op) and value.kind != "part":
        return False
    return not _is_rounded(view, value) and read_first(view, value) is not None


def _is_rounded(view: View, value: Operand) -> bool:
    op = op_of(view, value)
    return op is not None and op.kind == "rounded"


def _before_rounding(view: View, operand: Operand, trail: set[Value]) -> Operand:
    """Walk up through casts, identities and quantisation by a scale that the file holds."""
    operand = strip(view, operand, trail)
    while (op := op_of(view, operand)) is not None and op.kind == "rounded":
        trail.add(operand)
        operand = strip(view, op.inputs[0], trail)
    return operand


def pass_reshapes(view: View, operand: Operand, trail: set[Value]) -> Operand:
    """Walk up through reshapes only, so that a cast beside the activation stays part of its region."""
    op = op_of(view, operand)
    while op is not None and op.kind == "pass":
        trail |= {operand, *op.via}
        operand = op.inputs[0]
        op = op_of(view, operand)
    return operand


def is_multiplier(view: View, step: Step) -> bool:
    """Whether a step multiplies by one number, which may as well be done after the product."""
    return step.kind != "add" and is_scalar(view, step.operand)


def is_scalar(view: View, operand: Operand) -> bool:
    """Whether a constant is one number."""
    if isinstance(operand, (int, float)):
        return True
    if isinstance(operand, Op):
        return all(is_scalar(view, each) for each in operand.inputs)
    shape = view.shape(operand)
    return shape is not None and all(size == 1 for size in shape)


def _is_vector(view: View, operand: Operand, value: Value) -> bool:
    """Whether a constant has one number for each channel of `value`, be it one channel."""
    return not is_scalar(view, operand) or (_rank(view, operand) > 0 and _is_one_channel(view, value))


def _rank(view: View, operand: Operand) -> int:
    if isinstance(operand, Op):
        return max(_rank(view, each) for each in operand.inputs)
    return 0 if operand is None or isinstance(operand, (int, float)) else len(view.shape(operand) or ())


def _is_one_channel(view: View, value: Operand) -> bool:
    """Whether a product, whatever constants follow it, or its part is one channel wide."""
    op = op_of(view, strip(view, peel_while(view, value, lambda _: True, set())[0]))
    if op is None or op.kind not in ("part", "linear"):
        return False
    if op.kind == "part":
        return bool(op.attrs["stop"] - op.attrs["start"] == 1)
    shape = view.shape(op.inputs[1]) if not isinstance(op.inputs[1], Op) else None
    return bool(shape) and shape[1 if op.attrs["transposed"] else 0] == 1  # type: ignore[index]
