r"""ONNX Runtime's operators that hide several: what each stands for, in plain operators.

    SkipLayerNormalization(x, f, gamma, beta, bias)    s = x + (f + bias);  y = LayerNormalization(s)
    SkipSimplifiedLayerNormalization(x, f, gamma)      the same with an RMSNorm; s may be output 3
    BiasGelu, FastGelu, BiasSplitGelu, BiasAdd         y = g(x + bias), ...
    FusedGemm, FusedMatMulActivation, GemmFastGelu     the product, its bias, the activation
    MatMulNBitsMlp                                     add, norm, gate and up, act(gate) * up

The bias goes to the operand that is computed later: a branch is computed from its stream, never the other
way round. Every part carries the node's metadata, so that it says where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
from onnx import helper

__all__ = ["SKIPS", "Parts", "decompose", "hides", "part"]

CONTRIB = "com.microsoft"
SKIPS = {
    "SkipLayerNormalization": "LayerNormalization",
    "SkipSimplifiedLayerNormalization": "SimplifiedLayerNormalization",
}
"""Skip operators and the norm in each."""
_SKIP_EPS = 1e-12
_ACTIVATION_ATTRIBUTES = {
    "Relu": (), "Sigmoid": (), "Tanh": (), "Softplus": (), "Softsign": (), "Gelu": (),
    "LeakyRelu": ("alpha",), "Elu": ("alpha",), "ThresholdedRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"), "Selu": ("alpha", "gamma"),
}  # fmt: skip


class Parts:
    """Collects the nodes that stand for `node`; `order` is the place of a value's producer, -1 for inputs."""

    def __init__(
        self,
        node: onnx.NodeProto,
        fresh: Callable[[str], str],
        order: Callable[[str], int],
        opset: int = 0,
    ) -> None:
        self.node = node
        self.nodes: list[onnx.NodeProto] = []
        self.order = order
        self.opset = opset
        self.attributes: dict[str, Any] = {
            each.name: helper.get_attribute_value(each) for each in node.attribute
        }
        self._fresh = fresh

    def input(self, index: int) -> str:
        """The name of an input, "" where it is left out."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def output(self, index: int) -> str:
        """The name of an output, "" where it is left out."""
        return self.node.output[index] if index < len(self.node.output) else ""

    def fresh(self, role: str) -> str:
        """A name for a value inside, which nothing else has."""
        return self._fresh(f"{self.node.name or self.node.output[0]}.{role}")

    def add(self, op: str, inputs: list[str], role: str, output: str = "", **attributes: Any) -> str:
        """Append one part with one output, which gets a fresh name where none is given."""
        output = output or self.fresh(role)
        self.nodes.append(part(self.node, op, inputs, [output], role, **attributes))
        return output


def part(
    node: onnx.NodeProto, op: str, inputs: list[str], outputs: list[str], role: str, **attributes: Any
) -> onnx.NodeProto:
    """A node that stands for a part of `node`."""
    name = f"{node.name or node.output[0]}.{role}"
    made = helper.make_node(op, inputs, outputs, name, **attributes)
    made.metadata_props.extend(node.metadata_props)
    return made


def hides(node: onnx.NodeProto) -> bool:
    """Whether `node` is one of the operators that stand for several."""
    if node.domain != CONTRIB or node.op_type not in _DECOMPOSE:
        return False
    return node.op_type != "FastGelu" or (len(node.input) > 1 and bool(node.input[1]))


def decompose(parts: Parts) -> str | None:
    """Fill `parts`; gives a reason, and parts that mean nothing, where the node has to stay whole."""
    return _DECOMPOSE[parts.node.op_type](parts)


def _skip(parts: Parts) -> str | None:
    read = [name for name, index in (("mean", 1), ("inv_std_var", 2)) if parts.output(index)]
    if read:
        return f"the add inside of it cannot be seen, since its output {read[0]} is in use"
    layer = parts.node.op_type == "SkipLayerNormalization"
    _skip_norm(
        parts, [parts.input(0), parts.input(1)], [parts.input(2), parts.input(3) if layer else ""],
        parts.input(4 if layer else 3), (parts.output(3), parts.output(0)),
    )  # fmt: skip
    return None


def _skip_norm(
    parts: Parts, operands: list[str], constants: list[str], bias: str, outputs: tuple[str, str]
) -> str:
    """Add (and its bias), then the norm."""
    if bias:
        later = int(parts.order(operands[1]) > parts.order(operands[0]))
        operands[later] = parts.add("Add", [operands[later], bias], "bias")
    total = parts.add("Add", operands, "add", outputs[0])
    return _norm(parts, total, constants, outputs[1])


def _norm(parts: Parts, x: str, constants: list[str], output: str) -> str:
    op = SKIPS.get(parts.node.op_type, "SimplifiedLayerNormalization")
    inputs = [x, *(each for each in constants if each)]
    eps = parts.attributes.get("epsilon", _SKIP_EPS)
    return parts.add(op, inputs, "norm", output, axis=-1, epsilon=eps)


def _gelu(op: str) -> Callable[[Parts], str | None]:
    def write(parts: Parts) -> str | None:
        total = parts.add("Add", list(parts.node.input), "bias")
        parts.add(op, [total], "gelu", parts.output(0), domain=CONTRIB)
        return None

    return write


def _split_gelu(parts: Parts) -> str | None:
    """The left half times the gelu of the right half."""
    total = parts.add("Add", list(parts.node.input), "bias")
    halves = [parts.fresh("left"), parts.fresh("right")]
    count = {"num_outputs": 2} if parts.opset >= 18 else {}
    parts.nodes.append(part(parts.node, "Split", [total], halves, "split", axis=-1, **count))
    right = parts.add("Gelu", halves[1:], "gelu", domain=CONTRIB)
    parts.add("Mul", [halves[0], right], "mul", parts.output(0))
    return None


def _bias_add(parts: Parts) -> str | None:
    biased = parts.add("Add", [parts.input(0), parts.input(1)], "bias")
    parts.add("Add", [biased, parts.input(2)], "add", parts.output(0))
    return None


def _gemm_gelu(parts: Parts) -> str | None:
    product = parts.add("MatMul", [parts.input(0), parts.input(1)], "product")
    if parts.input(2):
        product = parts.add("Add", [product, parts.input(2)], "bias")
    parts.add("FastGelu", [product], "gelu", parts.output(0), domain=CONTRIB)
    return None


def _activated(op: str, domain: str) -> Callable[[Parts], str | None]:
    def write(parts: Parts) -> str | None:
        own = {k: v for k, v in parts.attributes.items() if not k.startswith("activation")}
        name = _text(parts.attributes.get("activation", ""))
        if name and name not in _ACTIVATION_ATTRIBUTES:
            return f"the product inside of it cannot be seen, since its activation {name} is not known"
        product = parts.add(
            op, list(parts.node.input), "product", "" if name else parts.output(0), domain=domain, **own
        )
        if name:
            given = {k: parts.attributes.get(f"activation_{k}") for k in _ACTIVATION_ATTRIBUTES[name]}
            known = {k: v for k, v in given.items() if v is not None}
            where = CONTRIB if name == "Gelu" else ""
            parts.add(name, [product], "activation", parts.output(0), domain=where, **known)
        return None

    return write


def _mlp(parts: Parts) -> str | None:
    """Quantised gate and up over one input, with the norm and the add before them where there are any."""
    name = _text(parts.attributes.get("activation", ""))
    if name.lower() not in ("silu", "swish"):
        return f"the products inside of it cannot be seen, since its activation {name} is not known"
    x = parts.input(0)
    if parts.input(1):
        parts.attributes.setdefault("epsilon", 1e-5)
        x = _skip_norm(parts, [x, parts.input(1)], [parts.input(2)], "", (parts.output(1), ""))
    elif parts.input(2):
        parts.attributes.setdefault("epsilon", 1e-5)
        x = _norm(parts, x, [parts.input(2)], "")
    own = {k: v for k, v in parts.attributes.items() if k not in ("activation", "epsilon")}
    gate, up = (
        parts.add("MatMulNBits", _quantised(parts, x, first), role, domain=CONTRIB, **own)
        for role, first in (("gate", 3), ("up", 6))
    )
    act = parts.add("QuickGelu", [gate], "silu", domain=CONTRIB, alpha=1.0)
    parts.add("Mul", [act, up], "mul", parts.output(0))
    return None


def _quantised(parts: Parts, x: str, first: int) -> list[str]:
    weight, scales, bias = (parts.input(first + offset) for offset in range(3))
    return [x, weight, scales, "", "", bias] if bias else [x, weight, scales]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


_DECOMPOSE: Mapping[str, Callable[[Parts], str | None]] = {
    **dict.fromkeys(SKIPS, _skip),
    "BiasGelu": _gelu("Gelu"), "FastGelu": _gelu("FastGelu"), "BiasSplitGelu": _split_gelu,
    "BiasAdd": _bias_add, "GemmFastGelu": _gemm_gelu,
    "FusedGemm": _activated("Gemm", ""), "FusedMatMulActivation": _activated("FusedMatMul", CONTRIB),
    "MatMulNBitsMlp": _mlp,
}  # fmt: skip
