"""Parts of a value in canonical form: halves of a packed product, slices, one output of several."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxfuse.passes.fx.calls import Call, name_of
from fxfuse.passes.fx.norms import layer_norm
from fxfuse.passes.view import Op

__all__ = ["getitem", "slice_last", "transpose"]


def transpose(call: Call) -> Op | None:
    """The two axes of a matrix swapped; None for anything else."""
    shape = call.shape(call.get(0, "input"))
    if shape is None or len(shape) != 2:
        return None
    args: tuple[Any, ...] = call.node.args[1:]
    dims = [each for arg in args for each in (arg if isinstance(arg, (list, tuple)) else [arg])]
    swapped = name_of(call.node) in ("t", "T", "mT") or sorted(d % 2 for d in dims) == [0, 1]
    if name_of(call.node) == "permute" and [d % 2 for d in dims] == [0, 1]:
        return Op("pass", (call.get(0, "input"),))
    return Op("transpose", (call.get(0, "input"),)) if swapped else None


def getitem(call: Call) -> Op | None:
    """One output of several, or `x[..., a:b]`."""
    args: tuple[Any, ...] = call.node.args
    source, index = args
    if isinstance(source, fx.Node) and isinstance(index, int):
        return _output_of(call, source, index)
    if isinstance(index, tuple) and len(index) == 2 and index[0] is Ellipsis and isinstance(index[1], slice):
        return _part(call, source, index[1].start, index[1].stop) if index[1].step in (None, 1) else None
    return None


def slice_last(call: Call) -> Op | None:
    """A slice of the last axis."""
    x = call.get(0, "input")
    if not call.is_last(x, call.get(1, "dim", 0)) or call.get(4, "step", 1) != 1:
        return None
    return _part(call, x, call.get(2, "start"), call.get(3, "end"))


def _part(call: Call, source: Any, start: Any, stop: Any) -> Op | None:
    width = call.width(source)
    if width is None or not all(each is None or isinstance(each, int) for each in (start, stop)):
        return None
    start, stop, _ = slice(start, stop).indices(width)
    return Op("part", (source,), {"start": start, "stop": stop})


def _output_of(call: Call, source: fx.Node, index: int) -> Op | None:
    """One output of an operator with several: a part of a split, or the first of a native norm."""
    name = name_of(source) if source.op in ("call_function", "call_method") else ""
    inner = Call(source, call.shape)
    if name == "native_layer_norm" and index == 0:
        op = layer_norm(inner)
        return op and Op(op.kind, op.inputs, op.attrs, via=(source,))
    if name not in ("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split"):
        return None
    x, how, dim = (
        inner.get(0, "input"),
        source.args[1] if len(source.args) > 1 else None,
        inner.get(2, "dim", 0),
    )
    if how is None:
        how = next(
            (
                source.kwargs[k]
                for k in ("chunks", "split_size", "split_size_or_sections")
                if k in source.kwargs
            ),
            0,
        )
    width = call.width(x)
    if width is None or not inner.is_last(x, dim):
        return None
    sizes = _sizes(width, how, in_parts="chunk" in name or name == "tensor_split")
    if sizes is None or index >= len(sizes):
        return None
    start = sum(sizes[:index])
    return Op("part", (x,), {"start": start, "stop": start + sizes[index]}, via=(source,))


def _sizes(width: int, how: Any, *, in_parts: bool) -> list[int] | None:
    if isinstance(how, (list, tuple)):
        return list(how) if all(isinstance(each, int) for each in how) else None
    if not isinstance(how, int) or how < 1:
        return None
    step = -(-width // how) if in_parts else how
    return [min(step, width - start) for start in range(0, width, step)]
