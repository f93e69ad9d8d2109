"""Why a norm is not in a chain: what it stands before, inside or behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fxfuse.inspection.records import Line
from fxfuse.passes.norm_places import NormPlace
from fxfuse.passes.records import Value
from fxfuse.passes.view import View, strip

__all__ = ["Home", "name_of_norm", "reason_of_norm"]


@dataclass(frozen=True)
class Home:
    """The branch that a value belongs to: its line, and the last value of it that is added."""

    line: Line
    output: object


def name_of_norm(view: View, place: NormPlace) -> str:
    """The layer path of a norm; its node where the graph does not tell."""
    norm = place.norm
    inner = next((each for each in (norm.unit, norm.operator) if each is not None), None) if norm else None
    named = inner if inner is not None and view.scope(inner) else place.output
    return view.scope(named) or view.node_name(place.output)


def reason_of_norm(
    view: View,
    place: NormPlace,
    home: Home | None,
    states: Mapping[Value, str],
    on_stream: set[Value],
    after: str | None,
) -> str | None:
    """One sentence; None for a norm that is in a chain.

    `states` holds, for every state of a stream, the name of what left it; `on_stream` the norms that a
    stream passes through; `after` is the name of the latest state that the norm was computed from, if any.
    """
    if home is not None and home.line.chain is not None:
        return None
    if place.norm is None:
        return place.reason
    reads_stream = strip(view, place.source) in states
    if place.output in on_stream:
        return "it stands on the residual stream itself (post-norm form)"
    if strip(view, place.output) in states:
        return "the residual stream begins at it"
    if home is not None:
        return _in_branch(home, reads_stream=reads_stream, is_last=home.output == place.output)
    if reads_stream:
        return f"it normalises the residual stream after {after}, and no FFN reads it"
    if after is not None:
        return f"it normalises what is computed from the residual stream after {after}, not the stream"
    return "it normalises no residual stream"


def _in_branch(home: Home, *, reads_stream: bool, is_last: bool) -> str:
    line = home.line
    if is_last:
        return f"it normalises what {line.name} adds to the residual stream (sandwich form)"
    if not reads_stream:
        return f"it normalises a value inside {line.name}, not the residual stream"
    if line.kind == "ffn":
        return f"its FFN {line.name} is not in a chain"
    if line.kind == "other":
        return f"it feeds {line.name}, which is no FFN"
    return f"it feeds {line.kind.replace('ffn', 'FFN')} ({line.name})"
