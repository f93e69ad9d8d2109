"""What a body is given at first: a Loop in iteration 0 with its initial states, a Scan at its first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from fxfuse.errors import InputError

__all__ = ["body_inputs", "names_of_inputs"]


def names_of_inputs(node: onnx.NodeProto) -> list[str]:
    """The values of the outer graph that the node hands to its body: states, and what is scanned."""
    first = {"If": len(node.input), "Loop": 2, "Scan": 0}.get(node.op_type)
    if first is not None:
        return list(node.input[first:])
    raise InputError(f"the body of {node.op_type} is not run by itself")


def body_inputs(
    node: onnx.NodeProto, graph: onnx.GraphProto, captured: Sequence[str], values: Mapping[str, Any]
) -> dict[str, Any]:
    """A sample for the body `graph` of `node`, by input name, from the outer graph's `values`."""
    given = [values[name] for name in names_of_inputs(node)]
    if node.op_type == "Loop":
        shapes = [(1,) * len(each.type.tensor_type.shape.dim) for each in graph.input[:2]]
        given = [np.zeros(shapes[0], np.int64), np.ones(shapes[1], np.bool_), *given]
    elif node.op_type == "Scan":
        given = _first_step(node, given)
    names = [each.name for each in graph.input]
    return {name: values[name] for name in captured} | dict(zip(names, given, strict=True))


def _first_step(node: onnx.NodeProto, given: Sequence[Any]) -> list[Any]:
    known = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    count = known["num_scan_inputs"]
    axes = known.get("scan_input_axes") or [0] * count
    reverse = known.get("scan_input_directions") or [0] * count
    scanned = zip(given[-count:], axes, reverse, strict=True)
    return [*given[:-count], *(np.take(each, -back, axis) for each, axis, back in scanned)]
