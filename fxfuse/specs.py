"""What a model expects at each input: its name, its type, and a shape whose open sizes have names."""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeGuard

import ml_dtypes
import numpy as np
import onnx

from .errors import InputError
from .head_sizes import head_sizes

__all__ = ["Dim", "InputSpec", "dim_names", "dim_size", "is_float", "is_int", "is_name", "specs_of"]

Dim: TypeAlias = "int | str | None"

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


@dataclass(frozen=True)
class InputSpec:
    """One graph input; a size is a number, a name, an expression such as "past + seq", or unknown."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.dtype}[{sizes}]"


def specs_of(model: onnx.ModelProto) -> list[InputSpec]:
    """Read the inputs that a caller must give: graph inputs without an initializer.

    Raises:
        InputError: One of them is no tensor of numbers, or has no shape.
    """
    given = {tensor.name for tensor in model.graph.initializer}
    given |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    specs = [_spec_of(value) for value in model.graph.input if value.name not in given]
    sizes = head_sizes(model)
    return [
        replace(each, shape=(*each.shape[:-1], sizes[each.name])) if each.name in sizes else each
        for each in specs
    ]


def dim_size(dim: Dim, sizes: Mapping[str, int]) -> int | None:
    """Compute a size from the sizes of names; None where one is not known."""
    if isinstance(dim, int) or dim is None:
        return dim
    if dim in sizes:
        return sizes[dim]
    try:
        return _evaluate(_parse(dim), sizes)
    except (KeyError, ZeroDivisionError):
        return None


def dim_names(dim: Dim) -> list[str]:
    """List the names in a size: two for "past + seq", none for 64."""
    if not isinstance(dim, str):
        return []
    return list(dict.fromkeys(node.id for node in ast.walk(_parse(dim)) if isinstance(node, ast.Name)))


def is_name(dim: Dim) -> TypeGuard[str]:
    """Whether a size is one name, neither a number nor an expression."""
    return isinstance(dim, str) and dim_names(dim) == [dim]


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a type holds floating-point numbers, bfloat16 and float8 included."""
    try:
        ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    except ValueError:
        return False
    return dtype.kind != "c"


def is_int(dtype: np.dtype[Any]) -> bool:
    """Whether a type holds whole numbers."""
    return dtype.kind in "iu"


def _spec_of(value: onnx.ValueInfoProto) -> InputSpec:
    if not value.type.HasField("tensor_type"):
        kind = value.type.WhichOneof("value")
        raise InputError(f"The model's input {value.name!r} is a {kind}, and only tensors can be given.")
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise InputError(f"The model's input {value.name!r} has no shape: export the model with one.")
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except KeyError:
        raise InputError(
            f"The model's input {value.name!r} has no known type ({tensor.elem_type})."
        ) from None
    if dtype.kind in "OSU":
        raise InputError(f"The model's input {value.name!r} holds strings, and only numbers can be given.")
    return InputSpec(value.name, dtype, tuple(_dims(tensor.shape)))


def _dims(shape: onnx.TensorShapeProto) -> Iterator[Dim]:
    for dim in shape.dim:
        if dim.HasField("dim_value"):
            yield dim.dim_value if dim.dim_value >= 0 else None
        else:
            yield dim.dim_param or None


def _parse(dim: str) -> ast.expr:
    """Read a size as an expression; what is none is one name, whatever its characters."""
    try:
        tree = ast.parse(dim, mode="eval").body
    except (SyntaxError, ValueError):
        return ast.Name(dim)
    known = (ast.Name, ast.Constant, ast.BinOp, ast.operator, ast.expr_context)
    return tree if all(isinstance(node, known) for node in ast.walk(tree)) else ast.Name(dim)


def _evaluate(tree: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(tree, ast.Name):
        return sizes[tree.id]
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
        return tree.value
    if isinstance(tree, ast.BinOp):
        combine = _OPERATORS[type(tree.op)]
        return int(combine(_evaluate(tree.left, sizes), _evaluate(tree.right, sizes)))
    raise KeyError(ast.dump(tree))
