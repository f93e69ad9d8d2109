"""The page's style sheet: one accent colour and one scale, light and dark, screen and paper.

Charts are coloured by class through custom properties; a PNG gets the same rules with the light values in
their place, since rasterisers know no custom properties.
"""

from __future__ import annotations

import re

from fxfuse.page.rules import PAGE_RULES

__all__ = ["DARK", "LIGHT", "chart_style", "page_style"]

LIGHT = {
    "paper": "#ffffff",
    "panel": "#f4f6f9",
    "ink": "#17202b",
    "muted": "#55606f",
    "line": "#d9dee5",
    "axis": "#8a94a3",
    "accent": "#1d4fc4",
    "soft": "#cfdcf8",
    "ffn": "#6f95e4",
    "attention": "#7c8796",
    "gap": "#7c8796",
    "q0": "#eef3fc",
    "q1": "#d6e2f8",
    "q2": "#b9cdf2",
    "q3": "#98b4ea",
    "q4": "#7698df",
    "q5": "#567bcf",
    "q6": "#3b5fb9",
    "q7": "#26459b",
    "q8": "#152c70",
}
DARK = {
    "paper": "#11151b",
    "panel": "#1a2029",
    "ink": "#e6eaf0",
    "muted": "#a4aebb",
    "line": "#2e3743",
    "axis": "#6b7684",
    "accent": "#8fb4ff",
    "soft": "#253a66",
    "ffn": "#4f78cd",
    "attention": "#8b96a5",
    "gap": "#8b96a5",
    "q0": "#182132",
    "q1": "#1d2f52",
    "q2": "#243f73",
    "q3": "#2f5295",
    "q4": "#4067b5",
    "q5": "#5a80cf",
    "q6": "#7d9de2",
    "q7": "#a6bef0",
    "q8": "#d5e1fb",
}
"""Both scales run from near the paper to far from it, so that more is always further from the paper."""

_FONTS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

_CHART = """
.chart text { font-size: 12.5px; fill: var(--ink); }
.chart text.muted { fill: var(--muted); }
.chart text.strong { font-weight: 600; }
.chart .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 3.5px; stroke-linejoin: round; }
.chart .grid { stroke: var(--line); fill: none; }
.chart .axis { stroke: var(--axis); fill: none; }
.chart .block { stroke: none; fill: var(--axis); }
.chart .block.ffn { fill: var(--ffn); }
.chart .block.fused, .chart .block.group { fill: var(--accent); }
.chart .block.attention { fill: var(--attention); }
.chart .block.gap { fill: var(--paper); stroke: var(--gap); stroke-dasharray: 2.5 2; }
.chart .spine { stroke: var(--axis); stroke-width: 1.5; fill: none; }
.chart .ribbon { fill: var(--soft); stroke: var(--paper); }
.chart .leader { stroke: var(--axis); fill: none; }
.chart .cell { shape-rendering: crispEdges; }
.chart .missing { fill: var(--line); }
.chart .clear { fill: transparent; fill-opacity: 0; }
.chart .outline { fill: none; stroke: var(--accent); stroke-width: 2; }
.chart .dot.measured { fill: var(--accent); stroke: var(--paper); stroke-width: 1; }
.chart .dot.predicted { fill: var(--paper); stroke: var(--muted); stroke-width: 1.3; }
.chart .dot.many { stroke-width: .7; }
.chart .error { stroke: var(--accent); stroke-width: 1.3; fill: none; }
.chart .pair { stroke: var(--line); fill: none; }
.chart .ring { fill: none; stroke: var(--ink); stroke-width: 2; }
.chart .front { fill: none; stroke: var(--soft); stroke-width: 2; }
.chart .budget { fill: none; stroke: var(--muted); stroke-dasharray: 6 4; }
""" + "".join(f".chart .q{n} {{ fill: var(--q{n}); }}\n" for n in range(9))


def page_style() -> str:
    """The style sheet of the page."""
    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_properties(DARK)} }} }}"
    return f":root {{ {_properties(LIGHT)} }}\n{dark}\n{_CHART}{PAGE_RULES}".replace("FONTS", _FONTS)


def chart_style(palette: dict[str, str] = LIGHT) -> str:
    """The rules of the charts with the colours themselves."""
    return re.sub(r"var\(--([\w-]+)\)", lambda found: palette[found[1]], _CHART)


def _properties(palette: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in palette.items())
