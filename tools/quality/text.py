"""docs/quality.md from the figures of benchmarks/quality-*.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["render"]

HEAD = """# What fusing costs on learned weights, and what is won back

Printed by `make quality` (`python -m tools.quality_table`), on the two trained models of `models/`: `demo`
(RMSNorm, SwiGLU) and `demo-gelu` (LayerNorm, ungated GELU, biases), both byte-level decoders of 12 layers
whose attention was removed from six in a row, which leaves seven FFNs in a row. KL is that of the logits from
the sequential model's, in nats per byte, on {bytes:,} bytes of files that took part in nothing else; ± is
its standard error over windows of 256 bytes. Shares are of the naive KL of all seven as one group, their
errors those of paired windows. Everything that was chosen or fitted was chosen and fitted on {tokens:,}
bytes of training text, a fifth of it held out for the decisions. {versions}
"""


def render(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The page; `found` holds each model's figures."""
    first = next(iter(found.values()))
    lines = [
        HEAD.format(bytes=first["bytes"], tokens=first["tokens"], versions=first["machine"]),
        "## Bars",
        "",
        *_bars(found),
    ]
    for name, figures in found.items():
        lines += ["", f"## {name}", "", *_model(figures)]
    return "\n".join(lines) + "\n"


def _bars(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    names = list(found)
    yield f"| bar | {' | '.join(names)} |"
    yield f"| --- |{' --- |' * len(names)}"
    for title, value in (
        ("seven as one group, g' + h: at least 65 % of the naive KL taken back", _whole(1)),
        ("the same with local distillation: at least 80 %", _whole(2)),
        ("two groups, recovered: at most 10 % of the naive whole-run KL left", _left("2")),
        ("three groups, recovered: at most 10 % left", _left("3")),
        ("predicted loss ranks all segments like the measured KL: Spearman at least 0.95", _ranked),
        ("the planner's answer is that of brute force, at every depth", _equal),
        ("fusing loses at most a tenth of removing as many FFNs, at every depth", _tenth("ratio")),
        ("the same, recovered, where three or fewer FFNs are left", _tenth("ratio_recovered")),
        ("recovery is never worse than naive at 500, 2,500, 10,000, 40,000 tokens", _never_worse),
    ):
        yield f"| {title} | {' | '.join(value(found[name]) for name in names)} |"


def _whole(place: int) -> Any:
    return lambda figures: _percent(figures["whole_run"][place]["recovered"])


def _left(groups: str) -> Any:
    def value(figures: Mapping[str, Any]) -> str:
        rows = figures["planned"][groups]
        return "; ".join(f"{row['form'].split(', ')[1]}: {_percent(_rest(row))}" for row in rows)

    return value


def _rest(row: Mapping[str, Any]) -> dict[str, float]:
    return {"value": 1 - row["recovered"]["value"], "error": row["recovered"]["error"]}


def _ranked(figures: Mapping[str, Any]) -> str:
    found = figures["ranking"]
    return f"{next(iter(found['spearman'].values())):.3f} over {found['segments']} segments"


def _equal(figures: Mapping[str, Any]) -> str:
    rows = figures["brute_force"]
    return f"{sum(row['equal'] for row in rows)} of {len(rows)} depths"


def _tenth(key: str) -> Any:
    def value(figures: Mapping[str, Any]) -> str:
        known = [row for row in figures["removing"] if row[key] is not None]
        worst = max(known, key=lambda row: row[key]["value"])
        return f"worst {worst[key]['value']:.3f} ± {worst[key]['error']:.3f} (depth {worst['depth']})"

    return value


def _never_worse(figures: Mapping[str, Any]) -> str:
    return "; ".join(_percent(row["recovered"]) for row in figures["sweep"])


def _model(figures: Mapping[str, Any]) -> Iterator[str]:
    yield "### Seven FFNs as one group"
    yield ""
    yield from _rows(figures["whole_run"])
    for groups, rows in figures["planned"].items():
        yield from ("", f"### {groups} groups, chosen by the planner", "")
        yield from _rows(rows)
    yield from ("", "### What ranks segments", "")
    yield "| figure | Spearman with the measured KL |"
    yield "| --- | --- |"
    for name, value in figures["ranking"]["spearman"].items():
        yield f"| {name} | {value:.3f} |"
    yield from ("", "### The planner and brute force, measured on calibration data", "")
    yield "| FFNs left | planner | KL | best of all | KL |"
    yield "| --- | --- | --- | --- | --- |"
    for row in figures["brute_force"]:
        yield (
            f"| {row['depth']} | {_sum(row['planner'])} | {row['planner_kl']:.5f} | {_sum(row['best'])} | "
            f"{row['best_kl']:.5f} |"
        )
    yield from ("", "### Fusing against removing as many FFNs, at equal depth", "")
    yield (
        "| FFNs left | groups | KL fused | KL recovered (g' + h) | KL with the others removed | "
        "fused / removed | recovered / removed |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in figures["removing"]:
        yield (
            f"| {row['depth']} | {row['groups']} | {_kl(row['fused'])} | {_kl(row['recovered'])} | "
            f"{_kl(row['removed'])} | {_value(row['ratio'])} | {_value(row['ratio_recovered'])} |"
        )
    yield from ("", "### Recovery of the whole run by calibration tokens", "")
    yield "| tokens to fit on | kept | KL | of the naive KL taken back |"
    yield "| --- | --- | --- | --- |"
    for row in figures["sweep"]:
        yield f"| {row['tokens']:,} | {row['form']} | {_kl(row)} | {_percent(row['recovered'])} |"


def _rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| form | KL | top-1 agreement | of the naive KL taken back |"
    yield "| --- | --- | --- | --- |"
    for row in rows:
        yield f"| {row['form']} | {_kl(row)} | {row['top1']:.4f} | {_percent(row['recovered'])} |"


def _kl(row: Mapping[str, float] | None) -> str:
    return "" if row is None else f"{row['kl']:.5f} ± {row['error']:.5f}"


def _value(figure: Mapping[str, float] | None) -> str:
    return "" if figure is None else f"{figure['value']:.3f} ± {figure['error']:.3f}"


def _percent(figure: Mapping[str, float]) -> str:
    return f"{100 * figure['value']:.1f} ± {100 * figure['error']:.1f} %"


def _sum(lengths: Sequence[int]) -> str:
    return " + ".join(map(str, lengths))
