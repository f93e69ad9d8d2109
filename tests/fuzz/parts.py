"""What the mutations share: names that are free, values there are, nodes to choose from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["constant", "everything", "fresh", "nodes_with", "readers", "weights"]


def everything(model: onnx.ModelProto) -> list[str]:
    """The names of all values: inputs, stored ones, computed ones."""
    graph = model.graph
    names = [each.name for each in (*graph.input, *graph.initializer)]
    return names + [name for node in graph.node for name in node.output if name] or [""]


def fresh(model: onnx.ModelProto) -> str:
    """A name that is not taken yet."""
    taken = {*everything(model), *(node.name for node in model.graph.node)}
    return next(name for index in range(len(taken) + 1) if (name := f"fuzz{index}") not in taken)


def nodes_with(model: onnx.ModelProto, rng: Random, test: Callable[[onnx.NodeProto], bool]) -> onnx.NodeProto:
    """A node that passes `test`; any where none does."""
    return rng.choice([each for each in model.graph.node if test(each)] or list(model.graph.node))


def readers(model: onnx.ModelProto, name: str) -> list[tuple[onnx.NodeProto, int]]:
    """Who reads a value, and as which input."""
    return [(node, i) for node in model.graph.node for i, each in enumerate(node.input) if each == name]


def weights(model: onnx.ModelProto, rng: Random) -> onnx.TensorProto:
    """A stored tensor; large ones are as likely as all small ones."""
    large = [each for each in model.graph.initializer if len(each.dims) > 1]
    return rng.choice(large if large and rng.random() < 0.5 else list(model.graph.initializer))


def constant(model: onnx.ModelProto, values: Sequence[float], shape: Sequence[int] | None = None) -> str:
    """Store numbers, whole ones as int64 and others in the type of the model's weights; gives their name."""
    name = fresh(model)
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2} & {
        1,
        10,
        11,
        16,
    }
    kind = onnx.helper.tensor_dtype_to_np_dtype(min(kinds, default=1))
    array = np.array(values, np.int64 if all(isinstance(each, int) for each in values) else kind)
    model.graph.initializer.append(
        numpy_helper.from_array(array.reshape(array.shape if shape is None else shape), name)
    )
    return name
