"""How to get the same figures again: the commands, the data, the versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fxfuse.page.numbers import DASH, count
from fxfuse.page.summary import Parts
from fxfuse.page.svg import escape
from fxfuse.page.tables import Column, paragraph, table

__all__ = ["notes_of", "reproduce"]


def reproduce(parts: Parts, commands: Sequence[str]) -> str:
    """Commands in the order in which they ran, the calibration data, and the versions of each part."""
    recorded = [each.command for each in (parts.analysis, parts.plan) if each is not None and each.command]
    shown = dict.fromkeys([*recorded, *commands])
    told = "".join(f"<pre><code>{escape(each)}</code></pre>" for each in shown)
    told = told or paragraph("The command was not recorded.", "muted")
    return told + _data(parts) + _versions(parts)


def _data(parts: Parts) -> str:
    if parts.analysis is None:
        return ""
    found = parts.analysis
    return paragraph(
        f"Calibration data: {found.source}; {count(found.tokens)} tokens to fit and "
        f"{count(found.held_out_tokens)} held out, seed {found.seed}."
    )


def _versions(parts: Parts) -> str:
    """One column if all parts were made with the same versions, else one for each."""
    named = (("analysis", parts.analysis), ("plan", parts.plan), ("report", parts.report))
    found = [(name, each.versions) for name, each in named if each is not None and each.versions]
    if not found:
        return paragraph("Versions were not recorded.", "muted")
    if all(versions == found[0][1] for _, versions in found):
        found = [("version", found[0][1])]
    packages = dict.fromkeys(name for _, versions in found for name in versions)
    columns = [Column("package", False), *(Column(name, False) for name, _ in found)]
    return table(columns, [_row(package, [each for _, each in found]) for package in packages], form="plain")


def _row(package: str, versions: Sequence[Mapping[str, str]]) -> list[str]:
    return [package, *(each.get(package, DASH) for each in versions)]


def notes_of(parts: Parts) -> list[str]:
    """All notes once, and that figures are on random inputs where they are."""
    found = [
        note for each in (parts.analysis, parts.plan, parts.report) if each is not None for note in each.notes
    ]
    if parts.report is not None and parts.report.inputs == "random":
        found.insert(0, "The figures of fusing are on random inputs: give real ones to judge quality.")
    if parts.report is not None and parts.report.error:
        found.insert(0, f"The model was not fused: {parts.report.error}")
    return list(dict.fromkeys(found))
