r"""The attentions of the model's residual stream that can be left out, and why others cannot.

    x ---> norm ---> attention ---> + ---> out        left out:   out = x
     \------------------------------^

1. An attention is all that is computed from x on the way to its add: a norm before it, a norm or a multiplier
   after it, projections and products. Its keys and values may be graph outputs: its cache.
2. A norm that something else reads too stays where it is. What else is read outside makes it a miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxfuse.passes.branches import Branch
from fxfuse.passes.records import Miss, Value
from fxfuse.passes.stream import values_in
from fxfuse.passes.updates import CROSS, StreamUpdate, Updates, layer_numbers, stream_updates
from fxfuse.passes.view import View

__all__ = ["Attention", "StreamUpdate", "find_attention", "layer_numbers", "stream_updates"]

_CACHE_RANK = 4  # batch, heads, positions, head size


@dataclass(frozen=True)
class Attention:
    """An attention that can be left out: `Runnable.run(batch, [logits], {out: x})` is the model without it.

    `interior` holds all that it computes, its norm included; `cache` those of them that the graph returns:
    its keys and values.
    """

    name: str
    x: Value
    out: Value
    layer: int | None
    interior: frozenset[Value]
    cache: tuple[Value, ...] = ()


def find_attention(view: View) -> tuple[list[Attention], list[Miss]]:
    """The attentions on the model's residual stream in order, and those that cannot be left out, with why."""
    reader = _Reader(Updates(view))
    pairs = [(update, parts) for update, parts in reader.updates.read() if "attention" in update.kind]
    found: list[Attention] = []
    misses: list[Miss] = []
    numbers = layer_numbers([update.name for update, _ in pairs])
    for (update, parts), number in zip(pairs, numbers, strict=True):
        cache = reader.cache(update, parts)
        reason = reader.objection(update, parts, cache)
        if reason is not None:
            misses.append(Miss(update.name, reason))
        else:
            inside = update.interior
            found.append(Attention(update.name, update.x, update.out, number, inside, cache))
    return found, misses


class _Reader:
    """What is known of one graph while its attentions are read."""

    def __init__(self, updates: Updates) -> None:
        self.updates, self.view = updates, updates.view
        self.branches, self.states = updates.branches, updates.states

    def cache(self, update: StreamUpdate, parts: Sequence[Branch]) -> tuple[Value, ...]:
        """Keys and values that the graph returns: outputs of their rank, made before they are mixed."""
        mixed = self._mixed(update, parts)
        stack, seen = list(self._behind_norm(update, parts) - mixed), dict[Value, None]()
        while stack:
            value = stack.pop()
            if value in seen or value in mixed or value == update.out or value in self.states:
                continue
            seen[value] = None
            stack += self.view.readers(value)
        found = [each for each in seen if self.view.is_output(each) and self._is_cache(each)]
        return tuple(sorted(found, key=self.branches.order))

    def objection(self, update: StreamUpdate, parts: Sequence[Branch], cache: Sequence[Value]) -> str | None:
        """Why an update with attention in it cannot be left out; None where it can."""
        node = self.view.node_name(update.out)
        if update.kind == CROSS:
            return "it is cross attention, which brings in what another stream or input holds: it stays"
        if update.kind != "attention":
            beside = " and ".join(kind for kind in update.kind.split(" + ") if kind != "attention")
            beside = beside.replace("ffn", "the FFN").replace("other", "another branch")
            return f"it stands in parallel with {beside}: one residual add ({node}) takes both"
        if update.normed_after:
            return f"the residual stream is normalised after its add {node} (post-norm form)"
        types = [self.view.dtype(each) for each in (update.x, update.out)]
        if None not in types and types[0] != types[1]:
            return f"its residual add {node} turns the stream from {types[0]} into {types[1]}"
        return self._tap(update, parts, cache)

    def _is_cache(self, value: Value) -> bool:
        shape = self.view.shape(value)
        return shape is None or len(shape) >= _CACHE_RANK

    def _mixed(self, update: StreamUpdate, parts: Sequence[Branch]) -> set[Value]:
        """What is computed from the attention's own result, or from the softmax inside of it."""
        found = {part.told_by for part in parts if part.told_by is not None}
        for value in sorted(update.interior, key=self.branches.order):
            op = self.view.op(value)
            if op is not None and found.intersection(values_in(op)):
                found.add(value)
        return found

    def _tap(self, update: StreamUpdate, parts: Sequence[Branch], cache: Sequence[Value]) -> str | None:
        """What else wants a value that the attention computes behind its norm."""
        view, allowed = self.view, update.interior | {update.out}
        for value in sorted(self._behind_norm(update, parts), key=self.branches.order):
            if view.is_output(value) and value not in cache:
                return f"its value {view.node_name(value)} is also a graph output"
            for reader in view.readers(value):
                if self._leads_outside(reader, allowed.union(cache)):
                    return f"its value {view.node_name(value)} is also read by {view.node_name(reader)}"
        return None

    def _leads_outside(self, reader: Value, allowed: frozenset[Value]) -> bool:
        """Whether numbers reach an output or a state by another way than through `allowed` values."""
        stack, seen = [reader], set[Value]()
        while stack:
            value = stack.pop()
            op = self.view.op(value)
            if value in allowed or value in seen or (op is not None and op.kind == "shape"):
                continue
            if self.view.is_output(value) or value in self.states:
                return True
            seen.add(value)
            stack += self.view.readers(value)
        return False

    def _behind_norm(self, update: StreamUpdate, parts: Sequence[Branch]) -> set[Value]:
        """The values of a branch from its first products on."""
        found = {value for part in parts for value in part.products}
        found |= {part.told_by for part in parts if part.told_by is not None}
        for value in sorted(update.interior, key=self.branches.order):
            op = self.view.op(value)
            if op is not None and found.intersection(values_in(op)):
                found.add(value)
        return found & update.interior
