"""From a view to the lines of an inspection: streams, their branches, chains and reasons."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fxfuse.inspection.facts import block_facts, branch_facts, norm_facts, operators
from fxfuse.inspection.norms import Home, name_of_norm, reason_of_norm
from fxfuse.inspection.records import Inspection, Line, Place, StreamReport
from fxfuse.passes.blocks import match_block
from fxfuse.passes.branches import Branch, Branches, name_of_branch
from fxfuse.passes.chains import find_chains
from fxfuse.passes.near_ffns import near_ffn
from fxfuse.passes.norm_places import NormPlace, find_norms
from fxfuse.passes.records import Block, Miss, Norm, Value
from fxfuse.passes.runs import bridge, runs_of
from fxfuse.passes.spellings.experts import match_experts
from fxfuse.passes.stream import Stream, Update, read_streams
from fxfuse.passes.view import Operand, View, strip

__all__ = ["inspect_view"]

_WEIGHT = ("experts", "ffn", "attention", "other")  # whose part of a sum gives the reason


def inspect_view(view: View, result: Inspection) -> None:
    """Add what `view` holds to `result`; chains are numbered on."""
    reader = _Reader(view, len(result.chains))
    result.chains += [tuple(block.name for block in chain.blocks) for chain in reader.found.chains]
    result.streams += [reader.report(run) for run in runs_of(view, reader.streams, reader.blocks)]
    result.places += reader.places()


class _Reader:
    """What is known of one graph while its lines are written."""

    def __init__(self, view: View, chains_before: int) -> None:
        self.view = view
        self.found = find_chains(view)
        self.streams = read_streams(view)
        self.branches = Branches(view, self.streams)
        self.norms = {place.output: place for place in find_norms(view, self._all_blocks())}
        self.readers: dict[Operand, list[NormPlace]] = {}  # norms by what they read
        for place in self.norms.values():
            self.readers.setdefault(strip(view, place.source), []).append(place)
        self.blocks: dict[Value, tuple[Block, int | None]] = {}
        for number, chain in enumerate(self.found.chains, 1 + chains_before):
            self.blocks |= {block.out: (block, number) for block in chain.blocks}
        self.blocks |= {block.out: (block, None) for block in self.found.singles}
        self.misses = {miss.where: miss.reason for miss in reversed(self.found.misses)}
        self.states: dict[Value, str] = {}
        self.homes: dict[Value, Home] = {}
        self.on_stream: set[Value] = set()
        self.lines: list[Line] = []
        self.told: set[tuple[str, str]] = set()

    def _all_blocks(self) -> Iterator[Block]:
        yield from (block for chain in self.found.chains for block in chain.blocks)
        yield from self.found.singles

    # The lines of one stream

    def report(self, run: list[Stream]) -> StreamReport:
        """A run of streams as one."""
        lines = [line for index, stream in enumerate(run) for line in self._lines(stream, first=index == 0)]
        lines += self._end(run[-1])
        lines = [_told(lines, index) for index in range(len(lines))]
        self.lines += lines
        inside = self.homes.get(run[0].updates[-1].out)
        size = next((line.facts["hidden_size"] for line in lines if "hidden_size" in line.facts), None)
        if size is None:
            shapes = (shape for state in run[0].states if (shape := self.view.shape(state)))
            size = next((shape[-1] for shape in shapes if len(shape) < 4), None)
        named = [line.name for line in lines if line.kind not in ("start", "end", "norm")]
        return StreamReport(_common(named), size, inside.line.name if inside else None, tuple(lines))

    def _lines(self, stream: Stream, *, first: bool) -> Iterator[Line]:
        start = self.view.scope(stream.start) or self.view.node_name(stream.start)
        if first:
            yield Line("start", start, self.view.node_name(stream.start), self._start_facts(stream.start))
        else:
            kinds = operators(self.view, bridge(self.view, stream) or ())
            yield Line("other", start, self.view.node_name(stream.start), {"operators": kinds})
        self.states.setdefault(stream.start, start)
        for update in stream.updates:
            for each in update.between:
                yield self._between(each)
            line = self._line(stream, update)
            self.states[update.out] = line.name
            yield line

    def _between(self, each: Norm | Value) -> Line:
        if not isinstance(each, Norm):
            op = self.view.op(each)
            kinds = [f"{op.kind} by a constant"] if op is not None else []
            name = self.view.scope(each) or self.view.node_name(each)
            return Line("other", name, self.view.node_name(each), {"operators": kinds})
        self.on_stream.add(each.output)
        name = self.view.scope(each.output) or self.view.node_name(each.output)
        return Line("norm", name, self.view.node_name(each.output), norm_facts(each))

    def _line(self, stream: Stream, update: Update) -> Line:
        parts = self.branches.read(stream, update)
        if update.out in self.blocks:
            block, chain = self.blocks[update.out]
            reason = self.misses.get(block.name)
            line = Line("ffn", block.name, self.view.node_name(update.out), block_facts(block), chain, reason)
        else:
            line = self._no_block(stream, update, parts)
        for part in parts:
            for value in part.values:
                self.homes[value] = Home(line, strip(self.view, part.output))
        return line

    def _no_block(self, stream: Stream, update: Update, parts: Sequence[Branch]) -> Line:
        node = self.view.node_name(update.out)
        if not any(part.values for part in parts):
            return Line("other", node, node, {"operators": ["add of a value from elsewhere"]})
        found = match_block(self.view, update.out)
        kinds = list(dict.fromkeys(part.kind for part in parts))
        if "other" in kinds and len(kinds) > 1:
            kinds.remove("other")
        if kinds == ["other"] and isinstance(found, Miss):
            kinds = ["ffn"]
        if "experts" in kinds and "ffn" in kinds:
            kinds.remove("ffn")  # the shared expert beside them
        main = min(parts, key=lambda part: _WEIGHT.index(part.kind))
        facts: dict[str, Any] = {}
        for part in parts:
            facts |= branch_facts(self.view, self.branches, stream, part, self._norm_at)
        if self.branches.state_of(main.output) not in (None, update.before) and len(parts) == 1:
            facts["beside"] = self.states.get(update.before, "")
        name = _common([name_of_branch(self.view, part, update.out) for part in parts if part.kind in kinds])
        reason = self._reason(kinds, main, update, found)
        if isinstance(found, Miss) and kinds == ["ffn"]:
            name = found.where
        return Line(" + ".join(kinds), name or node, node, facts, None, reason)

    def _reason(
        self, kinds: Sequence[str], branch: Branch, update: Update, found: Block | Miss | None
    ) -> str | None:
        """Why an FFN or experts are no block; notes which misses are told by it."""
        if "experts" in kinds:
            miss = match_experts(self.view, branch.told_by) if branch.told_by is not None else None
            told_by = branch.told_by if branch.told_by is not None else update.out
            if miss is None:
                return f"it holds experts ({self.view.node_name(told_by)}), which are not one FFN"
            self.told.add((miss.where, miss.reason))
            return miss.reason
        if "ffn" not in kinds:
            return None
        if isinstance(found, Miss):
            self.told.add((found.where, found.reason))
            return found.reason
        if len(kinds) > 1:
            name = name_of_branch(self.view, branch, update.out)
            self.told.add((name, self.misses.get(name, "")))
            beside, add = next(kind for kind in kinds if kind != "ffn"), self.view.node_name(update.out)
            return f"the FFN stands in parallel with {beside}: one residual add ({add}) takes both"
        return near_ffn(self.view, branch, update)

    def _norm_at(self, value: Value) -> NormPlace | None:
        """The norm that `value` is the output of, unless the stream itself passes through it."""
        return None if value in self.on_stream else self.norms.get(value)

    def _start_facts(self, start: Value) -> dict[str, object]:
        op = self.view.op(start)
        return {"operators": [op.kind if op is not None else "graph input"]}

    def _end(self, stream: Stream) -> Iterator[Line]:
        """The norms that read the last state outside of every branch."""
        for place in self.readers.get(stream.states[-1], ()):
            if place.norm is not None and place.output not in self.homes:
                name = name_of_norm(self.view, place)
                yield Line("norm", name, self.view.node_name(place.output), norm_facts(place.norm))

    # What is in no chain

    def places(self) -> list[Place]:
        """FFNs and norms that are in no chain, those that stand on no stream included."""
        found = [
            Place("ffn", line.name, line.reason or "")
            for line in self.lines
            if line.is_ffn and line.chain is None
        ]
        self.told |= {(line.name, line.reason or "") for line in self.lines}
        for miss in self.found.misses:
            if (miss.where, miss.reason) not in self.told:
                found.append(Place("ffn", miss.where, miss.reason))
        for place in self.norms.values():
            source = self.branches.state_of(place.source)
            after = self.states.get(source) if source is not None else None
            reason = reason_of_norm(
                self.view, place, self.homes.get(place.output), self.states, self.on_stream, after
            )
            if reason is not None:
                found.append(Place("norm", name_of_norm(self.view, place), reason))
        return found


def _told(lines: Sequence[Line], index: int) -> Line:
    """A line; an FFN that nothing else speaks against says between which others it stands."""
    line = lines[index]
    if line.kind != "ffn" or line.chain is not None or line.reason is not None:
        return line
    before, after = (_called(each) for each in (lines[index - 1 : index], lines[index + 1 : index + 2]))
    where = f"between {before or 'the start'} and {after or 'the end'}"
    return replace(line, reason=f"it stands alone on the residual stream, {where}")


def _called(lines: Sequence[Line]) -> str | None:
    """A neighbour as a sentence calls it; None at the end of a stream."""
    (line,) = lines or (None,)
    if line is None or line.kind == "start":
        return None
    return f"{line.kind.replace('ffn', 'FFN').replace('other', 'another operation')} {line.name}"


def _common(names: Sequence[str]) -> str:
    """The path that names share."""
    return ".".join(os.path.commonprefix([name.split(".") for name in names]))
