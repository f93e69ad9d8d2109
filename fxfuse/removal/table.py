"""A removal as a table for a terminal: every attention, what leaving it out costs, what is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxfuse.disks import size_words
from fxfuse.naming import spans
from fxfuse.removal.records import Choice, Removal, Step
from fxfuse.table import columns, text

__all__ = ["draw"]

_WHAT, _ROUND, _GAP = len("cannot go"), len("KL, round 10"), 2
"""Columns of text that the table's columns take, and what is left free between them."""

Round: TypeAlias = tuple[int, Step]


def draw(removal: Removal) -> RenderableType:
    """The table as something rich can print."""
    parts: list[RenderableType] = [text(f"{removal.model}: {removal.summary()}", "bold"), Text()]
    if names := _names(removal):
        parts += [_Attentions(removal, names), *(text(line) for line in _reasons(removal))]
    if removal.choice is not None and removal.choice.steps:
        parts += [text(line) for line in _costs(removal.choice)]
    if removal.removed:
        parts += [Text(), _sizes(removal)]
    notes = [text(f"note: {note}", "dim") for note in removal.notes]
    ending = f"written to {removal.output}" if removal.output else "nothing was written"
    return Group(*parts, Text(), *notes, text(ending))


class _Attentions:
    """A row for every attention, and columns of as many rounds as the terminal has room for."""

    def __init__(self, removal: Removal, names: Sequence[str]) -> None:
        self._removal, self._names = removal, names

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The table, and which rounds it leaves out."""
        choice = self._removal.choice
        rounds = list(enumerate(choice.steps if choice is not None else (), 1))
        taken = max(map(len, self._names)) + _WHAT + 2 * _GAP
        room = max(2, (options.max_width - taken) // (_ROUND + _GAP))
        shown = rounds if len(rounds) <= room else [rounds[0], *rounds[1 - room :]]
        yield _table(self._removal, self._names, shown)
        if len(shown) < len(rounds):
            last = shown[1][0] - 1
            left = f"rounds 2 to {last} are" if last > 2 else "round 2 is"
            yield text(f"{left} not shown: --report writes them all")


def _table(removal: Removal, names: Sequence[str], shown: Sequence[Round]) -> Table:
    """A row for every attention; a column for each round that is shown, in which what went is marked."""
    table = columns("attention", "", *(f"KL, round {number}" for number, _ in shown))
    misses = dict(removal.misses)
    for name in names:
        what = "removed" if name in removal.removed else "cannot go" if name in misses else "kept"
        cells = []
        for _, step in shown:
            kl = next((each.kl for each in step.tried if each.name == name), None)
            cells.append("" if kl is None else f"{kl:.3g}{' *' if step.name == name else ''}")
        table.add_row(text(name), what, *cells)
    return table


def _costs(choice: Choice) -> list[str]:
    lines = [f"* went in that round; {choice.tokens:,} tokens, in nats; it ended because {choice.stopped}"]
    if choice.held_out_kl is not None:
        error = "" if choice.held_out_error is None else f" ± {choice.held_out_error:.2g}"
        tokens = f"{choice.held_out_tokens:,} held-out tokens"
        lines.append(f"without all of them: KL {choice.held_out_kl:.4g}{error} nats on {tokens}")
    return lines


def _sizes(removal: Removal) -> Table:
    table = columns("", "before", "after")
    chains = [[str(len(chain)) for chain in each] for each in (removal.chains_before, removal.chains)]
    table.add_row("chains of FFN blocks", *(" + ".join(each) or "none" for each in chains))
    table.add_row("weights", size_words(removal.bytes_before), size_words(removal.bytes_after))
    if removal.inputs or removal.outputs:
        gone = f"{len(removal.inputs)} inputs and {len(removal.outputs)} outputs fewer"
        table.add_row("cache", "", gone)
    return table


def _names(removal: Removal) -> list[str]:
    """The paths of all attentions, by the numbers in them."""
    names = [*removal.removed, *removal.kept, *(name for name, _ in removal.misses)]
    return sorted(
        names, key=lambda name: [(int(p), "") if p.isdecimal() else (-1, p) for p in name.split(".")]
    )


def _reasons(removal: Removal) -> list[str]:
    """One line for every attention that cannot go, and why."""
    places: dict[str, list[str]] = {}
    for where, reason in removal.misses:
        places.setdefault(reason, []).append(where)
    return [f"{spans(where)}: {reason}" for reason, where in places.items()]
