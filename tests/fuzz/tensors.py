"""Mutations of what is stored: values, types, shapes, places, and whose it is."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from tests.fuzz.parts import fresh, readers, weights

__all__ = ["TENSOR_MUTATIONS"]


def values(model: onnx.ModelProto, rng: Random) -> None:
    """Some or all numbers are others: NaN, infinity, zero, huge, tiny, another seed's."""
    tensor = weights(model, rng)
    array = _array(tensor)
    if array is None or array.dtype.kind not in "fiu":
        return
    new = np.array(array)
    odd = (np.nan, np.inf, -np.inf, 0.0, 1e38, 1e-40, -1.0, 2.0, 1.0)
    with np.errstate(all="ignore"):
        if array.dtype.kind == "f":
            value = rng.choice(odd)
        else:
            value = rng.choice((0, 1, 2, 3, 16, 64, 127))
        if rng.random() < 0.5:
            new[...] = value
        elif new.size:
            new.reshape(-1)[rng.randrange(new.size)] = value
    tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))


def dims(model: onnx.ModelProto, rng: Random) -> None:
    """The shape no longer fits the bytes, or says the same bytes otherwise."""
    tensor = weights(model, rng)
    sizes = list(tensor.dims)
    kind = rng.randrange(5)
    if kind == 0 and len(sizes) > 1:
        sizes.reverse()
    elif kind == 1:
        sizes.insert(rng.randrange(len(sizes) + 1), 1)
    elif kind == 2 and sizes:
        sizes[rng.randrange(len(sizes))] = rng.choice((0, -1, 1, 7, 1 << 40, (1 << 63) - 1))
    elif kind == 3:
        sizes = [int(np.prod(sizes, dtype=object))] if rng.random() < 0.5 else sizes[:-1]
    else:
        sizes += rng.choice(([1], [0], [2, 2]))
    tensor.dims[:] = sizes


def shape(model: onnx.ModelProto, rng: Random) -> None:
    """A valid tensor of another shape: part of it, or the same once or twice more."""
    tensor = weights(model, rng)
    array = _array(tensor)
    if array is None:
        return
    kind = rng.randrange(5)
    if kind == 0:
        array = array[None]
    elif kind == 1:
        array = array.T
    elif kind == 2 and array.size:
        array = array.reshape(-1)[: rng.choice((1, 2, array.size))]
    elif kind == 3 and array.ndim:
        array = np.concatenate([array, array], axis=rng.randrange(array.ndim))
    elif array.ndim:
        array = array[..., : array.shape[-1] // 2]
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def kind(model: onnx.ModelProto, rng: Random) -> None:
    """Another element type, converted or only claimed."""
    tensor = weights(model, rng)
    number = rng.choice((*TensorProto.DataType.values(), 99, -1))
    array = _array(tensor)
    if rng.random() < 0.5 or array is None:
        tensor.data_type = number
        return
    try:
        with np.errstate(all="ignore"):
            new = array.astype(helper.tensor_dtype_to_np_dtype(number))
        tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    except (KeyError, TypeError, ValueError, NotImplementedError):
        tensor.data_type = TensorProto.STRING
        tensor.ClearField("raw_data")
        tensor.string_data.extend([b"\xff\xfe"] * array.size)


def fields(model: onnx.ModelProto, rng: Random) -> None:
    """The numbers stand in another field, in two, or in none."""
    tensor = weights(model, rng)
    array = _array(tensor)
    which = rng.randrange(4)
    if which == 0:
        tensor.ClearField("raw_data")
    elif which == 1:
        tensor.float_data.extend([1.0, 2.0])
    elif which == 2 and array is not None and array.dtype == np.float32:
        tensor.ClearField("raw_data")
        tensor.float_data.extend(array.reshape(-1)[: rng.choice((array.size, 1))].tolist())
    else:
        tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]


def share(model: onnx.ModelProto, rng: Random) -> None:
    """Two places read one stored tensor."""
    one = weights(model, rng)
    alike = [each for each in model.graph.initializer if each.dims == one.dims and each.name != one.name]
    if alike:
        for reader, index in readers(model, rng.choice(alike).name):
            reader.input[index] = one.name


def exchange(model: onnx.ModelProto, rng: Random) -> None:
    """Two stored tensors of one shape have each other's values."""
    one = weights(model, rng)
    alike = [each for each in model.graph.initializer if each.dims == one.dims and each.name != one.name]
    if alike:
        other = rng.choice(alike)
        one.name, other.name = other.name, one.name


def as_input(model: onnx.ModelProto, rng: Random) -> None:
    """A weight is a graph input, alone or with a default."""
    tensor = weights(model, rng)
    sizes: list[int | str | None] = list(tensor.dims)
    if sizes and rng.random() < 0.3:
        sizes[0] = rng.choice(("n", None, 3))
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, sizes))
    if rng.random() < 0.6:
        model.graph.initializer.remove(tensor)


def as_output(model: onnx.ModelProto, rng: Random) -> None:
    """A weight is a graph output."""
    tensor = weights(model, rng)
    model.graph.output.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def as_node(model: onnx.ModelProto, rng: Random) -> None:
    """A weight comes out of a Constant node, or of an operator over a stored tensor."""
    tensor = weights(model, rng)
    stored = TensorProto.FromString(tensor.SerializeToString())
    model.graph.initializer.remove(tensor)
    which = rng.randrange(4)
    if which == 0:
        node = helper.make_node("Constant", [], [stored.name], value=stored)
        node.attribute[0].t.name = rng.choice(("", stored.name))
    else:
        array, name = _array(stored), stored.name
        stored.name = fresh(model)
        if which == 1 and array is not None and array.ndim == 2:
            stored.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array.T), stored.name))
            node = helper.make_node("Transpose", [stored.name], [name], perm=[1, 0])
        elif which == 2:
            node = helper.make_node(rng.choice(("Neg", "Relu", "Abs", "Sigmoid")), [stored.name], [name])
        else:
            node = helper.make_node("Identity", [stored.name], [name])
        model.graph.initializer.append(stored)
    model.graph.node.insert(0, node)


def sparse(model: onnx.ModelProto, rng: Random) -> None:
    """A weight is stored sparse, rightly or with an index outside."""
    tensor = weights(model, rng)
    array = _array(tensor)
    if array is None or array.dtype.kind != "f" or array.ndim == 0:
        return
    name = tensor.name
    model.graph.initializer.remove(tensor)
    where = np.flatnonzero(np.asarray(array, np.float32) > 0)
    held = numpy_helper.from_array(array.reshape(-1)[where], name)
    if rng.random() < 0.3 and where.size:
        where[-1] = 1 << 40
    indices = numpy_helper.from_array(where, f"{name}_indices" if rng.random() < 0.8 else "")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(held, indices, list(array.shape)))


def doubled(model: onnx.ModelProto, rng: Random) -> None:
    """A stored tensor stands twice, or has another value's name, or none, or is gone."""
    tensor = weights(model, rng)
    which = rng.randrange(4)
    if which == 0:
        model.graph.initializer.append(tensor)
    elif which == 1:
        tensor.name = rng.choice(model.graph.node).output[0] if model.graph.node else ""
    elif which == 2:
        tensor.name = ""
    else:
        model.graph.initializer.remove(tensor)


def place(model: onnx.ModelProto, rng: Random) -> None:
    """External data elsewhere: outside, past the end, over another's, nowhere, in a number that is none."""
    outside = [each for each in model.graph.initializer if uses_external_data(each)]
    if not outside:
        tensor = weights(model, rng)
        tensor.data_location = TensorProto.EXTERNAL
        if rng.random() < 0.7:
            tensor.ClearField("raw_data")
            tensor.external_data.add(key="location", value="m.onnx")
        return
    tensor = rng.choice(outside)
    entry = rng.choice(tensor.external_data)
    if rng.random() < 0.15:
        tensor.external_data.remove(entry)
    elif entry.key == "location":
        entry.value = rng.choice(
            ("", ".", "..", "../m.onnx.data", "/etc/hostname", "m.onnx", "gone", "a\0b", "a/b", "x" * 999)
        )
    else:
        entry.value = rng.choice(
            ("", "-1", "0", "1", "64", "4096", str(1 << 40), str(1 << 70), "x", "1.5", "１")
        )


def _array(tensor: TensorProto) -> np.ndarray | None:
    """The values, where they are held here and are whole."""
    if uses_external_data(tensor):
        return None
    try:
        return numpy_helper.to_array(tensor, str(Path()))
    except Exception:  # another mutation has been here
        return None


TENSOR_MUTATIONS = [
    values, values, dims, shape, kind, fields, share, exchange, as_input, as_output, as_node, as_node, sparse,
    doubled, place,
]  # fmt: skip
