"""Mutations of what nodes are told: an attribute's value, its type, that it is there at all."""

from __future__ import annotations

from random import Random

import onnx
from onnx import AttributeProto, helper

from tests.fuzz.parts import nodes_with

__all__ = ["attribute"]

ATTRIBUTES = [
    "axis", "axes", "epsilon", "keepdims", "alpha", "beta", "perm", "transA", "transB", "transBatchA", "to",
    "stash_type", "approximate", "noop_with_empty_axes", "split", "num_outputs", "start", "end", "allowzero",
    "starts", "ends", "value", "value_float", "bits", "block_size", "K", "N", "is_test", "ratio", "saturate",
]  # fmt: skip
INTS = (0, 1, -1, 2, 3, 7, 16, 64, -2, 1 << 31, -(1 << 63), (1 << 63) - 1)
FLOATS = (0.0, 1.0, -1.0, 0.5, 2.0, 1e-6, 1e30, float("nan"), float("inf"))


def attribute(model: onnx.ModelProto, rng: Random) -> None:
    """An attribute has another value or type, is new, is gone or stands twice."""
    if rng.random() < 0.6:
        node = nodes_with(model, rng, lambda each: len(each.attribute) > 0)
    else:
        node = rng.choice(model.graph.node)
    which = rng.random()
    if node.attribute and which < 0.2:
        del node.attribute[rng.randrange(len(node.attribute))]
    elif node.attribute and which < 0.7:
        _change(rng.choice(node.attribute), rng)
    else:
        node.attribute.append(helper.make_attribute(rng.choice(ATTRIBUTES), _value(rng)))


def _change(attribute: AttributeProto, rng: Random) -> None:
    if attribute.type == AttributeProto.INT and rng.random() < 0.8:
        attribute.i = rng.choice((*INTS, attribute.i + 1, -attribute.i, 1, 10, 11, 16))
    elif attribute.type == AttributeProto.FLOAT and rng.random() < 0.8:
        attribute.f = rng.choice((*FLOATS, attribute.f * 2))
    elif attribute.type == AttributeProto.INTS and attribute.ints and rng.random() < 0.8:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(INTS)
    else:
        attribute.CopyFrom(helper.make_attribute(attribute.name, _value(rng)))


def _value(rng: Random) -> object:
    return rng.choice(
        (rng.choice(INTS), rng.choice(FLOATS), [rng.choice(INTS)], [1, 0], [0, 1], [0, 2, 1], "tanh",
         b"\xff\xfe", [1.0, 2.0], helper.make_tensor("t", 1, [2], [1.0, 2.0]))
    )  # fmt: skip
