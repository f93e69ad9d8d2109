r"""The residual stream: the adds by which a model's state is updated, in order.

    s0 --+------------> + ---> s1 --+---------> + ---> s2
         \--> branch ---^           \-> branch --^

1. An add updates a stream when one operand is a state of it (seen through norms and constants, as post-norm
   models write it) and the other is computed from that state.
2. A stream begins where an add has an operand that its other operand is computed from, by more than
   elementwise operators.
3. An add inside a branch that looked like an update is taken back when a later add shows the branch's end.

Every value is visited a bounded number of times, so the cost is linear in the size of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fxfuse.passes.elementwise import FUNCTIONS
from fxfuse.passes.records import Norm, Value
from fxfuse.passes.spellings.affine import peel
from fxfuse.passes.spellings.norms import match_norm
from fxfuse.passes.view import Op, Operand, View, is_constant, strip

__all__ = ["Stream", "Update", "read_streams", "values_in"]

_REACH = 4096  # operators of one branch that the search for a stream's beginning looks at
_STEPS = 8  # norms and constants between two states


@dataclass
class Update:
    """`out` = `x` + `branch`, where `x` is the state `before` seen through `between`."""

    out: Value
    before: Value
    x: Operand
    branch: tuple[Operand, ...]
    between: tuple[Norm | Value, ...]  # norms, and values of constants applied, in the stream's direction


@dataclass
class Stream:
    """A run of updates; `origin` is the state of another stream that `start` is computed from, if any."""

    start: Value
    origin: Value | None = None
    updates: list[Update] = field(default_factory=list)

    @property
    def states(self) -> list[Value]:
        """The start and what every update leaves."""
        return [self.start, *(update.out for update in self.updates)]


def read_streams(view: View) -> list[Stream]:
    """All streams of a graph, in the order of their beginnings."""
    reader = _Reader(view)
    for value in view.values():
        reader.visit(value)
    return sorted(
        (stream for stream in reader.streams if stream.updates), key=lambda each: reader.order(each.start)
    )


def values_in(op: Op) -> Iterator[Value]:
    """The values that an operator reads, those of operators hidden in it included."""
    for each in op.inputs:
        if isinstance(each, Op):
            yield from values_in(each)
        elif each is not None and not isinstance(each, (int, float)):
            yield each


class _Reader:
    """Goes through the values once; `_latest` holds the latest state that each was computed from."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.streams: list[Stream] = []
        self._places: dict[Value, int] = {}
        self._home: dict[Value, tuple[Stream, int]] = {}
        self._latest: dict[Value, Value | None] = {}

    def order(self, value: Value) -> int:
        """The place of a value among all; graph inputs come first."""
        return self._places.get(value, -1)

    def visit(self, value: Value) -> None:
        op = self.view.op(value)
        self._places[value] = len(self._places)
        if op is None or op.kind == "shape":
            return
        self._latest[value] = self._of([self._latest.get(each) for each in values_in(op)])
        ways = list(_ways(self.view, value, op))
        if ways and not self._extend(value, ways):
            self._begin(value, ways)

    def _of(self, states: list[Value | None]) -> Value | None:
        known = [each for each in states if each is not None]
        return max(known, key=self.order) if known else None

    def _extend(self, value: Value, ways: list[tuple[Operand, tuple[Operand, ...]]]) -> bool:
        found = [(up, x, rest) for x, rest in ways if (up := self._state_above(x)) is not None]
        if not found:
            return False
        (before, between), x, rest = max(found, key=lambda each: self.order(each[0][0]))
        update = Update(value, before, x, rest, between)
        stream, place = self._home[before]
        if place < len(stream.updates):
            if self._is_inside(rest, stream, place):
                self._take_back(stream, place)
            else:
                stream = self._new(before, before)
        self._append(stream, update)
        return True

    def _state_above(self, operand: Operand) -> tuple[Value, tuple[Norm | Value, ...]] | None:
        """The state that `operand` is, with the norms and constants between."""
        between: list[Norm | Value] = []
        for _ in range(_STEPS):
            value = strip(self.view, operand)
            if isinstance(value, (Op, int, float)) or value is None:
                return None
            if value in self._home:
                return value, tuple(reversed(between))
            op = self.view.op(value)
            norm = match_norm(self.view, value, set()) if op is not None else None
            peeled = peel(self.view, op) if op is not None and norm is None else None
            if norm is None and peeled is None:
                return None
            between.append(norm if norm is not None else value)
            operand = norm.source if norm is not None else peeled[0]  # type: ignore[index]
        return None

    def _is_inside(self, rest: tuple[Operand, ...], stream: Stream, place: int) -> bool:
        """Whether a branch is computed from states of `stream` after `place`: those were its inside."""
        latest = self._of([self._latest.get(each) for each in values_in(Op("", rest))])
        while latest is not None:
            home, index = self._home[latest]
            if home is stream:
                return index > place
            latest = home.origin
        return False

    def _take_back(self, stream: Stream, place: int) -> None:
        inside = stream.updates[place:]
        del stream.updates[place:]
        other = Stream(inside[0].before, inside[0].before, inside)
        self.streams.append(other)
        for index, update in enumerate(inside):
            self._home[update.out] = other, index + 1

    def _begin(self, value: Value, ways: list[tuple[Operand, tuple[Operand, ...]]]) -> None:
        for x, rest in ways:
            start = strip(self.view, x)
            if isinstance(start, (Op, int, float)) or start is None or not self._same_shape(start, value):
                continue
            between = self._between(start, rest)
            if between is None:
                continue
            stream = self._new(start, self._latest.get(start))
            self._latest[start] = start
            for each in sorted(between, key=self.order):
                self._adopt(each, start)
                op = self.view.op(each)
                states = [self._latest.get(one) for one in values_in(op)] if op is not None else []
                if each not in self._home:
                    self._latest[each] = self._of(states)
            self._append(stream, Update(value, start, x, rest, ()))
            return

    def _adopt(self, value: Value, start: Value) -> None:
        """A stream that was found first, inside the branch, comes from `start`."""
        inner = self._home.get(value)
        if inner is not None and inner[0].start == value and inner[0].origin is None:
            inner[0].origin = start

    def _same_shape(self, one: Value, other: Value) -> bool:
        a, b = self.view.shape(one), self.view.shape(other)
        if a is None or b is None:
            return True
        return len(a) == len(b) and all(x == y or x is None or y is None for x, y in zip(a, b, strict=True))

    def _between(self, start: Value, rest: tuple[Operand, ...]) -> set[Value] | None:
        """What lies between `start` and a branch that is computed from it; None if it is not, or is too long.

        From the state of another stream the search goes on at that stream's start.
        """
        first = self.order(start)
        stack, seen = list(values_in(Op("", rest))), set[Value]()
        reached = real = False
        while stack:
            value = stack.pop()
            reached = reached or value == start
            if value in seen or self.order(value) <= first or len(seen) > _REACH:
                continue
            seen.add(value)
            home = self._home.get(value)
            if home is not None and home[0].start != value:
                stack.append(home[0].start)
                real = True
                continue
            op = self.view.op(value)
            if op is not None and op.kind != "shape":
                real = real or not _is_light(op)
                stack.extend(values_in(op))
        return seen if reached and real else None

    def _new(self, start: Value, origin: Value | None) -> Stream:
        stream = Stream(start, origin)
        self.streams.append(stream)
        self._home.setdefault(start, (stream, 0))
        return stream

    def _append(self, stream: Stream, update: Update) -> None:
        stream.updates.append(update)
        self._home[update.out] = stream, len(stream.updates)
        self._latest[update.out] = update.out


def _ways(view: View, value: Value, op: Op) -> Iterator[tuple[Operand, tuple[Operand, ...]]]:
    """Every way to read an operator as x + branch."""
    if op.kind == "linear":
        bias = op.inputs[2] if len(op.inputs) > 2 else None
        if bias is not None and not is_constant(view, bias):
            yield bias, op.inputs[:2]
        return
    if op.kind == "add" or op.kind.startswith("add ") or op.kind == "Sum":
        computed = tuple(each for each in op.inputs if not is_constant(view, each))
        if len(computed) < 2:
            return
        for index, each in enumerate(computed):
            yield each, computed[:index] + computed[index + 1 :]


def _is_light(op: Op) -> bool:
    return op.kind in FUNCTIONS or op.kind in ("mean", "rms_norm", "layer_norm")
