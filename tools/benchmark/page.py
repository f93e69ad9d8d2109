"""docs/performance.md from the runs of tools/bench.py: text and tables; the plots are files beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tools.benchmark.bars import bars
from tools.benchmark.cases import cases_on, shape_of
from tools.benchmark.machine import slug
from tools.benchmark.plots import ratio_plot, series_of, time_plot
from tools.benchmark.side_pages import side_pages
from tools.benchmark.tables import busy, table

__all__ = ["render"]

Record = Mapping[str, Any]

_INTRO = """# Performance

Written by `python -m tools.performance` from the runs of `tools/bench.py` in [benchmarks/](../benchmarks/);
`make bench` runs both.

How it was measured. Every contestant runs in a process of its own; while one runs, the others sleep. They
take turns for several rounds, and the order turns round each time; where it says two seatings, they are then
started anew in the opposite order, since a process keeps the memory it was given and the first gets the best.
Every answer was checked against float64 before it was timed. A ratio is the time of the best unfused
contestant, the one with the least median, over that of the best fused one, the median over rounds: above 1
the fused form is faster. In brackets stand the least and the greatest round, which are the noise; ~ marks
ratios whose rounds do not agree on who is faster.
"Share" is what the machine could do at most over what was measured: the time that reading the weights once
takes at the bandwidth measured on as many bytes, or computing the products at the measured rate, whichever
is longer, over the time of a call. Where no bandwidth was measured at that size and the weights fit into the
last cache, they may be read faster than memory is, so a share may pass 100 %; it is marked with *.

Fusing moves no fewer weights. It saves the depth: launches, norms, adds and the ends of small products. Where
the share of the unfused form is near 100 % already, nothing is left to save.
"""


def render(runs: Sequence[Record], others: Sequence[Record] = ()) -> tuple[str, dict[str, str]]:
    """The page, and the plots by file name; runs on a CPU come first, what `others` measured at the end."""
    plots: dict[str, str] = {}
    parts = [_INTRO]
    for run in sorted(runs, key=lambda run: (run["device"] != "cpu", run["machine"]["cpu"])):
        parts += _run(run, plots)
    devices = {run["device"] for run in runs}
    if "cuda" not in devices:
        parts.append("## On a GPU\n\nNot measured yet: `python tools/bench.py --device cuda` measures it.\n")
    if "cpu" not in devices:
        parts.append("## On a CPU\n\nNot measured yet: `python tools/bench.py` measures it.\n")
    return "\n".join([*parts, *side_pages(others)]), plots


def _run(run: Record, plots: dict[str, str]) -> list[str]:
    device = device_of(run)
    cases = [case for case in run["cases"] if case["timings"]]
    chains: dict[tuple[str, str], list[Record]] = {}
    for case in cases:
        chains.setdefault((case["model"], case["dtype"]), []).append(case)
    parts = [f"## {device}\n", _about(run), _ceilings(run)]
    parts.append("### Bars\n\n" + table(("bar", "measured", "reached"), bars(run)))
    whole = {key: group for key, group in chains.items() if shape_of(key[0]) is None}
    bare = {key: group for key, group in chains.items() if key not in whole}
    for title, groups in (("Chains of FFNs", bare), ("Whole models", whole)):
        if groups:
            parts.append(f"### {title}\n")
        for key, group in groups.items():
            parts += _model(run, key, group, plots)
    parts += [_every_time(run, cases), _errors(run, cases), _checks(run), _left_out(run)]
    return [part for part in parts if part]


def device_of(run: Record) -> str:
    """What was measured, by name; "label" tells a run from others on the same machine."""
    machine, label = run["machine"], run.get("label")
    name = str(machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores")
    return f"{name}, {label}" if label else name


def _about(run: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    settings = run["settings"]
    rounds = f"{settings['rounds']} rounds"
    if (seatings := settings.get("seatings", 1)) > 1:
        rounds += f" in each of {seatings} seatings"
    text = f"{run['date'][:10]}; {versions}; {settings['threads']} threads; {rounds}."
    return text + busy(run["machine"]) + (f" {run['note']}" if run.get("note") else "") + "\n"


def _ceilings(run: Record) -> str:
    found = run["ceilings"]
    rows = [(f"bandwidth, {name}", f"{value:,.1f} GB/s") for name, value in found["bandwidths"].items()]
    rows += [(f"products in {kind}", f"{value:,.2f} TFLOP/s") for kind, value in found["rates"].items()]
    rows += [
        (f"bandwidth, matrix-vector product of {size} MB", f"{value:,.1f} GB/s")
        for size, value in found.get("by_size", {}).items()
    ]
    if found["cache_mb"]:
        rows.append(("last cache, as the machine tells", f"{found['cache_mb']:,.0f} MB"))
    note = f"\nShares of bandwidth are of: {found['of']}.\n" if found["of"] else ""
    return table(("ceiling", "measured"), rows) + note


def _model(run: Record, key: tuple[str, str], cases: list[Record], plots: dict[str, str]) -> list[str]:
    name = f"{slug(device_of(run))}-{key[0]}-{key[1]}"
    parts = [f"#### {_title(*key)}\n", _ratios(cases)]
    series = series_of(cases)
    apart = ("fp32 unfused", "beside inductor's")  # ratios of another kind, which the tables have
    shown = {pair: points for pair, points in series.items() if not any(each in pair for each in apart)}
    if len(cases) > 1 and shown:
        plots[f"{name}-ratios.svg"] = ratio_plot(f"{name}-ratios", _title(*key), shown)
        parts.append(f"![Ratios by number of tokens](performance/{name}-ratios.svg)\n")
    first = cases[0]
    if first["tokens"] == 1:
        bars = _bars(run, first)
        title = f"One token: {_title(*key)}"
        plots[f"{name}-times.svg"] = time_plot(f"{name}-times", title, bars)
        parts.append(f"![Times at one token](performance/{name}-times.svg)\n")
    return parts


def _title(model: str, dtype: str) -> str:
    shape = shape_of(model)
    if shape is None:
        return f"{model}, {dtype}"
    rank = ", the shard of one of 8 ranks" if model.startswith("shard") else ""
    return f"{shape.blocks} FFNs, hidden {shape.hidden}, intermediate {shape.width}{rank}, {dtype}"


def _bars(run: Record, case: Record) -> list[tuple[str, float, str, float | None]]:
    found = []
    for name, timing in case["timings"].items():
        about = run["contestants"][name]
        kind = "fused" if about["form"] in ("fused", "chosen", "kernel") else ""
        kind = "bound" if about["form"] == "bound" else kind
        share = timing.get("share")
        found.append((about["title"], timing["p50_us"], kind, share and share * timing["p50_us"]))
    return sorted(found, key=lambda bar: bar[1])


def _ratios(cases: Iterable[Record]) -> str:
    rows = []
    for case in cases:
        for pair, ratio in case["ratios"].items():
            sides = [_fastest(ratio[side], case) for side in ("unfused", "fused")]
            times = [_time(case["timings"][side]) for side in sides]
            mark = "" if ratio["least"] > 1 or ratio["greatest"] < 1 else "~"
            between = f"[{ratio['least']:.2f} to {ratio['greatest']:.2f}]"
            row = (case["tokens"], pair, times[0], times[1], _share(case, sides[1]))
            rows.append((*row, f"{mark}{ratio['median']:.2f} {between}"))
        rows += [
            (case["tokens"], f"{title}, chosen", "", "as it was", "", "1: fxfuse timed it and did not fuse")
            for title in _declined(case)
        ]
    heading = ("tokens", "runtime", "best unfused, µs (p10 to p90)", "fused, µs", "share", "ratio")
    return table(heading, rows)


def _declined(case: Record) -> list[str]:
    """The runtimes in which fxfuse timed the case and left it unfused."""
    titles = {"torch.compile" if name.startswith("fxfuse") else "ONNX Runtime" for name in case["declined"]}
    return sorted(titles)


def _fastest(names: Sequence[str], case: Record) -> str:
    timed = [name for name in names if name in case["timings"]]
    return min(timed, key=lambda name: case["timings"][name]["p50_us"])


def _time(timing: Record) -> str:
    return f"{_us(timing['p50_us'])} ({_us(timing['p10_us'])} to {_us(timing['p90_us'])})"


def _us(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def _share(case: Record, name: str) -> str:
    share = case["timings"][name].get("share")
    if share is None:
        return ""
    kind = next((kind for kind in ("int8", "int4") if kind in name), case["dtype"])
    mark = "*" if case["floors"].get(kind, {}).get("in_cache") else ""
    return f"{100 * share:.0f} %{mark}"


def _every_time(run: Record, cases: Sequence[Record]) -> str:
    rows = [
        (
            case["name"], run["contestants"][name]["title"], _us(timing["p10_us"]), _us(timing["p50_us"]),
            _us(timing["p90_us"]), _share(case, name),
            _us(case["waited_us"][name]) if name in case["waited_us"] else "",
        )
        for case in cases
        for name, timing in case["timings"].items()
    ]  # fmt: skip
    if not rows:
        return ""
    more = (
        "Calls are queued and waited for together; the last column is a call waited for by itself.\n\n"
        if run["device"] == "cuda"
        else ""
    )
    heading = ("case", "contestant", "p10 µs", "p50 µs", "p90 µs", "share", "waited, µs")
    return f"### Every time\n\n{more}{_folded(heading, rows)}"


def _errors(run: Record, cases: Sequence[Record]) -> str:
    worst: dict[tuple[str, str], float] = {}
    for case in cases:
        for name, error in case["relative_errors"].items():
            weights = run["contestants"][name]["weights"]
            key = (run["contestants"][name]["title"], case["dtype"] if weights == "float" else weights)
            worst[key] = max(worst.get(key, 0.0), error)
    rows = [(title, kind, f"{error:.1e}") for (title, kind), error in worst.items()]
    if not rows:
        return ""
    text = (
        "The relative error of each contestant's answer against float64 on the float weights, the worst over "
        "all cases: the sequential form for what is not fused, the parallel form for what is. What fusing "
        "itself changes is a property of a model's weights and is not in these figures.\n\n"
    )
    return "### Errors\n\n" + text + table(("contestant", "type", "worst relative error"), rows)


def _checks(run: Record) -> str:
    checks = run.get("checks")
    if not checks or not checks["norms"]:
        return ""
    rows = []
    for one in checks["norms"]:
        counts = [one[name] if one[name] is not None else "" for name in ("zeros", "nan", "inf")]
        error = "" if one["error"] is None else f"{one['error']:.1e}"
        rows.append((one["norm"], one["dtype"], one["input"], *counts, error, one["verdict"]))
    heading = ("norm", "type", "input", "zeros", "NaN", "Inf", "relative error", "verdict")
    bad = sum(one["verdict"] != "good" for one in checks["norms"])
    told = (
        f"{bad} of {len(rows)} are not good." if bad else f"All {len(rows)} are good: no zeros, NaN or Inf."
    )
    return f"### Norms of large values in ONNX Runtime\n\n{told}\n\n{_folded(heading, rows)}"


def _folded(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A long table that opens when it is asked for."""
    return f"<details><summary>{len(rows)} rows</summary>\n\n{table(heading, rows)}\n</details>\n"


def _left_out(run: Record) -> str:
    lines: dict[str, list[str]] = {}
    for case in run["cases"]:
        if case["not_measured"]:
            lines.setdefault(f"not measured: {case['not_measured']}", []).append(case["name"])
        for what in ("declined", "failures"):
            for name, why in case[what].items():
                told = why if what == "declined" or why.startswith("not measured") else f"failed: {why}"
                lines.setdefault(f"{run['contestants'][name]['title']}: {told}", []).append(case["name"])
    done = {one["name"] for one in run["cases"]}
    missing: dict[str, list[str]] = {}
    for case in cases_on(run["device"], large=True):
        if str(case) not in done:
            missing.setdefault(f"{case.model} in {case.dtype} at", []).append(str(case.tokens))
    if missing:
        told = [f"{model} {', '.join(tokens)}" for model, tokens in missing.items()]
        lines["not measured, since not part of this run; tokens by model"] = ["; ".join(told)]
    if not lines:
        return ""
    text = "\n".join(f"- {why} ({', '.join(names)})" for why, names in lines.items())
    return f"### Not measured, declined, failed\n\n{text}\n"
