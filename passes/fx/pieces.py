"""Parts of a value in canonical form: halves of a packed product, slices, one output of several.

    y[..., :n]    y.chunk(2, -1)[0]    y.view(..., 2, n)[..., 0, :]    y.unflatten(-1, (2, n)).unbind(-2)[0]

are one spelling: channels 0 to n of y. Every n-th channel (y[..., ::2], y.view(..., n, 2)[..., 0]) is another
thing and goes by "interleaved slice".
"""

from __future__ import annotations

from typing import Any

from torch import fx

from fxfuse.passes.fx.calls import Call, name_of
from fxfuse.passes.fx.layout import RESHAPES
from fxfuse.passes.fx.norms import layer_norm, of_both
from fxfuse.passes.view import Op

__all__ = ["getitem", "glu", "glu_over", "narrow", "select", "slice_last"]

_SPLITS = {
    "chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split",
    "unsafe_split_with_sizes", "unbind",
}  # fmt: skip


def getitem(call: Call) -> Op | None:
    """One output of several, or an index such as `x[..., a:b]` and `x[..., None]`."""
    args: tuple[Any, ...] = call.node.args
    source, index = args
    if isinstance(source, fx.Node) and isinstance(index, int) and _is_several(source):
        return _output_of(call, source, index)
    shape = call.shape(source)
    index = index if isinstance(index, tuple) else (index,)
    return _indexed(call, source, _spelled_out(index, shape)) if shape is not None else None


def _is_several(source: fx.Node) -> bool:
    several = {"native_layer_norm", "var_mean", "std_mean", *_SPLITS}
    return source.op in ("call_function", "call_method") and name_of(source) in several


def _spelled_out(index: tuple[Any, ...], shape: tuple[int | None, ...]) -> list[Any]:
    """`index` with one entry for each axis, and for each new one."""
    full = slice(None)
    missing = len(shape) - sum(each is not None and each is not Ellipsis for each in index)
    at = next((i for i, each in enumerate(index) if each is Ellipsis), len(index))
    return [*index[:at], *[full] * missing, *index[at + 1 :]]


def _indexed(call: Call, source: Any, index: list[Any]) -> Op | None:
    """What an index of one entry an axis takes, where it takes every row."""
    if not index or any(isinstance(each, (fx.Node, list)) for each in index):
        return None
    *others, last = index
    if all(each is None or _is_full(each) for each in others):
        if last is None:
            return Op("column", (source,)) if None not in others else None
        if isinstance(last, slice):
            return _part(call, source, last.start, last.stop, last.step)
    if all(map(_is_full, others)) and isinstance(last, int):
        return _chosen(call, source, -1, last)
    if len(others) > 0 and _is_full(last) and isinstance(others[-1], int) and all(map(_is_full, others[:-1])):
        return _chosen(call, source, -2, others[-1])
    return None


def _is_full(index: Any) -> bool:
    return isinstance(index, slice) and index in (slice(None), slice(0, None), slice(None, None, 1))


def slice_last(call: Call) -> Op | None:
    """A slice of the last axis."""
    x, dim = call.get(0, "input"), call.get(1, "dim", 0)
    start, stop, step = call.get(2, "start"), call.get(3, "end"), call.get(4, "step", 1)
    if isinstance(start, int) and stop == start + 1 and step == 1:
        one = _entry(call, x, dim, start)
        if one is not None:
            return one
    if not call.is_last(x, dim):
        whole = start in (None, 0) and step == 1 and isinstance(stop, int) and stop >= 2**62
        return Op("pass", (x,)) if whole or (start in (None, 0) and stop is None and step == 1) else None
    return _part(call, x, start, stop, step)


def narrow(call: Call) -> Op | None:
    """A slice by its start and length."""
    x, start, length = call.get(0, "input"), call.integer(call.get(2, "start")), call.get(3, "length")
    length = call.integer(length)
    if start is None or length is None or start < 0 or not call.is_last(x, call.get(1, "dim")):
        return None
    return _part(call, x, start, start + length)


def select(call: Call) -> Op | None:
    """One entry of one axis, as of the 2 in [..., 2, n]."""
    x, dim, index = call.get(0, "input"), call.get(1, "dim"), call.integer(call.get(2, "index"))
    return None if index is None else _entry(call, x, dim, index)


def glu(call: Call) -> Op | None:
    """One half of x times the sigmoid of the other."""
    return glu_over(call, call.get(0, "input"), call.get(1, "dim", -1))


def glu_over(call: Call, x: Any, dim: int) -> Op | None:
    """The same over a given axis."""
    width = call.width(x)
    if width is None or width % 2 or not call.is_last(x, dim):
        return None
    halves = (Op("part", (x,), {"start": at, "stop": at + width // 2}) for at in (0, width // 2))
    first, second = halves
    return Op("mul", (first, Op("sigmoid", (second,))))


def _part(call: Call, source: Any, start: Any, stop: Any, step: Any = None) -> Op | None:
    width = call.width(source)
    bounds = [None if each is None else call.integer(each) for each in (start, stop, step)]
    unknown = any(a is None and b is not None for a, b in zip(bounds, (start, stop, step), strict=True))
    if width is None or unknown:
        return None
    first, last, by = slice(*bounds).indices(width)
    if by != 1:
        return Op("interleaved slice", (source,))
    return Op("pass", (source,)) if (first, last) == (0, width) else _range(source, first, last)


def _range(source: Any, start: int, stop: int, *via: fx.Node) -> Op:
    return Op("part", (source,), {"start": start, "stop": stop}, via=via)


def _entry(call: Call, x: Any, dim: Any, index: int, *via: fx.Node) -> Op | None:
    shape = call.shape(x)
    if shape is None or not isinstance(dim, int):
        return None
    return _chosen(call, x, dim if dim < 0 else dim - len(shape), index, *via)


def _chosen(call: Call, source: Any, axis: int, index: int, *via: fx.Node) -> Op | None:
    """Entry `index` of the last axis but one, or of the last, that a reshape has made of the channels."""
    shape = call.shape(source)
    if not isinstance(source, fx.Node) or shape is None or len(shape) < 2:
        return None
    if source.op not in ("call_function", "call_method") or name_of(source) not in RESHAPES:
        return None
    whole: Any = source.args[0]
    count, width = shape[-2:]
    if count is None or width is None or call.width(whole) != count * width:
        return None
    if axis == -1:
        return Op("interleaved slice", (whole,)) if width > 1 else None
    if axis != -2 or not -count <= index < count:
        return None
    index %= count
    return _range(whole, index * width, (index + 1) * width, source, *via)


def _output_of(call: Call, source: fx.Node, index: int) -> Op | None:
    """One output of an operator with several: a part of a split, the first of a native norm, a statistic."""
    name, inner = name_of(source), Call(source, call.shape)
    if name == "native_layer_norm":
        op = layer_norm(inner) if index == 0 else None
    elif name in ("var_mean", "std_mean"):
        op = of_both(inner, index)
    elif name == "unbind":
        return _entry(inner, inner.get(0, "input"), inner.get(1, "dim", 0), index, source)
    else:
        op = _part_of_split(inner, name, index)
    return op and Op(op.kind, op.inputs, op.attrs, via=(*op.via, source))


def _part_of_split(call: Call, name: str, index: int) -> Op | None:
    x, dim = call.get(0, "input"), call.get(2, "dim", 0)
    how = call.get(1, "chunks")
    names = (
        "split_size",
        "split_size_or_sections",
        "split_sizes",
        "indices_or_sections",
        "sections",
        "indices",
    )
    how = next((call.node.kwargs[each] for each in names if each in call.node.kwargs), how)
    shape = call.shape(x)
    if shape is None or not isinstance(dim, int):
        return None
    dim = dim if dim < 0 else dim - len(shape)
    size = shape[dim]
    sizes = None if size is None else _sizes(size, how, name)
    if sizes is None or not -len(sizes) <= index < len(sizes):
        return None
    index %= len(sizes)
    if dim == -1:
        return _range(x, sum(sizes[:index]), sum(sizes[: index + 1]))
    return _chosen(call, x, dim, index) if set(sizes) == {1} else None


def _sizes(width: int, how: Any, name: str) -> list[int] | None:
    """The size of every piece: by number of pieces, by size, by sizes, or by the indices between them."""
    if isinstance(how, (list, tuple)):
        if not all(isinstance(each, int) for each in how):
            return None
        if name != "tensor_split":
            return list(how)
        bounds = [0, *(min(each % width if each < 0 else each, width) for each in how), width]
        return [max(0, b - a) for a, b in zip(bounds, bounds[1:], strict=False)]
    if not isinstance(how, int) or how < 1:
        return None
    if name == "tensor_split":
        return [width // how + (i < width % how) for i in range(how)]
    step = -(-width // how) if "chunk" in name else how
    return [min(step, width - start) for start in range(0, width, step)]
