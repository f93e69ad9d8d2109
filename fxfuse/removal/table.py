"""A removal as a table for a terminal: every attention, what leaving it out costs, what is left."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxfuse.disks import size_words
from fxfuse.naming import spans
from fxfuse.removal.records import Choice, Removal
from fxfuse.table import columns, text

__all__ = ["draw"]

_ROUNDS = 6


def draw(removal: Removal) -> RenderableType:
    """The table as something rich can print."""
    parts: list[RenderableType] = [text(f"{removal.model}: {removal.summary()}", "bold"), Text()]
    parts += [_attentions(removal), *(text(line) for line in _reasons(removal))]
    if removal.choice is not None:
        parts += [text(line) for line in _costs(removal.choice)]
    if removal.removed:
        parts += [Text(), _sizes(removal)]
    notes = [text(f"note: {note}", "dim") for note in removal.notes]
    ending = f"written to {removal.output}" if removal.output else "nothing was written"
    return Group(*parts, Text(), *notes, text(ending))


def _attentions(removal: Removal) -> Table:
    """A row for every attention; a column for each of the last rounds, in which what went is marked."""
    steps = removal.choice.steps if removal.choice is not None else ()
    shown = [(number, step) for number, step in enumerate(steps, 1)][-_ROUNDS:]
    if len(steps) > _ROUNDS:
        shown = [(1, steps[0]), *shown[1:]]
    table = columns("attention", "", *(f"KL, round {number}" for number, _ in shown))
    misses = dict(removal.misses)
    for name in _in_order([*removal.removed, *removal.kept, *misses]):
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


def _in_order(names: list[str]) -> list[str]:
    """Paths by the numbers in them."""
    return sorted(
        names, key=lambda name: [(int(p), "") if p.isdecimal() else (-1, p) for p in name.split(".")]
    )


def _reasons(removal: Removal) -> list[str]:
    """One line for every attention that cannot go, and why."""
    places: dict[str, list[str]] = {}
    for where, reason in removal.misses:
        places.setdefault(reason, []).append(where)
    return [f"{spans(where)}: {reason}" for reason, where in places.items()]
