"""The rules of the page around the charts: one column of text, tables, cards on narrow screens, paper."""

from __future__ import annotations

__all__ = ["PAGE_RULES"]

PAGE_RULES = """
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 FONTS; }
.chart { display: block; font-family: FONTS; }
main, header, footer { max-width: 912px; margin: 0 auto; padding: 0 16px; }
header { padding-top: 40px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.01em; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 21px; line-height: 1.3; margin: 0 0 6px; }
h3 { font-size: 16px; margin: 20px 0 6px; }
section { margin-top: 48px; border-top: 1px solid var(--line); padding-top: 22px; }
p { margin: 0 0 12px; max-width: 70ch; overflow-wrap: anywhere; }
.lead { font-size: 18px; }
.kicker { color: var(--accent); font-weight: 650; font-size: 14px; margin-bottom: 6px; }
.muted, figcaption { color: var(--muted); }
figure { margin: 16px 0 0; }
figcaption { font-size: 14px; margin-top: 10px; max-width: 76ch; }
a { color: var(--accent); }
nav ul {
  list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0;
  margin: 22px 0 0; font-size: 14px;
}
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px;
  margin: 22px 0 0;
}
.tile { background: var(--panel); border-radius: 8px; padding: 12px 14px; }
.tile dt { font-size: 13px; color: var(--muted); }
.tile dd {
  margin: 2px 0 0; font-size: 21px; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums;
}
.tile dd + dd { font-size: 13px; font-weight: 400; color: var(--muted); }
.scroll { overflow-x: auto; }
.scroll table { font-size: 13px; }
.narrow { display: none; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; }
td.number { white-space: nowrap; }
.cards, .plain { overflow-x: auto; }
.cards td:not(.number) { min-width: 10em; }
.cards td:first-child { min-width: 13em; }
th { font-weight: 600; color: var(--muted); vertical-align: bottom; border-bottom-color: var(--axis); }
.number { text-align: right; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
.marked td { background: var(--panel); }
.marked td:first-child { font-weight: 600; box-shadow: inset 3px 0 var(--accent); padding-left: 10px; }
details { margin-top: 12px; font-size: 14px; }
summary { cursor: pointer; color: var(--accent); }
details .scroll {
  max-height: 420px; overflow-y: auto; margin-top: 8px; border: 1px solid var(--line);
  border-radius: 6px; padding: 4px 12px;
}
.matrix td, .matrix th { padding: 2px 6px; white-space: nowrap; }
pre {
  background: var(--panel); border-radius: 8px; padding: 12px 14px; margin: 8px 0 16px;
  font: 13.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
ul.notes { padding-left: 20px; margin: 8px 0; max-width: 76ch; }
ul.notes li { margin-bottom: 6px; overflow-wrap: anywhere; }
footer { margin-top: 56px; padding-bottom: 40px; font-size: 13px; color: var(--muted); }
@media screen and (max-width: 920px) {
  .wide { display: none; }
  .narrow { display: block; }
}
@media screen and (max-width: 640px) {
  header { padding-top: 24px; }
  h1 { font-size: 25px; }
  .lead { font-size: 16px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
  .tile dd { font-size: 18px; }
  .cards thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .cards table, .cards tbody, .cards tr, .cards td { display: block; }
  .cards tr { border: 1px solid var(--line); border-radius: 8px; padding: 8px 12px; margin-bottom: 10px; }
  .cards td, .cards td:first-child, .cards td:not(.number) { min-width: 0; }
  .cards td {
    display: flex; justify-content: space-between; gap: 16px; border: 0; padding: 3px 0;
    text-align: right; white-space: normal;
  }
  .cards td::before {
    content: attr(data-label); color: var(--muted); text-align: left; flex: none;
    max-width: 55%;
  }
  .cards td:first-child { font-weight: 600; }
  .cards .marked { border-color: var(--accent); background: var(--panel); }
  .cards .marked td, .cards .marked td:first-child {
    background: none; box-shadow: none; padding-left: 0; font-weight: inherit;
  }
}
@media print {
  body { font-size: 11pt; }
  nav, summary { display: none; }
  section { break-inside: avoid-page; margin-top: 28px; }
  .chart { max-width: 100%; height: auto; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
