"""Which streams count, and which continue one another: after a patch merging, after an activation."""

from __future__ import annotations

from collections.abc import Container

from fxfuse.passes.records import Value
from fxfuse.passes.stream import Stream, values_in
from fxfuse.passes.view import View

__all__ = ["bridge", "runs_of"]

_BRIDGE = 64  # operators between two streams that make them one


def runs_of(view: View, streams: list[Stream], blocks: Container[Value]) -> list[list[Stream]]:
    """Streams in order, those that continue one another together."""
    follows = _followers(view, streams)
    later = {id(stream) for stream in follows.values()}
    runs = []
    for stream in streams:
        if id(stream) in later:
            continue
        run = [stream]
        while id(run[-1]) in follows:
            run.append(follows[id(run[-1])])
        runs.append(run)
    return [run for run in runs if _is_worth(run, blocks)]


def bridge(view: View, stream: Stream) -> tuple[Value, ...] | None:
    """What leads from the stream before to the start of this one; None where something else joins in."""
    stack, seen = [stream.start], dict[Value, None]()
    while stack:
        value = stack.pop()
        if value in seen or value == stream.origin:
            continue
        seen[value] = None
        op = view.op(value)
        if op is None or len(seen) > _BRIDGE:
            return None
        if op.kind != "shape":
            stack += [each for each in values_in(op) if not view.is_constant(each)]
    return tuple(seen)


def _followers(view: View, streams: list[Stream]) -> dict[int, Stream]:
    """For the id of a stream, the only one that begins at its end."""
    ends = {stream.updates[-1].out: stream for stream in streams}
    heirs: dict[int, list[Stream]] = {}
    for stream in streams:
        before = ends.get(stream.origin) if stream.origin is not None else None
        if before is not None:
            heirs.setdefault(id(before), []).append(stream)
    return {
        key: found[0]
        for key, found in heirs.items()
        if len(found) == 1 and bridge(view, found[0]) is not None
    }


def _is_worth(run: list[Stream], blocks: Container[Value]) -> bool:
    """Whether it is more than one sum somewhere inside a branch."""
    updates = [update.out for stream in run for update in stream.updates]
    return len(updates) > 1 or run[0].origin is None or any(out in blocks for out in updates)
