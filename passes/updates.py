"""Every update of the model's own residual stream as a record: what it is, its name, its layer.

    x ---> norm ---> attention ---> + ---> norm ---> FFN ---> + ---> ...

The model's stream is the one that ends last: the decoder's, where there is an encoder too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from fxfuse.passes.blocks import match_block
from fxfuse.passes.branches import Branch, Branches, name_of_branch
from fxfuse.passes.chains import find_chains
from fxfuse.passes.cross import is_cross
from fxfuse.passes.records import Block, Miss, Norm, Value
from fxfuse.passes.runs import runs_of
from fxfuse.passes.stream import Stream, Update, read_streams
from fxfuse.passes.view import Op, Operand, View

__all__ = ["CROSS", "StreamUpdate", "Updates", "layer_numbers", "stream_updates"]

CROSS = "cross attention"
_KINDS = ("attention", CROSS, "ffn", "experts", "other")


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


def stream_updates(view: View) -> list[StreamUpdate]:
    """Every update of the model's own residual stream, in order; none where the graph has no such stream."""
    found = [update for update, _ in Updates(view).read()]
    numbers = layer_numbers([each.name for each in found])
    return [replace(each, layer=number) for each, number in zip(found, numbers, strict=True)]


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


class Updates:
    """What is known of one graph while its updates are read."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.streams = read_streams(view)
        self.branches = Branches(view, self.streams)
        self.states = {state for stream in self.streams for state in stream.states}
        self.blocks = {block.out: block for block in _blocks(view)}

    def read(self) -> list[tuple[StreamUpdate, list[Branch]]]:
        """All updates of the main run of streams, with the parts of their branches."""
        run = self._main()
        pairs = [(stream, update) for stream in run for update in stream.updates]
        after: list[Update | None] = [*(update for _, update in pairs[1:]), None]
        found = [self._read(*pair, then) for pair, then in zip(pairs, after, strict=False)]
        return list(_numbered(found))

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
            CROSS if part.kind == "attention" and is_cross(self.view, self.branches, part, own) else part.kind
            for part in parts
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
