r"""Every update of the model's residual stream, and the attentions among them that can be left out.

    x ---> norm ---> attention ---> + ---> out        left out:   out = x
     \------------------------------^

1. The model's stream is the one that ends last: the decoder's, where there is an encoder too.
2. An attention is all that is computed from x on the way to its add: a norm before it, a norm or a multiplier
   after it, projections and products. Its keys and values may be graph outputs: its cache.
3. A norm that something else reads too stays where it is. What else is read outside makes it a miss.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from fxfuse.passes.blocks import match_block
from fxfuse.passes.branches import Branch, Branches, is_product, name_of_branch
from fxfuse.passes.chains import find_chains
from fxfuse.passes.records import Block, Miss, Norm, Value
from fxfuse.passes.runs import runs_of
from fxfuse.passes.stream import Stream, Update, read_streams, values_in
from fxfuse.passes.view import Op, Operand, View

__all__ = ["Attention", "StreamUpdate", "find_attention", "layer_numbers", "stream_updates"]

_CROSS = "cross attention"
_SELF = ("GroupQueryAttention", "PagedAttention", "SparseAttention")
"""Operators that are self attention by what they are; queries, keys and values may be packed."""
_REACH = 64
_KINDS = ("attention", _CROSS, "ffn", "experts", "other")
_CACHE_RANK = 4  # batch, heads, positions, head size


@dataclass(frozen=True)
class StreamUpdate:
    """`out` = `x` + `branch`, all of them values of the graph.

    kind: "attention", "cross attention", "ffn", "experts", "other", or several of one add joined by " + ".
    name: The layer path ("model.layers.3.self_attn"), that of the block where it is one; the node that adds
    the branch where the graph tells no path.
    layer: The number in the path that tells the layers apart; None where there is none.
    interior: Every value that the branch computes from x, `branch` included.
    normed_after: Whether the stream itself passes through a norm behind it (post-norm models).
    """

    kind: str
    name: str
    x: Value
    out: Value
    branch: Operand
    layer: int | None
    interior: frozenset[Value]
    normed_after: bool = False


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


def stream_updates(view: View) -> list[StreamUpdate]:
    """Every update of the model's own residual stream, in order; none where the graph has no such stream."""
    reader = _Reader(view)
    found = [update for update, _ in reader.updates()]
    numbers = layer_numbers([each.name for each in found])
    return [replace(each, layer=number) for each, number in zip(found, numbers, strict=True)]


def find_attention(view: View) -> tuple[list[Attention], list[Miss]]:
    """The attentions on the model's residual stream in order, and those that cannot be left out, with why."""
    reader = _Reader(view)
    pairs = [(update, parts) for update, parts in reader.updates() if "attention" in update.kind]
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


def layer_numbers(names: Sequence[str]) -> list[int | None]:
    """The layer that each path belongs to: its first number, of those places where numbers differ."""
    parts = [name.split(".") for name in names]
    numbered = [[place for place, part in enumerate(each) if part.isdecimal()] for each in parts]
    places = Counter(place for each in numbered for place in each)
    varied = {place for place in places if len({each[place] for each in parts if len(each) > place}) > 1}
    found: list[int | None] = []
    for own, each in zip(numbered, parts, strict=True):
        place = next((place for place in own if place in varied), next(iter(own), None))
        found.append(None if place is None else int(each[place]))
    return found


class _Reader:
    """What is known of one graph while its updates are read."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.streams = read_streams(view)
        self.branches = Branches(view, self.streams)
        self.states = {state for stream in self.streams for state in stream.states}
        self.blocks = {block.out: block for block in _blocks(view)}

    def updates(self) -> list[tuple[StreamUpdate, list[Branch]]]:
        """All updates of the main run of streams, with the parts of their branches."""
        run = self._main()
        pairs = [(stream, update) for stream in run for update in stream.updates]
        after = [*pairs[1:], None]
        found = [self._read(*pair, None if then is None else then[1]) for pair, then in zip(pairs, after)]  # noqa: B905
        return list(_numbered(found))

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
        if update.kind == _CROSS:
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

    def _main(self) -> list[Stream]:
        runs = runs_of(self.view, self.streams, self.blocks)
        return max(runs, key=lambda run: self.branches.order(run[-1].updates[-1].out), default=[])

    def _read(
        self, stream: Stream, update: Update, after: Update | None
    ) -> tuple[StreamUpdate, list[Branch]]:
        parts = self.branches.read(stream, update)
        kind = self._kind(stream, update, parts)
        name = self._name(update, kind, parts)
        x = _value_of_x(update)
        interior = frozenset(value for part in parts for value in part.values)
        interior |= {each for each in update.branch if not isinstance(each, Op) and each is not None}
        normed = after is not None and any(isinstance(each, Norm) for each in after.between)
        branch = update.branch[0] if len(update.branch) == 1 else Op("add", update.branch)
        return StreamUpdate(kind, name, x, update.out, branch, None, interior - {x}, normed), parts

    def _kind(self, stream: Stream, update: Update, parts: Sequence[Branch]) -> str:
        if update.out in self.blocks:
            return "ffn"
        own = frozenset(stream.states)
        kinds = dict.fromkeys(
            _CROSS if part.kind == "attention" and self._is_cross(part, own) else part.kind for part in parts
        )
        if {"experts", "ffn"} <= kinds.keys():
            del kinds["ffn"]  # the shared expert beside them
        return " + ".join(sorted(kinds, key=_KINDS.index)) or "other"

    def _name(self, update: Update, kind: str, parts: Sequence[Branch]) -> str:
        if update.out in self.blocks:
            return self.blocks[update.out].name
        found = match_block(self.view, update.out) if kind == "ffn" else None
        if isinstance(found, Miss):
            return found.where
        telling = [part for part in parts if part.kind != "other"] or list(parts)
        names = [name_of_branch(self.view, part, update.out).split(".") for part in telling]
        return ".".join(os.path.commonprefix(names)) or self.view.node_name(update.out)

    def _is_cross(self, part: Branch, own: frozenset[Value]) -> bool:
        """Whether keys and values come from elsewhere than the stream that the queries come from."""
        if self.branches.reads_elsewhere(part, own):
            return True
        mixing = [value for value in part.values if self._mixes(value)]
        return bool(mixing) and all(self._mixes_elsewhere(value) for value in mixing)

    def _mixes_elsewhere(self, value: Value) -> bool:
        """Whether an operator has one matrix of the stream, and takes another from a product elsewhere."""
        op, matrices = self.view.op(value), self._matrices(value)
        own = [self.branches.state_of(each) is not None for each in matrices]
        if op is None or op.kind in _SELF or sum(own) > 1:
            return False
        others = [each for each, is_own in zip(matrices, own, strict=True) if not is_own]
        return any(self._is_projected(each) for each in others)

    def _is_projected(self, operand: Operand) -> bool:
        """Whether a value is a product that is not of the stream, or such keys and values as an input."""
        stack, seen = list(values_in(Op("", (operand,)))), set[Value]()
        while stack and len(seen) < _REACH:
            value = stack.pop()
            op = self.view.op(value)
            if value in seen or self.view.is_constant(value) or (op is not None and op.kind == "shape"):
                continue
            seen.add(value)
            if is_product(self.view, value):
                return True
            if op is None and self._holds_vectors(value):
                return True
            stack += list(values_in(op)) if op is not None else []
        return False

    def _holds_vectors(self, value: Value) -> bool:
        shape, dtype = self.view.shape(value), self.view.dtype(value)
        return "float" in (dtype or "") and shape is not None and len(shape) > 2

    def _mixes(self, value: Value) -> bool:
        """Whether an operator takes matrices that are no weights: queries with keys, or with all of them."""
        op = self.view.op(value)
        named = op is not None and "attention" in op.kind.lower()
        return (named or is_product(self.view, value)) and (named or len(self._matrices(value)) > 1)

    def _matrices(self, value: Value) -> list[Operand]:
        """Queries, keys and values of an operator that mixes, as far as they are no weights."""
        op = self.view.op(value)
        operands = op.inputs[: 3 if "attention" in op.kind.lower() else 2] if op is not None else ()
        return [each for each in operands if each is not None and not self._is_weight(each)]

    def _is_weight(self, operand: Operand) -> bool:
        if isinstance(operand, Op):
            return all(self._is_weight(each) for each in operand.inputs if each is not None)
        return operand is None or isinstance(operand, (int, float)) or self.view.is_constant(operand)

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


def _value_of_x(update: Update) -> Value:
    """The value that an update adds to; the state before where an operator hides it."""
    x = update.x
    if x is None or isinstance(x, (Op, int, float)):
        return update.before
    return x


def _blocks(view: View) -> Iterator[Block]:
    found = find_chains(view)
    yield from (block for chain in found.chains for block in chain.blocks)
    yield from found.singles


def _numbered(
    found: Iterable[tuple[StreamUpdate, list[Branch]]],
) -> Iterator[tuple[StreamUpdate, list[Branch]]]:
    """Each name once: a module that is called again gets #2."""
    pairs = list(found)
    total, seen = Counter(update.name for update, _ in pairs), Counter[str]()
    for update, parts in pairs:
        seen[update.name] += 1
        suffix = f"#{seen[update.name]}" if total[update.name] > 1 else ""
        yield replace(update, name=update.name + suffix), parts
