"""The page itself: sections in the order in which a reader asks, and what is missing in one list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxfuse._version import __version__
from fxfuse.page.charts import attention_chart, front_chart, heatmap_chart, loss_chart, stream_chart
from fxfuse.page.groups import end_to_end_table, groups_table, misses_table, stages_table
from fxfuse.page.numbers import known
from fxfuse.page.records import Chart
from fxfuse.page.recovering import recovery_tables
from fxfuse.page.reproduce import notes_of, reproduce
from fxfuse.page.steps import Stream, stream_of
from fxfuse.page.style import page_style
from fxfuse.page.summary import Parts, lead, tiles, title_of
from fxfuse.page.svg import escape
from fxfuse.page.tables import details, paragraph

__all__ = ["GENERATOR", "Page", "build_page"]

GENERATOR = "fxfuse page"
"""The page says so in its head: only a file that does is overwritten."""


@dataclass(frozen=True)
class Page:
    """The text of the HTML file, and the charts for PNG files."""

    html: str
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class _Section:
    name: str
    title: str
    content: str


def build_page(parts: Parts, title: str | None = None, commands: Sequence[str] = ()) -> Page:
    """Draw everything that is there and put it together."""
    stream = stream_of(parts.analysis, parts.plan, parts.report)
    charts = _charts(parts, stream)
    sections = [*_tables_before(parts), *map(_section_of, charts), *_tables_after(parts, commands)]
    missing = _missing(parts, {chart.name for chart in charts})
    if missing:
        items = "".join(f"<li>{escape(each)}</li>" for each in missing)
        content = f'<ul class="notes">{items}</ul>'
        sections.append(_Section("missing", "What is not in this report", content))
    heading = title or title_of(parts)
    return Page(_document(heading, parts, stream, sections), tuple(charts))


def _charts(parts: Parts, stream: Stream | None) -> list[Chart]:
    found = [stream_chart(stream)] if stream is not None else []
    analysis = parts.analysis
    if analysis is not None and any(
        s.length > 1 and (known(s.kl) or known(s.predicted_kl)) for s in analysis.segments
    ):
        found.append(loss_chart(analysis, parts.groups))
    if parts.plan is not None and any(known(p.kl) or known(p.predicted_kl) for p in parts.plan.front):
        found.append(front_chart(parts.plan))
    if analysis is not None and analysis.dependency is not None and len(analysis.dependency.names) > 1:
        found.append(heatmap_chart(analysis.dependency, parts.groups))
    if analysis is not None and any(known(s.kl) or known(s.cosine) for s in analysis.attention):
        found.append(attention_chart(analysis.attention))
    return found


def _section_of(chart: Chart) -> _Section:
    content = (
        f'<figure><div class="wide scroll" tabindex="0">{chart.wide}</div>'
        f'<div class="narrow scroll" tabindex="0">{chart.narrow}</div>'
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
        f"{details('The figures', chart.figures)}"
    )
    return _Section(chart.name, chart.title, content)


def _tables_before(parts: Parts) -> list[_Section]:
    if not parts.stages:
        return []
    told = paragraph("Each row starts from the model of the row above it; ± is one standard error.", "muted")
    return [_Section("stages", "The whole way", told + stages_table(parts.stages))]


def _tables_after(parts: Parts, commands: Sequence[str]) -> list[_Section]:
    found = []
    tables = [groups_table(parts.plan, parts.report)]
    tables += [end_to_end_table(parts.report)] if parts.report is not None else []
    if any(tables):
        title = "The groups" if parts.is_fused or not parts.groups else "The planned groups"
        found.append(_Section("groups", title, "<br>".join(each for each in tables if each)))
    if parts.recovered:
        found.append(_Section("recovery", "What recovery took back", recovery_tables(parts.recovered)))
    misses = misses_table(parts.report) if parts.report is not None else None
    found += [_Section("misses", "Why not more", misses)] if misses else []
    if notes := notes_of(parts):
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        found.append(_Section("notes", "Notes", f'<ul class="notes">{items}</ul>'))
    found.append(_Section("reproduce", "Make it again", reproduce(parts, commands)))
    return found


_SOURCES = {
    "stream": "The residual stream is drawn from the file that fxfuse analyze writes.",
    "loss": "Loss against group length comes from fxfuse analyze, which measures every segment.",
    "front": "The Pareto front comes from fxfuse plan.",
    "dependency": "The dependency matrix comes from fxfuse analyze.",
    "attention": "The importance of each attention comes from fxfuse analyze.",
    "recovery": "What recovery takes back comes from fxfuse fuse with --recover.",
    "groups": "The table of groups comes from fxfuse plan, all its figures from the report of fxfuse fuse.",
}


def _missing(parts: Parts, drawn: set[str]) -> list[str]:
    there = drawn | ({"groups"} if parts.groups else set()) | ({"recovery"} if parts.recovered else set())
    return [sentence for name, sentence in _SOURCES.items() if name not in there]


def _document(title: str, parts: Parts, stream: Stream | None, sections: Sequence[_Section]) -> str:
    links = "".join(f'<li><a href="#{each.name}">{escape(each.title)}</a></li>' for each in sections)
    body = "".join(
        f'<section id="{each.name}"><h2>{escape(each.title)}</h2>{each.content}</section>\n'
        for each in sections
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # nothing from anywhere
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="generator" content="{GENERATOR} {__version__}">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)} · fxfuse</title>\n<style>{page_style()}</style>\n</head>\n<body>\n"
        f'<header><p class="kicker">FFN fusion report</p><h1>{escape(title)}</h1>'
        f"{paragraph(lead(parts), 'lead')}{tiles(parts, stream)}<nav><ul>{links}</ul></nav></header>\n"
        f"<main>\n{body}</main>\n<footer>Made by fxfuse {__version__}.</footer>\n</body>\n</html>\n"
    )
